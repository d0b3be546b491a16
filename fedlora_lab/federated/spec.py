"""Sets a run up: checks its arguments, adapts the model, finds the folder to resume from."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedlora_lab import methods
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check
from fedlora_lab.federated import checkpoint
from fedlora_lab.federated.amplification import Amplification, balanced_start, forecast_of
from fedlora_lab.federated.checkpoint import RunState
from fedlora_lab.federated.compute import Compute
from fedlora_lab.federated.local_training import RunContext
from fedlora_lab.lora import peft
from fedlora_lab.lora.independence import check_batch_independence
from fedlora_lab.lora.per_example import TEXTS_AT_ONCE
from fedlora_lab.methods.aggregation import Rule
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.optimizers import SGD
from fedlora_lab.methods.plan import Lora, Plan, lora_of
from fedlora_lab.methods.published import rule_name
from fedlora_lab.methods.state import KINDS, ParamKey, ServerState
from fedlora_lab.privacy.ledger import Ledger, LedgerEntry, per_client
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.privacy.privatizer import uncertified_reason
from fedlora_lab.tasks.task import Examples, Task, mask_of


@dataclass(frozen=True)
class RunSpec:
    """The checked arguments of a run, which decide all of its numbers."""

    task: Task
    method: Method
    privacy: Privacy | None
    plan: Plan
    lora: Lora
    streams: Streams

    def settings(self) -> dict[str, Any]:
        """The settings that a checkpoint and the run that resumes from it share, as JSON values."""
        names = Method.__dataclass_fields__
        # What the noise was calibrated for and how long the run is change no round that is done: a
        # longer run may go on from it with replace(target=None).
        free = ("rounds", "target")
        parts: dict[str, Any] = {
            "method": {name: rule_name(getattr(self.method, name)) for name in names},
            "plan": {name: value for name, value in asdict(self.plan).items() if name not in free},
            "lora": self.lora.settings(),
            "seed": self.streams.seed,
            "privacy": None,
            "task": self.task.fingerprint,
        }
        if self.privacy is not None:
            terms = self.privacy.settings().items()
            parts["privacy"] = {name: value for name, value in terms if name not in free}
        return json.loads(json.dumps(parts, default=str))

    def counted(self, ids: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Whom the releases of these clients count for; ``None`` is everybody.

        A client that is alone holds the data of all, as where they are pooled: in another run on
        these data, with which this one is composed, they may lie with any client.

        Guarantees: test_pooled_data_are_spent_for_every_client.
        """
        return None if ids == (0,) and len(self.task.sizes) == 1 else ids

    def entry(self, ids: tuple[int, ...] | None) -> dict[str, Any]:
        """The ledger entry of these clients in a round: number of releases, rates and noise."""
        assert self.privacy is not None
        steps = self.plan.local_steps if self.privacy.by_step else 1
        terms = {"count": steps, **self.privacy.entry(ids)}
        if len(self.task.sizes) == 1:  # an entry for everybody has one number
            terms = {k: x[0] if isinstance(x, tuple) and x else x for k, x in terms.items()}
        return terms

    def ledger_after(self, rounds: int) -> Ledger:
        """The ledger of a private run after so many rounds in which everyone takes part."""
        assert self.privacy is not None
        everyone = None if self.privacy.unit == "client" else tuple(range(len(self.task.sizes)))
        terms, whose = self.entry(everyone), self.counted(everyone)
        ledger = self.privacy.ledger(reproducible=self.streams.seed is not None)
        return ledger.after([LedgerEntry(1, whose, **terms | {"count": rounds * terms["count"]})])

    @cached_property
    def terms(self) -> dict[str, Any]:
        """The entry of all clients: a tuple holds one number for each."""
        return self.entry(None)


