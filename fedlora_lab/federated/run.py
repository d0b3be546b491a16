"""The federated loop: an iterator of rounds, and what each round's record may show.

Stop it by ``break``. Progress bars, widgets, Flower and audits consume it, or drive a `Run`
by its public steps: `begin_round`, `start_clients`, `finish_round`, `save_state`, `record`.
"""

import inspect
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

import torch
from torch import Tensor

from fedlora_lab import measures
from fedlora_lab._utils.files import lock_folder
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.federated import checkpoint as checkpoint_
from fedlora_lab.federated import local_training, uploads
from fedlora_lab.federated.amplification import NoiseForecast
from fedlora_lab.federated.checkpoint import RunState
from fedlora_lab.federated.compute import Compute
from fedlora_lab.federated.local_training import ClientBatch, RunContext
from fedlora_lab.federated.records import NOT_SEEN, PRIVATE_TEST, Round, Tick
from fedlora_lab.federated.spec import (
    RunSpec,
    checkpoint_folder,
    initial_server,
    make_run_spec,
    prepare_run,
    restore,
)
from fedlora_lab.federated.uploads import Received
from fedlora_lab.lora import peft, per_example
from fedlora_lab.methods import aggregation
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.optimizers import OptimizerState, server_step
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.quantization import Traffic, full
from fedlora_lab.methods.state import ParamKey, ServerState
from fedlora_lab.privacy.ledger import Ledger, LedgerEntry
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.privacy.privatizer import ClipCounts, injected_bug_reason
from fedlora_lab.tasks.task import Task

NOISE_MEASURES = ("noise_A", "noise_B", "noise_BA", "snr")


class RunOptions(TypedDict, total=False):
    """The keywords of `run`, which describes them."""

    lora: Any
    seed: int | None
    checkpoint: str | Path | None
    resume: str | Path | None
    chunk_clients: int | None
    evaluate_every: int
    stop_at: float | None
    bug: Callable[..., Any] | None
    device: str | torch.device | None
    products: str
    chunk_examples: int | None


def run(
    task: Task,
    method: "Method | str",
    privacy: Privacy | None,
    plan: Plan,
    **options: Unpack[RunOptions],
) -> "Generator[Round, None, None]":
    """Trains federated low-rank adapters; yields a `Round` before training and after every round.

    Args:
        task: model, clients' data and metric.
        method: a row of the table, or its slug.
        privacy: a plan with its noise set (see `Privacy.calibrate`); ``None``: without privacy.
        plan: rounds, local steps, batch, learning rates.
        lora: rank and alpha, or a `peft.LoraConfig`; default ``Lora()``.
        seed: every random number follows from it, and the ledger says "not for release"; ``None``
            takes the operating system's entropy, and the ledger says "release".
        checkpoint: folder for the state after every round, and for the ledger, which is written
            before each round.
        resume: folder of checkpoints to go on from: the rounds that follow have the bits they would
            have had. Without a seed they are new releases, the ledger counts on, and ``checkpoint``
            may be no other folder.
        chunk_examples, chunk_clients: at most so many in memory at once; results differ by
            rounding.
        device, products: where and in which precision the work is done, see `Compute`.
        evaluate_every: score before training, after every so many rounds and the last; NaN between.
        stop_at: an epsilon; the run ends before the round that would spend more, if all took part.
        bug: see `Run.open`; for tests and lesson 12 only.

    Raises: ``ValueError`` (name, value, range) at the call, before anything is trained.
    Guarantees: every release stands in the ledger before its value is used; method hooks see noised
        values only; resume equals uninterrupted (tests/methods/test_contract.py).

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> plan = fl.Plan(rounds=2, local_steps=2)
    >>> [record.index for record in fl.run(task, "rolora", None, plan)]
    [0, 1, 2]
    """
    events = ticks(task, method, privacy, plan, **options)
    return (event for event in events if isinstance(event, Round))


