"""Composed privacy loss distributions of dp-accounting, on a grid that fits the history.

A release is a Gaussian one whose data are drawn by Poisson sampling. Its losses, where a unit is
left out of the data and where it comes in, are rounded to a grid so that every delta is bounded
from above, composed as often as it was made, and read.
"""

import math
from functools import lru_cache, reduce
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution as Loss

MergedHistory = tuple[tuple[float, float, int], ...]
"""A merged history: (noise multiplier > 0, sample rate > 0, steps >= 1), sorted."""

FINENESS = 0.055
"""Interval of the losses over the root of one release's chi^2. Rounding to the grid adds at most
the interval's square / 4 to each variance: epsilon grows by less than 0.05 %. With little noise a
release's loss is rarely large and else near 0, where rounding adds less, and so is coarser."""
FINEST = 2.0**-23
COARSEST = 2.0**-5
MAX_POINTS = 2e4
"""Losses of one release; where there would be more, the grid is coarser."""
MAX_COMPOSED = 2e5
"""Losses of a composition, likewise."""
MAX_DOUBLED = 3e5
"""Points of a distribution, about, that is composed by doubling."""
TAIL = 1e-15
"""Probability that a composition may move to the loss infinity."""
ROUNDED = 2.0**-53
"""Probability that rounding may lose in one release: it is taken off delta for each."""
MAX_NOISE = 10.0
"""Noise beyond so many standard deviations has the loss infinity: a chance of 1e-23."""
MAX_SLOPE = 14.0
"""Slopes up to e^14: trade-off curves are followed to error rates of about 1e-6."""


def applies(key: MergedHistory) -> bool:
    """Tells whether releases are sampled, and few enough for a grid that is fine enough."""
    return any(q < 1 for _, q, _ in key) and _interval(key) <= 1


def epsilon(key: MergedHistory, delta: float) -> float:
    """Computes an upper bound on epsilon, at most about 0.1 % above the exact value where q is at
    least 1e-3; at 1e-4 some percent, and far above at 1e-5 and less in very many releases.

    Infinite where ``delta`` is less than what rounding may have lost.

    Source: arXiv:2207.04380.
    """
    remaining = delta - ROUNDED * sum(steps for *_, steps in key)
    if remaining <= 0:
        return math.inf
    return max(0.0, float(_losses(key).get_epsilon_for_delta(remaining)))


@lru_cache(maxsize=512)
def tradeoff_lines(key: MergedHistory) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Computes slopes, and heights at FPR = 0, of lines that no attacker exceeds.

    (epsilon, delta) gives TPR <= delta + e^epsilon FPR and, the roles exchanged,
    TPR <= 1 - e^-epsilon (1 - delta - FPR). The first line has slope 1.

    Source: arXiv:1905.02383, propositions 2.12 (lines) and 4.7 (both directions).
    """
    _, _, counts = np.array(key).T
    size = math.exp(min(0.0, float(logsumexp(_log_chi2(key), b=counts)) / 2))
    epsilons = size * np.sinh(np.linspace(0, math.asinh(MAX_SLOPE / size), 400))
    deltas = np.asarray(_losses(key).get_delta_for_epsilon(epsilons.tolist()))
    deltas = np.clip(deltas + ROUNDED * counts.sum(), 0.0, 1.0)
    flat = np.exp(-epsilons)
    slopes = np.concatenate([np.exp(epsilons), flat])
    return slopes, np.concatenate([deltas, 1 - flat * (1 - deltas)])


# ---- the grid


def _log_chi2(key: MergedHistory) -> Float[np.ndarray, " n"]:
    """log of chi^2(mixture, noise) = q^2 (exp(1 / sigma^2) - 1), of each kind of release."""
    sigma, q, _ = np.array(key).T
    # In logarithms: at little noise the exponential leaves the range of a float.
    return 2 * np.log(q) + sigma**-2 + np.log(-np.expm1(-(sigma**-2)))


def _largest_loss(sigma: float) -> float:
    """The loss of one release in which the unit was drawn, at `MAX_NOISE`."""
    return 1 / (2 * sigma**2) + MAX_NOISE / sigma


@lru_cache(maxsize=1024)
def _interval(key: MergedHistory) -> float:
    """The grid on which the losses of a history are composed: a power of two."""
    widest = max(_largest_loss(s) + math.log(rate) for s, rate, _ in key)
    sigma, q, counts = np.array(key).T
    log_chi2 = _log_chi2(key)
    # Few large losses in place of many small ones: see FINENESS.
    scaled = log_chi2 - 2 * np.log(np.minimum(sigma, 1.0))
    mean = (float(logsumexp(scaled, b=counts)) - math.log(counts.sum())) / 2
    wanted = FINENESS * math.exp(min(mean, 0.0))
    # The mean loss of a release is at most q / (2 sigma^2), and at most log(1 + chi^2).
    drift = float(counts @ np.minimum(q / (2 * sigma**2), np.logaddexp(0.0, log_chi2)))
    interval = max(min(wanted, COARSEST), FINEST, drift / MAX_COMPOSED, widest / MAX_POINTS)
    # Powers of two: histories of nearly equal noise share a grid, and so what was composed on it.
    return 2.0 ** math.floor(math.log2(interval))


# ---- many releases


@lru_cache(maxsize=2048)  # some 50 kB each
def _repeated(sigma: float, q: float, interval: float, steps: int) -> "Loss":
    """The losses of so many equal releases, rounded so that every delta is bounded from above.

    A number is composed of the same powers of two whatever was asked before, so the answer is
    always the same; and the next round's number shares most of them with the last one's.
    """
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    if steps == 1:
        return from_gaussian_mechanism(
            sigma, value_discretization_interval=interval, sampling_prob=q
        )
    lowest = steps & -steps
    if lowest < steps:
        higher = _repeated(sigma, q, interval, steps - lowest)
        return higher.compose(_repeated(sigma, q, interval, lowest), TAIL)
    if 2 * _largest_loss(sigma) / interval * math.sqrt(steps) > MAX_DOUBLED:
        # Slower to begin with, but its cut of the tails does not depend on rounding.
        return _repeated(sigma, q, interval, 1).self_compose(steps, TAIL)
    half = _repeated(sigma, q, interval, steps // 2)
    return half.compose(half, TAIL)


@lru_cache(maxsize=64)
def _losses(key: MergedHistory) -> "Loss":
    """The losses of a whole history."""
    interval = _interval(key)
    releases = (_repeated(sigma, q, interval, steps) for sigma, q, steps in key)
    return reduce(lambda first, second: first.compose(second, TAIL), releases)
