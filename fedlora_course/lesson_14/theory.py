"""Closed form of lesson 14: the error of codes of few levels."""

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr

from fedlora_lab._utils.validation import check, check_whole


def quantiser_error(levels: Sequence[float], block: int) -> float:
    """Computes the squared error of blockwise quantisation of normal numbers, as a share.

    Each block is divided by its largest magnitude m, rounded to the nearest level, and multiplied
    by m again. The largest of the block is met exactly; the other ``block`` - 1 are normal numbers
    cut off at m. The mean over m, whose density is known, is one integral on a fine grid.

    Args: levels: rising, from -1 to 1; block: numbers that share a scale, >= 1.
    Guarantees: the mean over draws (test_the_quantiser_error_is_the_mean_over_draws).
    Source: derived; the quantiser is that of arXiv:2406.10976 and arXiv:2305.14314.
    """
    code = np.asarray(levels, float)
    ok = code.ndim == 1 and len(code) >= 2 and code[0] == -1 and code[-1] == 1
    ok = ok and bool((np.diff(code) > 0).all())
    check(ok, "levels", levels, "rising numbers from -1 to 1")
    check_whole("block", block, 1)
    if block == 1:
        return 0.0
    m = np.linspace(1e-4, 9.0, 1001)
    inside = 2 * ndtr(m) - 1
    density = block * inside ** (block - 1) * 2 * _bell(m)
    # Mean of (Q(x) - x)^2 over a standard normal x in [-m, m], cell by cell in closed form.
    edges = np.concatenate([[-1.0], (code[1:] + code[:-1]) / 2, [1.0]])
    ends = m[:, None] * edges
    values = m[:, None] * code
    bell = _bell(ends)
    # Moments 0, 1 and 2 of the normal law in each cell.
    mass = np.diff(ndtr(ends))
    first = -np.diff(bell)
    second = mass - np.diff(ends * bell)
    squares = (second - 2 * values * first + values**2 * mass).sum(1)
    # The largest number of a block is met exactly.
    errors = (block - 1) / block * squares / inside
    return float(np.trapezoid(density * errors, m))


def _bell(x: np.ndarray) -> np.ndarray:
    """The standard normal density; SciPy's own takes .2 s to import."""
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
