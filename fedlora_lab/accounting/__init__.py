"""From a history of noised releases to epsilon, through the accountants of Opacus; cached, because a run asks often.

A history is a tuple of ``(noise_multiplier, sample_rate, steps)``: Poisson-subsampled Gaussian releases, composed
exactly even when sigma or q change on the way. Two accountants: Renyi ("rdp") and numerical composition of the privacy
loss ("prv").
"""

import math
from functools import lru_cache, partial

from fedlora_lab.accounting import gaussian, pld, prv, renyi
from fedlora_lab.accounting.calibration import first_guess, grouped, smallest
from fedlora_lab.checks import check, check_number, check_one_of, check_whole, is_number

History = tuple[tuple[float | None, float, int], ...]

EPSILON_ERROR = prv.EPSILON_ERROR

GROUPS = 16
"""Distinct sample rates that are calibrated one by one; more share the noise of so many."""


SMALLEST_DELTA = 1e-12


def check_delta(delta: float) -> None:
    """Raise unless ``SMALLEST_DELTA`` <= delta < 1.

    A normal number is made of 52 random bits, so the noise ends at 8.2 standard deviations: what lies beyond cannot
    be promised, and nothing smaller is accounted.
    """
    number = is_number(delta) and 0 < delta < 1
    check(number, "delta", delta, "a number in (0, 1)")
    check(delta >= SMALLEST_DELTA, "delta", delta, "at least 1e-12: noise from 52 random bits ends at 8.2 sigma")


def epsilon(history: History, delta: float, accountant: str = "prv") -> float:
    """The epsilon that a history has spent at ``delta``.

    Args:
        history: tuple of (noise_multiplier, sample_rate, steps); a multiplier of ``None`` or 0 is no noise.
        delta: in (0, 1).
        accountant: "rdp", an upper bound, or "prv", the upper end of a numerical interval, within ``EPSILON_ERROR``
            of the exact value. Where the PRV grid would grow too large (an epsilon of many dozens over thousands of
            steps, a sigma near 0) or delta is too small for double precision, "prv" gives the RDP bound instead,
            which is larger and valid.

    Returns:
        A number >= 0; ``inf`` as soon as one release carried no noise; 0 when nothing was released.

    Raises:
        ValueError: for a value out of range.

    Guarantees:
        test_rdp_equals_dp_accounting, test_prv_within_stated_error_of_pld, test_history_is_composed_not_approximated,
        test_where_no_grid_fits_the_bound_is_tight.

    Source: arXiv:2106.02848, section 5 (PRV); arXiv:1908.10530, section 3.3 (RDP); arXiv:1905.09982, theorem 21.
    """
    check_delta(delta)
    check_one_of("accountant", accountant, ("prv", "rdp"))
    key = canonical(history)
    if not key:
        return 0.0
    return math.inf if key[0][0] == 0 else _epsilon(key, float(delta), accountant)


def noise_multiplier(epsilon: float, delta: float, sample_rate: float, steps: int, accountant: str = "prv") -> float:
    """The smallest sigma whose ``steps`` releases spend at most ``epsilon``: 0.1 % below at most, never above.

    Args:
        epsilon: target, > 0; finite.
        delta: in (0, 1).
        sample_rate: q in [0, 1].
        steps: number of releases, >= 0.
        accountant: "prv" or "rdp".

    Returns:
        sigma >= 0; 0 when nothing is released.

    Raises:
        ValueError: for a value out of range, or a target below what the accountant can certify (about 3e-3).

    Guarantees:
        test_noise_multiplier_never_above_target.
    """
    return noise_multipliers(epsilon, delta, (sample_rate,), steps, accountant)[0]


