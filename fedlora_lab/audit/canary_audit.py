"""One audit: a run with canaries inside it, what can be seen of them, and what that proves about epsilon."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedlora_lab.audit import directions, one_run
from fedlora_lab.audit.canaries import LOUD, Planted, affordable, mislabelled, plant
from fedlora_lab.audit.scores import losses, traces
from fedlora_lab.audit.watch import Watched
from fedlora_lab.checks import check, check_number
from fedlora_lab.loop import Diverged
from fedlora_lab.mechanism import injected, row_norms
from fedlora_lab.method import Method
from fedlora_lab.methods import get
from fedlora_lab.passes import per_example_gradients
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.record import Tick
from fedlora_lab.streams import Streams
from fedlora_lab.tasks.task import Examples, Task

FINDING = "the release itself is the finding, nothing is proved about epsilon"


@dataclass(frozen=True, repr=False)
class Audit:
    """What an audit found.

    Args:
        included: (m,), the canaries' coins.
        scores: view -> (m,), high where a canary looks included. "loss": black box. "update": white box, everything
            released; "update A", "update B", ...: the same of one side alone.
        lower: view -> lower bound on epsilon; all of them hold together with the stated confidence.
        epsilon_lower: the largest of them; NaN where the audit is invalid.
        ceiling: what as many canaries would show if every guess were right.
        epsilon_upper: the ledger's, of the audited run; infinite where none is certified.
        epsilon_nominal: what the ledger would state of the same releases if it were certified: the accounting alone.
        estimate: of crafted canaries, `estimate.epsilon_estimate`; it may exceed the truth. NaN without them, and where
            the audit is invalid.
        seconds: that the rounds took, scoring left out.
        rounds: how many were made; an invalid audit ends early.
        bug: the injected one, in words; ``None`` without.
        invalid: why nothing can be said, with the round: a release is not finite, or a score of a finite one is not.
            Then ``scores`` and ``lower`` are empty. ``None`` where the audit is valid.
    """

    method: str
    task: str
    unit: str
    seed: int
    delta: float
    confidence: float
    canaries: int
    guesses: tuple[one_run.Guesses, ...]
    included: Bool[np.ndarray, " m"]
    scores: dict[str, Float[np.ndarray, " m"]]
    lower: dict[str, float]
    epsilon_lower: float
    ceiling: float
    epsilon_upper: float
    epsilon_nominal: float
    estimate: float
    seconds: float
    rounds: int
    bug: str | None = None
    invalid: str | None = None

    @property
    def claimed(self) -> float:
        """What the lower bound is held against: the ledger's epsilon, or the nominal one where a bug was injected."""
        return self.epsilon_upper if self.bug is None else self.epsilon_nominal

    @property
    def holds(self) -> bool:
        """The audit is valid and its lower bound does not exceed what is claimed."""
        return self.invalid is None and self.epsilon_lower <= self.claimed

    @property
    def could_fail(self) -> bool:
        """Whether as many canaries, all guessed right, would have exceeded what is claimed."""
        return self.ceiling > self.claimed

    def __str__(self) -> str:
        who, bug = f"{self.method}, {self.unit}", "" if self.bug is None else f"; {self.bug}: nothing is certified"
        if self.invalid is not None:
            return f"{who}: invalid: {self.invalid} ({FINDING}){bug}"
        return (
            f"{who}: epsilon {self.epsilon_lower:.3g} {'<=' if self.holds else '>'} {self.claimed:.3g} at delta "
            f"{self.delta:g} ({self.confidence:.0%} sure; {self.canaries} canaries can show {self.ceiling:.3g}){bug}"
        )

    def __repr__(self) -> str:
        return f"Audit: {self}"


