"""Audits a run: trains it with canaries, and bounds its epsilon from their traces."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.rounding import round_down, round_up
from fedlora_lab._utils.validation import check, check_number
from fedlora_lab.audit import bounds
from fedlora_lab.audit.instruments import Recorder
from fedlora_lab.audit.planting import Canaries, insert_canaries, mislabel
from fedlora_lab.audit.traces import canary_losses, trace_round, trace_scores
from fedlora_lab.federated.config import Execution
from fedlora_lab.federated.make_config import check_parts, make_config
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Task

UNPROMISED_DELTA = 1e-5
"""Delta of an audit of a run without privacy."""


def observe(run: Recorder, planted: Canaries) -> dict[str, np.ndarray]:
    """Makes a run and scores its canaries: view -> (m,), see `Audit`.

    Raises: ``ValueError`` where a release is not finite: it is a finding by itself.
    """
    records = run.records()
    last = next(records)
    before = canary_losses(last, planted)
    traced: dict[str, Tensor] = {}
    for record in records:
        last = record
        trace = trace_round(run, planted)
        if trace is None:
            continue
        for name, score in trace_scores(run, trace).items():
            nothing = torch.zeros(len(planted.owner), dtype=torch.float64)
            traced.setdefault(name, nothing)[trace.who] += score
    views = {"loss": before - canary_losses(last, planted)}
    if traced:
        views["update"] = torch.stack(list(traced.values())).sum(0)
    if len(traced) > 1:
        views |= {f"update {name}": traced[name] for name in sorted(traced)}
    for view, values in views.items():
        expected = "finite releases: the release is the finding, nothing is proved about epsilon"
        check(bool(values.isfinite().all()), "scores", f"not finite: {view}", expected)
    return {view: values.numpy() for view, values in views.items()}


@dataclass(frozen=True, repr=False, kw_only=True)
class Audit:
    """The result of an audit.

    Args:
        included: (m,), the canaries' coins.
        scores: view -> (m,), high where a canary looks included. "loss": black box. "update": white
            box, everything released; "update A", "update B", ...: the same of one factor, or of the
            head, alone.
        lower: view -> lower bound on epsilon; together they hold with the stated confidence.
        ceiling: what as many canaries would show if every guess were right.
        epsilon_upper: the ledger's, of the audited run; infinite where none is certified.
        epsilon_nominal: what the ledger would state of the same releases if it were certified.
        bug: the injected one, in words; ``None`` without.
    """

    method: str
    unit: str
    delta: float
    confidence: float
    included: Bool[np.ndarray, " m"]
    scores: dict[str, Float[np.ndarray, " m"]]
    lower: dict[str, float]
    ceiling: float
    epsilon_upper: float
    epsilon_nominal: float
    bug: str | None = None

    @property
    def canaries(self) -> int:
        """How many there were, in or out."""
        return len(self.included)

    @property
    def epsilon_lower(self) -> float:
        """The largest lower bound."""
        return max(self.lower.values())

    @property
    def claimed(self) -> float:
        """The epsilon to refute: the ledger's, or the nominal one where a bug was injected."""
        return self.epsilon_upper if self.bug is None else self.epsilon_nominal

    @property
    def holds(self) -> bool:
        """Whether the lower bound does not exceed what is claimed."""
        return self.epsilon_lower <= self.claimed

    def __str__(self) -> str:
        bug = "" if self.bug is None else f"; {self.bug}: nothing is certified"
        lower = round_down(self.epsilon_lower, ".3g")
        bound = f"shown is epsilon >= {lower} at delta {round_down(self.delta, 'g')}"
        power = f"{self.canaries} canaries can show {round_up(self.ceiling, '.3g')} at most"
        claimed = round_up(self.claimed, ".3g")
        verdict = f"stated is {claimed}: {'not refuted' if self.holds else 'refuted'}"
        if math.isinf(self.claimed):
            verdict = "none is stated, so nothing can be refuted"
        elif self.holds and self.ceiling <= self.claimed:
            # An audit without the power to refute says nothing for the claim.
            verdict = f"stated is {claimed}, which this audit could not have refuted"
        sure = f"{self.confidence:.0%} sure; {power}"
        return f"{self.method}, {self.unit}: {bound}, {verdict} ({sure}){bug}"

    def __repr__(self) -> str:
        return f"Audit: {self}"


