"""The amplification number: the energy of the noise that A takes up over A's own, before any run.

It says how much noise grows in the product B A. Privacy amplification by sampling is another thing:
see `privacy.accounting`.
All of it follows from public numbers: noise multiplier, clip norm, sizes, schedule and rates.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import bdtrc
from torch import Tensor

from fedlora_lab.federated.config import Config
from fedlora_lab.lora import adapters
from fedlora_lab.methods.aggregation import ProductRule
from fedlora_lab.methods.filters import FILTERED, identity
from fedlora_lab.methods.published import rule_name
from fedlora_lab.methods.state import KINDS
from fedlora_lab.privacy.ledger import per_client
from fedlora_lab.theory import products as theory

Curve = Float[np.ndarray, " rounds"]
"""A value before the first round, and after each."""
BLOCK = 256
"""Rows of an identity that a filter is given at once."""


class UnitNoise(NamedTuple):
    """What noise of variance 1 on every entry of the averaged A and B makes of a layer.

    Args:
        amplification: energy of the noise in A over A's own at the start.
        linear, quadratic: energy of the noise in the product, by that of B alone, and of both.
    """

    amplification: float
    linear: float
    quadratic: float


@dataclass(frozen=True)
class NoiseForecast:
    """Predicts the noise that a run's releases leave in the averaged factors, round by round.

    Args:
        config: task, method, privacy, plan and adapter of the run.
        weights: layer -> its frozen weight, (d_out, d_in).

    It counts the noise alone, not what training makes of it afterwards; expected over who takes
    part.
    """

    config: Config
    weights: Mapping[str, Tensor]

    @cached_property
    def is_noisy(self) -> bool:
        """Whether anything is noised at all."""
        level = self.config.noise_levels
        return any((level.server, *per_client(level.each)))

    # ---- what is known before the run

    @cached_property
    def unknown(self) -> str | None:
        """Why the amplification is not known before the run; ``None``: it is."""
        return self._reason("A")

    @cached_property
    def unknown_on_outputs(self) -> str | None:
        """Why the noise in A, B or both is not known before the run; ``None``: it is."""
        return self._reason("A") or self._reason("B")

    def _reason(self, factor: str) -> str | None:
        """Why the noise in a factor is not known before the run, in any of its rounds."""
        if not self.is_noisy:
            return None
        method = self.config.method
        plan = self.config.plan
        rule = rule_name(method.aggregate)
        # A function that is no `ServerRule` may do anything with A.
        if not getattr(method.aggregate, "averages_a", False):
            return f"{rule} does not leave {factor} the mean of what was sent"
        steps = plan.local_steps
        moving = {method.factors_in_round(t, steps) for t in range(min(plan.rounds, 100))}
        if any("*" in words for words in moving):
            return "which factor moves is chosen during the run"
        if not any(factor in words for words in moving):
            # A factor at rest takes up nothing. A core between the factors is not counted here.
            core = factor == "B" and not set("".join(moving)) <= set("AB")
            return "noised is something else than the factors" if core else None
        starts = self._start_energies.values()
        if any(KINDS[name].of_the_product for start in starts for name in start.keys() - {*"AB"}):
            return f"a core stands between {factor} and the product"
        if any(start.get("B") for start in starts):
            return "B does not start at zero"
        if factor == "B" and isinstance(method.aggregate, ProductRule):
            return f"{rule} adds what the mean of the products has more"
        if not (method.uploaded_factors is None or factor in method.uploaded_factors):
            return f"{factor} stays with its client"
        if method.differences is not None and not self.config.releases_steps:
            return (
                f"an update has noise along the directions of its round, and not on all of {factor}"
            )
        if method.precondition is not None:
            peer = "B" if factor == "A" else "A"
            return f"{rule_name(method.precondition)} shapes the noise on {factor} by {peer}"
        if self.config.releases_steps and plan.optimizer.nonlinear:
            return f"{plan.optimizer}: {plan.optimizer.nonlinear}"
        return None

    # ---- variance

    @cached_property
    def _stds_of_means(self) -> list[float]:
        """For each client the noise in its mean gradient, or in its upload in the client unit."""
        config = self.config
        stds = per_client(config.noise_levels.each, len(config.unit_counts))
        if not config.releases_steps:
            return list(stds)
        # The noise of a step is in its sum, which is divided by the expected batch.
        batches = [n * q for n, q in zip(config.unit_counts, config.sample_rates, strict=True)]
        return [std / (batch or 1) for std, batch in zip(stds, batches, strict=True)]

    @cached_property
    def _variance(self) -> float:
        """Variance of the noise that a release at rate 1 adds to an entry of an averaged factor."""
        config = self.config
        plan = config.plan
        level = config.noise_levels
        count = len(config.unit_counts)
        arrives = plan.participation
        expected = arrives * count
        # A trusted server adds its noise once to the sum, whoever came.
        if level.server:
            return (level.server / expected) ** 2
        each = per_client(level.each, count)
        if config.clients_share_noise:
            # Expected number of uploads in a round that is released: E[n; n >= least].
            most = config.least_uploads - 2
            uploads = count * arrives * float(bdtrc(most, count - 1, arrives))
            return uploads * (each[0] / expected) ** 2
        total = 0.0
        for k, std_of_mean in enumerate(self._stds_of_means):
            total += arrives * (float(config.weights[k]) * std_of_mean) ** 2
        return total

    def _releases(self, factor: str, t: int) -> float:
        """How many releases at rate 1 round t, from 0, adds to the variance of an entry."""
        plan = self.config.plan
        words = self.config.words(t)
        # A head moves at every step, whatever the schedule says of the factors.
        steps = words if factor == "head" else [word for word in words if factor in word]
        if not self.config.releases_steps:
            return float(bool(steps))
        momentum = getattr(plan.optimizer, "momentum", 0.0)
        # With momentum m the noise of a step moves the factor in each later step of the round too:
        # in all by 1 + m + m^2 + ... times the rate.
        moved = 0.0
        total = 0.0
        for _ in steps:
            moved = 1 + momentum * moved
            total += moved**2
        return plan.rate(factor) ** 2 * total

    @cached_property
    def _released(self) -> dict[str, Curve]:
        """Factor -> variance that an entry of the factor has taken up, unfiltered."""
        curves = {}
        for factor in ("A", "B", "head"):
            rounds = range(self.config.plan.rounds)
            added = (self._releases(factor, t) * self._variance for t in rounds)
            curves[factor] = np.array(list(accumulate(added, initial=0.0)))
        return curves

    def variance(self, factor: str, layer: str) -> Curve:
        """Variance of the noise that an entry of a layer's averaged factor has taken up.

        Args:
            factor: "A" or "B", or "head", whose noise no filter passes.
            layer: its name; of a head any.

        Returns: after 0, 1, 2, ... rounds.
        """
        rule = self.config.method.filter
        if rule is identity or factor not in FILTERED:
            return self._released[factor]
        size = self.weights[layer].shape["BA".index(factor)]
        return self._released[factor] * filter_gain(rule, factor, size)

    def _variances(self, layer: str) -> tuple[Curve, Curve]:
        """The variances in A and in B, NaN where the noise in the factor is not known."""
        unknown = np.full(self.config.plan.rounds + 1, math.nan)
        in_a = unknown if self._reason("A") else self.variance("A", layer)
        return in_a, unknown if self._reason("B") else self.variance("B", layer)

    # ---- energies

    @cached_property
    def _start_energies(self) -> dict[str, dict[str, float]]:
        """Layer -> the energy of each tensor that the row starts in a way of its own."""
        initial = self.config.method.initial_factors
        energies = {}
        for layer, weight in self.weights.items():
            made = adapters.own_start(initial, weight, self.config.lora.rank)
            energies[layer] = {name: float(x.double().square().sum()) for name, x in made.items()}
        return energies

    def _scale(self, layer: str) -> float:
        """How many times as large A starts as PEFT draws it, whose energy is r / 3."""
        lora = self.config.lora
        start = self._start_energies[layer]
        own = math.sqrt(3 * start["A"] / lora.rank) if "A" in start else 1.0
        return lora.start_scale * own

    @cached_property
    def _unit_noise(self) -> dict[str, UnitNoise]:
        """Layer -> what noise of variance 1 does there: all energies are in proportion to it."""
        lora = self.config.lora
        units = {}
        for layer, weight in self.weights.items():
            scale = self._scale(layer)
            d_out, d_in = weight.shape
            terms = theory.accumulated_noise_terms(
                d_out=d_out,
                rank=lora.rank,
                d_in=d_in,
                std_B=1.0,
                std_A=1.0,
                releases_B=1,
                releases_A=1,
                scaling=lora.scaling,
                start_scale=scale,
            )
            # Of an A that starts at zero it is not known: then B does not.
            own = theory.noise_amplification(1.0, 1, d_in, scale) if scale else math.nan
            units[layer] = UnitNoise(own, terms.linear_B, terms.quadratic)
        return units

    def mean(self) -> float:
        """The amplification of all layers, weighted by the energy of B's noise, and so by d_out."""

        def amplification(layer: str) -> float:
            in_a, _ = self._variances(layer)
            return self._unit_noise[layer].amplification * float(in_a[-1])

        return self._layer_mean(amplification)

    def output_variance(self, times_a: float = 1.0, times_b: float = 1.0) -> theory.OutputVariance:
        """The two terms of v after the last round, as if the server only averaged.

        v is the variance of noise on an output, for inputs of mean square 1, over the layers. What
        the method does with the noise afterwards is not asked: see `unknown_on_outputs`.

        Args: times_a, times_b: how much noisier A and B are than the mean of what was released.
        """

        def linear(layer: str) -> float:
            in_b = times_b * float(self.variance("B", layer)[-1])
            return self._unit_noise[layer].linear * in_b / len(self.weights[layer])

        def quadratic(layer: str) -> float:
            in_a = times_a * float(self.variance("A", layer)[-1])
            in_b = times_b * float(self.variance("B", layer)[-1])
            return self._unit_noise[layer].quadratic * in_a * in_b / len(self.weights[layer])

        return theory.OutputVariance(self._layer_mean(linear), self._layer_mean(quadratic))

    def client_noise_ratio(self) -> float:
        """How much noisier a client's own copy is than the average.

        In its own last round a client has K times the variance that this round adds to the average
        of K clients, and all had the average before.
        """
        return 1 + (self.unaveraged_noise_ratio() - 1) / max(self.config.plan.rounds, 1)

    def unaveraged_noise_ratio(self) -> float:
        """How much noisier a factor is that no round averages: K times, for K equal clients."""
        noised = self.is_noisy and self.config.releases_steps and self.config.plan.rounds
        if not noised or not self._variance:
            return 1.0
        each = [std**2 for std in self._stds_of_means]
        return sum(each) / len(each) / self._variance

    def _layer_mean(self, value: Callable[[str], float]) -> float:
        """The mean of a value over the layers, weighted by d_out."""
        sizes = {layer: len(weight) for layer, weight in self.weights.items()}
        return sum(size * value(layer) for layer, size in sizes.items()) / sum(sizes.values())

    def table(self) -> dict[tuple[str, str], Curve]:
        """What records show of the forecast, (layer, measure) -> values after 0, 1, 2, ... rounds.

        ``amplification`` is the expected energy of the noise in A over A's own at the start,
        ``accumulated_...`` that which the noise has left in the product, without signal and start:
        ``linear`` of B's noise times the start of A. NaN where it is not known.
        """
        curves = {}
        for layer, unit in self._unit_noise.items():
            in_a, in_b = self._variances(layer)
            curves[layer, "amplification"] = unit.amplification * in_a
            curves[layer, "accumulated_linear"] = unit.linear * in_b
            curves[layer, "accumulated_quadratic"] = unit.quadratic * in_a * in_b
        return curves


def forecast_of(config: Config) -> NoiseForecast:
    """Makes the forecast of a run that is not prepared, from the shapes of its layers."""
    return NoiseForecast(config, adapters.adapt(config.task, config.lora).weights)


@lru_cache(maxsize=64)
def filter_gain(rule: Callable[..., Tensor], factor: str, size: int) -> float:
    """Share of white noise's variance that a linear filter along the long axis leaves, the mean.

    Args: rule: the filter. factor: "A" or "B". size: of the long axis.
    """
    # The energy of its matrix: it is applied to the rows of an identity, block by block.
    total = 0.0
    for i in range(0, size, BLOCK):
        ones = torch.zeros(min(BLOCK, size - i), size)
        ones[torch.arange(len(ones)), torch.arange(i, i + len(ones))] = 1
        # As clients' tensors are, with a first dimension.
        block = ones[None] if factor == "A" else ones.T[None]
        total += float(rule(block, factor).double().square().sum())
    return total / size