def audit(
    task: Task,
    method: "Method | str",
    privacy: Privacy | None,
    plan: Plan,
    *,
    canaries: "int | Examples | None" = None,
    crafted: bool = False,
    confidence: float = 0.95,
    guesses: Sequence[one_run.Guesses] | None = None,
    delta: float | None = None,
    lora: Lora | None = None,
    seed: int = 0,
    bug: "Callable[..., Any] | None" = None,
    **options: Any,
) -> Audit:
    """Run once with canaries in the same batches, and bound epsilon from below by guessing which took part.

    In the example unit canaries are further examples of the clients, in the client unit further clients with one
    example. Each has a fair coin. Sizes, and with them sample rates, count every canary, in or out: epsilon_upper is
    that of the run as audited, a little below that of the same plan without canaries.

    Args:
        canaries: how many, >= 2; or the examples (x, y) themselves. ``None``: as many as cost about a fifth of the run.
            Those made here are public examples with wrong targets and a loud loss, so that the clip always acts.
        crafted: client unit only: canary clients send random directions at the clip norm, not what they trained. Then
            there is no view "loss", and an estimate beside the bound.
        confidence: with which all lower bounds hold together, in (0, 1).
        guesses: numbers of guesses (in, out) to try, fixed beforehand and corrected for; ``None``: `one_run.plans`.
        delta: of the lower bound; ``None``: the privacy plan's, 1e-5 without one.
        bug: clips in the place of the library's own clip, one of `fl.edges.BUGS`: to see whether it is found.
            The run's ledger certifies nothing, and the lower bound is held against ``epsilon_nominal``.
        options: chunk sizes, as of ``run``.

    A release that is not finite ends the audit, which is then invalid: there is nothing in it to score.

    Raises: ``ValueError`` as ``run`` does, and for the above.
    Guarantees: test_no_row_is_refuted, test_a_run_without_noise_is_seen, test_the_audit_changes_nothing_of_the_run,
        test_a_release_that_is_not_finite_is_invalid.
    Source: arXiv:2305.08846.
    """
    row, unit = get(method), "example" if privacy is None else privacy.unit
    check_number("confidence", confidence, 0, 1, open_low=True)
    check(confidence < 1, "confidence", confidence, "a number in (0, 1)")
    check(not crafted or unit == "client", "crafted", crafted, "False in the example unit: gradients follow the data")
    privacy = None if privacy is None else privacy.replace(target=None)  # another plan than it was calibrated for
    check(isinstance(seed, int), "seed", seed, "a whole number: an audit must know its coins")
    level = delta if delta is not None else 1e-5 if privacy is None else privacy.delta
    streams, count = Streams(seed), affordable(task, plan, unit) if canaries is None else canaries
    examples = mislabelled(task, count, streams) if isinstance(count, int) else count
    weights = torch.full((len(examples[1]),), LOUD)
    if unit == "client":
        weights = _fitting(task, row, privacy, plan, lora, examples, seed)
    planted = plant(task, unit, examples, weights, streams)
    run = _opened(planted, row, privacy, plan, lora, seed, {**options, "bug": bug})
    if crafted:
        planted = replace(planted, directions=directions.drawn(run, len(examples[1]), streams))
    played = _play(run, planted)
    scores, m = {} if played.invalid else played.scores, len(examples[1])
    views = max(1, len(played.scores))
    share = (1 - confidence) / views
    tried = one_run.plans(m) if guesses is None else tuple(guesses)
    included = planted.included.numpy()
    lower = {view: one_run.best(values, included, level, share, tried) for view, values in scores.items()}
    highest = one_run.ceiling(m, level, 1 - confidence, tried, views)
    return Audit(
        method=row.slug,
        task=task.name,
        unit=unit,
        seed=seed,
        delta=level,
        confidence=confidence,
        canaries=m,
        guesses=tried,
        included=included,
        scores=scores,
        lower=lower,
        epsilon_lower=float("nan") if played.invalid else max(lower.values()),
        ceiling=highest,
        epsilon_upper=float("inf") if run.ledger is None else run.ledger.spent(),
        epsilon_nominal=float("inf") if run.ledger is None else run.ledger.nominal(),
        estimate=played.aligned.estimate(included, level) if crafted and not played.invalid else float("nan"),
        seconds=played.seconds,
        rounds=played.rounds,
        bug=injected(run.setting.clip),
        invalid=played.invalid,
    )