def ticks(
    task: Task,
    method: "Method | str",
    privacy: Privacy | None,
    plan: Plan,
    **options: Unpack[RunOptions],
) -> "Generator[Round | Tick, None, None]":
    """Trains as `run` does and also yields a `Tick` after every local step, where one may stop.

    Args:
        task, method, privacy, plan, options: as of `run`.
    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> plan = fl.Plan(rounds=1, local_steps=2)
    >>> [type(event).__name__ for event in fl.ticks(task, "rolora", None, plan)]
    ['Round', 'Tick', 'Tick', 'Round']
    """
    return Run.open(task, method, privacy, plan, **options).events()


class Diverged(ValueError):
    """Raised where a server rule decomposes matrices that are not finite."""


@dataclass(frozen=True)
class OpenRound:
    """Inputs of a round, fixed when it begins."""

    started_at: float
    t: int  # its number, from 0
    ids: tuple[int, ...]  # of the clients that take part
    before: ServerState
    sent: ServerState  # what goes down of it


@dataclass(frozen=True)
class RoundOutcome:
    """Results of a round, from which its record is made."""

    started_at: float
    before: ServerState
    sent: ServerState  # what the clients received of it
    received: Received  # what the server had in hand at the end
    steps: ClipCounts = field(default_factory=ClipCounts)  # of the local steps
    traffic: Traffic = field(default_factory=Traffic)
    participants: int = 0
    kept: bool = False  # something that moved stayed with its client
    metrics: Mapping[str, float] | None = None  # reported by clients, of their own models
    shown: bool = True  # this process knows the counts of clips and the noise, as on one machine
    aggregated: ServerState | None = None  # by the method's rule, before the server's optimiser


