"""From a history of noised releases to epsilon, and from a target epsilon to the noise.

A history is a tuple of ``(noise_multiplier, sample_rate, steps)``: Poisson-subsampled Gaussian
releases, composed entry by entry, also where sigma or q change on the way. Privacy loss
distributions are discretised, composed and read by dp-accounting. Answers are kept, because a run
asks often.
"""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache, reduce
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import log_ndtr, logsumexp, ndtr, ndtri

from fedlora_lab._utils.validation import check, check_number, check_one_of, check_whole, is_number

if TYPE_CHECKING:
    from dp_accounting.pld.pld_pmf import PLDPmf

History = tuple[tuple[float | None, float, int], ...]
"""Of (noise multiplier, ``None`` for no noise; sample rate; steps)."""
Key = tuple[tuple[float, float, int], ...]
"""A merged history: (noise multiplier > 0, sample rate > 0, steps >= 1), sorted."""

SMALLEST_DELTA = 1e-12
# Each of these only enlarges what is stated, and keeps off numbers whose squares overflow or
# vanish, and searches that would not end.
SMALLEST_SIGMA = 1e-2
"""Noise multipliers below count as no noise: a release at it spends an epsilon of thousands."""
LARGEST_SIGMA = 1e6
"""Larger noise multipliers of sampled releases count as this one."""
SMALLEST_RATE = 1e-9
"""Smaller sample rates count as this one."""
MOST_SAMPLED = 10**6
"""Of more releases sampling is not counted (q = 1): what one of them spends may be smaller than the
rounding of a float, and would be added up as nothing."""


def check_delta(delta: float) -> None:
    """Raises unless ``SMALLEST_DELTA`` <= delta < 1."""
    check(is_number(delta) and 0 < delta < 1, "delta", delta, "a number in (0, 1)")
    # Drawn noise has a largest value: what only larger values would hide cannot be promised.
    limit = f"at least {SMALLEST_DELTA:g}: noise from 52 random bits ends at 8.2 sigma"
    check(delta >= SMALLEST_DELTA, "delta", delta, limit)


def epsilon(history: History, delta: float, accountant: str = "pld") -> float:
    """Computes an upper bound on the epsilon that a history has spent at ``delta``.

    Args:
        history: tuple of (noise_multiplier, sample_rate, steps); a multiplier of ``None``, or below
            `SMALLEST_SIGMA`, is no noise, and makes epsilon infinite.
        delta: in [1e-12, 1).
        accountant: "pld": exact without sampling, else at most about 0.1 % above the exact value.
            "rdp": Renyi divergences, a looser bound.

    Guarantees: test_accounting.py::test_pld_is_never_below_dp_accounting_nor_an_attack,
        ::test_rdp_equals_dp_accounting_and_opacus, ::test_full_batches_have_the_exact_epsilon,
        ::test_every_history_has_an_answer_that_never_falls_with_less_noise.
    Source: arXiv:2207.04380 (PLD); arXiv:1908.10530, section 3.3 (RDP).

    >>> round(epsilon(((2.0, 1.0, 10),), delta=1e-5), 2)
    7.51
    """
    check_delta(delta)
    check_one_of("accountant", accountant, tuple(ACCOUNTANTS))
    return _epsilon(merge_history(history), float(delta), accountant)


@lru_cache(maxsize=8192)
def _epsilon(key: Key, delta: float, accountant: str) -> float:
    # Sorted by sigma: a release without noise, which protects nobody, comes first.
    if key and key[0][0] == 0:
        return math.inf
    # A unit that is drawn in no release changes none, and it is drawn in some with this chance.
    if sum(q * steps for _, q, steps in key) <= delta:
        return 0.0
    return ACCOUNTANTS[accountant](key, delta)


