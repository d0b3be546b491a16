"""From a history of noised releases to epsilon, and from a target epsilon to the noise.

A history is a tuple of ``(noise_multiplier, sample_rate, steps)``: Poisson-subsampled Gaussian
releases, composed entry by entry, also where sigma or q change on the way. There are three ways to
epsilon: the exact Gaussian where nothing is sampled, privacy loss distributions (`privacy.pld`),
and Renyi divergences. Answers are cached, because a run asks after every round.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri

from fedlora_lab._utils.validation import (
    check,
    check_number,
    check_one_of,
    check_whole,
    in_one_line,
)
from fedlora_lab.privacy import opacus_accountants, pld
from fedlora_lab.privacy.pld import MergedHistory
from fedlora_lab.theory.gaussian_dp import (
    gdp_epsilon,
    gdp_log_delta,
    rdp_to_epsilon,
    sampled_gaussian_rdp,
)

History = tuple[tuple[float | None, float, int], ...]
"""Of (noise multiplier, ``None`` for no noise; sample rate; steps)."""

# Each of these only enlarges what is stated, and keeps off numbers whose squares overflow or
# vanish, and searches that would not end.
MIN_SIGMA = 1e-2
"""Noise multipliers below count as no noise: a release at it spends an epsilon of thousands."""
MAX_SIGMA = 1e6
"""Larger noise multipliers of sampled releases count as this one."""
MIN_RATE = 1e-9
"""Smaller sample rates count as this one."""
MAX_SAMPLED = 10**6
"""Of more releases sampling is not counted (q = 1): what one of them spends may be smaller than the
rounding of a float, and would be added up as nothing."""


def check_delta(delta: float) -> None:
    """Raises unless delta is in [1e-12, 1)."""
    # Of less an accountant's own rounding (1e-15 of a composition, 1e-16 of each release) would be
    # a part that counts.
    check_number("delta", delta, 1e-12, 1, open_high=True)


# ---- from a history to epsilon


def epsilon(history: History, delta: float, accountant: str = "pld") -> float:
    """Computes an upper bound on the epsilon that a history has spent at ``delta``.

    Args:
        history: tuple of (noise_multiplier, sample_rate, steps); a multiplier of ``None``, or below
            `MIN_SIGMA`, is no noise, and makes epsilon infinite.
        delta: in [1e-12, 1).
        accountant: "pld": exact without sampling, else at most about 0.1 % above the exact value
            where a grid of losses applies (`pld.applies`), more at rates below 1e-3 (see
            `pld.epsilon`); elsewhere sampling is not counted.
            "rdp": Renyi divergences, a looser bound. "opacus-rdp" and "opacus-prv": the number
            that Opacus states for the same releases, see `opacus_accountants`.

    Guarantees: never below dp-accounting's number, nor below what the best attack finds
        (test_accounting.py::test_pld_is_never_below_dp_accounting,
        ::test_an_optimal_attack_finds_what_is_stated); "rdp" is the number of Opacus
        (::test_accountants_of_opacus_state_what_opacus_does); full batches have the exact epsilon
        (::test_full_batches_have_the_exact_epsilon); every history has an answer, which never falls
        with less noise
        (::test_every_history_has_an_answer_that_never_falls_with_less_noise).
    Source: arXiv:2207.04380 (PLD); arXiv:1908.10530, section 3.3 (RDP).

    >>> round(epsilon(((2.0, 1.0, 10),), delta=1e-5), 2)
    7.51
    """
    check_delta(delta)
    check_one_of("accountant", accountant, tuple(ACCOUNTANTS))
    return _epsilon(merge_history(history), float(delta), ACCOUNTANTS[accountant])


@lru_cache(maxsize=8192)
def _epsilon(
    key: MergedHistory,
    delta: float,
    accountant: Callable[[MergedHistory, float], float],
) -> float:
    # Sorted by sigma: a release without noise, which protects nobody, comes first.
    if key and key[0][0] == 0:
        return math.inf
    # A unit that is drawn in no release changes none, and it is drawn in some with this chance.
    if sum(q * steps for _, q, steps in key) <= delta:
        return 0.0
    with in_one_line("accountant: expected an epsilon for a key and a delta, but"):
        value = accountant(key, delta)
    check_number("epsilon, by the accountant", value, 0)
    return float(value)


def merge_history(history: History) -> MergedHistory:
    """Merges entries of equal (sigma, q), sorted by both, so that sigma = 0 comes first.

    ``None`` and sigma below `MIN_SIGMA` count as sigma = 0. Entries that spend nothing (no steps,
    q = 0, sigma infinite) go.

    Raises: ``ValueError`` for a number that is not in its range.
    """
    spending = []
    for sigma, q, steps in history:
        check_number("noise_multiplier", 0 if sigma is None else sigma, 0)
        check_number("sample_rate", q, 0, 1)
        check_whole("steps", steps, 0)
        if steps and q and sigma != math.inf:
            noised = sigma is not None and sigma >= MIN_SIGMA
            spending.append((float(sigma) if noised else 0.0, float(q), int(steps)))
    total = sum(steps for *_, steps in spending)
    merged: dict[tuple[float, float], int] = {}
    for sigma, q, steps in spending:
        rate = _counted_rate(q, total)
        pair = (sigma if rate == 1 else min(sigma, MAX_SIGMA), rate)
        merged[pair] = merged.get(pair, 0) + steps
    return tuple((*pair, steps) for pair, steps in sorted(merged.items()))


def _counted_rate(q: float, steps: int) -> float:
    """The sample rate > 0 at which so many releases count."""
    return 1.0 if steps > MAX_SAMPLED else max(float(q), MIN_RATE)


def _gaussian_mu(key: MergedHistory) -> float:
    """mu of these releases if none were sampled: sqrt(sum steps / sigma^2).

    Source: arXiv:1905.02383, corollary 3.3.
    """
    return math.sqrt(math.fsum(steps / sigma / sigma for sigma, _, steps in key))


def _pld_epsilon(key: MergedHistory, delta: float) -> float:
    """Epsilon by the composed privacy loss; exact where all releases have q = 1."""
    sampled = pld.epsilon(key, delta) if pld.applies(key) else math.inf
    if sampled == math.inf:
        sampled = _renyi_epsilon(key, delta)
    mu = _gaussian_mu(key)
    # The upper end of a root is the safe one: epsilon may be stated too large, never too small.
    unsampled = gdp_epsilon(mu, delta) * (1 + 1e-12) if mu else 0.0
    # Sampling never costs privacy: each is an upper bound, so the smaller one is.
    return min(unsampled, sampled)


ROUNDING = 1e-14
"""How much too small rounding may make the moment of a sampled release, which is an integral."""
ORDERS = np.array([*(1 + x / 10 for x in range(1, 100)), *range(12, 64)], float)
ORDERS = np.append(ORDERS, [80, 96, 128, 192, 256, 512, 1000])
"""Renyi orders: the usual ones, and larger ones that keep a small epsilon tight."""


@lru_cache(maxsize=1024)
def _release_rdp(sigma: float, q: float) -> Float[np.ndarray, " orders"]:
    """Renyi divergence of one release at each of `ORDERS`, rounded up."""
    divergences = sampled_gaussian_rdp(ORDERS, q, sigma)
    # The moment may be `ROUNDING` too small; only an upper bound may be stated.
    return divergences if q == 1 else divergences + ROUNDING / (ORDERS - 1)


def _renyi_epsilon(key: MergedHistory, delta: float) -> float:
    """Upper bound on epsilon from Renyi divergences, which add up; the best over `ORDERS`."""
    total = sum(steps * _release_rdp(sigma, q) for sigma, q, steps in key)
    return rdp_to_epsilon(ORDERS, np.asarray(total), delta)[0]


Accountant = Callable[[MergedHistory, float], float]
ACCOUNTANTS: dict[str, Accountant] = {
    "pld": _pld_epsilon,
    "rdp": _renyi_epsilon,
    "opacus-rdp": opacus_accountants.rdp_epsilon,
    "opacus-prv": opacus_accountants.prv_epsilon,
}
"""Name -> (merged history, delta) -> an upper bound on epsilon."""


# ---- from a history to what an attacker can find


def tradeoff_curve(history: History, fpr: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Computes the largest share of members that any attacker finds at a false positive rate.

    The attacker sees all releases and knows everything else. The curve is that of the composed
    privacy loss, the larger of both directions (a member is found, or a non-member); it is exact
    for q = 1. Otherwise it is an upper bound: the hull of both directions, which may lie well above
    what the best attacker in either reaches, and where no grid of losses applies (`pld.applies`)
    sampling is not counted. No bound from epsilon at a single delta lies below it.

    Args:
        history: as for `epsilon`; no noise lets everyone be found.
        fpr: in [0, 1].

    Guarantees: equals numbers computed apart
        (test_accounting.py::test_tradeoff_equals_golden_numbers), and lies above every attacker
        (::test_the_curve_of_one_release_lies_above_the_best_attack).
    Source: arXiv:1905.02383, corollary 2.13 (Gaussian); see `pld.tradeoff_lines`.

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
    if not pld.applies(key):
        return ndtr(ndtri(fpr) + _gaussian_mu(key))
    slopes, heights = pld.tradeoff_lines(key)
    return np.minimum(1.0, (heights + slopes * np.asarray(fpr)[:, None]).min(1))


def advantage(history: History) -> float:
    """Computes the largest TPR - FPR of any attacker: the total variation distance, delta at 0.

    Args: history: as for `epsilon`.
    Guarantees: equals numbers computed apart
        (test_accounting.py::test_tradeoff_equals_golden_numbers).
    Source: arXiv:1709.01604, definition 4 (advantage).

    >>> round(advantage(((1.0, 1.0, 1),)), 5)
    0.38292
    """
    key = merge_history(history)
    if not key or key[0][0] == 0:
        return float(bool(key))
    if not pld.applies(key):
        return float(1 - 2 * ndtr(-_gaussian_mu(key) / 2))
    # The height of the line of slope 1 is delta at epsilon = 0.
    return float(min(1.0, pld.tradeoff_lines(key)[1][0]))


# ---- from a target to the noise

MAX_RATES = 64
"""Distinct sample rates that are calibrated as they are; more are rounded up to a grid of 1 %."""
MIN_SPENT = 1 - 2e-3
"""A first guess that spends at least this share of the target is taken."""
MARGIN = 5e-4
"""Share of the target that is left where rates are rounded up: clients may have any rate between
two of the grid, and the discretisation of their losses may differ by a little."""


def noise_multiplier(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """Finds the smallest sigma whose ``steps`` releases spend at most ``epsilon``, by PLD.

    Args:
        epsilon: target, > 0, finite. The result spends at most this, and at least 99.7 % of it.
        delta: as for `epsilon`.
        sample_rate, steps: q in [0, 1] and number of releases, >= 0; 0 needs no noise.

    Raises: ``ValueError`` for a value out of range, or a target that the accountant cannot certify.
    Guarantees: never spends more than the target, and 1 % less noise would
        (test_accounting.py::test_noise_multiplier_never_above_target).

    >>> round(noise_multiplier(8.0, 1e-5, 1.0, 10), 3)
    1.898
    """
    return noise_multipliers(epsilon, delta, (sample_rate,), steps)[0]


def noise_multipliers(
    epsilon: float,
    delta: float,
    sample_rates: tuple[float, ...],
    steps: int,
    accountant: str = "pld",
) -> tuple[float, ...]:
    """Finds a sigma for each sample rate.

    More than `MAX_RATES` distinct rates count as the next larger ones on a grid of 1 %: epsilon
    never falls with q, so nobody spends more than the target.

    Args:
        epsilon, delta, steps: as for `noise_multiplier`.
        sample_rates: each in [0, 1].
        accountant: a name of `ACCOUNTANTS`.

    Guarantees: of many clients of distinct sizes none spends more than the target
        (test_accounting.py::test_many_distinct_sizes_spend_at_most_the_target).
    """
    check_number("epsilon", epsilon, 0, 1e9, open_low=True)
    check_delta(delta)
    for rate in sample_rates:
        check_number("sample_rate", rate, 0, 1)
    check_whole("steps", steps, 0)
    check_one_of("accountant", accountant, tuple(ACCOUNTANTS))
    rule = ACCOUNTANTS[accountant]
    target = float(epsilon)
    counted = [_counted_rate(q, steps) if q and steps else 0.0 for q in sample_rates]
    if len(set(counted)) > MAX_RATES:
        counted = [_rate_on_grid(q) if q else 0.0 for q in counted]
        target *= 1 - MARGIN
    rates = sorted(set(counted) - {0.0})
    sigmas = {0.0: 0.0, **_searched_sigmas(rates, target, float(delta), steps, rule)}
    return tuple(sigmas[q] for q in counted)


def _searched_sigmas(
    rates: list[float], target: float, delta: float, steps: int, rule: Accountant
) -> dict[float, float]:
    """Rate -> sigma, each by a search that begins near the one before, with a bar on a terminal."""
    from tqdm.auto import tqdm

    sigmas: dict[float, float] = {}
    # The ratio of sigma to its estimate changes slowly and evenly from one rate to the next.
    correction = 1.0
    trend = 1.0
    # In the middle of the interval that is accepted: an error to either side is small enough.
    aim = target * (1 + MIN_SPENT) / 2
    shown = tqdm(rates, desc="noise for each client size", delay=2, disable=None, leave=False)
    for q in shown:

        def spent(sigma: float, q: float = q) -> float:
            return _epsilon(merge_history(((sigma, q, steps),)), delta, rule)

        if q == 1:
            guess = _estimated_sigma(target, delta, q, steps)
        else:
            guess = _estimated_sigma(aim, delta, q, steps) * correction * trend
        sigmas[q] = _search_sigma(spent, target, guess)
        latest = sigmas[q] / _estimated_sigma(spent(sigmas[q]), delta, q, steps)
        trend = latest / correction if len(sigmas) > 1 else 1.0
        correction = latest
    return sigmas


def _rate_on_grid(q: float) -> float:
    """The smallest 1.01^-k, k whole, that is not below q."""
    k = math.floor(-math.log(q) / math.log(1.01))
    return max(1.01**-k, q)


def _estimated_sigma(target: float, delta: float, q: float, steps: int) -> float:
    """Sigma by the central limit of Gaussian DP, no bound but within some per cent; exact at q = 1.

    Source: arXiv:1905.02383, corollary 2.13 (delta of mu); arXiv:1911.11607, section 3 (mu of q,
        sigma, steps).
    """
    mu = _mu_of_epsilon(target, delta)
    if q == 1:
        return math.sqrt(steps) / mu
    return 1 / math.sqrt(math.log1p((mu / q) ** 2 / steps))


@lru_cache(maxsize=1024)
def _mu_of_epsilon(target: float, delta: float) -> float:
    """The largest mu whose mu-GDP spends at most ``target`` at ``delta``."""
    from scipy.optimize import brentq  # slow to import

    def excess(log_mu: float) -> float:
        return float(gdp_log_delta(math.exp(log_mu), target)) - math.log(delta)

    root = brentq(excess, math.log(1e-12), math.log(1e6), xtol=1e-12)
    return math.exp(float(root) - 2e-12)  # type: ignore[arg-type]


def _search_sigma(spent: Callable[[float], float], target: float, guess: float) -> float:
    """Finds the smallest sigma that spends at most a target, by Brent's method around a guess."""
    from scipy.optimize import brentq  # slow to import

    def excess(log_sigma: float) -> float:
        """log of what is spent over the target; rises without bound as the noise vanishes."""
        value = spent(_round_up(math.exp(log_sigma)))
        return min(max(math.log(max(value, 1e-300) / target), -40.0), 40.0)

    least = math.log(MIN_SIGMA)
    start = math.log(max(guess, MIN_SIGMA))
    if math.log(MIN_SPENT) <= excess(start) <= 0:
        return _round_up(math.exp(start))
    low = high = start
    for reach in (0.02, 0.5, 60.0):
        low = max(start - reach, least)
        high = start + reach
        if excess(low) > 0 >= excess(high):
            break
    if excess(low) <= 0:
        return MIN_SIGMA  # less noise would count as none, however large the target
    check(excess(high) <= 0, "epsilon", target, "a target that this accountant can certify")
    root = float(brentq(excess, low, high, xtol=1e-4))  # type: ignore[arg-type]
    # Only a sigma that was counted and spends no more than the target may be the result.
    while excess(root) > 0:
        root += 5e-5
    return _round_up(math.exp(root))


def _round_up(sigma: float) -> float:
    """Ten digits, rounded up: the same on every machine, and it spends no more."""
    unit = 10.0 ** (math.floor(math.log10(sigma)) - 9)
    return math.ceil(sigma / unit) * unit