def run_audit(
    task: Task,
    method: "Method | str",
    privacy: Privacy | None,
    plan: Plan,
    *,
    canaries: int = 100,
    confidence: float = 0.95,
    lora: "Lora | None" = None,
    seed: int = 0,
    bug: "Callable[..., Any] | None" = None,
    chunk_examples: int | None = None,
    device: "str | torch.device | None" = None,
) -> Audit:
    """Runs once with canaries inside, and bounds epsilon from below by guessing which took part.

    In the example unit canaries are further examples of the clients, in the person unit further
    persons, of one example. Each has a fair coin. Sizes, and with them sample rates, count every
    canary, in or out: epsilon_upper is that of the run as audited, a little below that of the same
    plan without canaries.

    Args:
        task, method, privacy, plan, lora: see `fl.run`; the unit is the example or the person.
        canaries: how many, >= 2. They are public examples with wrong targets and a loud loss, so
            that the clip always acts. Each costs a gradient a round.
        confidence: with which all lower bounds hold together, in (0, 1).
        seed: of the run and of the coins.
        bug: clips in the library's place, with its signature: to see whether it is
            found. The ledger then certifies nothing; ``epsilon_nominal`` is what is to be refuted.
        chunk_examples, device: see `fl.run`.

    Raises: ``ValueError`` where a release is not finite: nothing is proved about epsilon then; and
        in the client unit, where a canary would have to be a client.
    Guarantees: test_no_row_is_refuted, test_a_run_without_noise_is_seen,
        test_the_audit_changes_nothing_of_the_run, test_a_release_that_is_not_finite_is_refused.
    Source: arXiv:2305.08846.

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> privacy, plan = fl.Privacy(noise_multiplier=1.0, delta=1e-5), fl.Plan(rounds=1)
    >>> run_audit(task, "fedlora", privacy, plan, canaries=8).holds
    True
    """
    check_number("confidence", confidence, 0, 1, open_low=True)
    check(confidence < 1, "confidence", confidence, "a number in (0, 1)")
    # Who knows neither seed nor coins has nothing to check guesses by.
    check(isinstance(seed, int), "seed", seed, "a whole number: an audit must know its coins")
    check_parts(task, privacy, plan)
    if privacy is not None:
        expected = "'example' or 'person': a canary is an example"
        check(privacy.releases_steps, "unit", privacy.unit, expected)
        # The noise was calibrated for the plan without canaries.
        privacy = privacy.replace(target_epsilon=None, sample_rate=None)
    streams = Streams(seed)
    planted = insert_canaries(task, mislabel(task, canaries, streams), streams)
    config = make_config(planted.task, method, privacy, plan, lora, seed)
    execution = Execution(chunk_examples=chunk_examples, device=device)
    run = Recorder.open(config, execution, bug=bug)
    return judge(run, planted, observe(run, planted), confidence)


def judge(
    run: Recorder, planted: Canaries, scores: dict[str, np.ndarray], confidence: float
) -> Audit:
    """Bounds epsilon by what was observed.

    Args:
        run: at its end. planted: the canaries, and which of them took part.
        scores: view of the attacker -> (canaries,), larger where one seems to have taken part.
        confidence: see `run_audit`; in (0, 1), for all views together.
    """
    privacy = run.config.privacy
    delta = UNPROMISED_DELTA if privacy is None else privacy.delta
    included = planted.included.numpy()
    m = len(included)
    guesses = bounds.default_guesses(m)
    share = (1 - confidence) / len(scores)  # Bonferroni over the views
    lower = {
        view: bounds.one_run_best_bound(of_view, included, delta, share, guesses)
        for view, of_view in scores.items()
    }
    return Audit(
        method=run.config.method.slug,
        unit="example" if privacy is None else privacy.unit,
        delta=delta,
        confidence=confidence,
        included=included,
        scores=scores,
        lower=lower,
        ceiling=bounds.one_run_ceiling(m, delta, 1 - confidence, guesses, len(scores)),
        epsilon_upper=math.inf if run.ledger is None else run.ledger.epsilon_or_inf(),
        epsilon_nominal=math.inf if run.ledger is None else run.ledger.nominal_epsilon(),
        bug=run.prepared.privatizer.uncertified,
    )
