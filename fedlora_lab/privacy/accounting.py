"""From a history of noised releases to epsilon, and from a target epsilon to the noise.

A history is a tuple of ``(noise_multiplier, sample_rate, steps)``: Poisson-subsampled Gaussian
releases, composed entry by entry, also where sigma or q change on the way. `ACCOUNTANTS` names the
ways to compute epsilon; answers are cached, because a run asks often.
"""

import logging
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import fft
from scipy.special import log_ndtr, ndtr, ndtri
from scipy.stats import binom

from fedlora_lab._utils.environment import ignore_warnings
from fedlora_lab._utils.validation import check, check_number, check_one_of, check_whole, is_number

History = tuple[Any, ...]
"""Of tuples (noise multiplier or None, sample rate, steps)."""
Key = tuple[tuple[float, float, int], ...]
"""A merged history: (noise multiplier > 0, sample rate > 0, steps >= 1), sorted."""

SMALLEST_DELTA = 1e-12
# Each of these only enlarges what is stated, and keeps numbers from the accountants whose squares
# overflow or vanish, or on which their searches do not end.
SMALLEST_SIGMA, LARGEST_SIGMA, LARGEST_SAMPLED_SIGMA = 1e-2, 1e100, 1e6
"""Noise multipliers below the first count as no noise: a single release at the first spends an
epsilon of thousands. Those above the second, or of sampled releases the third, count as these."""
SMALLEST_RATE, MOST_SAMPLED = 1e-9, 10**6
"""Smaller sample rates count as the first; of more releases than the second sampling is not counted
(q = 1). What one of them spends may be smaller than the rounding of a float, and would be added up
as nothing."""


@dataclass(frozen=True)
class Accountant:
    """A way to compute epsilon: (merged history, delta) -> an upper bound on it.

    The bound never falls with less noise, a larger q or more steps. ``tight``: exact up to a small
    error, so plans without sampling get the exact Gaussian noise, and many sample rates are
    calibrated from one another.

    >>> ACCOUNTANTS["rdp"].epsilon(((1.0, 0.1, 10),), 1e-5) > 2
    True
    """

    epsilon: Callable[[Key, float], float]
    tight: bool = False


def check_delta(delta: float) -> None:
    """Raises unless ``SMALLEST_DELTA`` <= delta < 1."""
    check(is_number(delta) and 0 < delta < 1, "delta", delta, "a number in (0, 1)")
    # Drawn noise has a largest value: what only larger values would hide cannot be promised.
    why = "noise from 52 random bits ends at 8.2 sigma"
    check(delta >= SMALLEST_DELTA, "delta", delta, f"at least {SMALLEST_DELTA:g}: {why}")


def epsilon(history: History, delta: float, accountant: str = "prv") -> float:
    """Computes the epsilon that a history has spent at ``delta``.

    Args:
        history: tuple of (noise_multiplier, sample_rate, steps); a multiplier of ``None``, or below
            `SMALLEST_SIGMA`, is no noise, and makes epsilon infinite.
        delta: in [1e-12, 1).
        accountant: a name in `ACCOUNTANTS`. "rdp" is an upper bound; "prv" lies within
            ``EPSILON_ERROR`` above the exact value or, where its grid would grow too large (an
            epsilon of dozens over thousands of steps, a sigma near 0, a tiny delta), is a larger,
            valid bound.

    Guarantees: test_rdp_equals_dp_accounting, test_prv_within_stated_error_of_pld,
        test_history_is_composed_not_approximated, test_where_no_grid_fits_the_bound_is_tight,
        test_every_history_has_an_answer_that_never_falls_with_less_noise.
    Source: arXiv:2106.02848, section 5 (PRV); arXiv:1908.10530, section 3.3 (RDP);
        arXiv:1905.09982, theorem 21.

    >>> round(epsilon(((2.0, 1.0, 10),), delta=1e-5), 2)
    7.51
    """
    check_delta(delta)
    check_one_of("accountant", accountant, tuple(ACCOUNTANTS))
    return _epsilon(merge_history(history), float(delta), ACCOUNTANTS[accountant])


@lru_cache(maxsize=8192)
def _epsilon(key: Key, delta: float, accountant: Accountant) -> float:
    # Sorted by sigma: a release without noise, which protects nobody, comes first.
    if key and key[0][0] == 0:
        return math.inf
    # A unit that is drawn in no release changes none, and it is drawn in some with this chance.
    if sum(q * steps for _, q, steps in key) <= delta:
        return 0.0
    return accountant.epsilon(key, delta)


def _counted_rate(q: float, steps: int) -> float:
    """The sample rate > 0 at which so many releases count."""
    return 1.0 if steps > MOST_SAMPLED else max(float(q), SMALLEST_RATE)


