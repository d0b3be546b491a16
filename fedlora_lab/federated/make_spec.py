"""Checks what is asked of a run, and predicts from it how much noise A takes up."""

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedlora_lab import methods
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check
from fedlora_lab.federated.amplification import Amplification, balanced_start, forecast_of
from fedlora_lab.federated.spec import RunSpec
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.optimizers import SGD
from fedlora_lab.methods.plan import Lora, Plan, lora_of
from fedlora_lab.methods.state import KINDS
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    from peft import LoraConfig


def make_run_spec(
    task: Task,
    method: Method | str,
    privacy: Privacy | None,
    plan: Plan,
    lora: "Lora | LoraConfig | None",
    seed: int | None,
) -> RunSpec:
    """Checks the parts of a run one by one and against each other.

    Args:
        task, method, privacy, plan, seed: as of `run`.
        lora: a `Lora`, a `peft.LoraConfig`, or ``None`` for ``Lora()``.

    Raises: ``ValueError`` (name, value, range).
    """
    lora = lora_of(lora)
    check(isinstance(task, Task), "task", task, "a Task")
    check(isinstance(plan, Plan), "plan", plan, "a Plan")
    check(isinstance(privacy, Privacy | None), "privacy", privacy, "a Privacy")
    row = methods.get(method)
    streams = Streams(seed)
    _check_schedule(row, plan)
    _check_filter(row)
    _check_server_rule(row, plan, lora)
    count = len(task.sizes)
    one_each = lora.ranks is None or len(lora.ranks) == count
    check(one_each, "ranks", lora.ranks, f"one for each of {count} clients")
    if privacy is not None:
        privacy = privacy.resolve(task, plan)
        # A client of many examples would move the mean by more than C over the number of clients.
        even = privacy.by_step or plan.weights == "uniform"
        expected = "'uniform' in the client unit: sizes would set the sensitivity"
        check(even, "weights", plan.weights, expected)
    spec = RunSpec(task, row, privacy, plan, lora, streams)
    # Read for its check: refuses a rule that gives no Preconditioner.
    _ = spec.uncertified
    if row.balance is None:
        return spec
    # The one place where it is settled: loop, measures, checkpoints and saved adapters, a client
    # and the server on Flower read the adapter of the specification.
    scale = balanced_start(forecast_of(spec), row.balance)
    return replace(spec, lora=replace(lora, start_scale=scale))


def _check_schedule(row: Method, plan: Plan) -> None:
    """Refuses words that are no schedule; warns where a factor's turn never comes.

    Guarantees: test_run.py::test_a_factor_whose_turn_never_comes_is_told.
    """
    steps = plan.local_steps
    # A schedule's mistakes are refused here, not in round t.
    for t in range(min(plan.rounds, 100)):
        row.sides_in_round(t, steps)
    rounds = range(min(plan.rounds, 10))
    moved = {side for t in rounds for side in row.sides_in_round(t, steps)}
    ahead = {row.sides_at_step(t, s) for t in rounds for s in range(steps, steps + 10)}
    if idle := "".join(sorted(set("".join(ahead)) - moved)):
        text = f"local_steps={steps}: {row.slug} never moves {idle}"
        warnings.warn(f"{text}, whose turn comes at a later step of the round", stacklevel=4)


def _check_filter(row: Method) -> None:
    """Refuses a filter that gives another shape than it takes."""
    for side in "AB":
        result = row.filter(torch.ones(16, 16), side)
        shape = tuple(result.shape) if isinstance(result, Tensor) else result
        check(shape == (16, 16), f"filter(x, {side!r})", shape, "a tensor of x's shape, (16, 16)")


def _check_server_rule(row: Method, plan: Plan, lora: Lora) -> None:
    """Refuses settings that have no meaning beside a rule which writes factors anew."""
    writes = getattr(row.aggregate, "writes", ())
    written = [side for side in writes if side in KINDS and KINDS[side].of_the_model]
    # Old minus new is no gradient there: coordinates change from round to round.
    plain = plan.server_optimizer == SGD() and plan.server_lr == 1
    optimizer = f"{plan.server_optimizer} at server_lr={plan.server_lr:g}"
    expected = f"sgd at server_lr=1 for {row.slug}, whose rule writes {' and '.join(written)} anew"
    check(plain or not written, "server_optimizer", optimizer, expected)
    # What the rule writes is as large as ever.
    rewritten = "A" in writes
    reason = "the method's rule writes A anew" if rewritten else "balance chooses it"
    free = not rewritten and row.balance is None
    check(free or lora.start_scale == 1, "start_scale", lora.start_scale, f"1, since {reason}")


def amplification(
    task: Task,
    method: Method | str,
    privacy: Privacy | None,
    plan: Plan,
    lora: "Lora | LoraConfig | None" = None,
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
