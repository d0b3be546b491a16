"""What is plainly done to values after the noise was added, as it shows in what leaves.

No epsilon suffers by what is done to the noised sum alone, but what leaves is then no noised sum
any more, and neither its size nor its law says what a review has to know.
"""

from collections.abc import Collection, Mapping

import numpy as np

from dp_review.noise import Noise

COARSE = 1.0
"""Step of a grid, in standard deviations, up to which rounding keeps what a review measures."""
LEAST_TIES = 4
"""Values that agree exactly: fewer may do so by chance."""
AGREE = 1e-6
"""Relative difference of numbers that are taken for equal."""


def grid_step(values: np.ndarray) -> float:
    """The step of the grid on which all values lie, from 0; 0: on none.

    >>> round(grid_step(np.array([0.3, -0.6, 0.3, 0.0, 0.6, 0.9, -0.3, 0.0])), 6)
    0.3
    """
    distinct = np.unique(np.abs(np.append(values[np.isfinite(values)], 0)))
    gaps = np.diff(distinct)
    gaps = gaps[gaps > AGREE * distinct.max(initial=0.0)]
    if values.size < 2 * LEAST_TIES or not gaps.size or len(distinct) > values.size / 2:
        return 0.0
    multiples = distinct / gaps.min()
    return float(gaps.min()) if np.abs(multiples - multiples.round()).max() < 0.01 else 0.0


def processing_of(noise: Noise) -> tuple[str, float]:
    """What was plainly done after the noise, in words, and in which share; "": nothing.

    Args: noise: of one batch, with the values as they left.
    """
    values = noise.sent
    if values is None or not np.isfinite(values).all() or not values.size:
        return "", 0.0
    steps = [grid_step(values[:, part]) for part in noise.parts.values()]
    if max(steps) > COARSE:
        text = f"values lie on a grid of {max(steps):.2g} claimed standard deviations"
        return text, sum(step > COARSE for step in steps) / len(steps)
    if max(steps) > 0:
        return "", 0.0  # a fine grid is allowed for
    # Chosen before the noise, a number would be zero under every seed or under none.
    zero = values == 0
    chosen = zero.any(0) & ~zero.all(0)
    if zero[:, chosen].sum() >= LEAST_TIES:
        return "numbers are zero under some seeds only: chosen after the noise", float(zero.mean())
    return "", 0.0


def functions_of(tensors: Mapping[str, np.ndarray], sources: Collection[str]) -> set[str]:
    """Names of tensors that follow from another one, number by number or as a whole.

    Args: tensors: name -> (calls, numbers), in calls with other noise and other data. sources:
    names of those from which others may follow.
    """
    large = [tensors[name] for name in sources if tensors[name].shape[1] > 1]
    known = {"all": np.concatenate(large, axis=1)} if len(large) > 1 else {}
    found: set[str] = set()
    # What is larger comes first: a norm follows from a tensor, never a tensor from a norm.
    for name in sorted(tensors, key=lambda name: (-tensors[name].shape[1], name not in sources)):
        if any(follows(tensors[name], source) for source in known.values()):
            found.add(name)
        elif name in sources:
            known[name] = tensors[name]
    return found


def follows(x: np.ndarray, source: np.ndarray) -> bool:
    """Whether one output is plainly a function of another. Args: both (calls, numbers)."""
    candidates = [y for y in functions(source) if y.shape == x.shape]
    if any(proportional(x - x[0], y - y[0]) for y in candidates):
        return True
    # Of places in a tensor a multiple says nothing: two numbers of few values agree by chance.
    wholes = [np.argmax(source, axis=1), np.argmin(source, axis=1), np.argmax(abs(source), axis=1)]
    return x.shape[1] == 1 and any(x.any() and (x[:, 0] == y).all() for y in wholes)


def functions(x: np.ndarray) -> list[np.ndarray]:
    """What often leaves beside a tensor, as momentum, a second moment or a logged norm."""
    size = np.abs(x)
    square = np.square(x).sum(1, keepdims=True)
    wholes = [y(1, keepdims=True) for y in (x.max, x.min, x.mean, x.std, size.max, size.sum)]
    return [x, np.square(x), size, np.sign(x), square, np.sqrt(square), *wholes]


def proportional(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether one array is a multiple of the other, but for rounding."""
    square = float((b * b).sum())
    if not (0 < square < np.inf and a.any()):
        return False
    return bool(np.abs(a - float((a * b).sum()) / square * b).max() <= 1e-4 * np.abs(a).max())