def make_run_spec(
    task: Task,
    method: "Method | str",
    privacy: Privacy | None,
    plan: Plan,
    lora: Any,
    seed: int | None,
) -> RunSpec:
    """Checks the parts of a run one by one and against each other.

    Args:
        task, method, privacy, plan, seed: as of `run`.
        lora: a `Lora`, a `peft.LoraConfig`, or ``None`` for ``Lora()``.

    Raises: ``ValueError`` (name, value, range).
    """
    lora, kinds = lora_of(lora), (("task", task, Task), ("plan", plan, Plan))
    for name, value, kind in (*kinds, ("privacy", privacy, Privacy | None)):
        check(isinstance(value, kind), name, value, f"a {name.capitalize()}")
    row, streams, count = methods.get(method), Streams(seed), len(task.sizes)
    for t in range(min(plan.rounds, 100)):  # a schedule's mistakes are refused here, not in round t
        row.sides_in_round(t, plan.local_steps)
    _warn_of_idle_sides(row, plan)
    for side in "AB":
        given = torch.ones(16, 16)
        found = row.filter(given, side)
        right = isinstance(found, torch.Tensor) and found.shape == given.shape
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else found
        check(right, f"filter(x, {side!r})", shape, f"a tensor of x's shape, {(16, 16)}")
    # Where a rule writes factors anew, old minus new is no gradient: coordinates change by round.
    plain = plan.server_optimizer == SGD() and plan.server_lr == 1
    writes = getattr(row.aggregate, "writes", ())
    written = [side for side in writes if side in KINDS and KINDS[side].of_the_model]
    given = f"{plan.server_optimizer} at server_lr={plan.server_lr:g}"
    words = f"sgd at server_lr=1 for {row.slug}, whose rule writes {' and '.join(written)} anew"
    check(plain or not written, "server_optimizer", given, words)
    # Called for its check: refuses a rule that gives no Preconditioner.
    uncertified_reason(row.precondition, row.clip_groups)
    alike = lora.ranks is None or len(lora.ranks) == count
    check(alike, "ranks", lora.ranks, f"one for each of {count} clients")
    if privacy is not None:
        privacy = privacy.resolve(task, plan)
        even = privacy.by_step or plan.weights == "uniform"
        words = "'uniform' in the client unit: sizes would set the sensitivity"
        check(even, "weights", plan.weights, words)
    fresh = "A" in writes  # what the rule writes is as large as ever
    expected = "1, since " + ("the method's rule writes A anew" if fresh else "balance chooses it")
    free = not fresh and row.balance is None
    check(free or lora.start_scale == 1, "start_scale", lora.start_scale, expected)
    spec = RunSpec(task, row, privacy, plan, lora, streams)
    if row.balance is None:
        return spec
    # The one place where it is settled: loop, measures, checkpoints and saved adapters, a client
    # and the server on Flower read the adapter of the specification.
    scale = balanced_start(forecast_of(spec), row.balance)
    return replace(spec, lora=replace(lora, start_scale=scale))


def _warn_of_idle_sides(row: Method, plan: Plan) -> None:
    """Warns where a factor's turn comes at a local step that no round reaches.

    Guarantees: test_run.py::test_a_factor_whose_turn_never_comes_is_told.
    """
    rounds, steps = range(min(plan.rounds, 10)), plan.local_steps
    moved = {side for t in rounds for side in row.sides_in_round(t, steps)}
    ahead = {row.sides_at_step(t, s) for t in rounds for s in range(steps, steps + 10)}
    if idle := "".join(sorted(set("".join(ahead)) - moved)):
        text = f"local_steps={plan.local_steps}: {row.slug} never moves {idle}"
        warnings.warn(f"{text}, whose turn comes at a later step of the round", stacklevel=3)


