"""The smallest noise that meets a target: a secant on log axes inside a bracket, few evaluations."""

import math
from collections.abc import Callable, Iterable

from scipy.special import log_ndtr

from fedlora_lab.checks import check


def grouped(rates: Iterable[float], most: int) -> dict[float, float]:
    """Each rate > 0 with the largest of its group: at most so many groups, as narrow as they can be in ratio.

    Up to ``most`` distinct rates are their own groups.
    """
    distinct = sorted({float(rate) for rate in rates if rate > 0}, reverse=True)
    if len(distinct) <= most:
        return {rate: rate for rate in distinct}

    def cover(width: float) -> dict[float, float]:
        found, top = {}, math.inf
        for rate in distinct:
            top = rate if top == math.inf or rate * width < top else top
            found[rate] = top
        return found

    low, high = 1.0, (distinct[0] / distinct[-1]) ** (1 / most) * (1 + 1e-9)
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if len(set(cover(middle).values())) <= most else (middle, high)
    return cover(high)


def first_guess(target: float, delta: float, q: float, steps: int) -> float:
    """sigma by the central limit of Gaussian DP: no bound, only a start within some per cent.

    Source: arXiv:1905.02383, corollary 2.13 (delta of mu); arXiv:1911.11607, section 3 (mu of q, sigma, steps).
    """

    def log_delta(mu: float) -> float:
        first, second = log_ndtr(-target / mu + mu / 2), target + log_ndtr(-target / mu - mu / 2)
        return first + math.log(-math.expm1(min(second - first, -1e-300)))

    low, high = 1e-9, 1e6
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if log_delta(middle) < math.log(delta) else (low, middle)
    return 1 / math.sqrt(math.log1p((high / q) ** 2 / steps))


def smallest(spent: Callable[[float], float], target: float, sigma: float, slope: float = -1.0) -> float:
    """Where the falling function ``spent`` comes within 0.1 % below ``target``; the result never spends more.

    Args:
        sigma: to begin with.
        slope: of log ``spent`` over log sigma, taken until two points are known.

    Raises:
        ValueError: when no sigma up to 1e7 is enough.
    """
    low, high, points = 0.0, math.inf, []  # spent(low) > target >= spent(high)
    for _ in range(80):
        value = spent(sigma)
        low, high = (low, sigma) if value <= target else (sigma, high)
        if target * (1 - 1e-3) <= value <= target or high < low * (1 + 1e-4) or low > 1e7:
            break
        if 0 < value < math.inf:
            points = [*points, (math.log(sigma), math.log(value))][-2:]
        sigma = _next(points, math.log(target) - 4e-4, low, high, slope)
    check(high < math.inf, "epsilon", target, "a target that this accountant can certify, above about 3e-3")
    # The last bits depend on the number of threads; rounded up, the plan is the same and spends no more.
    unit = 10.0 ** (math.floor(math.log10(high)) - 9)
    return math.ceil(high / unit) * unit


def _next(points: list[tuple[float, float]], aim: float, low: float, high: float, slope: float) -> float:
    """The secant's step if it falls inside the bracket, else the middle of the bracket, else a step outward."""
    if points:
        (x0, y0), (x1, y1) = points[0], points[-1]
        slope = (y1 - y0) / (x1 - x0) if x1 != x0 else slope
        step = (aim - y1) / slope if slope < 0 else math.inf
        guess = math.exp(x1 + max(-2.0, min(2.0, step)))
        if low * (1 + 1e-6) < guess < high * (1 - 1e-6):
            return guess
    if high == math.inf:
        return 4 * low
    return high / 4 if low == 0 else math.sqrt(low * high)