def merge_history(history: History) -> Key:
    """Merges entries of equal (sigma, q), sorted by both, so that sigma = 0 comes first.

    ``None`` and sigma below `SMALLEST_SIGMA` count as sigma = 0, q as `_counted_rate` says. Entries
    that spend nothing (no steps, q = 0, sigma infinite) go.

    Raises: ``ValueError`` for an entry that is not three numbers in their ranges.
    """
    expected = "a tuple of (noise_multiplier, sample_rate, steps)"
    check(isinstance(history, (tuple, list)), "history", history, expected)
    counted: list[tuple[float, float, int]] = []
    for entry in history:
        three = isinstance(entry, (tuple, list)) and len(entry) == 3
        check(three, "history", entry, "three numbers in every entry")
        sigma, q, steps = entry
        check_number("noise_multiplier", 0 if sigma is None else sigma, 0)
        check_number("sample_rate", q, 0, 1)
        check_whole("steps", steps, 0)
        if steps and q and sigma != math.inf:
            known = sigma is not None and sigma >= SMALLEST_SIGMA
            counted.append((float(sigma) if known else 0.0, float(q), steps))
    total = sum(steps for *_, steps in counted)
    merged: dict[tuple[float, float], int] = {}
    for sigma, q, steps in counted:
        rate = _counted_rate(q, total)
        pair = (min(sigma, LARGEST_SIGMA if rate == 1 else LARGEST_SAMPLED_SIGMA), rate)
        merged[pair] = merged.get(pair, 0) + steps
    return tuple((*pair, steps) for pair, steps in sorted(merged.items()))


ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64), 80, 96, 128, 192, 256, 512, 1000)
"""Renyi orders: those of Opacus, and larger ones that keep a small epsilon tight."""


@cache
def opacus_analysis() -> Any:
    """Imports Opacus' accountants without the handler that they give to the root logger.

    Guarantees: test_no_surprises.py::test_a_first_use_asks_no_network_and_freezes_nothing.
    """
    root = logging.getLogger()
    before = list(root.handlers)
    from opacus.accountants import analysis
    from opacus.accountants.analysis import prv, rdp  # noqa: F401

    root.handlers[:] = before
    return analysis


@lru_cache(maxsize=1024)
def _release_rdp(sigma: float, q: float, orders: tuple[float, ...]) -> np.ndarray:
    """Renyi divergence of one release, (orders,); infinite where Opacus overflows."""
    values = np.full(len(orders), math.inf)
    for k, order in enumerate(orders):
        with suppress(ValueError, ArithmeticError):
            one = {"q": q, "noise_multiplier": sigma, "steps": 1, "orders": float(order)}
            values[k] = opacus_analysis().rdp.compute_rdp(**one)
    return np.where(np.isfinite(values), values, math.inf)


def _rdp(key: Key, orders: tuple[float, ...] = ORDERS) -> np.ndarray:
    """Renyi divergence of a whole history, (orders,); without noise infinite."""
    # Divergences of one order add up over releases, whatever their sigma and q.
    if key and key[0][0] == 0:
        return np.full(len(orders), math.inf)
    parts = [steps * _release_rdp(sigma, q, orders) for sigma, q, steps in key]
    return np.sum(parts, axis=0) if parts else np.zeros(len(orders))


def _renyi_epsilon(key: Key, delta: float, orders: tuple[float, ...] = ORDERS) -> float:
    """Upper bound on epsilon from Renyi divergences; the best over ``orders``."""
    return _spent(_rdp(key, orders), delta, orders)


def _spent(total: np.ndarray, delta: float, orders: tuple[float, ...]) -> float:
    # At the first or last order the bound is valid too, only not the tightest.
    with ignore_warnings(UserWarning, "Optimal order is the"):
        spent = opacus_analysis().rdp.get_privacy_spent
        value, _ = spent(orders=list(orders), rdp=total, delta=delta)
    return max(0.0, float(value))


def _log_delta(epsilon: float, mu: float) -> float:
    """log delta of mu-GDP: log(Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu))."""
    # In logarithms: in the tail both terms may be below the smallest float, and their ratio is not.
    first = float(log_ndtr(-epsilon / mu + mu / 2))
    second = epsilon + float(log_ndtr(-epsilon / mu - mu / 2))
    # The first term is the larger one, even where rounding says otherwise.
    return first + math.log(-math.expm1(min(second - first, -1e-300)))


def _bisect(above: Callable[[float], bool], low: float, high: float) -> float:
    """The upper end of where ``above`` turns false between ``low`` and ``high``."""
    # The upper end is the safe one: an epsilon or sigma may be stated too large, never too small.
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if above(middle) else (low, middle)
    return high


def _round_up(sigma: float) -> float:
    """Ten digits, rounded up: the same on every machine, and it spends no more."""
    unit = 10.0 ** (math.floor(math.log10(sigma)) - 9)
    return math.ceil(sigma / unit) * unit


