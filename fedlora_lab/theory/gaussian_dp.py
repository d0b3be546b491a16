"""Closed forms of Gaussian privacy: Renyi and Gaussian DP."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_ndtr

from fedlora_lab._utils.validation import (
    check,
    check_number,
    check_symbols,
)

Numbers = Float[np.ndarray, " n"]
Orders = Numbers | Int[np.ndarray, " n"]
MAX_POINTS = 1e5
"""Of an integral; a divergence whose integral needs more is stated as infinite."""


def sampled_gaussian_rdp(
    orders: Orders, sample_rate: float, noise_multiplier: float, steps: int = 1
) -> Numbers:
    """Renyi divergence of Poisson-sampled Gaussian releases at orders a > 1; q = 1: unsampled.

    log(E_Q (P / Q)^a) / (a - 1) of Q = N(0, sigma^2) and P = (1 - q) Q + q N(1, sigma^2), here
    integrated, which is a / (2 sigma^2) for q = 1; times the steps.

    Args: orders: a > 1; sample_rate: q in [0, 1]; noise_multiplier: sigma > 0; steps: >= 0.
    Returns: one for each order; infinity where it would take more than `MAX_POINTS`.
    Guarantees: equals Opacus' number
        (test_accounting.py::test_accountants_of_opacus_state_what_opacus_does).
    Source: arXiv:1908.10530, section 3.3; arXiv:1702.07476, corollary 3, for q = 1.

    >>> sampled_gaussian_rdp(np.array([2, 8]), 1.0, 2.0)
    array([0.25, 1.  ])
    """
    check_number("noise_multiplier", noise_multiplier, 0, open_low=True)
    check_symbols(sample_rate=sample_rate, steps=steps)
    check(bool(np.all(orders > 1)), "orders", orders, "numbers > 1")
    sigma = noise_multiplier
    if sample_rate == 1:
        return steps * orders.astype(float) / 2 / sigma / sigma
    if sample_rate == 0:
        return np.zeros(len(orders))
    # The trapezoid rule's error falls as exp(-2 pi d / step), d the distance pi sigma^2 of the
    # ratio's zeros from the real line.
    step = min(sigma / 8, sigma**2 / 4)
    reach = 10 * sigma
    points = np.ceil((orders + 2 * reach) / step)
    possible = np.flatnonzero(points <= MAX_POINTS)
    # One grid for all orders, each of which ends on it where its integrand does.
    x = np.arange(points[possible].max(initial=0)) * step - reach
    shifted = math.log(sample_rate) + (2 * x - 1) / (2 * sigma**2)
    log_ratio = np.logaddexp(math.log1p(-sample_rate), shifted)
    log_noise = -(x**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    divergences = np.full(len(orders), math.inf)
    for k in possible:
        inside = slice(int(points[k]))
        # In logarithms: at high orders the moments leave the range of a float.
        integrand = orders[k] * log_ratio[inside] + log_noise[inside]
        top = integrand.max()
        log_moment = top + np.log(step * np.exp(integrand - top).sum())
        # A moment is at least 1, even where rounding says otherwise.
        divergences[k] = max(log_moment, 0.0) / (orders[k] - 1)
    return steps * divergences if steps else np.zeros(len(orders))


def rdp_to_epsilon(orders: Orders, rdp: Numbers, delta: float) -> tuple[float, float]:
    """Epsilon from Renyi divergences, and the order at which it was found.

    min over orders a of rdp + log((a - 1) / a) - (log delta + log a) / (a - 1).

    Args: orders: a > 1; rdp: at these orders; delta: in (0, 1).
    Guarantees: equals Opacus' number
        (test_accounting.py::test_accountants_of_opacus_state_what_opacus_does).
    Source: arXiv:1905.09982, theorem 21; arXiv:2004.00010, proposition 12.
    """
    check_symbols(delta=delta)
    bounds = rdp + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    best = int(np.argmin(bounds))
    return max(float(bounds[best]), 0.0), float(orders[best])


def gaussian_mu(noise_multiplier: float, steps: int = 1) -> float:
    """mu of Gaussian DP of releases without sampling: sqrt(steps) / sigma, exact.

    Guarantees: its epsilon is a number from elsewhere
        (test_full_batches_have_the_exact_epsilon).
    Source: arXiv:1905.02383, corollary 3.3.
    """
    check_number("noise_multiplier", noise_multiplier, 0, open_low=True)
    check_symbols(steps=steps)
    return math.sqrt(steps) / noise_multiplier


def gdp_log_delta(mu: float, epsilon: float | np.ndarray) -> float | np.ndarray:
    """log of `gdp_delta`, of a number or of each number of an array, however small delta is.

    Args: mu: > 0; epsilon: any, also below 0.
    Guarantees: equals the integral over the privacy loss (test_gdp_delta).
    Source: as `gdp_delta`.
    """
    # In logarithms: in the tail both terms may be below the smallest float, and their ratio is not.
    first = log_ndtr(-epsilon / mu + mu / 2)
    second = epsilon + log_ndtr(-epsilon / mu - mu / 2)
    # The first term is the larger one, even where rounding says otherwise.
    return first + np.log(-np.expm1(np.minimum(second - first, -1e-300)))


def gdp_delta(mu: float, epsilon: float) -> float:
    """delta of mu-GDP at epsilon: Phi(-eps / mu + mu / 2) - exp(eps) Phi(-eps / mu - mu / 2).

    Guarantees: equals the integral over the privacy loss (test_gdp_delta).
    Source: arXiv:1805.06530, theorem 8; arXiv:1905.02383, corollary 2.13.
    """
    check_symbols(mu=mu, epsilon=epsilon)
    return float(np.exp(gdp_log_delta(mu, epsilon)))


def gdp_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon at which mu-GDP has ``delta``, to 1e-12 relative.

    Guarantees: equals the integral over the privacy loss (test_gdp_delta).
    Source: as `gdp_delta`.
    """
    check_symbols(mu=mu, delta=delta)
    goal = math.log(delta)
    if gdp_log_delta(mu, 0.0) <= goal:
        return 0.0
    # Phi(-epsilon / mu + mu / 2) <= delta is enough, and Phi(-x) <= exp(-x^2 / 2).
    high = mu * mu / 2 + mu * math.sqrt(-2 * goal)
    if not math.isfinite(high):
        return math.inf
    from scipy.optimize import brentq  # slow to import

    # Of logarithms: delta itself is flat, and may be tiny, where the root lies.
    root: Any = brentq(
        lambda epsilon: gdp_log_delta(mu, epsilon) - goal, 0.0, high, xtol=1e-300, rtol=1e-14
    )
    return float(root)
