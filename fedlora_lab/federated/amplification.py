"""The amplification number: the energy of the noise that A takes up over A's own, before any run.

All of it follows from public numbers: noise multiplier, clip norm, sizes, schedule and rates.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from scipy.special import bdtrc
from torch import Tensor

from fedlora_lab._utils.validation import check
from fedlora_lab.lora import peft
from fedlora_lab.methods.aggregation import ProductRule
from fedlora_lab.methods.filters import identity, received
from fedlora_lab.methods.method import Cycle
from fedlora_lab.methods.optimizers import SGD
from fedlora_lab.methods.published import rule_name
from fedlora_lab.privacy.ledger import per_client
from fedlora_lab.theory import products as theory

if TYPE_CHECKING:
    import pandas as pd

BLOCK = 256
"""Rows of an identity that a filter is given at once."""


@dataclass(frozen=True)
class NoiseForecast:
    """Predicts the noise that a run's releases leave in the averaged factors, round by round.

    Args:
        spec: a `RunSpec`: task, method, privacy, plan and adapter of the run.
        weights: layer -> its frozen weight, (d_out, d_in).

    Counted is the noise alone, not what training makes of it afterwards; expected over who takes
    part and whose upload is lost.
    """

    spec: Any
    weights: Mapping[str, Tensor]

    @cached_property
    def noisy(self) -> bool:
        """Whether anything is noised at all."""
        privacy = self.spec.privacy
        sigma: Any = 0.0 if privacy is None else privacy.noise_multiplier
        return any(sigma) if isinstance(sigma, tuple) else bool(sigma)

    @cached_property
    def unknown(self) -> str | None:
        """Why the noise in A is not known before the run; ``None``: it is."""
        return self._unknown["A"]

    @cached_property
    def _unknown(self) -> dict[str, str | None]:
        """Side -> why the noise in it is not known before the run. Asked for in every round and
        layer, and the same in all."""
        return {side: self._reason(side) for side in "AB"}

    def _reason(self, side: str) -> str | None:
        """Why the noise in a factor is not known before the run."""
        method, plan = self.spec.method, self.spec.plan
        if not self.noisy:
            return None
        if _mean_gain(method.aggregate) is None:
            return f"{rule_name(method.aggregate)} does not leave {side} the mean of what was sent"
        words = {method.sides_in_round(t, plan.local_steps) for t in range(min(plan.rounds, 100))}
        if any("*" in word for word in words):
            return "which factor moves is chosen during the run"
        if not any(side in word for word in words):
            other = side == "B" and not set("".join(words)) <= set("AB")
            return "noised is something else than the factors" if other else None
        if side == "B" and isinstance(method.aggregate, ProductRule):
            return f"{rule_name(method.aggregate)} adds what the mean of the products has more"
        if method.own_ranks or not (method.share is None or side in method.share):
            return f"{side}, or part of it, stays with its client"
        if method.precondition is not None:
            other = "B" if side == "A" else "A"
            return f"{rule_name(method.precondition)} shapes the noise on {side} by {other}"
        if plan.server_optimizer != SGD():
            return f"the server's optimiser {plan.server_optimizer} is more than a step"
        if self._by_step and plan.optimizer.nonlinear:
            return f"{plan.optimizer}: {plan.optimizer.nonlinear}"
        if getattr(plan.optimizer, "weight_decay", 0.0):
            return f"{plan.optimizer} shrinks {side}, and the noise in it"
        if not self._by_step and method.clip_reference is not received:
            return "clipped are the weights, with the noise in them, and not their change"
        return None

    @property
    def _by_step(self) -> bool:
        return self.spec.privacy is None or self.spec.privacy.by_step

    @cached_property
    def _variance(self) -> float:
        """Variance of the noise that a release at rate 1 adds to an entry of an averaged factor."""
        privacy, plan = self.spec.privacy, self.spec.plan
        if privacy is None or not self.noisy:
            return 0.0
        sizes = privacy.units(self.spec.task)
        count, ranks, every = len(sizes), self.spec.lora.ranks, plan.participation * len(sizes)
        share = (_mean_gain(self.spec.method.aggregate) or 1.0) * plan.server_lr
        level, came = privacy.noise_levels(count, plan), plan.participation * (1 - plan.dropout)
        if level.server:  # added once to the sum, whoever came
            return (share * level.server / every) ** 2
        if privacy.server_sees_only_sum:
            # Expected number of uploads in a round that is released: E[n; n >= least].
            least = level.shares + privacy.colluding
            uploads = count * came * float(bdtrc(least - 2, count - 1, came))
            return uploads * (share * per_client(level.each, 1)[0] / every) ** 2
        total = 0.0
        for k, std in enumerate(per_client(level.each, count)):
            weight = 1 / count if plan.weights == "uniform" else sizes[k] / sum(sizes)
            if self._by_step:  # of a step's sum, divided by the expected batch
                std /= sizes[k] if plan.batch is None else min(plan.batch, max(sizes[k], 1))
            ranked = 1.0 if ranks is None else ranks[k] / self.spec.lora.rank
            total += ranked * came * (weight / plan.participation * std) ** 2
        return share**2 * total

    def releases_in_round(self, side: str, t: int) -> int:
        """How often noise falls on A or B in round t, counted from 0."""
        method, steps = self.spec.method, self.spec.plan.local_steps
        if not self._by_step:
            return int(side in method.sides_in_round(t, steps))
        if not isinstance(method.train, Cycle):
            return sum(side in method.sides_at_step(t, s) for s in range(steps))
        words = method.train.rounds[t % len(method.train.rounds)].split()
        whole, rest = divmod(steps, len(words))
        return whole * sum(side in w for w in words) + sum(side in w for w in words[:rest])

    def _round_variance(self, side: str, t: int) -> float:
        """What round t adds to the variance of an entry, before a filter."""
        count, plan = self.releases_in_round(side, t), self.spec.plan
        if not self._by_step:
            return count * self._variance
        # With momentum m the noise of a step moves the factor in each later step of the round too:
        # in all by 1 + m + m^2 + ... times the rate.
        kept, moved, total = getattr(plan.optimizer, "momentum", 0.0), 0.0, 0.0
        for _ in range(count) if kept else ():
            moved = 1 + kept * moved
            total += moved**2
        return plan.rate(side, t) ** 2 * (total if kept else count) * self._variance

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
        sums = self._sums[side]
        while len(sums) <= rounds:
            sums.append(sums[-1] + self._round_variance(side, len(sums) - 1))
        rule, (d_out, d_in) = self.spec.method.filter, self.weights[layer].shape
        size = d_in if side == "A" else d_out
        return sums[rounds] * (1.0 if rule is identity else _filter_gain(rule, side, size))

    def _start_scale(self, layer: str) -> float:
        """How many times as large A starts as PEFT draws it, where its energy is r / 3."""
        start, lora = self.spec.method.start, self.spec.lora
        rank = lora.rank
        own = {} if start is None else start(self.weights[layer], rank)
        if "A" not in own:
            return lora.start_scale
        energy = float(own["A"].double().square().sum())
        return lora.start_scale * math.sqrt(3 * energy / rank)

    def amplification(self, layer: str, rounds: int) -> float:
        """Expected energy of the noise in A over A's own at the start; NaN where `unknown`."""
        if self.unknown is not None:
            return math.nan
        if not (variance := self.variance("A", layer, rounds)):
            return 0.0
        d_in = self.weights[layer].shape[1]
        return theory.amplification(math.sqrt(variance), 1, d_in, self._start_scale(layer))

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
        d_out, d_in = self.weights[layer].shape
        lora, known = self.spec.lora, {x: self._unknown[x] is None for x in "AB"}
        if not known["B"]:
            return theory.NoiseTerms(*[math.nan] * 3)
        std = {x: math.sqrt(self.variance(x, layer, rounds)) if known[x] else 0.0 for x in "AB"}
        scales = lora.scaling, self._start_scale(layer)
        terms = theory.accumulated_noise_terms(
            d_out, lora.rank, d_in, std["B"], std["A"], 1, 1, *scales
        )
        return terms if known["A"] else terms._replace(quadratic=math.nan)

    def noise_to_signal(self) -> float:
        """Length of the noise in the first averaged release over the longest signal: C times 1.

        A release is a step in the example unit, a round in the client unit. 0 without noise.

        Guarantees: test_amplification.py::test_noise_to_signal_is_what_a_release_shows.
        """
        privacy = self.spec.privacy
        if privacy is None or not self.noisy:
            return 0.0
        steps = 1 if self._by_step else self.spec.plan.local_steps
        word, numbers = self.spec.method.sides_in_round(0, steps), 0
        for layer, (d_out, d_in) in ((k, weight.shape) for k, weight in self.weights.items()):
            rank = self.spec.lora.rank
            sizes = {"A": rank * d_in, "B": d_out * rank, "*": d_out * rank}
            numbers += sum(sizes.get(side, 0) for side in word)
            if "R" in word and self.spec.method.start is not None:  # a core may be blocks
                made = self.spec.method.start(self.weights[layer], rank)
                numbers += sum(x.numel() for side, x in made.items() if side in ("R", "gain"))
        gain = (_mean_gain(self.spec.method.aggregate) or 1.0) * self.spec.plan.server_lr
        return math.sqrt(numbers * self._variance) / (gain * privacy.clip_norm)

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
        rounds, unknown = self.spec.plan.rounds, self.unknown
        in_a, in_b = (sum(self.releases_in_round(x, t) for t in range(rounds)) for x in "AB")

        def std(side: str, layer: str, count: int) -> float:
            if self._unknown[side] is not None:
                return math.nan
            return math.sqrt(self.variance(side, layer, rounds) / max(count, 1))

        layers = []
        for layer, weight in self.weights.items():
            d_out, d_in = weight.shape
            std_a, std_b = std("A", layer, in_a), std("B", layer, in_b)
            rho = self.amplification(layer, rounds)
            layers.append(LayerNoise(layer, d_out, d_in, std_a, std_b, in_a, in_b, rho))
        scale = self.spec.lora.start_scale
        return Amplification(tuple(layers), self.mean(rounds), scale, unknown)