def amplification(
    task: Task, method: Method | str, privacy: Privacy | None, plan: Plan, lora: Any = None
) -> Amplification:
    """Computes the amplification number: the energy of the noise in A after a run over A's own.

    Nothing is trained and no value of any example is read. Noise on B multiplies A and the noise in
    A alike: at 1 half of the noise in the product is noise times noise. It is 0 without noise and
    where A rests.

    Args: as of `run`, with the noise multiplier set.
    Guarantees: test_amplification.py::test_amplification_is_what_a_run_measures.
    Source: derived, see `theory.accumulated_noise_terms`.

    >>> import fedlora_lab as fl
    >>> task, plan = fl.tasks.digits(clients=20), fl.Plan(rounds=40)
    >>> privacy = fl.Privacy(unit="client", noise_multiplier=1.0, delta=1e-3)
    >>> [round(fl.amplification(task, x, privacy, plan).mean, 2) for x in ("fedlora", "rolora")]
    [19.2, 9.6]
    """
    return forecast_of(make_run_spec(task, method, privacy, plan, lora, 0)).over_run()


def prepare_run(
    spec: RunSpec, data: Sequence[Examples] | Mapping[int, Examples], how: Compute | None = None
) -> RunContext:
    """Adapts the model, probes it, and collects what is fixed over all rounds.

    Args:
        spec: checked.
        data: clients' examples by their numbers: everyone's, one client's, or none.
        how: switches of speed and memory.

    Raises: ``ValueError`` for a model in which examples touch each other, or that PEFT cannot
        adapt, and where a switch does not suit the model.
    """
    task, how = spec.task, how or Compute()
    adapted = peft.adapt(task.model, task.targets, task.head, spec.lora, how.device, how.products)
    widest = max(max(weight.shape) for weight in adapted.weights.values())
    room = f"at most {16 * widest}, 16 times the widest adapted layer: no more can be learned"
    check(spec.lora.rank <= 16 * widest, "rank", spec.lora.rank, room)
    why = "float32 or float64: in half precision a sum may move by more than the clip norm"
    for key, tensor in adapted.initial.items():
        check(tensor.dtype in (torch.float32, torch.float64), f"dtype of {key}", tensor.dtype, why)
    clip, sigma = math.inf, (0.0,) * len(task.sizes)  # of a step, where steps are not released
    if spec.privacy is not None and spec.privacy.by_step:
        clip = spec.privacy.clip_norm
        sigma = per_client(spec.privacy.noise_multiplier or 0.0, len(task.sizes))
    context = RunContext(
        task, adapted, spec.method, spec.plan, spec.streams, clip, sigma, data, lora=spec.lora,
        chunk=how.chunk_examples, products=how.products, privacy=spec.privacy,
        uncertified=uncertified_reason(spec.method.precondition, spec.method.clip_groups),
    )  # fmt: skip
    if context.by_person and data:
        context = replace(context, persons=dict(enumerate(task.local_persons)))
    # Probed with as many examples as pass the model together, half as many again as expected.
    expected = sum(n * q for n, q in zip(task.sizes, context.sample_rate, strict=True))
    texts = adapted.device.type == "cpu" and mask_of(task.test[0]) is not None
    most = math.ceil(min(1.5 * expected, context.chunk or (TEXTS_AT_ONCE if texts else math.inf)))
    keys = _start(spec, adapted) if spec.method.penalty is not None else ()  # what may move
    check_batch_independence(task, adapted, how.products, spec.method, spec.plan, most, keys)
    return context


def _start(spec: RunSpec, adapted: peft.AdaptedModel) -> dict[ParamKey, Tensor]:
    parts = spec.method.start, spec.lora.start_scale
    return peft.initial_values(adapted, spec.streams, *parts)


def initial_server(spec: RunSpec, context: RunContext) -> ServerState:
    """The server's tensors before the first round, with what the method's rule keeps there."""
    start = _start(spec, context.adapted)
    server = ServerState(start, planned=spec.plan.rounds, streams=spec.streams)
    rule = spec.method.aggregate
    return rule.initial_state(server) if isinstance(rule, Rule) else server


