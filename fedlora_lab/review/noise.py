"""Tests of noise that leaves with a signal: its size, and whether what should be independent is.

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

from fedlora_lab.review.p_values import cosine_p_value, variance_p_value

COMPARED_COLUMNS = 2048
LEAST_SAMPLES = 8
"""Fewer samples say nothing of two numbers that were chosen among millions of pairs."""
SINGULAR = 1e-5
"""Singular values of normal matrices lie closer together, if they are not quite square."""


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
        parts: tensor -> its columns in ``rows``.
        places: tensor -> where these numbers stand in the flat tensor, ascending.
        shapes: tensor -> shape.
    """

    rows: np.ndarray
    parts: Mapping[str, slice]
    places: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]

    @cached_property
    def pairs(self) -> np.ndarray:
        """The noise without the signal, from each call and the next: (calls / 2, numbers)."""
        return pair_differences(self.rows)

    @cached_property
    def centred(self) -> np.ndarray:
        """Each call less the mean of all: (calls, numbers)."""
        return self.rows - self.rows.mean(0)

    def ties(self) -> list[Tie]:
        """Correlations between tensors, numbers and calls."""
        return [
            *self._ties_of_tensors(),
            *self._ties_within_tensors(),
            *self._ties_of_any_numbers(),
            *_ties_of_calls(self.centred, self.centred, "all numbers"),
        ]

    def ties_with(self, other: "Noise", words: str) -> list[Tie]:
        """Correlations with another worker's noise, in the numbers that both have.

        Args: other: calls of the same seeds. words: names the two.
        """
        couples = [
            (self.parts[name].start + mine, other.parts[name].start + theirs)
            for name in self.parts
            if name in other.parts
            for mine, theirs in [_matches(self.places[name], other.places[name])]
        ]
        if not sum(len(mine) for mine, _ in couples):
            return []
        mine, theirs = (np.concatenate(columns) for columns in zip(*couples))
        found = _ties_of_calls(self.centred[:, mine], other.centred[:, theirs], words)
        few = kept_places(len(mine), COMPARED_COLUMNS)
        views = zip(_views(self.pairs[:, mine[few]]), _views(other.pairs[:, theirs[few]]))
        return [*found, *(_closest_columns(a, b, words) for a, b in views)]

    def exact_tie(self) -> str:
        """Says which combination has no noise at all: of calls, of numbers, or "" for none."""
        contrasts = linalg.helmert(len(self.rows)) @ self.rows  # the signal is in none of them
        calls, numbers = contrasts.shape
        few = min(calls, numbers - LEAST_SAMPLES)
        if few > 1 and _is_singular(contrasts[:few]):
            return "a combination of calls has no noise"
        if 1 < numbers <= calls - LEAST_SAMPLES and _is_singular(contrasts):
            return "a combination of numbers has no noise"
        return ""

    def _ties_of_tensors(self) -> Iterator[Tie]:
        """Numbers at one place of two tensors, in one call, and in one call and the next."""
        names = [*self.parts]
        couples = [*itertools.combinations(names, 2)]
        if len(names) > 20:  # neighbours, and tensors of one shape beside each other
            alike = sorted(names, key=lambda name: self.shapes[name])
            couples = sorted({*itertools.pairwise(names), *itertools.pairwise(alike)})
        for view in _views(self.pairs):
            for a, b in couples:
                yield _pooled(view[:, self.parts[a]], view[:, self.parts[b]], f"{a} and {b}")
        for view in _views(self.centred):
            for a, b in [*couples, *((b, a) for a, b in couples)]:
                one, other = view[:-1, self.parts[a]], view[1:, self.parts[b]]
                yield _pooled(one, other, f"{a} and {b} of the next seed")

    def _ties_within_tensors(self) -> Iterator[Tie]:
        """Numbers of a tensor beside, below and opposite each other, and all of them together."""
        for name, part in self.parts.items():
            z, shape, places = self.pairs[:, part], self.shapes[name], self.places[name]
            size, last = math.prod(shape), shape[-1] if shape else 1
            half = size // 2
            partners = {
                "numbers": places + 1,
                "rows": places + last,
                "halves": np.where(places < half, places + half, -1),
                "mirrored halves": np.where(places < half, size - 1 - places, -1),
            }
            views = _views(z)
            for words, partner in partners.items():
                here, there = _matches(partner, places)
                for view in views:
                    yield _pooled(view[:, here], view[:, there], f"{words} of {name}")
            count = z.shape[1]
            if count > 1 and z.any():
                sums = z.sum(1) / (math.sqrt(count) * math.sqrt(np.mean(z**2)))
                shared = (float(np.mean(sums**2)) - 1) / (count - 1)
                yield Tie(variance_p_value(sums), shared, f"all numbers of {name}")

    def _ties_of_any_numbers(self) -> Iterator[Tie]:
        """Any two numbers, wherever they stand, in one call, or in one call and the next."""
        most = max(2, COMPARED_COLUMNS // len(self.parts))
        parts = self.parts.values()
        columns = [part.start + kept_places(part.stop - part.start, most) for part in parts]
        compared = np.concatenate(columns)
        for view in _views(self.pairs[:, compared]):
            yield _closest_columns(view, view, "two numbers of one call")
        few = compared[kept_places(len(compared), COMPARED_COLUMNS // 2)]
        for first in (0, 1):  # a pair of calls may begin at an even seed or at an odd one
            # Of four calls the first less the third, and the second less the fourth: independent,
            # but tied where each call is tied to the next.
            count = (len(self.rows) - first) // 4
            calls = self.rows[first : first + 4 * count, few].reshape(count, 4, len(few))
            one, other = calls[:, 0] - calls[:, 2], calls[:, 1] - calls[:, 3]
            if count >= LEAST_SAMPLES:
                yield _closest_columns(one, other, "two numbers of one seed and the next")


def pair_differences(rows: np.ndarray) -> np.ndarray:
    """Differences of one call and the next, over the root of 2: the noise without the signal."""
    even = len(rows) // 2 * 2
    return (rows[0:even:2] - rows[1:even:2]) / math.sqrt(2)


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


# ---- correlations


def _views(noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The noise, and its sizes turned into normal numbers of mean zero: signs are gone."""
    spread = np.sqrt(np.mean(noise**2, axis=0))
    share = special.erf(np.abs(noise) / (math.sqrt(2) * np.maximum(spread, 1e-300)))
    sizes = special.ndtri(np.clip(share, 1e-9, 1 - 1e-9))
    return noise, sizes - sizes.mean(0)


def _matches(wanted: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices into both where ``wanted`` is among the places, which ascend."""
    at = np.minimum(np.searchsorted(places, wanted), max(0, len(places) - 1))
    here = np.flatnonzero(places[at] == wanted) if len(places) else np.zeros(0, int)
    return here, at[here]


def _pooled(a: np.ndarray, b: np.ndarray, where: str) -> Tie:
    """Correlation of as many columns as the narrower one has, all together."""
    width = min(a.shape[1], b.shape[1])
    a, b = a[:, :width], b[:, :width]
    size = math.sqrt(float((a**2).sum() * (b**2).sum()))
    r = float((a * b).sum()) / size if size else 0.0
    return Tie(cosine_p_value(r, a.size - width), r, where)


def _closest_columns(a: np.ndarray, b: np.ndarray, where: str) -> Tie:
    """The two columns that are most correlated, of all pairs."""
    sizes = [np.maximum(np.linalg.norm(x, axis=0), 1e-300) for x in (a, b)]
    cosines = a.T @ b / np.outer(*sizes)
    r, _, _, count = _largest(cosines, a is b)
    p = count * cosine_p_value(r, len(a)) if count else 1.0
    return Tie(min(1.0, p), r, where)


def _largest(cosines: np.ndarray, same: bool) -> tuple[float, int, int, int]:
    """The largest of a matrix in absolute value, its row and column, and among how many it is.

    Args: cosines: of two sets of vectors. same: the two are one; each pair counts once.
    """
    if same:
        cosines = np.triu(cosines, 1)
    i, j = np.unravel_index(np.argmax(np.abs(cosines)), cosines.shape)
    count = len(cosines) * (len(cosines) - 1) // 2 if same else cosines.size
    return float(cosines[i, j]), int(i), int(j), count


def _ties_of_calls(a: np.ndarray, b: np.ndarray, words: str) -> list[Tie]:
    """Calls of one worker with those of another, or of the same, at any distance.

    Args: a, b: centred, (calls, numbers). words: name the two.
    """
    found = []
    calls, numbers = a.shape
    same = a is b
    lags = range(1, calls // 2 + 1) if same else range(-calls // 2, calls // 2 + 1)
    bias = 1 / (calls - 1) if same else 0.0  # what was centred together repels itself
    for x, y in zip(_views(a), _views(b)):
        products = x @ y.T
        squares = (x**2).sum(1), (y**2).sum(1)
        for lag, parity in itertools.product(lags, (0, 1)):
            one = np.arange(parity, calls, 2)  # a pair may begin at an even seed or at an odd one
            one = one[(one + lag >= 0) & (one + lag < calls)]
            samples = len(one) * numbers
            size = math.sqrt(float(squares[0][one].sum() * squares[1][one + lag].sum()))
            if samples >= LEAST_SAMPLES and size:
                r = float(products[one, one + lag].sum()) / size
                p = cosine_p_value(r + bias, samples)
                found.append(Tie(p, r, f"{words}, {lag} seeds apart"))
        if numbers >= 4 * LEAST_SAMPLES:
            sizes = np.maximum(np.sqrt(np.outer(*squares)), 1e-300)
            r, i, j, count = _largest(products / sizes + bias, same)
            p = min(1.0, count * cosine_p_value(r, numbers))
            found.append(Tie(p, r, f"{words}, {j - i} seeds apart"))
    return found


def _is_singular(matrix: np.ndarray) -> bool:
    values = np.linalg.svd(matrix, compute_uv=False)
    return bool(values[-1] < SINGULAR * values[0])
