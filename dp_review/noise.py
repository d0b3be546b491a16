"""Tests of noise that leaves with a signal: whether what should be independent is.

Noise comes as a matrix, calls × numbers, in units of the claimed standard deviation. Numbers, calls
and workers are held against each other, calls and workers by their sizes alone, too: noise that is
used twice with other signs is correlated in size. All p-values are those of independent normal
noise.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import special, stats

COMPARED_COLUMNS = 2048
MOST_PAIRS = 200
"""Pairs of tensors that are compared number by number."""
LEAST_SAMPLES = 8
"""Fewer samples say nothing of two numbers that were chosen among millions of pairs."""

SINGULAR = 1e-5
"""Share of the largest singular value below which one is zero but for rounding."""


class Tie(NamedTuple):
    """A correlation of noise.

    Args:
        p: of so large a one between independent noises.
        r: its size, in [-1, 1].
        where: what is correlated, in words.
    """

    p: float
    r: float
    where: str


@dataclass(frozen=True)
class Noise:
    """What leaves in many calls on one batch: some numbers of each tensor.

    Args:
        rows: (calls, numbers), with the signal, in units of the claimed noise.
        parts: tensor -> its numbers in ``rows``.
        sent: the rows as they left, before they were spread over the cells of a grid.
    """

    rows: np.ndarray
    parts: Mapping[str, slice]
    sent: np.ndarray | None = None

    @cached_property
    def pairs(self) -> np.ndarray:
        """The noise without the signal, from each call and the next: (calls / 2, numbers)."""
        even = len(self.rows) // 2 * 2
        return (self.rows[0:even:2] - self.rows[1:even:2]) / math.sqrt(2)

    @cached_property
    def centred(self) -> np.ndarray:
        """Each call less the mean of all: (calls, numbers)."""
        return self.rows - self.rows.mean(0)

    @cached_property
    def deviations(self) -> np.ndarray:
        """The noise in claimed standard deviations: (calls, numbers), one call fewer are free."""
        return self.centred * math.sqrt(len(self.rows) / (len(self.rows) - 1))

    def places(self, names: Sequence[str], most: int | None = None) -> np.ndarray:
        """Columns of these tensors. Args: names: of them. most: how many of each; None: all."""
        parts = [self.parts[name] for name in names]
        sizes = [part.stop - part.start for part in parts]
        return np.concatenate(
            [part.start + kept_places(size, most or size) for part, size in zip(parts, sizes)]
        )


def ties_within(noise: Noise) -> list[Tie]:
    """Correlations between numbers of one call, and of one call and the next."""
    ties = ties_of_tensors(noise)
    most = max(2, COMPARED_COLUMNS // len(noise.parts))
    rows = unit_columns(noise.centred[:, noise.places([*noise.parts], most)])
    ties += ties_of_columns(rows, rows, "two numbers of the step")
    ties += ties_of_columns(rows[:-1], rows[1:], "a number of one call and one of the next")
    return ties


def ties_between(one: Noise, other: Noise, where: str) -> list[Tie]:
    """Correlations of two workers' noise at equal seeds, in the tensors that both have.

    Args: one, other: of the two, or of one. where: names them.
    """
    names = [name for name in one.parts if name in other.parts]
    if not names:
        return []
    left, right = (noise.centred[:, noise.places(names)] for noise in (one, other))
    return ties_of_calls(left, right, where, alone=one is other)


def ties_of_tensors(noise: Noise) -> list[Tie]:
    """Correlations between two tensors, number by number from either end: a little of the same
    noise in each of many numbers shows in all of them together."""
    ties = []
    for one, other in itertools.islice(itertools.combinations(noise.parts, 2), MOST_PAIRS):
        left, right = (noise.centred[:, noise.parts[name]] for name in (one, other))
        size = min(left.shape[1], right.shape[1], COMPARED_COLUMNS)
        for turn in (1, -1):
            x, y = (unit_columns(rows[:, :size]) for rows in (left, right[:, ::turn]))
            samples = (len(x) - 1) * size
            if samples >= LEAST_SAMPLES:
                # Each number has mean square 1, or is zero.
                r = float((x * y).mean())
                p = float(correlation_p_value(r, samples))
                ties.append(Tie(p, r, f"{one} and {other}, number by number"))
    return ties


def lacks_rank(noise: Noise) -> bool:
    """Whether some combination of numbers has no noise at all, as where a mean is subtracted."""
    calls, numbers = noise.rows.shape
    # Singular values of a random matrix come close to zero only where it is almost square.
    enough = numbers <= calls - 1 - LEAST_SAMPLES
    return enough and int(np.linalg.matrix_rank(noise.centred, rtol=SINGULAR)) < numbers


def kept_places(size: int, most: int) -> np.ndarray:
    """Up to ``most`` of so many places, ascending: the first ones, the last, and those from the
    middle on, where the second of two halves begins.

    >>> kept_places(20, 6).tolist()
    [0, 1, 10, 11, 18, 19]
    """
    if size <= most:
        return np.arange(size)
    block = np.arange(max(1, most // 3))
    return np.unique(np.concatenate([block, size // 2 + block, size - 1 - block]))


def both_views(noise: np.ndarray) -> list[np.ndarray]:
    """The noise, and its sizes turned into normal numbers of mean zero, without their signs; each
    number has mean square 1 over the calls."""
    scaled = unit_columns(noise)
    share = special.erf(np.abs(scaled) / math.sqrt(2))
    sizes = special.ndtri(np.clip(share, 1e-9, 1 - 1e-9))
    return [scaled, unit_columns(sizes - sizes.mean(0))]


def unit_columns(noise: np.ndarray) -> np.ndarray:
    """Scales each column to mean square 1; one of zeros stays."""
    return noise / np.maximum(np.sqrt(np.mean(noise**2, axis=0)), 1e-300)


def correlation_p_value(r: np.ndarray | float, samples: np.ndarray | float) -> np.ndarray:
    """Tests for no correlation. A floor keeps rounding from making it certain."""
    # Student's law of a correlation of independent normal numbers.
    free = np.maximum(1, np.asarray(samples) - 2)
    square = np.square(r)
    return 2 * stats.t.sf(np.sqrt(square * free / np.maximum(1 - square, 1e-6)), free)


def ties_of_columns(a: np.ndarray, b: np.ndarray, where: str) -> list[Tie]:
    """The two columns that are most correlated; of one set each pair once.

    Args: a, b: (calls, columns), equal for one set. where: names the two.
    """
    cosines = unit_columns(a - a.mean(0)).T @ unit_columns(b - b.mean(0)) / len(a)
    if np.array_equal(a, b):
        cosines = cosines[np.triu_indices(len(cosines), 1)]
    if not cosines.size:
        return []
    r = float(cosines.flat[np.argmax(np.abs(cosines))])
    # The largest of many is large by chance: each of them could have been it.
    return [Tie(min(1.0, cosines.size * float(correlation_p_value(r, len(a)))), r, where)]


def ties_of_calls(a: np.ndarray, b: np.ndarray, words: str, alone: bool) -> list[Tie]:
    """Calls of one worker with those of another, or of the same: at each distance of their seeds
    together, and each two by themselves, as where noise comes from a pool.

    Args: a, b: centred, (calls, numbers). words: name the two. alone: both are the same.
    """
    ties = []
    calls, numbers = a.shape
    if numbers < 2:
        return []
    bias = 1 / (calls - 1) if alone else 0.0  # what was centred together repels itself
    names = (words, f"sizes in {words}")
    for x, y, words in zip(both_views(a), both_views(b), names):
        squares = np.outer((x**2).sum(1), (y**2).sum(1))
        cosines = x @ y.T / np.sqrt(np.maximum(squares, 1e-300))
        for lag in range(1 if alone else -calls // 2, calls // 2 + 1):
            apart = cosines.diagonal(lag)
            if len(apart) * numbers >= LEAST_SAMPLES:
                r = float(apart.mean())
                p = float(correlation_p_value(r + bias, len(apart) * numbers))
                ties.append(Tie(p, r, f"{words}, {lag} seeds apart"))
        if numbers >= LEAST_SAMPLES:
            pairs = np.triu_indices(calls, 1 if alone else -calls)
            each = cosines[pairs]
            k = int(np.argmax(np.abs(each + bias)))
            p = float(correlation_p_value(each[k] + bias, numbers)) * each.size
            where = f"{words}, calls {pairs[0][k]} and {pairs[1][k]}"
            ties.append(Tie(min(1.0, p), float(each[k]), where))
    return ties
