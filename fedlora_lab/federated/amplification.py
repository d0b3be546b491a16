"""The amplification number: the energy of the noise that A takes up over A's own, before any run.

All of it follows from public numbers: noise multiplier, clip norm, sizes, schedule and rates.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from scipy.special import bdtrc
from torch import Tensor

from fedlora_lab._utils.validation import check
from fedlora_lab.federated.spec import RunSpec
from fedlora_lab.lora import adapters
from fedlora_lab.methods.aggregation import ProductRule
from fedlora_lab.methods.filters import identity, received
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.optimizers import SGD
from fedlora_lab.methods.published import rule_name
from fedlora_lab.privacy.ledger import per_client
from fedlora_lab.theory import products as theory

BLOCK = 256
"""Rows of an identity that a filter is given at once."""


@dataclass(frozen=True)
class NoiseForecast:
    """Predicts the noise that a run's releases leave in the averaged factors, round by round.

    Args:
        spec: task, method, privacy, plan and adapter of the run.
        weights: layer -> its frozen weight, (d_out, d_in).

    Counted is the noise alone, not what training makes of it afterwards; expected over who takes
    part and whose upload is lost.
    """

    spec: RunSpec
    weights: Mapping[str, Tensor]

    @cached_property
    def is_noisy(self) -> bool:
        """Whether anything is noised at all."""
        privacy = self.spec.privacy
        return privacy is not None and any(per_client(privacy.noise_multiplier or 0.0))

    # ---- what is known before the run

    @cached_property
    def unknown(self) -> str | None:
        """Why the noise in A is not known before the run; ``None``: it is."""
        return self._reason("A")

    @cached_property
    def _unknown_b(self) -> str | None:
        """Why the noise in B is not known before the run; ``None``: it is."""
        return self._reason("B")

    def _reason(self, side: str) -> str | None:
        """Why the noise in a factor is not known before the run, in any of its rounds."""
        if not self.is_noisy:
            return None
        method = self.spec.method
        plan = self.spec.plan
        rule = rule_name(method.aggregate)
        if not _averages_a(method):
            return f"{rule} does not leave {side} the mean of what was sent"
        steps = plan.local_steps
        moving = {method.sides_in_round(t, steps) for t in range(min(plan.rounds, 100))}
        if any("*" in sides for sides in moving):
            return "which factor moves is chosen during the run"
        if not any(side in sides for sides in moving):
            # A factor at rest takes up nothing. A core between the factors is not counted here.
            core = side == "B" and not set("".join(moving)) <= set("AB")
            return "noised is something else than the factors" if core else None
        if side == "B" and isinstance(method.aggregate, ProductRule):
            return f"{rule} adds what the mean of the products has more"
        if method.own_ranks or not (method.share is None or side in method.share):
            return f"{side}, or part of it, stays with its client"
        if method.precondition is not None:
            peer = "B" if side == "A" else "A"
            return f"{rule_name(method.precondition)} shapes the noise on {side} by {peer}"
        if plan.server_optimizer != SGD():
            return f"the server's optimiser {plan.server_optimizer} is more than a step"
        if self.spec.by_step and plan.optimizer.nonlinear:
            return f"{plan.optimizer}: {plan.optimizer.nonlinear}"
        if getattr(plan.optimizer, "weight_decay", 0.0):
            return f"{plan.optimizer} shrinks {side}, and the noise in it"
        if not self.spec.by_step and method.clip_reference is not received:
            return "clipped are the weights, with the noise in them, and not their change"
        return None

    # ---- variance

    @cached_property
    def _variance(self) -> float:
        """Variance of the noise that a release at rate 1 adds to an entry of an averaged factor."""
        spec = self.spec
        privacy = spec.privacy
        plan = spec.plan
        if privacy is None or not self.is_noisy:
            return 0.0
        count = len(spec.units)
        level = privacy.noise_levels(count, plan)
        gain = plan.server_lr
        expected = plan.participation * count
        arrives = plan.participation * (1 - plan.dropout)
        # A trusted server adds its noise once to the sum, whoever came.
        if level.server:
            return (gain * level.server / expected) ** 2
        each = per_client(level.each, count)
        if privacy.server_sees_only_sum:
            # Expected number of uploads in a round that is released: E[n; n >= least].
            least = level.shares + privacy.colluding
            uploads = count * arrives * float(bdtrc(least - 2, count - 1, arrives))
            return uploads * (gain * each[0] / expected) ** 2
        ranks = spec.lora.ranks or (spec.lora.rank,) * count
        uniform = plan.weights == "uniform"
        total = 0.0
        for k, std in enumerate(each):
            weight = 1 / count if uniform else spec.units[k] / sum(spec.units)
            # The noise of a step is in its sum, which is divided by the expected batch.
            if spec.by_step:
                size = max(spec.units[k], 1)
                std /= size if plan.batch is None else min(plan.batch, size)
            # A client of a lower rank adds noise to its own ranks only.
            share_of_ranks = ranks[k] / spec.lora.rank
            total += share_of_ranks * arrives * (weight / plan.participation * std) ** 2
        return gain**2 * total

    def releases_in_round(self, side: str, t: int) -> int:
        """How often noise falls on A or B in round t, counted from 0."""
        method = self.spec.method
        steps = self.spec.plan.local_steps
        if not self.spec.by_step:
            return int(side in method.sides_in_round(t, steps))
        return sum(side in method.sides_at_step(t, s) for s in range(steps))

    def _round_variance(self, side: str, t: int) -> float:
        """What round t adds to the variance of an entry, before a filter."""
        plan = self.spec.plan
        count = self.releases_in_round(side, t)
        if not self.spec.by_step:
            return count * self._variance
        momentum = getattr(plan.optimizer, "momentum", 0.0)
        # With momentum m the noise of a step moves the factor in each later step of the round too:
        # in all by 1 + m + m^2 + ... times the rate.
        moved = 0.0
        total = 0.0
        for _ in range(count):
            moved = 1 + momentum * moved
            total += moved**2
        return plan.rate(side, t) ** 2 * total * self._variance

    @cached_property
    def _sums(self) -> dict[str, list[float]]:
        """Side -> accumulated variance after 0, 1, 2, ... rounds, as far as it was asked for."""
        return {"A": [0.0], "B": [0.0]}

    def variance(self, side: str, layer: str, rounds: int) -> float:
        """Variance of the noise that an entry of a layer's averaged factor has taken up.

        Args:
            side: "A" or "B".
            layer: its name.
            rounds: done, >= 0.
        """
        # Asked for round by round: what was added up before is kept.
        sums = self._sums[side]
        while len(sums) <= rounds:
            sums.append(sums[-1] + self._round_variance(side, len(sums) - 1))
        rule = self.spec.method.filter
        if rule is identity:
            return sums[rounds]
        d_out, d_in = self.weights[layer].shape
        return sums[rounds] * _filter_gain(rule, side, d_in if side == "A" else d_out)

    # ---- energies

    @cached_property
    def _start_scales(self) -> dict[str, float]:
        """Layer -> how many times as large A starts as PEFT draws it, where its energy is r / 3."""
        start = self.spec.method.start
        lora = self.spec.lora
        scales = {}
        for layer, weight in self.weights.items():
            scales[layer] = lora.start_scale
            tensors = {} if start is None else start(weight, lora.rank)
            # A row's own start of A may be larger or smaller than PEFT's draw.
            if "A" in tensors:
                energy = float(tensors["A"].double().square().sum())
                scales[layer] *= math.sqrt(3 * energy / lora.rank)
        return scales

    def amplification(self, layer: str, rounds: int) -> float:
        """Expected energy of the noise in A over A's own at the start; NaN where `unknown`."""
        if self.unknown is not None:
            return math.nan
        variance = self.variance("A", layer, rounds)
        if not variance:
            return 0.0
        d_in = self.weights[layer].shape[1]
        return theory.amplification(math.sqrt(variance), 1, d_in, self._start_scales[layer])

    def mean(self, rounds: int) -> float:
        """The amplification of all layers, weighted by the energy of B's noise, and so by d_out."""
        return self.weighted(lambda layer: self.amplification(layer, rounds))

    def weighted(self, value: Callable[[str], float]) -> float:
        """The mean of a value over the layers, weighted by d_out."""
        sizes = {layer: len(weight) for layer, weight in self.weights.items()}
        return sum(size * value(layer) for layer, size in sizes.items()) / sum(sizes.values())

    def accumulated(self, layer: str, rounds: int) -> theory.NoiseTerms:
        """Expected energy that the noise has left in the product; NaN where it is not known.

        Signal and start are not counted, see `theory.accumulated_noise_terms`.
        """
        if self._unknown_b is not None:
            return theory.NoiseTerms(*[math.nan] * 3)
        in_a_known = self.unknown is None
        d_out, d_in = self.weights[layer].shape
        terms = theory.accumulated_noise_terms(
            d_out=d_out,
            rank=self.spec.lora.rank,
            d_in=d_in,
            std_B=math.sqrt(self.variance("B", layer, rounds)),
            std_A=math.sqrt(self.variance("A", layer, rounds)) if in_a_known else 0.0,
            # The variances are those of all releases together.
            releases_B=1,
            releases_A=1,
            scaling=self.spec.lora.scaling,
            start_scale=self._start_scales[layer],
        )
        # The linear part is the noise of B alone.
        return terms if in_a_known else terms._replace(quadratic=math.nan)

    def rows(self, rounds: int) -> list[tuple[str, str, float]]:
        """The rows of a record after so many rounds: layer, measure, value."""
        rows = []
        for layer in self.weights:
            terms = self.accumulated(layer, rounds)
            rows.append((layer, "amplification", self.amplification(layer, rounds)))
            rows.append((layer, "accumulated_linear", terms.linear_B))
            rows.append((layer, "accumulated_quadratic", terms.quadratic))
        return rows

    def over_run(self) -> "Amplification":
        """Sums the noise over the whole run, layer by layer."""
        rounds = self.spec.plan.rounds
        layers = []
        for layer, weight in self.weights.items():
            variance_a = self.variance("A", layer, rounds) if self.unknown is None else math.nan
            variance_b = self.variance("B", layer, rounds) if self._unknown_b is None else math.nan
            layers.append(
                LayerNoise(
                    layer=layer,
                    d_out=weight.shape[0],
                    d_in=weight.shape[1],
                    std_A=math.sqrt(variance_a),
                    std_B=math.sqrt(variance_b),
                    amplification=self.amplification(layer, rounds),
                )
            )
        scale = self.spec.lora.start_scale
        return Amplification(tuple(layers), self.mean(rounds), scale, self.unknown)


