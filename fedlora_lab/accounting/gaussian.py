"""Gaussian releases without sampling: their composition is one Gaussian release, and its epsilon is exact."""

import math
from collections.abc import Callable

from scipy.special import log_ndtr

from fedlora_lab.accounting.renyi import Key


def _log_delta(epsilon: float, mu: float) -> float:
    """log delta of mu-GDP: log(Phi(-epsilon / mu + mu / 2) - exp(epsilon) Phi(-epsilon / mu - mu / 2))."""
    first, second = float(log_ndtr(-epsilon / mu + mu / 2)), epsilon + float(log_ndtr(-epsilon / mu - mu / 2))
    return first + math.log(-math.expm1(min(second - first, -1e-300)))


def _crossing(above: Callable[[float], bool], low: float, high: float) -> float:
    """The upper end of where ``above`` turns false between ``low`` and ``high``, to the last digits."""
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if above(middle) else (low, middle)
    return high


def epsilon(key: Key, delta: float) -> float:
    """The smallest epsilon of releases that all have q = 1: those of mu = sqrt(sum steps / sigma^2).

    Source: arXiv:1805.06530, theorem 8; arXiv:1905.02383, corollary 3.3 (composition).
    """
    mu = math.sqrt(math.fsum(steps / sigma / sigma for sigma, _, steps in key))
    if mu == 0 or not math.isfinite(mu * mu):
        return 0.0 if mu == 0 else math.inf
    goal = math.log(delta)
    if _log_delta(0.0, mu) <= goal:
        return 0.0
    # Phi(-epsilon / mu + mu / 2) <= delta is enough, and Phi(-x) <= exp(-x^2 / 2)
    high = mu * mu / 2 + mu * math.sqrt(-2 * goal)
    return _crossing(lambda e: _log_delta(e, mu) > goal, 0.0, high)


def noise_multiplier(target: float, delta: float, steps: int) -> float:
    """The smallest sigma of so many releases with q = 1 that spends at most ``target``."""
    goal = math.log(delta)
    high = 1.0
    while _log_delta(target, 1 / high) > goal:
        high *= 2
    low = high / 2
    while low > 1e-30 and _log_delta(target, 1 / low) <= goal:
        low, high = low / 2, low
    one = _crossing(lambda sigma: _log_delta(target, 1 / sigma) > goal, low, high)
    # ten digits, rounded up: the same on every machine, and it spends no more
    sigma = one * math.sqrt(steps)
    unit = 10.0 ** (math.floor(math.log10(sigma)) - 9)
    return math.ceil(sigma / unit) * unit
