"""Canary clients with random directions: an ESTIMATE of epsilon from one run, not a bound, and never called one.

Source: arXiv:2302.03098, algorithms 1 and 2.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import norm

from fedlora_lab.checks import check, check_number, check_whole


def cosines(canaries: Float[np.ndarray, "k d"], update: Float[np.ndarray, " d"]) -> Float[np.ndarray, " k"]:
    """Cosine of each canary's direction with what was released, whatever their size."""
    rows, one = (x / np.maximum(np.abs(x).max(-1, keepdims=True, initial=0.0), 1e-300) for x in (canaries, update))
    return rows @ one / np.maximum(np.linalg.norm(rows, axis=1) * np.linalg.norm(one), 1e-300)


def _delta(epsilon: float, one: tuple[float, float], other: tuple[float, float]) -> float:
    """sup over events of P - exp(epsilon) Q, for normal laws P, Q given by mean and standard deviation."""
    (m, s), (n, t) = one, other
    # P > exp(eps) Q where a x^2 + b x + c > 0
    a = (1 / t**2 - 1 / s**2) / 2
    b = m / s**2 - n / t**2
    c = (n**2 / t**2 - m**2 / s**2) / 2 + math.log(t / s) - epsilon

    def mass(low: float, high: float) -> float:
        gain = [ndtr((x - m) / s) - math.exp(min(epsilon, 700.0)) * ndtr((x - n) / t) for x in (low, high)]
        return max(0.0, gain[1] - gain[0])

    if abs(a) < 1e-12 * (1 / s**2):
        if b == 0:
            return max(0.0, 1 - math.exp(epsilon)) if c > 0 else 0.0
        cut = -c / b
        return mass(cut, math.inf) if b > 0 else mass(-math.inf, cut)
    root = b**2 - 4 * a * c
    if root <= 0:
        return max(0.0, 1 - math.exp(epsilon)) if a > 0 else 0.0
    low, high = sorted((-b + sign * math.sqrt(root)) / (2 * a) for sign in (-1, 1))
    return mass(low, high) if a < 0 else mass(-math.inf, low) + mass(high, math.inf)


def between_normals(one: tuple[float, float], other: tuple[float, float], delta: float) -> float:
    """The least epsilon at delta between two normal laws, (mean, standard deviation) each, both ways round.

    Guarantees: test_epsilon_between_normals_is_the_gaussian_one.
    """
    check_number("delta", delta, 0, 1, open_low=True)

    def excess(epsilon: float) -> float:
        return max(_delta(epsilon, one, other), _delta(epsilon, other, one)) - delta

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
        if high > 600:
            return math.inf
    return float(brentq(excess, 0.0, high, xtol=1e-10))  # type: ignore[arg-type]


def epsilon_estimate(found: Float[np.ndarray, " k"], dimension: int, delta: float) -> float:
    """Estimate of epsilon from the cosines of K canary clients with the whole change of the model.

    Without a canary its cosine follows N(0, 1 / D) nearly; with it, a normal law is fitted. Canaries disturb each
    other unless K is far below D sigma^2, which pulls the fitted mean down; the error of the fitted spread makes single
    estimates vary, above the truth as well as below.

    Args:
        found: (K,), K >= 2, see `cosines`.
        dimension: D >= 1000, numbers released.

    Guarantees: test_the_federated_estimate.
    """
    check_whole("dimension", dimension, 1000)
    check(found.ndim == 1 and len(found) >= 2, "cosines", found.shape, "at least two")
    check(bool(np.isfinite(found).all()), "cosines", "with NaN or infinity", "numbers in [-1, 1]")
    mean, std = norm.fit(found)
    return between_normals((0.0, dimension**-0.5), (float(mean), float(std)), delta)
