"""The noise that a run takes up on a layer's output, and how large a rate it lets end well."""

import math
from dataclasses import replace
from typing import NamedTuple

import torch

from fedlora_lab import methods
from fedlora_lab._utils.validation import check
from fedlora_lab.federated.make_config import check_parts, make_config
from fedlora_lab.federated.noise_forecast import NoiseForecast, forecast_of
from fedlora_lab.methods import aggregation
from fedlora_lab.methods.method import Cycle, Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Task
from fedlora_lab.theory.products import OutputVariance, noise_factor

HORIZON = 12
"""Rounds, and steps of a round, in which a schedule is looked at."""
OUTPUT_VARIANCE = 0.35
"""The variance of noise on a layer's output at which a range of rates is predicted to end, whatever
the method. On digits three points of accuracy are lost within a factor of 1.7 of that rate; on
other tasks the range may end farther off."""


class NoiseTakenUp(NamedTuple):
    """The noise on a layer's output over a run.

    Args:
        variance: on an output of the model that is scored, with A as PEFT draws it or as a start by
            hand made it: of the averaged model, or of a client's own where a factor stays with it.
        client_noise_ratio: variance of the noise in the A and in the B with which a client ends a
            round, over that in this model.
        balance: the amplification number that a balanced start allows at most.
        of_start: variance on an output of the noise in A times what B starts with.
        uncounted: what the row does with its noise that is not in here; ``None``: nothing.
    """

    variance: OutputVariance
    client_noise_ratio: tuple[float, float]
    balance: float
    of_start: float = 0.0
    uncounted: str | None = None

    @property
    def value(self) -> float:
        """v, the variance on an output: the same for all settings that are one run."""
        linear, quadratic = self.variance
        return linear + self.of_start + min(quadratic, linear * self.balance)

    def factor(self, target: float) -> float:
        """By which factor the noise may grow until `value` is the target."""
        # A balanced start grows with the noise, which then is at most 1 + balance times linear.
        linear, quadratic = self.variance
        both = OutputVariance(linear + self.of_start, quadratic)
        held = math.sqrt(target / (both.linear * (1 + self.balance)))
        return max(noise_factor(both, target), held)

    def in_copies(self) -> "NoiseTakenUp":
        """The same of a client's own copy, on which it trains: both factors have more noise."""
        of_a, of_b = self.client_noise_ratio
        linear, quadratic = self.variance
        return self._replace(
            variance=OutputVariance(linear * of_b, quadratic * of_a * of_b),
            client_noise_ratio=(1.0, 1.0),
            balance=self.balance * of_a,
            of_start=self.of_start * of_a,
        )


def noise_taken_up(
    task: Task,
    method: Method | str,
    privacy: Privacy,
    plan: Plan,
    lora: "Lora | None" = None,
) -> NoiseTakenUp:
    """Computes what `suggest_lr` holds against its bound, at the plan's rate and clip norm.

    Args: see `run`, with the noise multiplier set.
    Raises: as `suggest_lr`.
    """
    check_parts(task, privacy, plan)
    check(privacy is not None, "privacy", None, "a Privacy: without noise no rate is bad")
    row = methods.get(method)
    expected = "a row with gradients: few directions bound a rate before noise does; or give lr"
    check(row.differences is None, "method", row.slug, expected)
    if privacy.releases_steps:
        expected = "sgd, whose noise follows from the rate; or give lr"
        check(not plan.optimizer.nonlinear, "optimizer", plan.optimizer.name, expected)
    # The noise is in proportion to the rate: any rate but 0 tells how much of it there is.
    plan = plan if plan.rate("B") else plan.replace(lr=1.0)
    # What the run does with B's noise afterwards is not asked here: a plain mean stands in for the
    # server's rule, and turns for a schedule that chooses on the way.
    schedule = (
        Cycle(("B", "A")) if "*" in row.factors_in_round(0, plan.local_steps) else row.schedule
    )
    config = make_config(task, row, privacy, plan, lora, 0)
    adapter = config.lora
    balance = math.inf
    if row.balance is not None:
        # The start that it chose is that of the plan's rate, and another one at another rate.
        adapter = replace(adapter, start_scale=1.0)
        balance = row.balance
    initial = row.initial_factors
    if getattr(row.aggregate, "orthonormal_a", False):
        initial = _orthonormal_rows  # what A is from the second round on
    # What stays with its client is counted below.
    plain = {"aggregate": aggregation.mean, "balance": None, "uploaded_factors": None}
    like = row.replace(**plain, schedule=schedule, initial_factors=initial)
    forecast = forecast_of(replace(config, method=like, lora=adapter))
    linear, quadratic = forecast.output_variance_terms()
    kept = [x for x in "AB" if not row.is_uploaded(ParamKey(x, ""))]
    expected = "a row that sends B, since what a client keeps gets no noise here; or give clip_norm"
    check("B" not in kept or privacy.releases_steps, "method", row.slug, expected)
    # No mean thins the noise in what stays with its client, if it gets any.
    own = forecast.client_noise_ratio()
    alone = forecast.unaveraged_noise_ratio() if privacy.releases_steps else 0.0
    (in_a, of_a), (in_b, of_b) = ((alone, 1.0) if x in kept else (1.0, own) for x in "AB")
    variance = OutputVariance(linear * in_b, quadratic * in_a * in_b)
    of_start = forecast.output_variance_of_start() * in_a
    check(
        variance.linear + of_start > 0,
        "noise",
        variance.linear + of_start,
        "noise on B: a multiplier, a clip_norm > 0, a row that moves B",
    )
    shared = replace(config, method=row.replace(uploaded_factors=None))
    uncounted = NoiseForecast(shared, forecast.weights).unknown_on_outputs
    return NoiseTakenUp(variance, (of_a, of_b), balance, of_start, uncounted)


def _orthonormal_rows(weight: torch.Tensor, rank: int) -> dict[str, torch.Tensor]:
    return {"A": torch.eye(rank, weight.shape[1])}


def takes_turns(row: Method) -> bool:
    """Tells whether both factors move, but never in one step.

    A rule that chooses a factor during the run ("*") chooses one.
    """
    words = {row.factors_at_step(t, s) for t in range(HORIZON) for s in range(HORIZON)}
    return max(map(len, words)) == 1 and (len(words) > 1 or words == {"*"})