class LayerNoise(NamedTuple):
    """The noise of a run on one layer.

    Args:
        layer: its name.
        d_out, d_in: its shape.
        std_A, std_B: standard deviation of the noise that an entry of the averaged factor has taken
            up at the end.
        amplification: how many times its own energy A takes up as noise.
    """

    layer: str
    d_out: int
    d_in: int
    std_A: float
    std_B: float
    amplification: float


class Amplification(NamedTuple):
    """The amplification number of a run, of each layer and on average.

    Args:
        layers: layer by layer.
        mean: over the layers, weighted by d_out, as the energy of B's noise is.
        start_scale: how many times as large A starts as PEFT draws it.
        unknown: why deviations and amplification are NaN, in one line; ``None``: they are known.
    """

    layers: tuple[LayerNoise, ...]
    mean: float
    start_scale: float
    unknown: str | None

    def __repr__(self) -> str:
        sizes = f"mean={self.mean:.4g}, start_scale={self.start_scale:.4g}"
        return f"Amplification({sizes}, unknown={self.unknown!r}, {len(self.layers)} layers)"


def forecast_of(spec: RunSpec) -> NoiseForecast:
    """Makes the forecast of a run that is not prepared, from the shapes of its layers."""
    task = spec.task
    return NoiseForecast(
        spec, adapters.adapt(task.model, task.targets, task.head, spec.lora).weights
    )


