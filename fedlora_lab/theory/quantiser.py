"""What rounding to a code of few levels costs, for normal numbers."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri

from fedlora_lab.checks import check, check_whole


def normal_levels(width: int, reach: float = 0.9677083) -> Float[np.ndarray, " n"]:
    """Levels of a normal-float code: equal steps of probability under the bell on either side of zero.

    2^(width - 1) levels lie above zero and one fewer below; the outermost stand at the quantile ``reach``.

    Args:
        width: bits, 2 to 8.
        reach: probability below the highest level before scaling, in (0.5, 1).

    Returns: (2^width,), rising from -1 to 1, with a zero.

    Guarantees: test_lesson_08.py::test_normal_levels.
    Source: arXiv:2305.14314, section 3; any width as in arXiv:2406.10976.
    """
    check_whole("width", width, 2, 8)
    check(0.5 < reach < 1, "reach", reach, "a number between 0.5 and 1")
    above, below = (ndtri(np.linspace(0.5, reach, n + 1)) for n in (2 ** (width - 1), 2 ** (width - 1) - 1))
    return np.concatenate([-below[:0:-1], above]) / ndtri(reach)


def _cell_errors(levels: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Mean of (Q(x) - x)^2 over a standard normal x in [-m, m] for each scale m, cell by cell in closed form."""
    edges = np.concatenate([[-1.0], (levels[1:] + levels[:-1]) / 2, [1.0]])
    e, v = scale[:, None] * edges, scale[:, None] * levels
    density, below = np.exp(-(e**2) / 2) / np.sqrt(2 * np.pi), ndtr(e)
    mass = np.diff(below)
    first, second = -np.diff(density), mass - np.diff(e * density)
    inside = 2 * ndtr(scale) - 1
    return (second - 2 * v * first + v**2 * mass).sum(1) / inside


def quantiser_error(levels: Sequence[float], block: int) -> float:
    """Mean squared error of blockwise quantisation of standard normal numbers: the error's share of the energy.

    Each block is divided by its largest magnitude m, rounded to the nearest level, and multiplied by m again. The
    largest of the block is met exactly; the other ``block`` - 1 are normal numbers cut off at m. The mean over m, whose
    density is known, is one integral, done on a fine grid.

    Args:
        levels: rising, from -1 to 1.
        block: numbers that share a scale, >= 1.

    Returns: relative squared error; its root is the relative Frobenius error.

    Guarantees: test_quantiser_error.
    Source: derived; the quantiser is that of arXiv:2406.10976 and arXiv:2305.14314.
    """
    code = np.asarray(levels, float)
    ok = code.ndim == 1 and len(code) >= 2 and code[0] == -1 and code[-1] == 1 and bool((np.diff(code) > 0).all())
    check(ok, "levels", levels, "rising numbers from -1 to 1")
    check_whole("block", block, 1)
    if block == 1:
        return 0.0
    m = np.linspace(1e-4, 9.0, 1001)
    density = block * (2 * ndtr(m) - 1) ** (block - 1) * 2 * np.exp(-(m**2) / 2) / np.sqrt(2 * np.pi)
    errors = (block - 1) / block * _cell_errors(code, m)
    return float(np.trapezoid(density * errors, m))


def bits_per_number(width: int, block: int) -> float:
    """Bits that a number takes on the wire: its code and its share of the block's 32-bit scale. Width >= 2.

    Guarantees: test_bits_per_number.
    Source: arXiv:2305.14314, section 3, without double quantisation.
    """
    check_whole("width", width, 2)
    check_whole("block", block, 1)
    return width + 32 / block
