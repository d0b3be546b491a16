"""The noise that a run takes up on a layer's output, and how large a rate it lets end well."""

import math
from dataclasses import replace
from typing import NamedTuple

import torch

from fedlora_lab import methods
from fedlora_lab._utils.validation import check
from fedlora_lab.federated.config import Config
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


class NoiseOnOutputs(NamedTuple):
    """The noise on a layer's output over a run.

    Args:
        variance: on an output, with A as PEFT draws it or as a start by hand made it.
        balance: the amplification number that a balanced start allows at most.
        uncounted: what the row does with its noise that is not in here; ``None``: nothing.
    """

    variance: OutputVariance
    balance: float
    uncounted: str | None = None

    @property
    def value(self) -> float:
        """v, the variance on an output: the same for all settings that are one run."""
        linear, quadratic = self.variance
        return linear + min(quadratic, linear * self.balance)

    def factor(self, target: float) -> float:
        """By which factor the noise may grow until `value` is the target."""
        # A balanced start grows with the noise, which then is at most 1 + balance times linear.
        held = math.sqrt(target / (self.variance.linear * (1 + self.balance)))
        return max(noise_factor(self.variance, target), held)


def noise_on_outputs(
    task: Task,
    method: Method | str,
    privacy: Privacy,
    plan: Plan,
    lora: "Lora | None" = None,
    *,
    copies: bool = False,
) -> NoiseOnOutputs:
    """Computes what `suggest_lr` holds against its bound, at the plan's rate and clip norm.

    Args:
        task, method, privacy, plan, lora: see `run`, with the noise multiplier set.
        copies: of a client's own copy, on which it trains and whose factors have more noise; else
            of the model that is scored: the averaged one, or a client's where a factor stays with
            it.
    Raises: as `suggest_lr`.
    """
    check_parts(task, privacy, plan)
    row = methods.get(method)
    _check_bounded_by_noise(row, privacy, plan)
    # The noise is in proportion to the rate: any rate but 0 tells how much of it there is.
    plan = plan if plan.rate("B") else plan.replace(lr=1.0)
    config = make_config(task, row, privacy, plan, lora, 0)
    forecast = forecast_of(_with_plain_mean(config))
    kept = [x for x in "AB" if not row.is_uploaded(ParamKey(x, ""))]
    expected = "a row that sends B, since what a client keeps gets no noise here; or give clip_norm"
    check("B" not in kept or privacy.releases_steps, "method", row.slug, expected)
    # No mean thins the noise in what stays with its client, if it gets any.
    averaged = forecast.client_noise_ratio() if copies else 1.0
    alone = forecast.unaveraged_noise_ratio() if privacy.releases_steps else 0.0
    times_a, times_b = (alone if x in kept else averaged for x in "AB")
    variance = forecast.output_variance(times_a, times_b)
    expected = "noise on B: a multiplier, a clip_norm > 0, a row that moves B"
    check(variance.linear > 0, "noise", variance.linear, expected)
    balance = math.inf if row.balance is None else row.balance
    # The noise that a copy has more is in A as well.
    balance *= 1.0 if "A" in kept else averaged
    shared = replace(config, method=row.replace(uploaded_factors=None))
    uncounted = NoiseForecast(shared, forecast.weights).unknown_on_outputs
    return NoiseOnOutputs(variance, balance, uncounted)


def _check_bounded_by_noise(row: Method, privacy: Privacy, plan: Plan) -> None:
    """Refuses a run of which the noise does not say how large a rate may be."""
    check(privacy is not None, "privacy", None, "a Privacy: without noise no rate is bad")
    expected = "a row with gradients: few directions bound a rate before noise does; or give lr"
    check(row.differences is None, "method", row.slug, expected)
    if privacy.releases_steps:
        expected = "sgd, whose noise follows from the rate; or give lr"
        check(not plan.optimizer.nonlinear, "optimizer", plan.optimizer.name, expected)


def _with_plain_mean(config: Config) -> Config:
    """The same run of a row that averages every factor, and starts A at no chosen size.

    What the run does with B's noise afterwards is not asked here: a plain mean stands in for the
    server's rule, and turns for a schedule that chooses on the way.
    """
    row = config.method
    schedule = row.schedule
    if "*" in row.factors_in_round(0, config.plan.local_steps):
        schedule = Cycle(("B", "A"))
    adapter = config.lora
    if row.balance is not None:
        # The start that it chose is that of the plan's rate, and another one at another rate.
        adapter = replace(adapter, start_scale=1.0)
    initial = row.initial_factors
    if getattr(row.aggregate, "orthonormal_a", False):
        initial = _orthonormal_rows  # what A is from the second round on
    # What stays with its client is counted apart.
    plain = {"aggregate": aggregation.mean, "balance": None, "uploaded_factors": None}
    like = row.replace(**plain, schedule=schedule, initial_factors=initial)
    return replace(config, method=like, lora=adapter)


def _orthonormal_rows(weight: torch.Tensor, rank: int) -> dict[str, torch.Tensor]:
    return {"A": torch.eye(rank, weight.shape[1])}


def takes_turns(row: Method) -> bool:
    """Tells whether both factors move, but never in one step.

    A rule that chooses a factor during the run ("*") chooses one.
    """
    words = {row.factors_at_step(t, s) for t in range(HORIZON) for s in range(HORIZON)}
    return max(map(len, words)) == 1 and (len(words) > 1 or words == {"*"})