def merge_history(history: History) -> Key:
    """Merges entries of equal (sigma, q), sorted by both, so that sigma = 0 comes first.

    ``None`` and sigma below `SMALLEST_SIGMA` count as sigma = 0. Entries that spend nothing (no
    steps, q = 0, sigma infinite) go.

    Raises: ``ValueError`` for a number that is not in its range.
    """
    spending = []
    for sigma, q, steps in history:
        check_number("noise_multiplier", 0 if sigma is None else sigma, 0)
        check_number("sample_rate", q, 0, 1)
        check_whole("steps", steps, 0)
        if steps and q and sigma != math.inf:
            noised = sigma is not None and sigma >= SMALLEST_SIGMA
            spending.append((float(sigma) if noised else 0.0, float(q), int(steps)))
    total = sum(steps for *_, steps in spending)
    merged: dict[tuple[float, float], int] = {}
    for sigma, q, steps in spending:
        rate = _counted_rate(q, total)
        pair = (sigma if rate == 1 else min(sigma, LARGEST_SIGMA), rate)
        merged[pair] = merged.get(pair, 0) + steps
    return tuple((*pair, steps) for pair, steps in sorted(merged.items()))


def _counted_rate(q: float, steps: int) -> float:
    """The sample rate > 0 at which so many releases count."""
    return 1.0 if steps > MOST_SAMPLED else max(float(q), SMALLEST_RATE)


def _root(
    function: Callable[[float], float],
    low: float,
    high: float,
    xtol: float = 1e-300,
    rtol: float = 1e-15,
) -> float:
    """Where a function changes its sign between two points, by Brent's method."""
    root = brentq(function, low, high, xtol=xtol, rtol=rtol)
    assert isinstance(root, float)
    return root


# ---- without sampling: the exact Gaussian


def _gaussian_mu(key: Key) -> float:
    """mu of releases that all have q = 1: sqrt(sum steps / sigma^2).

    Source: arXiv:1905.02383, corollary 3.3.
    """
    return math.sqrt(math.fsum(steps / sigma / sigma for sigma, _, steps in key))


def _gaussian_log_delta(epsilon: float | np.ndarray, mu: float) -> float | np.ndarray:
    """log delta of mu-GDP: log(Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu)).

    Source: arXiv:1805.06530, theorem 8.
    """
    # In logarithms: in the tail both terms may be below the smallest float, and their ratio is not.
    first = log_ndtr(-epsilon / mu + mu / 2)
    second = epsilon + log_ndtr(-epsilon / mu - mu / 2)
    # The first term is the larger one, even where rounding says otherwise.
    return first + np.log(-np.expm1(np.minimum(second - first, -1e-300)))


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon of mu-GDP at ``delta``."""
    goal = math.log(delta)
    if mu == 0 or _gaussian_log_delta(0.0, mu) <= goal:
        return 0.0
    # Phi(-epsilon / mu + mu / 2) <= delta is enough, and Phi(-x) <= exp(-x^2 / 2).
    high = mu * mu / 2 + mu * math.sqrt(-2 * goal)
    if not math.isfinite(high):
        return math.inf
    root = _root(lambda e: float(_gaussian_log_delta(e, mu)) - goal, 0.0, high, rtol=1e-13)
    # The upper end is the safe one: an epsilon may be stated too large, never too small.
    return root * (1 + 1e-12)


@lru_cache(maxsize=256)
def _gaussian_mu_for(target: float, delta: float) -> float:
    """The largest mu whose mu-GDP spends at most ``target`` at ``delta``."""
    goal = math.log(delta)

    def excess(log_mu: float) -> float:
        return float(_gaussian_log_delta(target, math.exp(log_mu))) - goal

    root = _root(excess, math.log(1e-12), math.log(1e6), xtol=1e-12)
    return math.exp(root - 2e-12)


# ---- with sampling: privacy loss distributions of dp-accounting

FINENESS = 0.055
"""Interval of the losses over the root of one release's chi^2. Rounding to the grid adds at most
the interval's square / 4 to each variance: epsilon grows by less than 0.05 %. With little noise a
release's loss is rarely large and else near 0, where rounding adds less, and so is coarser."""
FINEST, COARSEST = 2.0**-23, 2.0**-5
MOST_POINTS, MOST_COMPOSED = 2e4, 2e5
"""Of the losses of one release, and of many; where they would have more, the grid is coarser."""
LARGEST_DOUBLED = 3e5
"""Points of a distribution, about, that is composed by doubling."""
TAIL = 1e-15
"""Probability that a composition may move to the loss infinity."""
ROUNDED = 2.0**-53
"""Probability that rounding may lose in one release: it is taken off delta for each."""
LONGEST = 10.0
"""Noise beyond so many standard deviations has the loss infinity: a chance of 1e-23."""