def _gaussian_epsilon(key: Key, delta: float) -> float:
    """The smallest epsilon of releases that all have q = 1: mu = sqrt(sum steps / sigma^2).

    Source: arXiv:1805.06530, theorem 8; arXiv:1905.02383, corollary 3.3 (composition).
    """
    mu = _gaussian_mu(key)
    if mu == 0 or not math.isfinite(mu * mu):
        return 0.0 if mu == 0 else math.inf
    goal = math.log(delta)
    if _log_delta(0.0, mu) <= goal:
        return 0.0
    # Phi(-epsilon / mu + mu / 2) <= delta is enough, and Phi(-x) <= exp(-x^2 / 2).
    high = mu * mu / 2 + mu * math.sqrt(-2 * goal)
    return _bisect(lambda e: _log_delta(e, mu) > goal, 0.0, high)


def _gaussian_noise_multiplier(target: float, delta: float, steps: int) -> float:
    """The smallest sigma of ``steps`` releases with q = 1 that spends at most ``target``."""
    goal, high = math.log(delta), 1.0
    while _log_delta(target, 1 / high) > goal:
        high *= 2
    low = high / 2
    while low > 1e-30 and _log_delta(target, 1 / low) <= goal:
        low, high = low / 2, low
    one = _bisect(lambda sigma: _log_delta(target, 1 / sigma) > goal, low, high)
    return _round_up(one * math.sqrt(steps))


EPSILON_ERROR = 1e-2
"""How far the value of "prv" may lie above the exact one: half the width of its interval and what
the share of delta set aside for truncation costs, up to 1e-3 of it."""

_HALF_WIDTH = 8e-3  # at most; a tenth of it where epsilon is small
_TAIL_ORDERS = (*range(2, 33), 40, 48, 64, 96, 128, 256)  # whole orders cost Opacus microseconds,
_LOW_ORDERS = (1.15, 1.3, 1.5, 1.75)  # fractional ones milliseconds: only where epsilon is large
_LARGEST = 1 << 22  # points; beyond, one evaluation takes seconds and hundreds of megabytes
_LARGEST_KEPT = 1 << 18  # points; beyond, a spectrum is not worth its memory
_BLOCK = 32  # most points that one can stand for, see `prv_epsilon`
_SHORTEST = 128  # a grid is laid out for at least so many steps, else for the next power of two
_PLD_POINTS = 2e5  # of a composed distribution, about: a call takes a fraction of a second
_NO_GRID = (RuntimeError, ValueError, ArithmeticError, MemoryError)


def _tight_epsilon(key: Key, delta: float) -> float:
    """Epsilon of the accountant "prv": exact at q = 1, else PRV; a bound where no grid fits."""
    if all(q == 1 for _, q, _ in key):
        return _gaussian_epsilon(key, delta)
    # Each way out is an upper bound, so the smaller of two is valid.
    try:
        return prv_epsilon(key, delta)
    except _NO_GRID:
        bound = _renyi_epsilon(key, delta)
    try:
        return min(bound, _pld_epsilon(key, delta, bound))
    except _NO_GRID:
        return bound


