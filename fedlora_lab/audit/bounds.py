"""Lower bounds on epsilon from an auditor's guesses about the canaries of one run."""

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.special import expit
from scipy.stats import binom

from fedlora_lab._utils.validation import check, check_number, check_whole

Guesses = tuple[int, int]
"""How many canaries are guessed in, and how many out; all others are left open."""
Scores = Sequence[float] | np.ndarray
LARGEST_EPSILON = 1e3
PRECISION = 1e-8
"""Of a bound on epsilon, which is never rounded up."""


def one_run_p_value(
    canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> float:
    """Returns the largest chance of so many correct guesses under (epsilon, delta)-DP.

    P[W' >= v] + 2 m delta max_i P[v > W' >= v - i] / i, W' ~ Binomial(r, 1 / (1 + exp(-epsilon))).

    Args:
        canaries: m >= 1, each in or out by its own fair coin.
        guesses, correct: r in [0, m], those not left open; v in [0, r].
        epsilon, delta: >= 0, and in [0, 1].

    Guarantees: test_bounds_are_those_of_papers.
    Source: arXiv:2305.08846, theorem 5.2.

    >>> round(one_run_p_value(canaries=100, guesses=100, correct=90, epsilon=2.0, delta=0.0), 2)
    0.34
    """
    check_whole("canaries", canaries, 1)
    check_whole("guesses", guesses, 0, canaries)
    check_whole("correct", correct, 0, guesses)
    check_number("epsilon", epsilon, 0)
    check_number("delta", delta, 0, 1)
    # Nobody guesses one coin more often: the best case is randomised response on each.
    rate = float(expit(epsilon))
    tail = float(binom.sf(correct - 1, guesses, rate))
    # What delta adds: guesses that come true where the mechanism fails. Summed from v - 1 down:
    # a search asks often, and differences of tails take far longer.
    i = np.arange(1, correct + 1)
    extra = np.max(np.cumsum(binom.pmf(correct - i, guesses, rate)) / i, initial=0.0)
    return min(1.0, tail + 2 * canaries * delta * float(extra))


def one_run_lower_bound(
    canaries: int, guesses: int, correct: int, delta: float, significance: float
) -> float:
    """Returns the largest epsilon that so many correct guesses refute, to 1e-8 from below.

    Args:
        canaries, guesses, correct, delta: see `one_run_p_value`.
        significance: how often the bound may be wrong, in (0, 1].

    Guarantees: test_bounds_are_those_of_papers; notebook 12 counts how often it errs.

    >>> round(one_run_lower_bound(1000, 100, 75, delta=1e-4, significance=0.05), 2)
    0.67
    """
    check_number("significance", significance, 0, 1, open_low=True)

    def possible(i: int) -> bool:
        return one_run_p_value(canaries, guesses, correct, PRECISION * i, delta) >= significance

    if possible(0):  # most guesses on noise alone: nothing is refuted
        return 0.0
    # The chance rises with epsilon. From below: the bound must be an epsilon that is refuted.
    first = bisect_left(range(round(LARGEST_EPSILON / PRECISION)), True, key=possible)
    return PRECISION * (first - 1)


def count_correct(scores: Scores, included: Sequence[bool] | np.ndarray, guesses: Guesses) -> int:
    """Counts the correct guesses: the highest scores are guessed in, the lowest out.

    Equal scores are taken in the order in which they stand, which does not depend on the coins.

    Args:
        scores, included: (m,), high where a canary looks included; and the coins.
        guesses: (k_in, k_out), together at most m; fixed before the scores are seen.
    """
    scores = np.asarray(scores, float)
    expected = "numbers: a release that is not finite is a finding by itself"
    check(not np.isnan(scores).any(), "scores", "with NaN", expected)
    included = np.asarray(included, bool)
    check(scores.shape == included.shape, "scores", scores.shape, f"{included.shape}")
    k_in, k_out = guesses
    check_whole("guess", k_in, 0, len(scores))
    check_whole("guess", k_out, 0, len(scores) - k_in)
    # Stable: an order of ties that knew the coins would be a guess for free.
    order = np.argsort(-scores, kind="stable")
    return int(included[order[:k_in]].sum() + (~included[order[len(order) - k_out :]]).sum())


def default_guesses(canaries: int) -> tuple[Guesses, ...]:
    """Returns guesses worth trying: an eighth, a quarter and half of the canaries on each side."""
    if canaries <= 1:
        return ((1, 0),)
    # Few guesses are surer, many prove more: which is better depends on the noise.
    inside = canaries // 2
    outside = canaries - inside
    return tuple(sorted({(max(1, inside // k), max(1, outside // k)) for k in (4, 2, 1)}))


def one_run_best_bound(
    scores: Scores,
    included: Sequence[bool] | np.ndarray,
    delta: float,
    significance: float,
    guesses: Sequence[Guesses] | None = None,
) -> float:
    """Returns the largest lower bound over several numbers of guesses, corrected for their number.

    Args:
        scores, included: see `count_correct`.
        delta, significance: see `one_run_lower_bound`.
        guesses: fixed beforehand; ``None``: `default_guesses` of the number of canaries.

    Guarantees: test_the_best_of_several_guesses_errs_as_often_as_it_says.
    """
    m = len(scores)
    tried = default_guesses(m) if guesses is None else tuple(guesses)
    check(bool(tried), "guesses", guesses, "at least one pair (in, out)")
    counts = [(sum(pair), count_correct(scores, included, pair)) for pair in tried]
    # Bonferroni: the best of several bounds errs as often as all of them together.
    share = significance / len(tried)
    return max(one_run_lower_bound(m, r, v, delta, share) for r, v in counts)


@lru_cache(maxsize=256)  # a widget asks again
def one_run_ceiling(
    canaries: int,
    delta: float,
    significance: float,
    guesses: tuple[Guesses, ...] | None = None,
    views: int = 1,
) -> float:
    """Returns the bound when every guess is right: no audit of so many canaries can prove more.

    Args: see `one_run_best_bound`; views: kinds of score among which the audit may choose.
    Guarantees: test_bounds_are_those_of_papers.

    >>> round(one_run_ceiling(100, 1e-5, 0.05), 2)
    3.17
    """
    tried = default_guesses(canaries) if guesses is None else guesses
    share = significance / len(tried) / views
    return max(one_run_lower_bound(canaries, sum(g), sum(g), delta, share) for g in tried)
