"""Checks of what comes before the step: batches that a loader draws, examples that are prepared."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from fedlora_lab._utils.validation import check
from fedlora_lab.review.claims import Claims, Evidence, Loader, Verdict
from fedlora_lab.review.neighbours import LOUD, Batch, Example, same_numbers, scale
from fedlora_lab.review.p_values import binomial_p_value, total_p_value, two_sided

LEAST_BATCHES = 300
CHECK = "sampling"


@dataclass(frozen=True)
class Drawn:
    """Batches that a loader drew, with many seeds if an epoch has few.

    Args: epochs: of each seed, its batches of indices. n: examples in the data set. q: the rate.
    """

    epochs: list[list[list[int]]]
    n: int
    q: float

    @cached_property
    def batches(self) -> list[list[int]]:
        """The batches of all epochs."""
        return [batch for epoch in self.epochs for batch in epoch]

    @cached_property
    def here(self) -> np.ndarray:
        """Which example is in which batch, (batches, examples)."""
        here = np.zeros((len(self.batches), self.n), bool)
        for row, batch in zip(here, self.batches):
            row[batch] = True
        return here

    @property
    def sizes(self) -> np.ndarray:
        """Examples in each batch."""
        return self.here.sum(1)

    @property
    def together(self) -> int:
        """How often an example is in a batch and in the next one, over pairs of batches."""
        even = len(self.here) // 2 * 2
        return int((self.here[0:even:2] & self.here[1:even:2]).sum())

    @property
    def pattern(self) -> str:
        """Says so where an epoch looks shuffled and cut."""
        often = self.here[: len(self.epochs[0])].sum(0)
        cut = len(self.epochs[0]) > 1 and (often <= 1).all() and often.mean() > 0.5
        return ": an epoch holds no example twice, as if shuffled and cut" if cut else ""

    def evidence(self, text: str, p: float | None = None, sound: bool = True) -> Evidence:
        """Evidence, with how many batches it is from."""
        rate = float(self.here.mean()) / self.q
        sizes = self.sizes
        batches = f"{len(self.here)} batches of {sizes.min()} to {sizes.max()} examples"
        return Evidence(CHECK, text, rate, batches, p, "sound" if sound else "broken")


def draw_batches(loader: Loader, n: int, q: float, seed: int) -> Drawn:
    """Draws epochs until there are enough batches. Args: as of `sampling_evidence`."""
    epochs: list[list[list[int]]] = []
    while sum(map(len, epochs)) < LEAST_BATCHES and len(epochs) < LEAST_BATCHES:
        drawn = loader(seed * 1_000_003 + len(epochs))
        text = "to return batches, lists of indices"
        check(hasattr(drawn, "__iter__"), "loader", type(drawn).__name__, text)
        epochs.append([[int(i) for i in batch] for batch in drawn])
    batches = [batch for epoch in epochs for batch in epoch]
    check(len(batches) > 1, "loader", len(batches), "more than one batch")
    inside = all(0 <= i < n for batch in batches for i in batch)
    check(inside, "loader", "an index outside", f"indices from 0 to {n - 1}")
    return Drawn(epochs, n, q)


def sampling_evidence(loader: Loader | None, claims: Claims, seed: int) -> Iterator[Evidence]:
    """Compares the batches that a loader draws with the claimed law.

    Args:
        loader: seed -> batches, each of indices into the data set.
        claims: with sampling, sample_rate and dataset_size.
        seed: of the seeds that the loader is given.
    """
    q = claims.sample_rate
    n = claims.dataset_size
    if loader is None or claims.sampling is None or q is None or n is None:
        text = "needs a loader, and sampling, sample_rate and dataset_size among the claims"
        yield Evidence(CHECK, text, verdict="cannot tell")
        return
    drawn = draw_batches(loader, n, q, seed)
    if sum(map(len, drawn.batches)) != int(drawn.sizes.sum()):
        yield drawn.evidence("a batch holds the same example twice", sound=False)
    repeated = all(epoch == drawn.epochs[0] for epoch in drawn.epochs)
    if len(drawn.epochs) > 1 and repeated and q < 1:
        yield drawn.evidence("every seed draws the same batches", sound=False)
    else:
        yield from (
            fixed_evidence(drawn) if claims.sampling == "fixed" else poisson_evidence(drawn, seed)
        )
        yield from share_evidence(drawn)


def fixed_evidence(drawn: Drawn) -> Iterator[Evidence]:
    """Whether batches of one size are drawn anew each time."""
    n = drawn.n
    size = round(drawn.q * n)
    sizes = drawn.sizes
    text = f"batches of {sizes.min()} to {sizes.max()} examples, claimed {size}"
    yield drawn.evidence(text, sound=bool((sizes == size).all()))
    # Of one batch and the next: the variance of a hypergeometric number.
    variance = size * size / n * (1 - size / n) ** 2 * n / max(1, n - 1)
    pairs = len(sizes) // 2
    gap = abs(drawn.together - pairs * size * size / n) / (math.sqrt(pairs * variance) or math.inf)
    text = f"{drawn.together} examples stand in a batch and in the next one{drawn.pattern}"
    yield drawn.evidence(text, float(2 * stats.norm.sf(gap)))


def poisson_evidence(drawn: Drawn, seed: int) -> Iterator[Evidence]:
    """Whether every example is drawn for every batch by itself, at the claimed rate."""
    q = drawn.q
    if q >= 1:
        return
    here = drawn.here
    sizes = drawn.sizes
    rate = float(here.mean()) / q
    text = f"examples are drawn at {rate:.4g} times the claimed rate"
    yield drawn.evidence(text, total_p_value(int(here.sum()), here.size, q))
    text = f"sizes from {sizes.min()} to {sizes.max()} do not vary as those of Poisson batches"
    p = binomial_p_value(sizes, drawn.n, q, np.random.default_rng(seed))
    yield drawn.evidence(text + drawn.pattern, p)
    trials = len(here) // 2 * drawn.n
    text = f"{drawn.together} examples stand in a batch and in the next one"
    text += f", expected {trials * q * q:.0f}{drawn.pattern}"
    yield drawn.evidence(text, total_p_value(drawn.together, trials, q * q))


def share_evidence(drawn: Drawn) -> Iterator[Evidence]:
    """Whether all examples are drawn equally often."""
    q = drawn.q
    each = drawn.here.sum(0)
    count = len(drawn.here)
    variance = count * q * (1 - q)
    if not variance > 0:
        return
    # Squares of a binomial number: mean 1, variance as for a normal one and a little more.
    total = float(np.sum((each - count * q) ** 2) / variance)
    spread = drawn.n * (2 + (1 - 6 * q * (1 - q)) / variance)
    law = stats.gamma(drawn.n**2 / spread, scale=spread / drawn.n)
    text = f"an example is drawn {each.min()} to {each.max()} times in {count} batches"
    p = two_sided(float(law.cdf(total)), float(law.sf(total)))
    yield drawn.evidence(text + drawn.pattern, p)


def most_participations(loader: Loader, steps: int, n: int, seed: int) -> int:
    """How many of so many steps the example that a loader draws most often takes part in.

    Args: loader, n, seed: see `sampling_evidence`. steps: of the whole training.
    """
    often = np.zeros(n)
    seen = 0
    for epoch in range(LEAST_BATCHES):
        batches = loader(seed * 1_000_003 + epoch)
        for batch in batches:
            often[np.unique(np.asarray(batch, dtype=int))] += 1
        seen += len(batches)
        if seen >= min(steps, LEAST_BATCHES):
            break
    return math.ceil(float(often.max()) * steps / max(seen, 1) - 1e-9)


def preparation_evidence(
    prepare: "Callable[[Batch], Sequence[Example]] | None", data: Batch
) -> Iterator[Evidence]:
    """Checks that leaving out a raw example changes no other prepared one.

    Args: prepare: raw examples -> examples. data: raw examples.
    """
    check_ = "preparation"
    if prepare is None:
        yield Evidence(check_, "no prepare function was given", verdict="cannot tell")
        return
    prepared = [*prepare([*data])]
    changes = []
    for i in sorted({0, len(data) // 2, len(data) - 1}):
        expected = prepared[:i] + prepared[i + 1 :]
        without = [*prepare([*data[:i], *data[i + 1 :]])]
        loud = [*prepare([*data[:i], scale(data[i], LOUD), *data[i + 1 :]])]
        beside = loud[:i] + loud[i + 1 :]
        for text, after in (("left out", without), ("scaled by 1e6", beside)):
            moved = sum(not same_numbers(a, b) for a, b in zip(expected, after))
            moved += abs(len(after) - len(expected))
            changes.append((moved, f"raw example {i} {text}"))
    most, where = max(changes)
    text = "every example is prepared alone"
    if most:
        text = f"{most} of {len(prepared) - 1} other examples change with {where}"
    verdict: Verdict = "broken" if most else "sound"
    yield Evidence(check_, text, float(most), where, verdict=verdict)