Pair = tuple["PLDPmf", "PLDPmf"]
"""Losses of both directions: a unit is left out of the data, or comes in."""


def _log_moment(sigma: float, q: float) -> float:
    """log of chi^2(mixture, noise) = q^2 (exp(1 / sigma^2) - 1), of one release."""
    inverse = 1 / sigma**2
    return 2 * math.log(q) + inverse + math.log(-math.expm1(-inverse))


def _largest_loss(sigma: float) -> float:
    """The loss of one release without sampling at `LONGEST`."""
    return 1 / (2 * sigma**2) + LONGEST / sigma


def _interval(key: Key) -> float:
    """The grid on which the losses of a history are composed: a power of two."""
    total = sum(steps for *_, steps in key)
    moments = [_log_moment(sigma, q) for sigma, q, _ in key]
    counts = [steps for *_, steps in key]
    # Few large losses in place of many small ones: see FINENESS.
    scaled = [m - 2 * math.log(min(s, 1.0)) for m, (s, *_) in zip(moments, key, strict=True)]
    mean = (float(logsumexp(scaled, b=counts)) - math.log(total)) / 2
    wanted = FINENESS * math.exp(min(mean, 0.0))
    # The mean loss of a release is at most q / (2 sigma^2), and at most log(1 + chi^2).
    drift = sum(
        n * min(q / (2 * sigma**2), float(np.logaddexp(0.0, m)))
        for (sigma, q, n), m in zip(key, moments, strict=True)
    )
    widest = max(_largest_loss(sigma) + math.log(q) for sigma, q, _ in key)
    interval = max(min(wanted, COARSEST), FINEST, drift / MOST_COMPOSED, widest / MOST_POINTS)
    # Powers of two: histories of nearly equal noise share a grid, and so what was composed on it.
    return 2.0 ** math.floor(math.log2(interval))


def _sampled_loss(loss: float, q: float) -> float:
    """log(1 - q + q exp(loss))."""
    return float(np.logaddexp(math.log1p(-q) if q < 1 else -math.inf, math.log(q) + loss))