def checkpoint_folder(
    save: "str | Path | None", resume: "str | Path | None", spec: RunSpec
) -> Path | None:
    """Chooses the folder for checkpoints, or ``None``; refuses one that holds another run.

    Args:
        save, resume: as ``checkpoint`` and ``resume`` of `run`.
        spec: of the run.

    A release (no seed) goes on in its own folder only: that folder's ledger would know nothing of a
    branch elsewhere, nor the branch's ledger how this run went on.
    """
    for name, value in (("checkpoint", save), ("resume", resume)):
        check(isinstance(value, str | Path | None), name, value, "a folder's path or None")
        check(not value or not Path(value).is_file(), name, value, "a folder, not a file")
    if not save:
        return Path(resume) if resume else None
    save = Path(save)
    same = bool(resume) and Path(resume or "").resolve() == save.resolve()
    branch = bool(resume) and not same and spec.privacy is not None and spec.streams.seed is None
    words = f"{str(resume)!r}: a release (seed=None) goes on in its own folder"
    check(not branch, "checkpoint", str(save), words)
    free = same or not (any(checkpoint.rounds_in(save)) or (save / checkpoint.LEDGER).exists())
    words = "a folder without rounds of another run; resume= goes on from them"
    check(free, "checkpoint", str(save), words)
    return save


def restore(
    folder: Path, spec: RunSpec, fresh: RunState, opened: Ledger | None
) -> tuple[RunState, Ledger | None]:
    """Reads the state and the ledger to resume with; refuses those of another run.

    Args:
        folder, spec: the folder, and the run that goes on from it.
        fresh, opened: state and ledger of that run if it began anew.

    Where no checkpoint is whole and a ledger is there it begins anew: what was spent stays spent.

    Raises: ``ValueError`` where the folder is of another run, or its ledger not the one that this
        run would have written.
    Guarantees: test_attack_spending.py::test_a_lost_checkpoint_forgets_no_release.
    """
    found, book = checkpoint.read_latest_or_none(folder), folder / checkpoint.LEDGER
    if found is None and opened is not None and book.exists():
        text = "no checkpoint in it is whole; the run begins anew"
        text = f"resume={str(folder)!r}: {text}, and what stands in its ledger stays spent"
        warnings.warn(text, stacklevel=2)
        return fresh, _stored_ledger(book, spec, fresh, opened)
    check(found is not None, "resume", str(folder), "a folder with a whole checkpoint")
    assert found is not None
    state, theirs = found
    for name, ours in checkpoint.settings_with_keyed_task(folder, spec.settings()).items():
        check(theirs.get(name) == ours, "resume", str(folder), f"the same {name} as in this run")
    check(len(state.seen) == len(fresh.seen), "resume", str(folder), f"{len(fresh.seen)} clients")
    state = checkpoint.validate_and_reorder(state, fresh.server, spec.plan.server_optimizer)
    return state, _stored_ledger(book, spec, state, opened)


def _stored_ledger(
    book: Path, spec: RunSpec, state: RunState, opened: Ledger | None
) -> Ledger | None:
    """Loads the folder's ledger; refuses entries that this run would not have written."""
    if opened is None or not (state.round or book.exists()):
        return opened
    # Also before the first round is done: what was spent in one that was cut short stays spent.
    check(book.exists(), "ledger", str(book), "the ledger of the rounds done")
    found = Ledger.load(book)
    check(found.terms == opened.terms, "ledger", found.terms, f"{opened.terms}, those of this run")
    same = found.uncertified == opened.uncertified
    check(same, "ledger", found.uncertified, "what this run says")
    # With other noise or rates than this run's the ledger would state another run's epsilon.
    for entry in found.releases:
        known = all(k < len(state.seen) for k in entry.clients or ())
        check(known, "ledger", entry, "clients of this run")
        terms = spec.entry(entry.clients)
        ours = LedgerEntry(entry.round, spec.counted(entry.clients), **terms)
        check(entry == ours, "ledger", entry, f"{ours}, as this run writes it")
    written, done = {entry.round for entry in found.releases}, range(1, state.round + 1)
    check(written >= set(done), "ledger", sorted(written), f"all {state.round} rounds done")
    return found