class LayerNoise(NamedTuple):
    """The noise of a run on one layer.

    Args:
        layer: its name.
        d_out, d_in: its shape.
        std_A, std_B: standard deviation of one release's noise on an entry of the averaged factor,
            the root mean square over the releases.
        releases_A, releases_B: how often noise falls on each factor in the whole run.
        amplification: how many times its own energy A takes up as noise.
    """

    layer: str
    d_out: int
    d_in: int
    std_A: float
    std_B: float
    releases_A: int
    releases_B: int
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

    def frame(self) -> "pd.DataFrame":
        """The layers as a frame."""
        import pandas as pd

        return pd.DataFrame(list(self.layers), columns=LayerNoise._fields)


def forecast_of(spec: Any) -> NoiseForecast:
    """Makes the forecast of a run that is not prepared, from the shapes of its layers."""
    task = spec.task
    return NoiseForecast(spec, peft.adapt(task.model, task.targets, task.head, spec.lora).weights)


def balanced_start(forecast: NoiseForecast, balance: float) -> float:
    """Computes the start scale of A at which its noise stays at ``balance`` times its energy.

    Args:
        forecast: with A as PEFT draws it.
        balance: > 0.

    Raises: ``ValueError`` where the noise in A is not known before the run.
    """
    why = forecast.unknown
    check(why is None, "balance", balance, f"None: the noise in A is not known before a run, {why}")
    return theory.balanced_scale(forecast.mean(forecast.spec.plan.rounds), balance)


def _mean_gain(rule: Any) -> float | None:
    """The factor by which a server's rule multiplies the mean change of A; ``None``: no factor."""
    return getattr(rule, "mean_gain", None)


@lru_cache(maxsize=64)
def _filter_gain(rule: Callable[..., Tensor], side: str, size: int) -> float:
    """Share of white noise's variance that a linear filter along the long axis leaves, the mean."""
    total = 0.0
    for i in range(0, size, BLOCK):
        ones = torch.zeros(min(BLOCK, size - i), size)
        ones[torch.arange(len(ones)), torch.arange(i, i + len(ones))] = 1
        total += float(rule(ones if side == "A" else ones.T, side).double().square().sum())
    return total / size
