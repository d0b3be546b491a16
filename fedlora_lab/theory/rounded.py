"""What rounding by every client does to the privacy of a sum."""

import math

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

from fedlora_lab.checks import check, check_number, check_whole

OFFSETS = (0.0, 0.25, 0.5)


def rounded_law(places: Float[np.ndarray, " n"], mean: float, std: float) -> Float[np.ndarray, " n"]:
    """Chance of each whole number when mean + N(0, std^2) is rounded at random to a neighbour, right on average.

    The second difference of G(t) = t Phi(t / std) + std phi(t / std).

    Args: places: whole numbers, (n,); mean: any; std: > 0, in steps.
    Guarantees: test_rounded_law.
    Source: derived.
    """
    check_number("std", std, 0, open_low=True)

    def g(t: np.ndarray) -> np.ndarray:
        return t * ndtr(t / std) + std * np.exp(-((t / std) ** 2) / 2) / math.sqrt(2 * math.pi)

    return np.maximum(0.0, g(places - mean + 1) - 2 * g(places - mean) + g(places - mean - 1))


def rounded_epsilon(noise_multiplier: float, step: float, clients: int, delta: float) -> float:
    """Epsilon of one number that is a sum of noised numbers, each rounded by its client before the sum; numerical.

    Every client adds noise of sigma C / sqrt(clients) and rounds at random to a grid of ``step`` C. Neighbours differ
    in one client's number: C or 0. The others' numbers are alike, at several places between two levels. A single
    coordinate, the change along it, one release: an example of what rounding does, no bound for a vector.

    Args: noise_multiplier: sigma > 0 of the sum; step: > 0, in units of C; clients: >= 1; delta: in (0, 1).
    Returns: epsilon, the largest over the places; infinite where some outcome gives the client away.
    Guarantees: test_rounded_epsilon (a fine grid gives the Gaussian epsilon, a coarse one none).
    Source: derived; that rounding must be part of the analysis is arXiv:2102.06387.
    """
    check_number("noise_multiplier", noise_multiplier, 0, open_low=True)
    check_number("step", step, 1e-4, 1e4)
    check_whole("clients", clients, 1)
    check(0 < delta < 1, "delta", delta, "a number in (0, 1)")
    std = noise_multiplier / math.sqrt(clients) / step
    return max(_epsilon(std, 1 / step, clients, offset, delta) for offset in OFFSETS)


def _epsilon(std: float, shift: float, clients: int, offset: float, delta: float) -> float:
    """Epsilon between the two lattice laws."""
    reach = math.ceil(14 * (std + 0.5) * math.sqrt(clients) + shift + clients)
    size = 2 ** math.ceil(math.log2(2 * reach + 2))
    places = np.arange(size) - size // 2
    others = np.fft.rfft(np.fft.ifftshift(rounded_law(places.astype(float), offset, std))) ** (clients - 1)
    laws = []
    for mean in (offset + shift, offset):
        own = np.fft.rfft(np.fft.ifftshift(rounded_law(places.astype(float), mean, std)))
        law = np.fft.irfft(others * own, size)
        laws.append(np.where(law > 1e-13, law, 0.0))

    def excess(epsilon: float) -> float:
        (p, q), factor = laws, math.exp(epsilon)
        return max(np.maximum(p - factor * q, 0).sum(), np.maximum(q - factor * p, 0).sum()) - delta

    if excess(60.0) > 0:
        return math.inf
    low, high = 0.0, 60.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high