@dataclass
class Run:
    """One run: what is fixed, and the state that a round moves on."""

    spec: RunSpec
    context: RunContext
    ledger: Ledger | None
    state: RunState
    folder: Path | None
    stop_at: float | None = None
    resumed: bool = False
    chunk_clients: int | None = None
    evaluate_every: int = 1
    contents: tuple[list[int], bytes | None] = ([], None)  # rounds and ledger: see `lock`

    @classmethod
    def open(
        cls,
        task: Task,
        method: "Method | str",
        privacy: Privacy | None,
        plan: Plan,
        *,
        lora: Any = None,
        seed: int | None = 0,
        checkpoint: "str | Path | None" = None,
        resume: "str | Path | None" = None,
        chunk_clients: int | None = None,
        evaluate_every: int = 1,
        stop_at: float | None = None,
        bug: "Callable[..., Any] | None" = None,
        **compute: Any,
    ) -> Self:
        """Validates everything and prepares the run; nothing is trained yet.

        Args:
            task, method, privacy, plan: as of `run`, and so all keywords but ``bug``.
            bug: a function that clips in the place of `privatizer.clip_sum`, such as one of
                `fl.review.mistakes.BUGS`. The ledger then certifies no epsilon, also on disk.
        """
        known = "one of fl.review.mistakes.BUGS (a function), or None"
        check(bug is None or callable(bug), "bug", bug, known)
        options = RunOptions.__annotations__
        for name in compute.keys() - options.keys():
            inside = name in {part.name for part in fields(Lora)}
            check(not inside, name, compute[name], f"lora=fl.Lora({name}={compute[name]!r})")
            check(False, name, compute[name], f"an option of run, one of {', '.join(options)}")
        how = Compute(**compute)
        spec = make_run_spec(task, method, privacy, plan, lora, seed)
        if chunk_clients is not None:
            check_whole("chunk_clients", chunk_clients, 1)
        check_whole("evaluate_every", evaluate_every, 1)
        folder = checkpoint_folder(checkpoint, resume, spec)
        context = prepare_run(spec, task.clients, how)
        context = context if bug is None else replace(context, clip=bug)
        self = cls.from_spec(spec, context, folder, resume, stop_at)
        self.chunk_clients, self.evaluate_every = chunk_clients, evaluate_every
        return self

    @classmethod
    def from_spec(
        cls,
        spec: RunSpec,
        context: RunContext,
        folder: Path | None = None,
        resume: "str | Path | None" = None,
        stop_at: float | None = None,
    ) -> Self:
        """Opens the run of a checked specification whose model is prepared, here or on a server.

        Args:
            spec, context: checked, and prepared by `prepare_run`.
            folder: of checkpoints and the ledger; ``None``: nothing is stored.
            resume, stop_at: as `run`.
        """
        if stop_at is not None:
            private, why = spec.privacy is not None, "None without privacy: no epsilon is spent"
            check(private, "stop_at", stop_at, why)
            check_number("stop_at", stop_at, 0, open_low=True)
        ledger = None
        if spec.privacy is not None:
            # Whoever knows the seed can draw the noise again and subtract it.
            ledger = spec.privacy.ledger(reproducible=spec.streams.seed is not None)
            # Before the first release: no ledger on disk ever states an epsilon that does not hold.
            reasons = (injected_bug_reason(context.clip), context.uncertified)
            ledger.uncertified = "; ".join(reason for reason in reasons if reason) or None
            _ = spec.terms  # settled now, so that a round reads no configuration
        self = cls(spec, context, ledger, _fresh(spec, context), folder, stop_at)
        if folder is not None:
            # Looked at before it is read: `lock` finds whoever writes in between. A new run was
            # promised a folder without rounds but the start, and without a ledger.
            same = resume is not None and folder.resolve() == Path(resume).resolve()
            rounds, book = _contents(folder)
            self.contents = (rounds, book) if same else ([t for t in rounds if not t], None)
        if resume is not None:
            fresh = self.state
            self.state, self.ledger = restore(Path(resume), spec, fresh, ledger)
            self.resumed = self.state is not fresh
            self._warn_of_overspending()
        return self

    def reset(self) -> None:
        """Resets the state to round 0; the ledger keeps what was spent."""
        self.state, self.resumed = _fresh(self.spec, self.context), False
        self._warn_of_overspending()

    def _warn_of_overspending(self) -> None:
        """Warns where rounds that were released twice carry the run past its calibrated epsilon."""
        target = None if self.spec.privacy is None else self.spec.privacy.target
        stops = bool(target and self.stop_at and self.stop_at <= target * (1 + 1e-9))
        if not target or stops or self.ledger is None or self.ledger.uncertified is not None:
            return
        spent = self._spent_after(self.context.plan.rounds - self.state.round)
        if spent > target * (1 + 1e-6):
            why = f"rounds were released twice, stop_at={target:g} ends the run in time"
            text = f"epsilon={spent:.4g} after the last round: expected at most target={target:g}"
            warnings.warn(f"{text}; {why}", stacklevel=2)

    def _spent_after(self, rounds: int) -> float:
        """Epsilon after so many further rounds in which everyone takes part."""
        return self._ledger_after(rounds).epsilon_or_inf()

    def _ledger_after(self, rounds: int) -> Ledger:
        """The ledger after so many more rounds in which everyone takes part."""
        ledger, now = self.ledger, self.state.round
        assert ledger is not None
        everyone = None if ledger.unit == "client" else tuple(range(len(self.spec.task.sizes)))
        # With a seed a repeated round gives the same values: it is no second release.
        known = {entry.round for entry in ledger.releases} if ledger.reproducible else set()
        ahead = [t for t in range(now + 1, now + 1 + rounds) if t not in known]
        whose, terms = self.spec.counted(everyone), self.spec.entry(everyone)
        return ledger.after(LedgerEntry(t, whose, **terms) for t in ahead)

    @property
    def ended(self) -> bool:
        """Whether no round is left, or the next could spend more than ``stop_at``.

        Counted as if everyone took part in it.
        """
        if self.state.round >= self.context.plan.rounds:
            return True
        return self.stop_at is not None and self._spent_after(1) > self.stop_at

    def events(self) -> "Generator[Round | Tick, None, None]":
        """The run: a record of the start unless resumed, then each round's ticks and record."""
        with self.lock():
            if not self.resumed:
                yield self.record_start(self.initial_outcome())
            while not self.ended:
                outcome = yield from self._round()
                # Before the record is shown: whoever stops there goes on after this round.
                self.save_state()
                yield self.record(outcome)

    @contextmanager
    def lock(self) -> "Iterator[None]":
        """Locks the folder; refuses if another run wrote to it since this run last read it.

        Compared are its rounds and its ledger as this run last read or wrote them.
        Guarantees:
            test_attack_spending.py::test_a_run_that_was_opened_before_another_wrote_is_refused.
        """
        with lock_folder(self.folder):
            same = self.folder is None or _contents(self.folder) == self.contents
            expected = "a folder in which no other run has written meanwhile"
            check(same, "checkpoint", str(self.folder), expected)
            yield

    def initial_outcome(self) -> RoundOutcome:
        """The outcome before the first round."""
        server, privacy = self.state.server, self.spec.privacy
        kept = bool(uploads.round_keys(self.context, server.tensors, 0).kept)
        # Where later rounds measure no deviation, neither does this: 0 would look like a measure.
        alone = privacy is None or privacy.by_step or privacy.trust == "local"
        received = Received({}, torch.zeros(0), {}, server, alone)
        return RoundOutcome(time.perf_counter(), server, server, received, kept=kept)

    def record_start(self, outcome: RoundOutcome) -> Round:
        """Stores the initial state, deletes the folder's other rounds and makes the first record.

        Args: ``outcome``: as `initial_outcome` gives it.
        """
        self.save_state()
        # Rounds of an earlier attempt: a run that goes on from them would not be this one.
        if self.folder is not None:
            for round in set(self.contents[0]) - {self.state.round}:
                checkpoint_.remove(self.folder, round)
        return self.record(outcome)

    def _round(self) -> "Generator[Tick, None, RoundOutcome]":
        """Trains one round, a tick after every local step."""
        context, opened, groups = self.context, self.begin_round(), []
        size = self.chunk_clients or max(len(opened.ids), 1)
        for i in range(0, len(opened.ids), size):
            clients = self.start_clients(opened.ids[i : i + size], opened.sent)
            for step in range(context.plan.local_steps):
                local_training.local_step(context, clients, opened.t, step)
                yield Tick(opened.t + 1, step + 1)
            groups.append(clients)
        keys = uploads.round_keys(context, opened.before.tensors, opened.t)
        everyone = uploads.stack_clients(context, groups, keys.moved, opened.sent)
        arrived = self.arrivals(opened.t, opened.ids)
        sent = keys.sent, opened.sent
        received = uploads.release_round(context, everyone, arrived, *sent, opened.t)
        there = tuple(opened.ids[i] for i in arrived.tolist())
        return self.finish_round(opened, received, everyone, keys.kept, there)

    def begin_round(self) -> OpenRound:
        """Draws who takes part; the round stands in the ledger when this returns."""
        started_at, before, t = time.perf_counter(), self.state.server, self.state.round
        ids, sent = self.participants(t), uploads.broadcast(self.context, before)
        # Nothing above reads private values. All that follows does, so the ledger comes first.
        self.charge_ledger(t, ids)
        return OpenRound(started_at, t, ids, before, sent)

    def participants(self, t: int) -> tuple[int, ...]:
        """Draws who takes part: each client on its own with the plan's probability."""
        count, share = len(self.context.task.sizes), self.context.plan.participation
        if share >= 1:
            return tuple(range(count))
        # Each client on its own: accountants do not cover the draw of a fixed number of clients.
        uniform = self.context.streams.uniform((count,), "participation", t)
        return tuple((uniform < share).nonzero().squeeze(1).tolist())

    def charge_ledger(self, t: int, ids: tuple[int, ...]) -> None:
        """Writes the round's releases into the ledger, on disk too, before any of them exists."""
        if self.ledger is None:
            return
        terms = dict(self.spec.terms)
        for name in ("sample_rate", "noise_multiplier"):
            if isinstance(terms.get(name), tuple):  # a number for each client
                terms[name] = tuple(terms[name][k] for k in ids)
        self._write_entry(t, self.spec.counted(ids), terms)

    def _write_entry(self, t: int, ids: tuple[int, ...] | None, terms: dict[str, Any]) -> None:
        """Writes an entry into the ledger, on disk too."""
        assert self.ledger is not None
        self.ledger.record(t + 1, ids, **terms, repeats=self.ledger.reproducible)
        # A run that is cut short in this round has released what it sent: the disk comes first.
        if self.folder is not None:
            self.ledger.save(self.folder / checkpoint_.LEDGER)
            self.contents = self.contents[0], _contents(self.folder)[1]

    def start_clients(self, ids: tuple[int, ...], sent: ServerState) -> ClientBatch:
        """Prepares clients for a round, from what they received and their own tensors."""
        personal = {key: own[list(ids)] for key, own in self.state.personal.items()}
        return uploads.begin_clients(self.context, ids, sent, personal)

    def arrivals(self, t: int, ids: tuple[int, ...]) -> Tensor:
        """Draws whose upload arrives, as positions in ``ids``."""
        if not self.context.plan.dropout:
            return torch.arange(len(ids))
        # A number for each client, present or not: whose upload is lost depends on nobody else.
        uniform = self.context.streams.uniform((len(self.context.task.sizes),), "dropout", t)
        return (uniform[list(ids)] >= self.context.plan.dropout).nonzero().squeeze(1)

    def finish_round(
        self,
        opened: OpenRound,
        received: Received,
        everyone: ClientBatch,
        kept: tuple[ParamKey, ...],
        there: tuple[int, ...],
    ) -> RoundOutcome:
        """Applies the server's rule to what it has in hand, and moves the state on.

        Args:
            opened, received: from `begin_round`, and `uploads.release_round` or `combine`.
            everyone: the clients that took part; their tensors ``kept`` stay theirs.
            there: those whose upload was not lost.

        Raises: `Diverged` where the rule decomposes matrices that are not finite.
        """
        before, method, plan = opened.before, self.context.method, self.context.plan
        aggregated, after, moments = before, before, self.state.optimizer
        if received.uploads:
            # Everything from here on is a function of released values and costs no privacy.
            parts = before, received.sent, received.uploads, received.weights
            try:
                aggregated = method.aggregate(*parts)
            except torch.linalg.LinAlgError as error:
                part = f"{method.slug} cannot do the server's part of round {opened.t + 1}"
                text = f"lr={plan.lr}: expected a smaller one; {part}"
                raise Diverged(f"{text} ({' '.join(str(error).split())})") from error
            right = isinstance(aggregated, ServerState)
            check(right, "aggregate(...)", type(aggregated).__name__, "the server's ServerState")
            # What was not sent has no gradient: neither it nor its moments move.
            new = {key: aggregated.tensors[key] for key in received.uploads}
            rule, rate = plan.server_optimizer, plan.server_lr
            stepped, moments = server_step(rule, moments, before.tensors, new, rate)
            after = aggregated.replace_tensors(stepped)
        keys, ids = uploads.round_keys(self.context, before.tensors, opened.t), opened.ids
        clients = ids, there, keys.sent, self.spec.privacy
        load = uploads.count_traffic(method, self.spec.lora, self.state, *clients)
        self.advance(everyone, kept, after, len(received.weights), moments)
        return RoundOutcome(
            opened.started_at,
            before,
            opened.sent,
            received,
            steps=everyone.clipped,
            traffic=load,
            participants=len(ids),
            kept=bool(keys.kept),
            aggregated=aggregated,
        )

    def advance(
        self,
        everyone: ClientBatch,
        kept: tuple[ParamKey, ...],
        after: ServerState,
        rows: int,
        moments: OptimizerState,
    ) -> None:
        """Moves the state on by a round.

        Args:
            everyone, kept: the clients, and which of their tensors stay theirs.
            after, moments: the server's tensors, and its optimiser's memory.
            rows: uploads in hand: so many times the rank is what the round adds to a residual.

        Guarantees: test_checkpoint.py::test_resume_equals_uninterrupted.
        """
        state, before, there = self.state, self.state.server.tensors, set(everyone.ids)
        index = torch.tensor(everyone.ids, dtype=torch.int64)
        for key in kept:
            everyones = before[key].expand(len(state.seen), *before[key].shape)
            mine = state.personal.get(key, everyones)
            state.personal[key] = mine.index_copy(0, index, everyone.params[key])
        ranks = {layer: rows * len(a) for layer, a in after.side("A").items()}
        changed = [key for key, x in after.tensors.items() if x is not before[key]]
        state.changed.append({str(k): ranks[k.layer] if k.side == "W" else 0 for k in changed})
        state.seen = [state.round if k in there else last for k, last in enumerate(state.seen)]
        # In memory as a loaded state: transposed tensors multiply to other last bits on some CPUs.
        tensors = {key: x.contiguous() for key, x in after.tensors.items()}
        state.round += 1
        state.server = replace(after, tensors=tensors, round=state.round)
        state.optimizer = moments

    def save_state(self) -> None:
        """Stores the state in the run's folder, if it has one."""
        if self.folder is not None:
            checkpoint_.store(self.folder, self.state, self.spec.settings())

    def record(self, outcome: RoundOutcome) -> Round:
        """Makes the record of the round that ended in the present state.

        Guarantees: test_attack_evaluation.py::test_records_do_not_tell_who_took_part,
            ::test_without_a_clip_norm_a_release_does_not_depend_on_the_data.
        """
        spec, state, task, got = self.spec, self.state, self.spec.task, outcome.received
        released = spec.privacy is not None and spec.streams.seed is None
        # Clips, noise and clients' own models read private values: hidden from a release's record.
        shown = outcome.shown and not released
        counted = not self._counts_on_secret_participation()
        rows, deviation = self._layers(outcome, shown)
        own, metrics = outcome.steps if self.context.by_step else got.clipped, outcome.metrics
        if state.round % self.evaluate_every and not self.ended:
            metrics = dict.fromkeys(task.metrics, NOT_SEEN)
        plain, rule = state.server.without_core(), spec.plan.optimizer
        a, b = plain.side("A"), plain.side("B")
        noisy = {name for _, name, x in rows if x != x and name in NOISE_MEASURES}
        unmeasured = dict.fromkeys(noisy if rule.nonlinear else (), f"{rule}: {rule.nonlinear}")
        if spec.privacy is not None and not task.public_test:
            unmeasured |= dict.fromkeys(task.metrics, PRIVATE_TEST)
        rows += self._forecast.rows(state.round)
        if (unknown := self._forecast.unknown) is not None:
            unmeasured["amplification"] = unknown
        return Round(
            index=state.round,
            method=spec.method.slug,
            task=task.name,
            seed=spec.streams.seed,
            metrics=metrics or self._metrics(shown),
            deviation=deviation,
            adapter={layer: (a[layer], b[layer]) for layer in state.server.layers},
            head=state.server.side("head"),
            uploads=outcome.traffic if counted else Traffic(*[NOT_SEEN] * len(Traffic._fields)),
            participants=outcome.participants if counted else NOT_SEEN,
            clipped=float(own.scaled) / max(own.rows, 1) if shown else NOT_SEEN,
            nonfinite=float((outcome.steps + got.clipped).nonfinite) if shown else NOT_SEEN,
            # One example that raises may make a round a hundred times as long: no noise hides it.
            seconds=NOT_SEEN if released else time.perf_counter() - outcome.started_at,
            ledger=None if self.ledger is None else self.ledger.snapshot(),
            rows=tuple(rows),
            unmeasured=dict(sorted(unmeasured.items())),
            source=(task, spec.lora, state.server),
        )

    @cached_property
    def _forecast(self) -> NoiseForecast:
        """The noise that A takes up, known before any round from public numbers."""
        return NoiseForecast(self.spec, self.context.adapted.weights)

    def _counts_on_secret_participation(self) -> bool:
        """Whether an epsilon of this run counts on nobody knowing who took part in a round."""
        privacy, release = self.spec.privacy, self.spec.streams.seed is None
        central = not self.context.by_step and privacy is not None and privacy.trust == "central"
        return central and release and self.spec.plan.participation < 1

    def _layers(
        self, outcome: RoundOutcome, shown: bool
    ) -> tuple[list[tuple[str, str, float]], float]:
        """Measures of each layer, and the deviation of all where clients' products may be seen."""
        got, before, after = outcome.received, outcome.before, self.state.server
        clients, mean = None, before
        if got.uploads:
            mean = aggregation.mean(before, got.sent, got.uploads, got.weights)
        # Before training the mean is the server's product; later a round without uploads has none.
        if got.per_client and (got.uploads or not after.round) and not outcome.kept:
            # What the quantised broadcast took is given back: it is no error of the mean.
            clients = {
                key: aggregation.client_values(before, got.sent, got.uploads, key)
                + (x - outcome.sent.tensors[key])
                for key, x in before.tensors.items()
                if key.kind.of_the_product
            }
        noise, ruled = got.noise if shown else None, outcome.aggregated or before
        exchange = measures.Exchange(before, mean, after, clients, got.weights, noise, ruled)
        return measures.layer_rows(exchange, self.spec.lora.scaling)

    def _metrics(self, shown: bool) -> dict[str, float]:
        """The task's metrics of the server's model, or the mean over the models that clients keep.

        NaN in a private run, with a seed or without, where the test examples are not public.

        Guarantees:
            test_attack_evaluation.py::test_private_test_examples_are_never_judged_under_privacy.
        """
        context, task, server = self.context, self.context.task, self.state.server
        personal = self.state.personal
        # What clients keep in the client unit carries no noise.
        hidden = bool(personal) and not context.by_step and not shown
        hidden = hidden or (self.spec.privacy is not None and not task.public_test)

        def evaluate(values: Mapping[ParamKey, Tensor]) -> dict[str, float]:
            if hidden:
                return dict.fromkeys(task.metrics, NOT_SEEN)
            with peft.matmuls(context.products):
                return per_example.evaluate(task, context.adapted, values, task.test, context.chunk)

        if personal:
            own = [{key: x[k] for key, x in personal.items()} for k in range(len(task.sizes))]
            each = [evaluate({**server.tensors, **mine}) for mine in own]
            return {name: sum(scores[name] for scores in each) / len(each) for name in task.metrics}
        found = evaluate(server.tensors)
        if context.method.broadcast != full:
            received = evaluate(uploads.broadcast(context, server).tensors)
            found |= {f"{name}_received": value for name, value in received.items()}
        return found


def _fresh(spec: RunSpec, context: RunContext) -> RunState:
    """The state before the first round."""
    return RunState(0, initial_server(spec, context), {}, [-1] * len(spec.task.sizes))


def _contents(folder: Path) -> tuple[list[int], bytes | None]:
    """The rounds in a folder, and the bytes of its ledger."""
    path = folder / checkpoint_.LEDGER
    return checkpoint_.rounds_in(folder), path.read_bytes() if path.exists() else None


def _named_options() -> inspect.Signature:
    """Signature of `run` with each of its options by name, for help and completion."""
    own = {**inspect.signature(Run.open).parameters, **inspect.signature(Compute).parameters}
    options = [
        own[name].replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name in RunOptions.__annotations__
    ]
    first = list(inspect.signature(run).parameters.values())[:-1]
    return inspect.Signature([*first, *options])


# One signature for both: a second call would find the first one's options among `run`'s own.
run.__signature__ = ticks.__signature__ = _named_options()  # type: ignore[attr-defined]
