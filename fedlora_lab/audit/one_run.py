"""What one training run proves about epsilon: many canaries, each in or out by a fair coin, and guesses which.

Source: arXiv:2305.08846, theorem 5.2 (approximate DP, with its delta term), algorithm 1 (the guesses).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import expit
from scipy.stats import binom

from fedlora_lab.checks import check, check_number, check_whole

Guesses = tuple[int, int]
"""How many canaries are guessed in, and how many out; all others are left open."""
LARGEST, MOST = 1e3, 100_000


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The largest chance of so many correct guesses under any (epsilon, delta)-DP algorithm.

    P[W' >= v] + 2 m delta max_i P[v > W' >= v - i] / i with W' ~ Binomial(r, 1 / (1 + exp(-epsilon))).

    Args:
        canaries: m >= 1, each in or out by its own fair coin.
        guesses: r in [0, m], those not left open.
        correct: v in [0, r].
        epsilon: >= 0.
        delta: in [0, 1].

    Guarantees: test_one_run_vectors, test_the_delta_term_is_there.
    """
    check_whole("canaries", canaries, 1)
    check_whole("guesses", guesses, 0, canaries)
    check_whole("correct", correct, 0, guesses)
    check_number("epsilon", epsilon, 0)
    check_number("delta", delta, 0, 1)
    rate = float(expit(epsilon))
    beta = float(binom.sf(correct - 1, guesses, rate))
    i = np.arange(1, correct + 1)
    spread = np.max((binom.sf(correct - i - 1, guesses, rate) - beta) / i, initial=0.0)
    return min(1.0, beta + 2 * canaries * delta * float(spread))


def epsilon_lower(canaries: int, guesses: int, correct: int, delta: float, significance: float) -> float:
    """The largest epsilon that so many correct guesses refute: it errs with probability at most ``significance``.

    Guarantees: test_one_run_vectors, test_the_bound_errs_as_often_as_it_says.
    """
    check_number("significance", significance, 0, 1, open_low=True)

    def refuted(epsilon: float) -> bool:
        return p_value(canaries, guesses, correct, epsilon, delta) < significance

    return supremum(refuted)


def supremum(refuted: Callable[[float], bool]) -> float:
    """The largest epsilon >= 0 that is refuted, 0 where none is; to 1e-8, from below."""
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
        if high > LARGEST:
            return low
    while high - low > 1e-8:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def correct_guesses(scores: Sequence[float] | np.ndarray, included: Sequence[bool] | np.ndarray, guess: Guesses) -> int:
    """How many guesses are right: the highest scores are guessed in, the lowest out.

    Equal scores are taken in the order in which they stand, which says nothing about who is in.

    Args:
        scores: (m,), high where a canary looks included.
        included: (m,), the coins.
        guess: (k_in, k_out), together at most m; fixed before the scores are seen.
    """
    scores, included = np.asarray(scores, float), np.asarray(included, bool)
    check(scores.shape == included.shape and scores.ndim == 1, "scores", scores.shape, f"{included.shape}")
    check(not np.isnan(scores).any(), "scores", "with NaN", "numbers: what cannot be scored proves nothing")
    k_in, k_out = guess
    check_whole("guess", k_in, 0, len(scores))
    check_whole("guess", k_out, 0, len(scores) - k_in)
    order = np.argsort(-scores, kind="stable")
    return int(included[order[:k_in]].sum() + (~included[order[len(order) - k_out :]]).sum())


def plans(canaries: int) -> tuple[Guesses, ...]:
    """Numbers of guesses worth trying, fixed by the number of canaries alone: an eighth, a quarter, all of them."""
    half, rest = canaries // 2, canaries - canaries // 2
    few = {(max(1, half // 4), max(1, rest // 4)), (max(1, half // 2), max(1, rest // 2)), (half, rest)}
    return tuple(sorted(few)) if canaries > 1 else ((1, 0),)


def best(
    scores: Sequence[float] | np.ndarray,
    included: Sequence[bool] | np.ndarray,
    delta: float,
    significance: float,
    guesses: Sequence[Guesses] | None = None,
) -> float:
    """The largest lower bound over several numbers of guesses, each at its share of the significance (Bonferroni).

    Args: guesses: fixed beforehand; ``None``: `plans` of the number of canaries.
    Guarantees: test_choosing_the_guesses_is_paid_for.
    """
    tried = plans(len(scores)) if guesses is None else tuple(guesses)
    check(bool(tried), "guesses", guesses, "at least one pair (in, out)")
    share = significance / len(tried)
    found = [(sum(guess), correct_guesses(scores, included, guess)) for guess in tried]
    return max(epsilon_lower(len(scores), r, v, delta, share) for r, v in found)


def ceiling(
    canaries: int, delta: float, significance: float, guesses: Sequence[Guesses] | None = None, views: int = 1
) -> float:
    """The lower bound that this many canaries show when every guess is right: no audit of them can show more.

    Args: guesses, views: among how many numbers of guesses, and kinds of score, the audit may choose.
    Guarantees: test_ceilings.
    """
    tried = plans(canaries) if guesses is None else tuple(guesses)
    share = significance / len(tried) / views
    return max(epsilon_lower(canaries, sum(guess), sum(guess), delta, share) for guess in tried)


def needed(epsilon: float, delta: float, significance: float) -> int:
    """The fewest canaries whose ceiling, every one guessed, reaches epsilon; at most 100,000.

    Raises: ``ValueError`` where they do not suffice: the delta term grows with their number.
    """
    check_number("epsilon", epsilon, 0)
    low, high = 0, 1
    while epsilon_lower(high, high, high, delta, significance) < epsilon:
        low, high = high, 2 * high
        check(high <= MOST, "epsilon", epsilon, f"one that {MOST} canaries can show")
    while high - low > 1:
        middle = math.floor((low + high) / 2)
        enough = epsilon_lower(middle, middle, middle, delta, significance) >= epsilon
        low, high = (low, middle) if enough else (middle, high)
    return high