def _opened(
    planted: Planted, row: Method, privacy: Privacy | None, plan: Plan, lora: Lora | None, seed: int, options: Any
) -> Watched:
    """The run with its canaries; where a trusted server adds the noise, a client that is out is not there at all."""
    if privacy is not None:
        privacy = privacy.replace(sample_rate=None)
    ranks = getattr(lora, "ranks", None)
    if lora is not None and ranks is not None:
        lora = replace(lora, ranks=(*ranks, *[lora.rank] * (len(planted.task.sizes) - len(ranks))))
    run = Watched.opened(planted.task, row, privacy, plan, lora=lora, seed=seed, **options)
    if privacy is not None and privacy.trust == "central":
        run.absent = frozenset(planted.owner[~planted.included].tolist())
    return run


@dataclass
class _Played:
    """What was seen of a run: every view's scores after it, or why there are none, and the directions' cosines."""

    aligned: directions.Aligned
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    rounds: int = 0
    seconds: float = 0.0
    work: str = "the start"
    invalid: str | None = None


def _play(run: Watched, planted: Planted) -> _Played:
    """Make the run and score its canaries; it ends with the first release that is not finite."""
    played = _Played(directions.Aligned(len(planted.owner)))
    try:
        _score(run, planted, played)
    except (Diverged, torch.linalg.LinAlgError, np.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        words = f"{played.work} cannot be computed ({' '.join(str(error).split())[:100]})"
        played.invalid = words if run.finite else f"the release of round {played.rounds + 1} is not finite"
    return played


def _score(run: Watched, planted: Planted, played: _Played) -> None:
    sides: dict[str, Tensor] = {}
    crafted, first, last = planted.directions is not None, None, None
    for event in run.events():
        if isinstance(event, Tick):
            if crafted and event.step == run.setting.plan.local_steps:
                directions.impose(run, planted)
            continue
        played.rounds, played.seconds = event.index, played.seconds + event.seconds
        if not run.finite:
            played.invalid = f"the release of round {event.index} is not finite"
            return
        played.work = f"the scores after round {event.index}"
        last, first = event, losses(run, event, planted) if first is None else first
        for side, found in traces(run, planted).items() if event.index else ():
            sides[side] = sides.get(side, 0) + found
            if not sides[side].isfinite().all():
                played.invalid = f"the traces of the canaries in round {event.index} are not finite"
                return
        if crafted and event.index:
            played.aligned.add(run, planted)
        played.work = f"round {event.index + 1}"
    assert first is not None and last is not None
    views = {} if crafted and sides else {"loss": first - losses(run, last, planted)}
    if "loss" in views and not views["loss"].isfinite().all():
        which = f"the model of round {last.index}" if first.isfinite().all() else "the model before training"
        played.invalid = f"{which} gives losses that are not finite"
    if sides:
        views["update"] = torch.stack(list(sides.values())).sum(0)
    if len(sides) > 1:
        views |= {f"update {side}": sides[side] for side in sorted(sides)}
    played.scores = {view: values.numpy() for view, values in views.items()}


def _fitting(
    task: Task, row: Method, privacy: Privacy | None, plan: Plan, lora: Lora | None, examples: Examples, seed: int
) -> Tensor:
    """Weights that carry the update of a one-example client to the clip norm, judged from the public start."""
    run = Watched.opened(task, row, privacy, plan, lora=lora, seed=seed)
    bank = {slot: tensor[None] for slot, tensor in run.state.server.tensors.items()}
    slots = tuple(slot for slot in bank if slot in run.setting.adapted.shapes)
    owner = torch.zeros(len(examples[1]), dtype=torch.int64)
    rows = per_example_gradients(task, run.setting.adapted, bank, slots, examples, owner)
    norms = row_norms({slot: plan.rate(slot.side) * plan.local_steps * x for slot, x in rows.items()})
    clip = 1.0 if privacy is None else privacy.clip_norm
    return (clip / norms.clamp(min=1e-12)).nan_to_num(LOUD).clamp(1, LOUD).ceil().long()