def _inner_epsilon(epsilons: Float[np.ndarray, " n"], q: float) -> Float[np.ndarray, " n"]:
    """t with exp(epsilon) = 1 - q + q exp(t); -infinity where there is none."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.expm1(np.minimum(epsilons, 30.0)) / q
        small = np.where(ratio > -1, np.log1p(np.maximum(ratio, -1.0)), -np.inf)
        large = epsilons - math.log(q) + np.log1p(-(1 - q) * np.exp(-epsilons))
    return np.where(epsilons > 30, large, small)


def _sampled_deltas(
    epsilons: Float[np.ndarray, " n"], sigma: float, q: float, removed: bool
) -> Float[np.ndarray, " n"]:
    """delta at each epsilon of one release, where a unit is removed from the data or added to them.

    dp-accounting computes the same numbers, one by one in Python.

    Guarantees: test_accounting.py::test_pld_is_never_below_dp_accounting_nor_an_attack.
    Source: arXiv:1807.01647, theorem 2 (advanced joint convexity), in both directions.
    """
    mu = 1 / sigma
    inner = _inner_epsilon(epsilons if removed else -epsilons, q)
    exists = np.isfinite(inner)
    t = np.where(exists, inner, 0.0)
    if removed:
        # Below log(1 - q) every outcome has a larger loss than epsilon.
        sampled = q * np.exp(_gaussian_log_delta(t, mu))
        return np.where(exists, sampled, -np.expm1(np.minimum(epsilons, 0.0)))
    # Above -log(1 - q) none has.
    sampled = q * np.exp(epsilons + t + _gaussian_log_delta(-t, mu))
    return np.where(exists, sampled, 0.0)


@lru_cache(maxsize=512)
def _release(sigma: float, q: float, interval: float) -> Pair:
    """The losses of one release, rounded so that every delta is bounded from above."""
    from dp_accounting.pld.pld_pmf import create_pmf_pessimistic_connect_dots_fixed_gap as connect

    reach = _largest_loss(sigma)
    lowest = _sampled_loss(-reach, q)
    bounds = {
        True: (lowest, _sampled_loss(reach, q)),
        # What lies below is rounded up to the lower end: a chance of 1e-12.
        False: (-_sampled_loss(7 / sigma - 1 / (2 * sigma**2), q), -lowest),
    }
    pair = []
    for removed, (low, high) in bounds.items():
        first = math.floor(low / interval)
        last = math.ceil(high / interval)
        epsilons = np.arange(first, last + 1) * interval
        deltas = np.clip(_sampled_deltas(epsilons, sigma, q, removed), 0.0, 1.0)
        # Delta falls with epsilon; where rounding says otherwise the larger one counts.
        deltas = np.maximum.accumulate(deltas[::-1])[::-1]
        pair.append(connect(interval, first, last, deltas).to_dense_pmf())
    return pair[0], pair[1]


def _compose(one: Pair, other: Pair) -> Pair:
    return one[0].compose(other[0], TAIL), one[1].compose(other[1], TAIL)


@lru_cache(maxsize=2048)  # some 50 kB each
def _repeated(sigma: float, q: float, interval: float, steps: int) -> Pair:
    """The losses of so many equal releases.

    A number is composed of the same powers of two whatever was asked before, so the answer is
    always the same; and the next round's number shares most of them with the last one's.
    """
    single = _release(sigma, q, interval)
    if steps == 1:
        return single
    lowest = steps & -steps
    if lowest == steps and single[0].size * math.sqrt(steps) > LARGEST_DOUBLED:
        # Slower to begin with, but its cut of the tails does not depend on rounding.
        return single[0].self_compose(steps, TAIL), single[1].self_compose(steps, TAIL)
    if lowest == steps:
        half = _repeated(sigma, q, interval, steps // 2)
        return _compose(half, half)
    higher = _repeated(sigma, q, interval, steps - lowest)
    return _compose(higher, _repeated(sigma, q, interval, lowest))


@lru_cache(maxsize=64)
def _losses(key: Key) -> Pair:
    """The losses of a whole history."""
    interval = _interval(key)
    return reduce(_compose, (_repeated(sigma, q, interval, steps) for sigma, q, steps in key))


def _pld_epsilon(key: Key, delta: float) -> float:
    """Epsilon by the composed privacy loss; exact where all releases have q = 1."""
    exact = _gaussian_epsilon(_gaussian_mu(key), delta)
    if all(q == 1 for _, q, _ in key):
        return exact
    remaining = delta - ROUNDED * sum(steps for *_, steps in key)
    if remaining <= 0 or _interval(key) > 1:
        return min(exact, _renyi_epsilon(key, delta))
    value = max(0.0, *(float(loss.get_epsilon_for_delta(remaining)) for loss in _losses(key)))
    # Sampling never costs privacy: each is an upper bound, so the smaller one is.
    return min(exact, value)


# ---- Renyi divergences

ROUNDING = 1e-14
ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64), 80, 96, 128, 192, 256, 512, 1000)
"""Renyi orders: the usual ones, and larger ones that keep a small epsilon tight."""


@lru_cache(maxsize=1024)
def _release_rdp(sigma: float, q: float) -> Float[np.ndarray, " orders"]:
    """Renyi divergence of one release at each of `ORDERS`.

    (order - 1) times it is log E_Q (P / Q)^order of Q = N(0, sigma^2), P = (1 - q) Q + q N(1,
    sigma^2), here integrated. Orders that would need too many points are left out.

    Guarantees: test_accounting.py::test_rdp_equals_dp_accounting_and_opacus.
    Source: arXiv:1908.10530, section 3.3.
    """
    orders = np.array(ORDERS, float)
    if q == 1:
        return orders / 2 / sigma / sigma
    # The trapezoid rule's error falls as exp(-2 pi d / step), d the distance pi sigma^2 of the
    # ratio's zeros from the real line.
    step = min(sigma / 8, sigma**2 / 4)
    divergences = np.full(len(orders), math.inf)
    for k, order in enumerate(orders):
        reach = LONGEST * sigma
        if (order + 2 * reach) / step > 1e5:
            break
        x = np.arange(-reach, order + reach, step)
        log_ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2 * x - 1) / (2 * sigma**2))
        log_noise = -(x**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
        log_moment = float(logsumexp(order * log_ratio + log_noise)) + math.log(step)
        # A moment is at least 1; rounding may have taken that much from it.
        divergences[k] = (max(log_moment, 0.0) + ROUNDING) / (order - 1)
    return divergences


def _renyi_epsilon(key: Key, delta: float) -> float:
    """Upper bound on epsilon from Renyi divergences, which add up; the best over `ORDERS`.

    Source: arXiv:2004.00010, proposition 12.
    """
    total = sum(steps * _release_rdp(sigma, q) for sigma, q, steps in key)
    orders = np.array(ORDERS, float)
    spent = total + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return max(0.0, float(np.min(spent)))


ACCOUNTANTS: Mapping[str, Callable[[Key, float], float]] = {
    "pld": _pld_epsilon,
    "rdp": _renyi_epsilon,
}
"""Name -> (merged history, delta) -> an upper bound on epsilon."""


# ---- what an attacker can find: the trade-off curve of the composed privacy loss

STEEPEST = 14.0
"""Slopes up to e^14: curves are followed to error rates of about 1e-6."""


def tradeoff_curve(history: History, fpr: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Computes the largest share of members that any attacker finds at a false positive rate.

    The attacker sees all releases and knows everything else. The curve is that of the composed
    privacy loss, the larger of both directions (who is in is found, or who is out); it is exact
    for q = 1, and otherwise an upper bound, within 1e-3 of the exact one. No bound from epsilon at
    a single delta lies below it.

    Args:
        history: as for `epsilon`; no noise lets everyone be found.
        fpr: in [0, 1].

    Guarantees: test_accounting.py::test_tradeoff_equals_golden_numbers,
        ::test_tradeoff_lies_below_every_epsilon.
    Source: arXiv:1905.02383, propositions 2.12 (lines of epsilon and delta) and 4.7 (both
        directions); corollary 2.13 (Gaussian).

    >>> tradeoff_curve(((3.0, 0.1, 512),), np.array([0.001, 0.01])).round(3)
    array([0.011, 0.061])
    """
    inside = bool(np.all((fpr >= 0) & (fpr <= 1)))  # NaN is not
    check(inside, "fpr", fpr, "numbers in [0, 1]")
    key = merge_history(history)
    if not key:
        return np.array(fpr, float)
    if key[0][0] == 0:
        return np.ones(len(fpr))
    # Sampling never costs privacy: where no grid is fine enough it is not counted.
    if all(q == 1 for _, q, _ in key) or _interval(key) > 1:
        return ndtr(ndtri(fpr) + _gaussian_mu(key))
    slopes, heights = _tradeoff_lines(key)
    return np.minimum(1.0, (heights + slopes * np.asarray(fpr)[:, None]).min(1))