def prv_epsilon(key: Key, delta: float) -> float:
    """Upper end of the PRV interval for epsilon.

    Raises: one of ``_NO_GRID`` where no grid of acceptable size is accurate enough.
    Source: arXiv:2106.02848, algorithm 1.
    """
    # One grid serves all histories up to the next power of two, so that spectra are reused.
    planned = ((s, q, max(_SHORTEST, 1 << (steps - 1).bit_length())) for s, q, steps in key)
    size, mesh, error = _grid(tuple(planned), delta)
    spectrum_of = _spectrum if size <= _LARGEST_KEPT else _spectrum.__wrapped__
    product, shift, count = np.ones(size // 2 + 1, complex), 0.0, 0
    for sigma, q, steps in key:
        spectrum, log_size, mean = spectrum_of(sigma, q, size, mesh)
        # Higher frequencies are below exp(-40) = 4e-18 once raised to the power. Left out they move
        # the density by at most so much in Euclidean norm (Parseval), and so delta by at most 2^11
        # times that on 2^22 points: less than the rounding of the transform itself does.
        used = int(np.count_nonzero(log_size >= -40 / steps))
        product = product[:used] * _power(spectrum[: len(product)][:used], steps)
        shift, count = shift + steps * mean, count + steps
    # With few frequencies left the density is band-limited: one point in `every` misses nothing.
    # The kink of (1 - e^(epsilon - t))+ costs about (4e-3)^2 / 8, some 1e-6 of epsilon.
    every = 1
    while every < _BLOCK and 4 * every * len(product) < size and 2 * every * mesh <= 4e-3:
        every *= 2
    # A sum of `count` grid indices holds the index of the origin `count` times: one has to stay.
    turn, rest = divmod((count - 1) * (size // 2 - 1) % size, every)
    pmf = np.roll(np.asarray(fft.irfft(product, n=size // every)), -turn)
    domain = _domain(size, mesh, every).shift_right(shift - rest * mesh)
    loss = opacus_analysis().prv.DiscretePRV(pmf=pmf, domain=domain)
    # Only the upper end of the interval promises anything.
    with np.errstate(all="ignore"):
        _, _, upper = loss.compute_epsilon(delta, delta / 1000, error)
    if not math.isfinite(upper):
        raise RuntimeError("no finite epsilon on this grid")
    return max(0.0, float(upper))


@lru_cache(maxsize=1024)
def _grid(planned: Key, delta: float) -> tuple[int, float, float]:
    """Points, mesh and epsilon error of a grid for every history up to ``planned``; remark 5.6."""
    # The share of delta given to truncation and discretisation, as in Opacus.
    slack, total = delta / 1000, sum(steps for *_, steps in planned)

    def tail(key: Key, delta: float) -> float:
        """A privacy loss exceeded with probability ``delta`` at most, from few Renyi orders."""
        bound = _renyi_epsilon(key, delta, _TAIL_ORDERS)
        return bound if bound < 40 else min(bound, _renyi_epsilon(key, delta, _LOW_ORDERS))

    whole = tail(planned, slack / 4)
    tails = [whole, *(tail(((sigma, q, 1),), slack / (8 * total)) for sigma, q, _ in planned)]
    error = min(_HALF_WIDTH, max(_HALF_WIDTH / 10, whole / 500))
    mesh = error / math.sqrt(total * math.log(12 / slack) / 2)
    # 3: the margin of the authors' code and of Opacus; the remark's is smaller at such an error.
    points = 2 * (max(tails) + 3) / mesh
    if not points < _LARGEST:
        raise MemoryError("the PRV grid would be too large")
    blocks = math.ceil((points + 2) / (2 * _BLOCK))
    return 2 * _BLOCK * int(fft.next_fast_len(blocks, real=True)), mesh, error  # type: ignore[arg-type]


def _domain(size: int, mesh: float, every: int = 1) -> Any:
    """A grid on which the privacy loss 0 has the index size // 2 - 1, of every so many points."""
    low, points = -(size // 2 - 1) * mesh, size // every
    high = low + (points - 1) * every * mesh
    return opacus_analysis().prv.Domain(t_min=low, t_max=high, size=points)


@lru_cache(maxsize=96)  # about 2 MB each
def _spectrum(
    sigma: float, q: float, size: int, mesh: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """One discretised release: Fourier transform, log of its largest size from there on, shift."""
    from scipy.integrate import IntegrationWarning

    prv, domain = opacus_analysis().prv, _domain(size, mesh)
    release = prv.PoissonSubsampledGaussianPRV(q, sigma)
    # log(0) off the support; quad warns at the truncation.
    with np.errstate(all="ignore"), ignore_warnings(IntegrationWarning):
        truncated = prv.TruncatedPrivacyRandomVariable(release, domain.t_min, domain.t_max)
        one = prv.discretize(truncated, domain)
    spectrum = np.asarray(fft.rfft(one.pmf))
    sizes = np.maximum.accumulate(np.abs(spectrum)[::-1])[::-1]
    return spectrum, np.log(np.maximum(sizes, 1e-300)).astype(np.float32), float(one.domain.shifts)


def _power(x: np.ndarray, n: int) -> np.ndarray:
    """x**n for a whole n >= 1 by repeated squaring, several times faster than complex ``**``."""
    result = np.ones(1, complex)
    while n:
        if n & 1:
            result = result * x
        n >>= 1
        x = x * x if n else x
    return result


def _pld(key: Key, interval: float) -> Any:
    """The composed privacy loss distribution of dp-accounting, which bounds every delta from above.

    Raises: one of ``_NO_GRID`` where the distribution of one release is too wide.
    Source: arXiv:2207.04380 (connect the dots).
    """
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism as loss

    # The library raises sizes to the power of the number of releases, digit by digit.
    if sum(steps for *_, steps in key) > MOST_SAMPLED:
        raise MemoryError("too many releases to compose their distributions")
    whole: Any = None
    for sigma, q, steps in key:
        if (0.5 / sigma**2 + 12 / sigma) / interval > 5 * _PLD_POINTS:
            raise MemoryError("one release has too many points")
        # By default losses are rounded up, so every delta is bounded from above.
        one = loss(sigma, value_discretization_interval=interval, sampling_prob=q)
        part = one.self_compose(steps)
        whole = part if whole is None else whole.compose(part)
    return whole


def _pld_epsilon(key: Key, delta: float, scale: float) -> float:
    """Upper bound by a privacy loss distribution, close where ``scale`` >= epsilon is.

    Raises: one of ``_NO_GRID``.
    """
    total = sum(steps for *_, steps in key)
    # The rounding of one release is of second order in the interval, and adds up over the releases.
    interval = min(1e-3, max(scale / _PLD_POINTS, 1e-3 / math.sqrt(total), 1e-5))
    interval = max(interval, scale / (5 * _PLD_POINTS))
    value = float(_pld(key, interval).get_epsilon_for_delta(delta))
    if not math.isfinite(value):
        raise RuntimeError("no finite epsilon at this delta")
    return max(0.0, value)


def group_epsilon(history: History, size: int, delta: float, accountant: str = "prv") -> float:
    """Computes epsilon at ``delta`` for a group: so many units of one client, all left out at once.

    Exact for q = 1, where the group is one unit of ``size`` times the norm. Otherwise an upper
    bound, from the composed privacy loss of a mixture of Gaussians: a binomial number of the group
    is drawn, and the sum moves by as many norms. Units of several clients spend no more by any
    Renyi divergence of whole order.

    Args:
        history, delta, accountant: as for `epsilon`.
        size: units in the group, >= 1.

    Guarantees: test_a_group_of_one_is_a_unit_and_larger_ones_spend_more,
        test_group_epsilon_lies_between_what_an_attacker_sees_and_a_simple_bound.
    Source: arXiv:2401.10294 (mixture of Gaussians).

    >>> group_epsilon(((2.0, 1.0, 10),), 2, 1e-5) == epsilon(((1.0, 1.0, 10),), 1e-5)
    True
    """
    check_whole("size", size, 1)
    key = merge_history(history)
    whole = _group(key, size)
    known = merge_history(whole)
    if size == 1 or all(q == 1 for _, q, _ in key) or known[0][0] == 0:
        return epsilon(whole, delta, accountant)
    try:
        mixture = _mixture_epsilon(key, size, float(delta))
    except _NO_GRID:
        return epsilon(whole, delta, accountant)
    # Of `whole` a quick bound is enough beside the mixture's: it is nearly always the looser.
    if accountant == "prv":
        with suppress(*_NO_GRID):
            return min(mixture, prv_epsilon(known, delta))
    if accountant in ("prv", "rdp"):
        return min(mixture, _renyi_epsilon(known, delta, _TAIL_ORDERS))
    return min(mixture, epsilon(whole, delta, accountant))


def _group(key: Key, size: int) -> History:
    """Bounds a group: if any of it is drawn, the sum is taken to move by all of it."""
    return tuple((sigma / size, 1 - (1 - q) ** size, steps) for sigma, q, steps in key)


@lru_cache(maxsize=512)
def _mixture_epsilon(key: Key, size: int, delta: float) -> float:
    """Upper bound for a group by the loss of dp-accounting. Raises one of ``_NO_GRID``."""
    from dp_accounting.pld.privacy_loss_distribution import from_mixture_gaussian_mechanism as loss

    total, drawn = sum(steps for *_, steps in key), np.arange(size + 1)
    # Rounding is upwards, of second order in the interval, and adds up over the releases.
    interval = 0.2 * math.sqrt(size / total)
    whole: Any = None
    for sigma, q, steps in key:
        ratio = size / sigma
        if (ratio * ratio / 2 + 12 * ratio) / interval > _PLD_POINTS:
            raise MemoryError("one release has too many points")
        chances = binom.pmf(drawn, size, q).tolist()
        one = loss(sigma, drawn.tolist(), chances, value_discretization_interval=interval)
        part = one.self_compose(steps)
        whole = part if whole is None else whole.compose(part)
    value = float(whole.get_epsilon_for_delta(delta))
    if not math.isfinite(value):
        raise RuntimeError("no finite epsilon at this delta")
    return max(0.0, value)


def event_of(history: History) -> Any:
    """Converts the history to a ``dp_accounting.DpEvent``.

    Guarantees: test_ledger_event_gives_the_same_epsilon.
    """
    import dp_accounting as dp

    parts: list[Any] = []
    for entry in history:
        sigma, q, count = entry
        one = dp.GaussianDpEvent(sigma) if sigma else dp.NonPrivateDpEvent()
        one = dp.PoissonSampledDpEvent(q, one) if sigma and q < 1 else one
        parts += [dp.SelfComposedDpEvent(one, count)] if q and count else []
    return dp.ComposedDpEvent(parts) if parts else dp.NoOpDpEvent()


def second_opinion(history: History, delta: float) -> tuple[float, str]:
    """Computes epsilon by dp-accounting alone, and names the method, "pld" or "rdp".

    Renyi divergences serve where no loss distribution of acceptable size is accurate enough.

    Args: history, delta: as for `epsilon`.
    Guarantees: test_two_libraries_agree_on_epsilon.

    >>> value, name = second_opinion(((1.0, 0.1, 100),), 1e-5)
    >>> round(value, 1), name
    (7.0, 'pld')
    """
    check_delta(delta)
    key = merge_history(history)
    if not key or key[0][0] == 0:
        return (math.inf if key else 0.0), "pld"
    return _second_opinion(key, float(delta))


@lru_cache(maxsize=1024)
def _second_opinion(key: Key, delta: float) -> tuple[float, str]:
    with suppress(*_NO_GRID):
        value = float(_curve_loss(key)[0].get_epsilon_for_delta(delta))
        if value < 30:  # above, one grid of another spacing is closer
            return max(0.0, value), "pld"
    with suppress(*_NO_GRID):
        scale = _renyi_epsilon(key, delta, _TAIL_ORDERS)
        return _pld_epsilon(key, delta, scale), "pld"
    from dp_accounting.rdp import RdpAccountant

    # Of whole orders alone: the series of the others need not converge there.
    renyi = RdpAccountant([float(order) for order in _TAIL_ORDERS])
    return max(0.0, float(renyi.compose(event_of(key)).get_epsilon(delta))), "rdp"


ACCOUNTANTS = {"prv": Accountant(_tight_epsilon, tight=True), "rdp": Accountant(_renyi_epsilon)}
"""Name -> accountant. `Privacy`, `Ledger`, calibration and the command line take what is here; an
entry added to this mapping is an accountant like the others."""

# ---- what an attacker can find: the trade-off curve of the composed privacy loss

_CURVE_POINTS = 5e4  # of the part of the loss that a curve needs, about
_FURTHEST = 14.0  # slopes up to e^14: curves are followed to error rates of about 1e-6
_EXCESS = 1e-4  # how far the probabilities of a composed loss may add up to another sum than 1


def tradeoff_curve(history: History, fpr: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Computes the largest share of members that any attacker finds at a false positive rate.

    The attacker sees all releases and knows everything else. The curve is that of the composed
    privacy loss, the larger of both directions (who is in is found, or who is out); it is exact
    for q = 1, and otherwise an upper bound, within 2e-4 of the exact one where the grid fits. No
    bound from epsilon at a single delta lies below it.

    Args:
        history: as for `epsilon`; no noise lets everyone be found.
        fpr: in [0, 1].

    Guarantees: test_tradeoff_equals_golden_numbers, test_tradeoff_equals_riskcal,
        test_tradeoff_lies_below_every_epsilon.
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
    if all(q == 1 for _, q, _ in key):
        return ndtr(ndtri(fpr) + _gaussian_mu(key))
    slopes, heights = _tradeoff_lines(key)
    return np.minimum(1.0, (heights + slopes * np.asarray(fpr)[:, None]).min(1))


def advantage(history: History) -> float:
    """Computes the largest TPR - FPR of any attacker: the total variation distance, delta at 0.

    Args: history: as for `epsilon`.
    Guarantees: test_tradeoff_equals_golden_numbers.
    Source: arXiv:1709.01604, definition 4 (advantage).

    >>> round(advantage(((1.0, 1.0, 1),)), 5)
    0.38292
    """
    key = merge_history(history)
    if not key or key[0][0] == 0:
        return float(bool(key))
    if all(q == 1 for _, q, _ in key):
        return float(1 - 2 * ndtr(-_gaussian_mu(key) / 2))
    return float(min(1.0, _tradeoff_lines(key)[1][0]))


@lru_cache(maxsize=512)
def _tradeoff_lines(key: Key) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and heights at FPR = 0 of lines that no attacker exceeds; the first has slope 1.

    (epsilon, delta) gives TPR <= delta + e^epsilon FPR and, the roles exchanged,
    TPR <= 1 - e^-epsilon (1 - delta - FPR).
    """
    try:
        epsilons, deltas = _pld_profile(key)
        first = deltas[0]
    except _NO_GRID:
        # Bounds on epsilon at a few deltas are looser, and valid.
        deltas = np.geomspace(1e-9, 0.5, 12)
        epsilons = np.minimum([_quick_epsilon(key, float(delta)) for delta in deltas], 700.0)
        first = float(np.min(1 - 2 * (1 - deltas) / (np.exp(epsilons) + 1)))
    steep, flat = np.exp(epsilons), np.exp(-epsilons)
    slopes = np.concatenate([[1.0], steep, flat])
    return slopes, np.concatenate([[first], deltas, 1 - flat * (1 - deltas)])


@lru_cache(maxsize=32)  # about 2 MB each
def _curve_loss(key: Key) -> tuple[Any, float]:
    """The composed privacy loss on a grid that serves every epsilon >= 0, and the size of mu.

    Raises: one of ``_NO_GRID``.
    """
    total = sum(steps for *_, steps in key)
    scale = _renyi_epsilon(key, 1e-6, _TAIL_ORDERS)
    if not math.isfinite(scale):
        raise RuntimeError("no finite scale")
    # Rounding to the grid adds at most interval^2 / 4 to the variance of each loss, about mu^2 / T.
    mu = math.sqrt(sum(n * q * q * math.expm1(min(50.0, s**-2)) for s, q, n in key))
    fine, coarse = 0.03 * mu / math.sqrt(total), 0.2 * mu / math.sqrt(total)
    # On too fine a grid differences of nearly equal numbers are composed, and probabilities add up
    # to more than 1; scaled back to 1 they would be no bound.
    interval = max(min(1e-3, fine), 2e-6 * math.sqrt(total), 1e-5, scale / _CURVE_POINTS)
    if interval > coarse:
        raise RuntimeError("no grid is fine enough for the loss and coarse enough for its sums")
    loss = _pld(key, interval)
    if abs(float(loss.get_delta_for_epsilon(-60.0)) - 1) > _EXCESS:
        raise RuntimeError("the probabilities do not add up to 1")
    return loss, mu


def _pld_profile(key: Key) -> tuple[np.ndarray, np.ndarray]:
    """Epsilons from 0 on, and their deltas, the larger of both directions.

    Raises: one of ``_NO_GRID``.
    """
    loss, mu = _curve_loss(key)
    size = min(1.0, mu)
    epsilons = size * np.sinh(np.linspace(0, math.asinh(_FURTHEST / size), 400))
    deltas = np.asarray(loss.get_delta_for_epsilon(epsilons.tolist()))
    return epsilons, np.clip(deltas, 0.0, 1.0)


def _quick_epsilon(key: Key, delta: float) -> float:
    """The upper end of PRV, or the Renyi bound where no grid fits."""
    try:
        return prv_epsilon(key, delta)
    except _NO_GRID:
        return _renyi_epsilon(key, delta, _TAIL_ORDERS)


def _gaussian_mu(key: Key) -> float:
    """mu of releases that all have q = 1: sqrt(sum steps / sigma^2)."""
    return math.sqrt(math.fsum(steps / sigma / sigma for sigma, _, steps in key))


# ---- from a target to the noise

MOST_RATES = 16
"""Distinct sample rates that are calibrated one by one; more share the noise of so many."""


def noise_multiplier(
    epsilon: float, delta: float, sample_rate: float, steps: int, accountant: str = "prv"
) -> float:
    """Finds the smallest sigma whose ``steps`` releases spend at most ``epsilon``.

    Args:
        epsilon: target, > 0; finite. Spent is at most 0.1 % less, and never more.
        delta, accountant: as for `epsilon`.
        sample_rate, steps: q in [0, 1] and number of releases, >= 0; 0 needs no noise.

    Raises: ``ValueError`` for a value out of range, or a target below what the accountant can
        certify (about 3e-3).
    Guarantees: test_noise_multiplier_never_above_target.

    >>> round(noise_multiplier(8.0, 1e-5, 1.0, 10), 3)
    1.898
    """
    return noise_multipliers(epsilon, delta, (sample_rate,), steps, accountant)[0]


def noise_multipliers(
    epsilon: float,
    delta: float,
    sample_rates: tuple[float, ...],
    steps: int,
    accountant: str = "prv",
) -> tuple[float, ...]:
    """Finds a sigma for each sample rate; more than ``MOST_RATES`` rates share some.

    Args:
        epsilon, delta, steps, accountant: as for `noise_multiplier`.
        sample_rates: each in [0, 1].

    Guarantees: test_many_distinct_sizes_spend_at_most_the_target.
    """
    check_number("epsilon", epsilon, 0, 1e9, open_low=True)
    check_delta(delta)
    for rate in sample_rates:
        check_number("sample_rate", rate, 0, 1)
    check_whole("steps", steps, 0)
    check_one_of("accountant", accountant, tuple(ACCOUNTANTS))
    if not steps:
        return (0.0,) * len(sample_rates)
    counted = tuple(_counted_rate(q, steps) if q > 0 else 0.0 for q in sample_rates)
    # Epsilon never falls with q: the sigma of a group's largest rate is enough for all of them.
    largest, chosen = group_rates(counted, MOST_RATES), ACCOUNTANTS[accountant]
    goal = (float(epsilon), float(delta), int(steps), chosen)
    tops, linked = sorted(set(largest.values())), len(largest) > MOST_RATES and chosen.tight
    sigmas: dict[float, float] = {}
    for rates in [tuple(tops)] if linked else [(q,) for q in tops]:
        sigmas |= _noise_multipliers(*goal, rates, linked)
    # Less noise would count as none, however large the target.
    floor = {q: max(sigma, SMALLEST_SIGMA) for q, sigma in sigmas.items()}
    return tuple(floor[largest[q]] if q > 0 else 0.0 for q in counted)


def group_rates(rates: Iterable[float], most: int) -> dict[float, float]:
    """Maps each rate > 0 to the largest of its group; groups are as narrow in ratio as can be."""
    distinct = sorted({float(rate) for rate in rates if rate > 0}, reverse=True)
    if len(distinct) <= most:
        return {rate: rate for rate in distinct}

    def cover(width: float) -> dict[float, float]:
        groups, top = {}, math.inf
        for rate in distinct:
            top = rate if top == math.inf or rate * width < top else top
            groups[rate] = top
        return groups

    low, high = 1.0, (distinct[0] / distinct[-1]) ** (1 / most) * (1 + 1e-9)
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if len(set(cover(middle).values())) <= most else (middle, high)
    return cover(high)


def clt_noise_multiplier(target: float, delta: float, q: float, steps: int) -> float:
    """Estimates sigma by the central limit of Gaussian DP: no bound, within some per cent.

    Args:
        target, delta: the budget.
        q, steps: sample rate and number of releases.

    Source: arXiv:1905.02383, corollary 2.13 (delta of mu); arXiv:1911.11607, section 3 (mu of q,
        sigma, steps).
    """
    low, high, goal = 1e-9, 1e6, math.log(delta)
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _log_delta(target, middle) < goal else (low, middle)
    return 1 / math.sqrt(math.log1p((high / q) ** 2 / steps))


def solve_sigma(
    spent: Callable[[float], float], target: float, sigma: float, slope: float
) -> float:
    """Finds the sigma at which the falling function ``spent`` is within 0.1 % below ``target``.

    Args:
        spent: of sigma.
        target: > 0.
        sigma, slope: where it begins, with which slope of log ``spent`` over log sigma until two
            points are known.
    """
    low, high, points = 0.0, math.inf, []  # spent(low) > target >= spent(high)
    for _ in range(80):
        value = spent(sigma)
        # Only a sigma that was counted and spends no more than the target may become the result.
        low, high = (low, sigma) if value <= target else (sigma, high)
        if target * (1 - 1e-3) <= value <= target or high < low * (1 + 1e-4) or low > 1e7:
            break
        if 0 < value < math.inf:
            points = [*points, (math.log(sigma), math.log(value))][-2:]
        # The secant's step if it falls inside the bracket, else its middle, else a step outward.
        if points:
            (x0, y0), (x1, y1) = points[0], points[-1]
            steep = (y1 - y0) / (x1 - x0) if x1 != x0 else slope
            step = (math.log(target) - 4e-4 - y1) / steep if steep < 0 else math.inf
            sigma = math.exp(x1 + max(-2.0, min(2.0, step)))
        if not points or not low * (1 + 1e-6) < sigma < high * (1 - 1e-6):
            outward = 4 * low if high == math.inf else high / 4
            sigma = math.sqrt(low * high) if 0 < low < high < math.inf else outward
    expected = "a target that this accountant can certify, above about 3e-3"
    check(high < math.inf, "epsilon", target, expected)
    return _round_up(high)  # the last bits depend on the number of threads


@lru_cache(maxsize=1024)
def _noise_multipliers(
    target: float, delta: float, steps: int, accountant: Accountant, rates: tuple, linked: bool
) -> dict[float, float]:
    """Finds the sigma of each rate; ``linked`` searches begin where the two before them point.

    How far the central limit is off hardly changes from one rate to the next.
    """
    sigmas: dict[float, float] = {}
    off: list[tuple[float, float]] = []  # log rate, log of the result over the first guess
    for q in rates:
        if q == 1 and accountant.tight:
            sigmas[q] = _gaussian_noise_multiplier(target, delta, steps)
            continue
        guess, slope, correction = clt_noise_multiplier(target, delta, q, steps), -1.0, 0.0
        if linked:
            above = clt_noise_multiplier(1.02 * target, delta, q, steps)
            slope = math.log(1.02) / math.log(above / guess)
            correction = off[-1][1] if off else 0.0
        if len(off) > 1:
            (x0, y0), (x1, y1) = off[-2:]
            correction = y1 + (y1 - y0) * (math.log(q) - x1) / (x1 - x0)
        sigmas[q] = solve_sigma(
            lambda sigma, q=q: _epsilon(merge_history(((sigma, q, steps),)), delta, accountant),
            *(target, guess * math.exp(correction), slope),
        )
        off.append((math.log(q), math.log(sigmas[q] / guess)))
    return sigmas
