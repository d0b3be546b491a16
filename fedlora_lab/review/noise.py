"""Tests of noise that leaves with a signal: whether what should be independent is.

Noise comes as a matrix, calls × numbers, in units of the claimed standard deviation. Tensors,
numbers, calls and workers are held against each other, by their values and by their sizes alone:
noise that is used twice with other signs is correlated in size. All p-values are those of
independent normal noise.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import linalg, special

from fedlora_lab.review.p_values import cosine_p_value

COMPARED_COLUMNS = 2048
LEAST_SAMPLES = 8
"""Fewer samples say nothing of two numbers that were chosen among millions of pairs."""
SINGULAR = 1e-5
"""Singular values of normal matrices lie closer together, if they are not quite square."""
MOST_TENSORS = 20
"""Of more tensors only those beside each other are compared."""


class Tie(NamedTuple):
    """A correlation of noise: its p-value, its size, and what is correlated."""

    p: float
    r: float
    where: str


@dataclass(frozen=True)
class Noise:
    """What leaves in many calls on one batch: some numbers of each tensor.

    Args:
        rows: (calls, numbers), with the signal, in units of the claimed noise.
        columns: tensor -> where its numbers in ``rows`` stand in the flat tensor, ascending.
        shapes: tensor -> shape.
    """

    rows: np.ndarray
    columns: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]

    @cached_property
    def parts(self) -> dict[str, slice]:
        """Tensor -> its numbers in ``rows``."""
        ends = np.cumsum([0, *map(len, self.columns.values())]).tolist()
        return {name: slice(a, b) for name, a, b in zip(self.columns, ends, ends[1:])}

    @cached_property
    def pairs(self) -> np.ndarray:
        """The noise without the signal, from each call and the next: (calls / 2, numbers)."""
        even = len(self.rows) // 2 * 2
        return (self.rows[0:even:2] - self.rows[1:even:2]) / math.sqrt(2)

    @cached_property
    def centred(self) -> np.ndarray:
        """Each call less the mean of all: (calls, numbers)."""
        return self.rows - self.rows.mean(0)

    @property
    def finite(self) -> bool:
        """Whether every number is one."""
        return bool(np.isfinite(self.rows).all())

    def ties(self) -> list[Tie]:
        """Correlations between tensors, numbers and calls."""
        calls = ties_of_calls(self.centred, self.centred, "all numbers")
        return [*self._ties_of_partners(), *self._ties_of_any_numbers(), *calls]

    def ties_with(self, other: "Noise", words: str) -> list[Tie]:
        """Correlations with another worker's noise, in the numbers that both have.

        Args: other: calls of the same seeds. words: names the two.
        """
        left: list[int] = []
        right: list[int] = []
        for name in self.parts.keys() & other.parts.keys():
            a, b = matches(self.columns[name], other.columns[name])
            left += (self.parts[name].start + a).tolist()
            right += (other.parts[name].start + b).tolist()
        if not left:
            return []
        few = kept_places(len(left), COMPARED_COLUMNS)
        # Few columns: every pair of them is compared.
        views = zip(
            both_views(self.pairs[:, np.array(left)[few]]),
            both_views(other.pairs[:, np.array(right)[few]]),
        )
        calls = ties_of_calls(self.centred[:, left], other.centred[:, right], words)
        return [*calls, *(closest_columns(a, b, words) for a, b in views)]

    def exact_tie(self) -> str:
        """Says which combination has no noise at all: of calls, of numbers, or "" for none."""
        # Orthonormal differences of the calls: white if the noise is.
        contrasts = linalg.helmert(len(self.rows)) @ self.rows  # the signal is in none of them
        calls, numbers = contrasts.shape
        few = min(calls, numbers - LEAST_SAMPLES)
        if few > 1 and is_singular(contrasts[:few]):
            return "a combination of calls has no noise"
        if 1 < numbers <= calls - LEAST_SAMPLES and is_singular(contrasts):
            return "a combination of numbers has no noise"
        return ""

    def _partners(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Numbers that mistakes give one noise: of two tensors at one place, and of one tensor
        beside, below and opposite each other. Words, and columns of ``rows`` on either side."""
        all_columns = np.arange(self.rows.shape[1])
        pairs = [*itertools.combinations(self.parts, 2)]
        if len(self.parts) > MOST_TENSORS:  # neighbours, and tensors of one shape
            alike = sorted(self.parts, key=lambda name: self.shapes[name])
            pairs = [*itertools.pairwise(self.parts), *itertools.pairwise(alike)]
        for first, second in pairs:
            a = all_columns[self.parts[first]]
            b = all_columns[self.parts[second]]
            width = min(len(a), len(b))
            yield f"{first} and {second}", a[:width], b[:width]
        for name, part in self.parts.items():
            places = self.columns[name]
            shape = self.shapes[name]
            size = math.prod(shape)
            first_half = places < size // 2
            partners = {
                "numbers": places + 1,
                "rows": places + (shape[-1] if shape else 1),
                "halves": np.where(first_half, places + size // 2, -1),
                "mirrored halves": np.where(first_half, size - 1 - places, -1),
            }
            for kind, wanted in partners.items():
                here, partner = matches(wanted, places)
                yield f"{kind} of {name}", part.start + here, part.start + partner

    def _ties_of_partners(self) -> Iterator[Tie]:
        """Partners in one call, and in one call and the next, all of a kind together."""
        views = both_views(self.pairs)
        next_views = both_views(self.centred)
        for kind, left, right in self._partners():
            for view in views:
                yield pooled(view[:, left], view[:, right], kind)
            for view in next_views:
                for now, then in ((left, right), (right, left)):
                    after = f"{kind} of the next seed"
                    yield pooled(view[:-1][:, now], view[1:][:, then], after)

    def _ties_of_any_numbers(self) -> Iterator[Tie]:
        """Any two numbers, wherever they stand, in one call, or in one call and the next."""
        most = max(2, COMPARED_COLUMNS // len(self.parts))
        tensors = self.parts.values()
        columns = [part.start + kept_places(part.stop - part.start, most) for part in tensors]
        compared = np.concatenate(columns)
        for view in both_views(self.pairs[:, compared]):
            yield closest_columns(view, view, "two numbers of one call")


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


def both_views(noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The noise, and its sizes turned into normal numbers of mean zero: signs are gone."""
    spread = np.sqrt(np.mean(noise**2, axis=0))
    share = special.erf(np.abs(noise) / (math.sqrt(2) * np.maximum(spread, 1e-300)))
    sizes = special.ndtri(np.clip(share, 1e-9, 1 - 1e-9))
    return noise, sizes - sizes.mean(0)


def matches(wanted: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices into both where ``wanted`` is among the places, which ascend."""
    if not len(places):
        return np.zeros(0, int), np.zeros(0, int)
    # Places ascend, so a binary search finds each partner or its absence.
    at = np.minimum(np.searchsorted(places, wanted), len(places) - 1)
    here = np.flatnonzero(places[at] == wanted)
    return here, at[here]


def pooled(a: np.ndarray, b: np.ndarray, where: str) -> Tie:
    """Correlation of columns with columns, all together.

    Args: a, b: (calls, columns). where: names the two.
    """
    size = math.sqrt(float((a**2).sum() * (b**2).sum()))
    r = float((a * b).sum()) / size if size else 0.0
    return Tie(cosine_p_value(r, a.size - a.shape[1]), r, where)


def closest_columns(a: np.ndarray, b: np.ndarray, where: str) -> Tie:
    """The two columns that are most correlated, of all pairs; of one set each pair counts once.

    Args: a, b: (calls, columns), the same array for one set. where: names the two.
    """
    sizes = [np.maximum(np.linalg.norm(x, axis=0), 1e-300) for x in (a, b)]
    cosines = a.T @ b / np.outer(*sizes)
    count = cosines.size
    if a is b:
        cosines = np.triu(cosines, 1)
        count = len(cosines) * (len(cosines) - 1) // 2
    r = float(cosines.flat[np.argmax(np.abs(cosines))])
    # The largest of many is large by chance: each of them could have been it.
    return Tie(min(1.0, count * cosine_p_value(r, len(a))) if count else 1.0, r, where)


def ties_of_calls(a: np.ndarray, b: np.ndarray, words: str) -> list[Tie]:
    """Calls of one worker with those of another, or of the same, at any distance.

    Args: a, b: centred, (calls, numbers). words: name the two.
    """
    ties = []
    calls, numbers = a.shape
    alone = a is b
    lags = range(1, calls // 2 + 1) if alone else range(-calls // 2, calls // 2 + 1)
    bias = 1 / (calls - 1) if alone else 0.0  # what was centred together repels itself
    for x, y in zip(both_views(a), both_views(b)):
        for lag, parity in itertools.product(lags, (0, 1)):
            i = np.arange(parity, calls, 2)  # a pair may begin at an even seed or at an odd one
            i = i[(i + lag >= 0) & (i + lag < calls)]
            size = math.sqrt(float((x[i] ** 2).sum() * (y[i + lag] ** 2).sum()))
            if len(i) * numbers >= LEAST_SAMPLES and size:
                r = float((x[i] * y[i + lag]).sum()) / size
                p = cosine_p_value(r + bias, len(i) * numbers)
                ties.append(Tie(p, r, f"{words}, {lag} seeds apart"))
    return ties


def is_singular(matrix: np.ndarray) -> bool:
    """Whether some combination of rows, or of columns, is zero but for rounding."""
    values = np.linalg.svd(matrix, compute_uv=False)
    return bool(values[-1] < SINGULAR * values[0])