def balanced_start(forecast: NoiseForecast, balance: float) -> float:
    """Computes the start scale of A at which its noise stays at ``balance`` times its energy.

    Args:
        forecast: with A as PEFT draws it.
        balance: > 0.

    Raises: ``ValueError`` where the noise in A is not known before the run.
    """
    reason = forecast.unknown
    expected = f"None: the noise in A is not known before a run, {reason}"
    check(reason is None, "balance", balance, expected)
    return theory.balanced_scale(forecast.mean(forecast.spec.plan.rounds), balance)


def _averages_a(method: Method) -> bool:
    """Whether the server's rule moves A by the mean of the clients' changes; a function may not."""
    return getattr(method.aggregate, "averages_a", False)


@lru_cache(maxsize=64)
def _filter_gain(rule: Callable[..., Tensor], side: str, size: int) -> float:
    """Share of white noise's variance that a linear filter along the long axis leaves, the mean."""
    # The energy of its matrix: it is applied to the rows of an identity, block by block.
    total = 0.0
    for i in range(0, size, BLOCK):
        ones = torch.zeros(min(BLOCK, size - i), size)
        ones[torch.arange(len(ones)), torch.arange(i, i + len(ones))] = 1
        total += float(rule(ones if side == "A" else ones.T, side).double().square().sum())
    return total / size
