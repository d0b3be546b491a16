"""Closed forms of rounding: the error of codes of few levels, and epsilon of rounded sums."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import bisect
from scipy.special import ndtr

from fedlora_lab._utils.validation import check, check_number, check_symbols, check_whole


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
    density = block * inside ** (block - 1) * 2 * np.exp(-(m**2) / 2) / np.sqrt(2 * np.pi)
    # Mean of (Q(x) - x)^2 over a standard normal x in [-m, m], cell by cell in closed form.
    edges = np.concatenate([[-1.0], (code[1:] + code[:-1]) / 2, [1.0]])
    ends = m[:, None] * edges
    values = m[:, None] * code
    bell = np.exp(-(ends**2) / 2) / np.sqrt(2 * np.pi)
    # Moments 0, 1 and 2 of the normal law in each cell.
    mass = np.diff(ndtr(ends))
    first = -np.diff(bell)
    second = mass - np.diff(ends * bell)
    squares = (second - 2 * values * first + values**2 * mass).sum(1)
    # The largest number of a block is met exactly.
    errors = (block - 1) / block * squares / inside
    return float(np.trapezoid(density * errors, m))


# ---- noised sums of which every client rounds its part


def rounded_distribution(
    places: Float[np.ndarray, " n"], mean: float, std: float
) -> Float[np.ndarray, " n"]:
    """Computes the chance of each whole number when mean + N(0, std^2) is rounded at random.

    The rounding is right on average: the second difference of G(t) = t Phi(t / std) + std phi(t /
    std).

    Args: places: whole numbers; mean: any; std: > 0, in steps.
    Guarantees: that of drawn numbers on the grid
        (test_the_rounded_distribution_is_that_of_the_grid).
    Source: derived.
    """
    check_number("std", std, 0, open_low=True)

    def g(t: np.ndarray) -> np.ndarray:
        return t * ndtr(t / std) + std * np.exp(-((t / std) ** 2) / 2) / math.sqrt(2 * math.pi)

    return np.maximum(0.0, g(places - mean + 1) - 2 * g(places - mean) + g(places - mean - 1))


def rounded_epsilon(noise_multiplier: float, step: float, clients: int, delta: float) -> float:
    """Computes epsilon of a sum of noised numbers, each rounded by its client before the sum.

    Every client adds noise of sigma C / sqrt(clients) and rounds at random to a grid of ``step`` C.
    Neighbours differ in one client's number: C or 0. The others' numbers are alike, at several
    places between two levels, of which the worst counts. One coordinate, one release: no bound for
    a vector. Infinite where some outcome gives the client away.

    Args: noise_multiplier: sigma > 0 of the sum; step: > 0, in units of C; clients: >= 1; delta.
    Guarantees: a fine grid gives the Gaussian epsilon, a coarse one none (test_rounded_epsilon).
    Source: derived; that rounding must be part of the analysis is arXiv:2102.06387.
    """
    check_number("noise_multiplier", noise_multiplier, 0, open_low=True)
    check_number("step", step, 1e-4, 1e4)
    check_symbols(clients=clients, delta=delta)
    # In steps of the grid from here on.
    std = noise_multiplier / math.sqrt(clients) / step
    shift = 1 / step
    reach = math.ceil(14 * (std + 0.5) * math.sqrt(clients) + shift + clients)
    size = 2 ** math.ceil(math.log2(2 * reach + 2))
    places = np.arange(size) - size // 2

    def spectrum(mean: float) -> np.ndarray:
        law = rounded_distribution(places.astype(float), mean, std)
        return np.fft.rfft(np.fft.ifftshift(law))

    def epsilon(offset: float) -> float:
        sum_of_others = spectrum(offset) ** (clients - 1)
        p = np.fft.irfft(sum_of_others * spectrum(offset + shift), size)
        q = np.fft.irfft(sum_of_others * spectrum(offset), size)
        # What the transform leaves of zero is no probability.
        p = np.where(p > 1e-13, p, 0.0)
        q = np.where(q > 1e-13, q, 0.0)

        def excess(epsilon: float) -> float:
            factor = math.exp(epsilon)
            gaps = np.maximum(p - factor * q, 0).sum(), np.maximum(q - factor * p, 0).sum()
            return max(gaps) - delta

        if excess(60.0) > 0:
            return math.inf
        # By halves, and the upper end: the excess is flat where the root lies.
        root: Any = bisect(excess, 0.0, 60.0, xtol=1e-6) if excess(0.0) > 0 else 0.0
        return root + 1e-6

    return max(epsilon(offset) for offset in (0.0, 0.25, 0.5))