def advantage(history: History) -> float:
    """Computes the largest TPR - FPR of any attacker: the total variation distance, delta at 0.

    Args: history: as for `epsilon`.
    Guarantees: test_accounting.py::test_tradeoff_equals_golden_numbers.
    Source: arXiv:1709.01604, definition 4 (advantage).

    >>> round(advantage(((1.0, 1.0, 1),)), 5)
    0.38292
    """
    key = merge_history(history)
    if not key or key[0][0] == 0:
        return float(bool(key))
    if all(q == 1 for _, q, _ in key) or _interval(key) > 1:
        return float(1 - 2 * ndtr(-_gaussian_mu(key) / 2))
    return float(min(1.0, _tradeoff_lines(key)[1][0]))


@lru_cache(maxsize=512)
def _tradeoff_lines(key: Key) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Slopes and heights at FPR = 0 of lines that no attacker exceeds; the first has slope 1.

    (epsilon, delta) gives TPR <= delta + e^epsilon FPR and, the roles exchanged,
    TPR <= 1 - e^-epsilon (1 - delta - FPR).
    """
    counts = [steps for *_, steps in key]
    moments = [_log_moment(sigma, q) for sigma, q, _ in key]
    size = math.exp(min(0.0, float(logsumexp(moments, b=counts)) / 2))
    epsilons = size * np.sinh(np.linspace(0, math.asinh(STEEPEST / size), 400))
    both = [np.asarray(loss.get_delta_for_epsilon(epsilons.tolist())) for loss in _losses(key)]
    deltas = np.clip(np.maximum(*both) + ROUNDED * sum(counts), 0.0, 1.0)
    steep, flat = np.exp(epsilons), np.exp(-epsilons)
    slopes = np.concatenate([[1.0], steep, flat])
    return slopes, np.concatenate([deltas[:1], deltas, 1 - flat * (1 - deltas)])


# ---- from a target to the noise

MOST_RATES = 16
"""Distinct sample rates that are calibrated as they are; more are rounded up to a grid of 1 %."""
LEAST_SPENT = 1 - 2e-3
"""A first guess that spends at least this share of the target is taken."""
MARGIN = 5e-4
"""Share of the target that is left where rates are rounded up: clients may have any rate between
two of the grid, and the discretisation of their losses may differ by a little."""


def noise_multiplier(
    epsilon: float, delta: float, sample_rate: float, steps: int, accountant: str = "pld"
) -> float:
    """Finds the smallest sigma whose ``steps`` releases spend at most ``epsilon``.

    Args:
        epsilon: target, > 0; finite. Spent is at most 0.3 % less, and never more.
        delta, accountant: as for `epsilon`.
        sample_rate, steps: q in [0, 1] and number of releases, >= 0; 0 needs no noise.

    Raises: ``ValueError`` for a value out of range, or a target that the accountant cannot certify.
    Guarantees: test_accounting.py::test_noise_multiplier_never_above_target.

    >>> round(noise_multiplier(8.0, 1e-5, 1.0, 10), 3)
    1.898
    """
    return noise_multipliers(epsilon, delta, (sample_rate,), steps, accountant)[0]


def noise_multipliers(
    epsilon: float,
    delta: float,
    sample_rates: tuple[float, ...],
    steps: int,
    accountant: str = "pld",
) -> tuple[float, ...]:
    """Finds a sigma for each sample rate.

    More than `MOST_RATES` distinct rates count as the next larger ones on a grid of 1 %: epsilon
    never falls with q, so nobody spends more than the target.

    Args:
        epsilon, delta, steps, accountant: as for `noise_multiplier`.
        sample_rates: each in [0, 1].

    Guarantees: test_accounting.py::test_many_distinct_sizes_spend_at_most_the_target.
    """
    check_number("epsilon", epsilon, 0, 1e9, open_low=True)
    check_delta(delta)
    for rate in sample_rates:
        check_number("sample_rate", rate, 0, 1)
    check_whole("steps", steps, 0)
    check_one_of("accountant", accountant, tuple(ACCOUNTANTS))
    counted = [_counted_rate(q, steps) if q > 0 and steps else 0.0 for q in sample_rates]
    target = float(epsilon)
    if len(set(counted)) > MOST_RATES:
        counted = [_on_grid(q) if q > 0 else 0.0 for q in counted]
        target *= 1 - MARGIN
    rates = tuple(sorted({q for q in counted if q > 0}))
    sigmas = _noise_multipliers(target, float(delta), rates, int(steps), accountant)
    return tuple(sigmas[q] if q > 0 else 0.0 for q in counted)


def _on_grid(q: float) -> float:
    """The smallest 1.01^-k, k whole, that is not below q."""
    k = math.floor(-math.log(q) / math.log(1.01))
    return max(1.01**-k, q)


def clt_noise_multiplier(target: float, delta: float, q: float, steps: int) -> float:
    """Estimates sigma by the central limit of Gaussian DP: no bound, within some per cent.

    Args:
        target, delta: the budget.
        q, steps: sample rate and number of releases.

    Source: arXiv:1905.02383, corollary 2.13 (delta of mu); arXiv:1911.11607, section 3 (mu of q,
        sigma, steps).
    """
    mu = _gaussian_mu_for(target, delta)
    return 1 / math.sqrt(math.log1p((mu / q) ** 2 / steps))


@lru_cache(maxsize=1024)
def _noise_multipliers(
    target: float, delta: float, rates: tuple[float, ...], steps: int, accountant: str
) -> Mapping[float, float]:
    """Sigmas of ascending sample rates; each search begins where those before it point."""
    sigmas: dict[float, float] = {}
    points: list[tuple[float, float]] = []  # log rate, log of sigma over its estimate
    for q in rates:
        if q == 1 and accountant == "pld":
            sigma = math.sqrt(steps) / _gaussian_mu_for(target, delta)
            sigmas[q] = _round_up(max(sigma, SMALLEST_SIGMA))
            continue
        estimate = clt_noise_multiplier(target, delta, q, steps)
        guess = estimate * math.exp(_next_point(points, math.log(q)))
        sigmas[q] = _search_sigma(target, q, delta, steps, accountant, guess)
        # Aimed at the middle of what is taken, so that an error to either side is small enough.
        spent = _epsilon(merge_history(((sigmas[q], q, steps),)), delta, accountant)
        share = min(max(spent / target, 0.9), 1.0) + (1 - LEAST_SPENT) / 2
        slope = math.log(estimate / clt_noise_multiplier(1.01 * target, delta, q, steps), 1.01)
        points.append((math.log(q), math.log(sigmas[q] / estimate) + slope * math.log(share)))
    return sigmas


def _next_point(points: list[tuple[float, float]], x: float) -> float:
    """Extrapolates the line through the last two points; 0 before the first."""
    if len(points) < 2:
        return points[0][1] if points else 0.0
    (x0, y0), (x1, y1) = points[-2:]
    return y1 + (y1 - y0) * (x - x1) / (x1 - x0)


def _search_sigma(
    target: float, q: float, delta: float, steps: int, accountant: str, guess: float
) -> float:
    """Finds sigma by Brent's method around a first guess, which is taken if it fits."""

    def excess(log_sigma: float) -> float:
        """log of what is spent over the target; rises without bound as the noise vanishes."""
        history = ((_round_up(math.exp(log_sigma)), q, steps),)
        spent = _epsilon(merge_history(history), delta, accountant)
        return min(max(math.log(max(spent, 1e-300) / target), -40.0), 40.0)

    least = math.log(SMALLEST_SIGMA)
    start = max(math.log(guess), least)
    if math.log(LEAST_SPENT) <= excess(start) <= 0:
        return _round_up(math.exp(start))
    low = high = start
    step = 0.02
    while excess(high) > 0:
        low = high
        high += step
        step *= 3
        reachable = high < math.log(100 * LARGEST_SIGMA)
        check(reachable, "epsilon", target, "a target that this accountant can certify")
    while excess(low) <= 0:
        if low <= least:
            return SMALLEST_SIGMA  # less noise would count as none, however large the target
        high = low
        low = max(low - step, least)
        step *= 3
    root = _root(excess, low, high, xtol=1e-4)
    # Only a sigma that was counted and spends no more than the target may be the result.
    while excess(root) > 0:
        root += 5e-5
    return _round_up(math.exp(root))


def _round_up(sigma: float) -> float:
    """Ten digits, rounded up: the same on every machine, and it spends no more."""
    unit = 10.0 ** (math.floor(math.log10(sigma)) - 9)
    return math.ceil(sigma / unit) * unit