def noise_multipliers(
    epsilon: float, delta: float, sample_rates: tuple[float, ...], steps: int, accountant: str = "prv"
) -> tuple[float, ...]:
    """A sigma for each sample rate, as ``noise_multiplier``; many distinct rates share those of at most ``GROUPS``.

    Epsilon never falls with q: the sigma of a group's largest rate is enough for all of its rates.

    Guarantees:
        test_many_distinct_sizes_spend_at_most_the_target.
    """
    check_number("epsilon", epsilon, 0, 1e9, open_low=True)
    check_delta(delta)
    for rate in sample_rates:
        check_number("sample_rate", rate, 0, 1)
    check_whole("steps", steps, 0)
    check_one_of("accountant", accountant, ("prv", "rdp"))
    if not steps:
        return (0.0,) * len(sample_rates)
    largest = grouped(sample_rates, GROUPS)
    sigmas, tops = {0.0: 0.0}, sorted(set(largest.values()))
    if len(largest) <= GROUPS or accountant == "rdp":
        find = partial(_noise_multiplier, float(epsilon), float(delta), steps=int(steps), accountant=accountant)
        sigmas |= {rate: find(rate) for rate in tops}
    else:
        sigmas |= _noise_multipliers(float(epsilon), float(delta), tuple(tops), int(steps))
    return tuple(sigmas[largest.get(float(rate), 0.0)] for rate in sample_rates)


def canonical(history: History) -> renyi.Key:
    """Order-insensitive form: equal (sigma, q) merged, silent entries dropped, sorted; sigma = 0 comes first."""
    check(isinstance(history, (tuple, list)), "history", history, "a tuple of (noise_multiplier, sample_rate, steps)")
    merged: dict[tuple[float, float], int] = {}
    for entry in history:
        check(isinstance(entry, (tuple, list)) and len(entry) == 3, "history", entry, "three numbers in every entry")
        sigma, q, steps = entry
        check_number("noise_multiplier", 0 if sigma is None else sigma, 0)
        check_number("sample_rate", q, 0, 1)
        check_whole("steps", steps, 0)
        if steps and q:
            pair = (float(sigma or 0), float(q))
            merged[pair] = merged.get(pair, 0) + steps
    return tuple((*pair, steps) for pair, steps in sorted(merged.items()) if pair[0] < math.inf)


_NO_GRID = (RuntimeError, ValueError, ArithmeticError, MemoryError)


@lru_cache(maxsize=8192)
def _epsilon(key: renyi.Key, delta: float, accountant: str) -> float:
    if accountant == "prv":
        if all(q == 1 for _, q, _ in key):
            return gaussian.epsilon(key, delta)
        try:
            return prv.epsilon(key, delta)
        except _NO_GRID:
            pass
        bound = renyi.epsilon(key, delta)
        try:
            return min(bound, pld.epsilon(key, delta, bound))
        except _NO_GRID:
            return bound  # no grid can hold it: the Renyi bound is larger and valid
    return renyi.epsilon(key, delta)


@lru_cache(maxsize=1024)
def _noise_multiplier(target: float, delta: float, q: float, steps: int, accountant: str) -> float:
    if q == 1 and accountant == "prv":
        return gaussian.noise_multiplier(target, delta, steps)
    return smallest(lambda sigma: _epsilon(((sigma, q, steps),), delta, accountant), target,
                    first_guess(target, delta, q, steps))  # fmt: skip


@lru_cache(maxsize=64)
def _noise_multipliers(target: float, delta: float, rates: tuple[float, ...], steps: int) -> dict[float, float]:
    """As `_noise_multiplier` for many rates in order, with fewer evaluations: how far the first guess is off, and how
    steeply epsilon falls, hardly changes from one rate to the next."""
    found: dict[float, float] = {}
    off: list[tuple[float, float]] = []
    for q in rates:
        if q == 1:
            found[q] = gaussian.noise_multiplier(target, delta, steps)
            continue
        guess, above = (first_guess(target * wider, delta, q, steps) for wider in (1.0, 1.02))
        if len(off) > 1:
            (x0, y0), (x1, y1) = off[-2:]
            correction = y1 + (y1 - y0) * (math.log(q) - x1) / (x1 - x0)
        else:
            correction = off[-1][1] if off else 0.0
        slope = math.log(1.02) / math.log(above / guess)
        spent = partial(_spent, q=q, steps=steps, delta=delta)
        found[q] = smallest(spent, target, guess * math.exp(correction), slope)
        off.append((math.log(q), math.log(found[q] / guess)))
    return found


def _spent(sigma: float, q: float, steps: int, delta: float) -> float:
    return _epsilon(((sigma, q, steps),), delta, "prv")
