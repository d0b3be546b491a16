"""Composed privacy loss distributions of dp-accounting, on a grid that fits the history.

A release is a Gaussian one whose data are drawn by Poisson sampling. Its losses, where a unit is
left out of the data and where it comes in, are rounded to a grid so that every delta is bounded
from above, composed as often as it was made, and read.

Several rows of one person are one unit together. Each is drawn by itself, so their number in a
batch is binomial, and of i rows the sum moves by at most i C: a release is a mixture of Gaussians.
"""

import math
from collections.abc import Callable
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from scipy.special import log_ndtr, logsumexp, ndtr

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution as Loss

MergedHistory = tuple[tuple[float, float, int], ...]
"""A merged history: (noise multiplier > 0, sample rate > 0, steps >= 1), sorted. A unit is one row,
or as many as is said beside it."""

Compose = Callable[[float, float, int, float, int], "Loss"]
"""(sigma, q, rows, interval, steps) -> the losses of so many equal releases."""

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
RARE = 1e-17
"""Probability of more drawn rows than are counted; it is lost beside `ROUNDED`."""
MAX_SLOPE = 14.0
"""Slopes up to e^14: trade-off curves are followed to error rates of about 1e-6."""


def applies(key: MergedHistory, rows: int = 1) -> bool:
    """Tells whether releases are sampled, and few enough for a grid that is fine enough."""
    return any(q < 1 for _, q, _ in key) and _interval(key, rows) <= 1


def epsilon(
    key: MergedHistory, delta: float, rows: int = 1, compose: "Compose | None" = None
) -> float:
    """Computes an upper bound on epsilon, at most about 0.1 % above the exact value where q is at
    least 1e-3; at 1e-4 some percent, and far above at 1e-5 and less in very many releases.

    Infinite where ``delta`` is less than what rounding may have lost.

    Args: compose: what composes equal releases; ``None``: `_repeated`.
    Source: arXiv:2207.04380.
    """
    remaining = delta - ROUNDED * sum(steps for *_, steps in key)
    if remaining <= 0:
        return math.inf
    return max(0.0, float(_losses(key, rows, compose).get_epsilon_for_delta(remaining)))


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
    deltas = np.asarray(_losses(key, 1).get_delta_for_epsilon(epsilons.tolist()))
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


def drawn_rows(q: float, rows: int) -> Float[np.ndarray, " n"]:
    """log of the chances that 0, 1, 2, ... of a person's rows are drawn, up to `RARE` numbers."""
    from scipy.stats import binom  # slow to import

    counts = np.arange(rows + 1)
    most = np.argmax(binom.sf(counts, rows, q) <= RARE)
    return binom.logpmf(counts[: most + 1], rows, q)


def _largest_loss(sigma: float, q: float, rows: int) -> float:
    """The loss of one release with as many rows as are ever drawn, at `MAX_NOISE`."""
    drawn = len(drawn_rows(q, rows)) - 1
    return drawn**2 / (2 * sigma**2) + MAX_NOISE * drawn / sigma


@lru_cache(maxsize=1024)
def _interval(key: MergedHistory, rows: int) -> float:
    """The grid on which the losses of a history are composed: a power of two."""
    widest = max(_largest_loss(s, rate, rows) + math.log(rate) for s, rate, _ in key)
    # Of many drawn rows each loss is a sum of as many terms.
    points = MAX_POINTS / math.sqrt(max(1.0, *(rate * rows for _, rate, _ in key)))
    # As if one row were drawn so much more often: the fineness of the grid alone hangs on it.
    key = tuple((s, min(1.0, rate * rows), steps) for s, rate, steps in key)
    sigma, q, counts = np.array(key).T
    log_chi2 = _log_chi2(key)
    # Few large losses in place of many small ones: see FINENESS.
    scaled = log_chi2 - 2 * np.log(np.minimum(sigma, 1.0))
    mean = (float(logsumexp(scaled, b=counts)) - math.log(counts.sum())) / 2
    wanted = FINENESS * math.exp(min(mean, 0.0))
    # The mean loss of a release is at most q / (2 sigma^2), and at most log(1 + chi^2).
    drift = float(counts @ np.minimum(q / (2 * sigma**2), np.logaddexp(0.0, log_chi2)))
    interval = max(min(wanted, COARSEST), FINEST, drift / MAX_COMPOSED, widest / points)
    # Powers of two: histories of nearly equal noise share a grid, and so what was composed on it.
    return 2.0 ** math.floor(math.log2(interval))


# ---- many releases


@lru_cache(maxsize=2048)  # some 50 kB each
def _repeated(sigma: float, q: float, rows: int, interval: float, steps: int) -> "Loss":
    """The losses of so many equal releases, rounded so that every delta is bounded from above.

    A number is composed of the same powers of two whatever was asked before, so the answer is
    always the same; and the next round's number shares most of them with the last one's.
    """
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    if steps == 1 and rows > 1:
        return _mixture(sigma, q, rows, interval)
    if steps == 1:
        return from_gaussian_mechanism(
            sigma, value_discretization_interval=interval, sampling_prob=q
        )
    lowest = steps & -steps
    if lowest < steps:
        higher = _repeated(sigma, q, rows, interval, steps - lowest)
        return higher.compose(_repeated(sigma, q, rows, interval, lowest), TAIL)
    if 2 * _largest_loss(sigma, q, rows) / interval * math.sqrt(steps) > MAX_DOUBLED:
        # Slower to begin with, but its cut of the tails does not depend on rounding.
        return _repeated(sigma, q, rows, interval, 1).self_compose(steps, TAIL)
    half = _repeated(sigma, q, rows, interval, steps // 2)
    return half.compose(half, TAIL)


def at_once(sigma: float, q: float, rows: int, interval: float, steps: int) -> "Loss":
    """The same but for rounding, in a fraction of the time: nothing of it is kept for other numbers
    of releases, so it serves a search of sigma, where no two have the same noise."""
    return _repeated(sigma, q, rows, interval, 1).self_compose(steps, TAIL)


def _mixture(sigma: float, q: float, rows: int, interval: float) -> "Loss":
    """The losses of one release of several rows of a person, each drawn with chance q.

    dp-accounting has them as well, but needs seconds: it looks for one outcome after the other.

    Guarantees: no less than attacks find, and on one release at most 1 % more
        (test_several_rows.py::test_no_attack_on_a_sum_finds_more).
    Source: arXiv:2310.15526, corollary 4.7: a sum of i rows, of norm at most i C, moves a release
        no further than the number i C does.
    """
    from dp_accounting.pld.pld_pmf import create_pmf_pessimistic_connect_dots_fixed_gap as connect
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    chances = drawn_rows(q, rows)
    drawn = np.arange(len(chances))

    def loss(x: np.ndarray) -> Any:
        return logsumexp((2 * x[:, None] - drawn) * drawn / (2 * sigma**2) + chances, axis=1)

    ends = np.array([-MAX_NOISE * sigma, drawn[-1] + MAX_NOISE * sigma])
    first, last = np.round(loss(ends) / interval + [-0.5, 0.5]).astype(int)
    losses = np.arange(first, last + 1) * interval
    low, high = np.repeat(ends[:, None], len(losses), axis=1)
    for _ in range(40):  # closer and closer around the outcome of each loss, which rises with it
        middle = (low + high) / 2
        low, high = np.where(loss(middle) < losses, [middle, high], [low, middle])
    shifted = (high[:, None] - drawn) / sigma
    # Behind an outcome with the rows, less e^epsilon times without; before it the other way round.
    left_out = ndtr(-shifted) @ np.exp(chances) - np.exp(losses + log_ndtr(-shifted[:, 0]))
    within = logsumexp(log_ndtr(shifted) + chances, axis=1)
    come_in = ndtr(shifted[:, 0]) - np.exp(within - losses)
    # No delta is below that of a larger epsilon, but for rounding.
    left_out, come_in = (
        np.maximum.accumulate(np.clip(deltas, 0, 1))[::-1] for deltas in (left_out[::-1], come_in)
    )
    return PrivacyLossDistribution(
        connect(interval, first, last, left_out), connect(interval, -last, -first, come_in)
    )


@lru_cache(maxsize=64)
def _losses(key: MergedHistory, rows: int, compose: "Compose | None" = None) -> "Loss":
    """The losses of a whole history."""
    interval = _interval(key, rows)
    compose = compose or _repeated
    releases = (compose(sigma, q, rows, interval, steps) for sigma, q, steps in key)
    return reduce(lambda first, second: first.compose(second, TAIL), releases)
