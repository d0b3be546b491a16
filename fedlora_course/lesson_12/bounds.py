"""What notebook 12 adds to the bounds of `fl.audit`.

One for Gaussian noise alone, one by many runs, how many canaries a promise takes, and simulated
audits.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtr, ndtri
from scipy.stats import beta

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.audit.bounds import one_run_best_bound, one_run_ceiling, one_run_lower_bound
from fedlora_lab.privacy.accounting import noise_multiplier
from fedlora_lab.theory.gaussian_dp import gdp_epsilon

LARGEST_MU = 32.0
MAX_CANARIES = 100_000
"""Searches end there."""
DELTA = 1e-5
"""Of the simulated audits."""


def gaussian_one_run_lower_bound(
    canaries: int, guesses: int, correct: int, delta: float, significance: float
) -> float:
    """Returns epsilon at delta of the largest mu of Gaussian noise that the guesses refute.

    Sharper than `one_run_lower_bound` and of a narrower claim: that whatever is released of one
    canary is mu-Gaussian-DP, as noised sums without sampling are.

    Args: see `one_run_lower_bound`; mu is found to 1e-4 from below, up to 32.
    Guarantees: test_lesson_12.py::test_a_bound_errs_as_often_as_it_says,
        ::test_bounds_are_those_of_papers_and_peers.
    Source: arXiv:2410.22235 (its audit of r and h with a cap), with the curve of a Gaussian.

    >>> round(gaussian_one_run_lower_bound(1000, 100, 75, delta=1e-5, significance=0.05), 2)
    1.01
    """
    check_whole("canaries", canaries, 1)
    check_whole("guesses", guesses, 0, canaries)
    check_whole("correct", correct, 0, guesses)
    check_number("delta", delta, 0, 1, open_low=True)
    check_number("significance", significance, 0, 1, open_low=True)
    low = 0.0
    high = LARGEST_MU
    while high - low > 1e-4:
        mus = np.linspace(low, high, 65)
        # What is refuted ends somewhere: less is refuted the larger mu.
        count = int(_refuted_mus(canaries, guesses, correct, significance, mus).sum())
        if not count:
            break
        low = float(mus[count - 1])
        high = float(mus[min(count, 64)])
    return gdp_epsilon(low, delta) if low else 0.0


def _refuted_mus(
    canaries: int, guesses: int, correct: int, significance: float, mus: np.ndarray
) -> np.ndarray:
    """Tells which mus are refuted: under mu-GDP so many correct guesses are too rare.

    The two bound the shares of guesses, in all canaries, that are right and wrong where exactly i
    are right, from i = ``correct`` downwards; together they cannot exceed the share of guesses.
    """
    right = np.full(len(mus), significance * correct / canaries)
    wrong = np.full(len(mus), significance * (guesses - correct) / canaries)
    for i in range(correct - 1, -1, -1):
        # Under mu-GDP a share of right guesses bounds that of wrong ones from below.
        larger = np.maximum(wrong, ndtr(ndtri(right) - mus))
        if np.array_equal(larger, wrong):
            break  # fewer right guesses bind no further
        right = np.minimum(1.0, right + i / (guesses - i) * (larger - wrong))
        wrong = larger
    return right + wrong > guesses / canaries


def canaries_needed(epsilon: float, delta: float, significance: float) -> int:
    """Returns the fewest canaries that prove epsilon when all are guessed right; at most 100,000.

    Args: epsilon: >= 0. delta, significance: see `one_run_lower_bound`.
    Raises: ``ValueError`` where 100,000 do not suffice: the delta term grows with their number.

    >>> canaries_needed(1.0, delta=1e-5, significance=0.05)
    10
    """
    check_number("epsilon", epsilon, 0)

    def enough(m: int) -> bool:
        return one_run_lower_bound(m, m, m, delta, significance) >= epsilon

    high = 1  # doubled first: with very many canaries the delta term makes the bound fall again
    while not enough(high):
        check(high < MAX_CANARIES, "epsilon", epsilon, "one that 100000 canaries can show")
        high = min(2 * high, MAX_CANARIES)
    return bisect_left(range(high + 1), True, lo=high // 2 + 1, key=enough)


def clopper_pearson_upper(count: int, trials: int, significance: float) -> float:
    """Returns the upper end of the exact interval of a rate.

    Args: count of trials; significance: how often the rate may exceed it, in (0, 1].
    Guarantees: test_lesson_12.py::test_bounds_are_those_of_papers_and_peers.
    """
    check_whole("trials", trials, 1)
    check_whole("count", count, 0, trials)
    check_number("significance", significance, 0, 1, open_low=True)
    return 1.0 if count == trials else float(beta.isf(significance, count + 1, trials - count))


def threshold_lower_bound(
    false_positives: int,
    outs: int,
    false_negatives: int,
    ins: int,
    delta: float,
    significance: float,
) -> float:
    """Bounds epsilon from below by the counts of one threshold that was fixed beforehand.

    Args:
        false_positives: of ``outs`` runs without the canary, those taken for runs with it.
        false_negatives: of ``ins`` runs with it, those taken for runs without.
        delta: of the privacy definition.
        significance: half of it for each of the two rates.

    Guarantees: test_lesson_12.py::test_a_bound_errs_as_often_as_it_says,
        ::test_bounds_are_those_of_papers_and_peers.
    Source: arXiv:2006.07709, section 4; arXiv:2101.04535, section 4.

    >>> round(threshold_lower_bound(25, 500, 200, 500, delta=1e-5, significance=0.05), 2)
    2.03
    """
    check_number("delta", delta, 0, 1)
    check_number("significance", significance, 0, 1, open_low=True)
    # Both rates hold together with the whole significance.
    fpr = clopper_pearson_upper(false_positives, outs, significance / 2)
    fnr = clopper_pearson_upper(false_negatives, ins, significance / 2)
    # Both directions of the definition: hits are at most e^epsilon times false alarms, plus delta.
    pairs = ((a, 1 - delta - b) for a, b in ((fpr, fnr), (fnr, fpr)))
    return max(0.0, *(math.log(hit / a) if hit > 0 and a > 0 else 0.0 for a, hit in pairs))


# ---- audits of the plainest release: a number plus Gaussian noise


@dataclass(frozen=True)
class SimulatedAudit:
    """One one-run audit of a release that holds one noised number for each canary.

    Args:
        included: (m,), the coins.
        scores: (m,), the release itself: ``leak`` where the coin fell, plus noise of ``sigma``.
        stated, true: epsilon as the ledger states it, for a canary that adds 1; and as it is, for
            one that adds ``leak``.
        lower, ceiling: what the audit proves, and what so many canaries can prove at most.
    """

    included: Bool[np.ndarray, " m"]
    scores: Float[np.ndarray, " m"]
    sigma: float
    stated: float
    true: float
    lower: float
    ceiling: float

    @property
    def caught(self) -> bool:
        """The audit refutes the ledger."""
        return self.lower > self.stated


def simulate_one_run(
    canaries: int, epsilon: float, leak: float = 1.0, confidence: float = 0.95, seed: int = 0
) -> SimulatedAudit:
    """Simulates one audit: fair coins, noised numbers, `default_guesses`; delta is 0.00001.

    Args:
        canaries: m >= 2.
        epsilon: stated, > 0; it sets the noise.
        leak: how much more than allowed a bug lets a canary add, >= 1; 1 is no bug.
        confidence: of the lower bound, in (0, 1).

    Guarantees: without a bug the bound exceeds the truth as seldom as it says
        (test_lesson_12.py::test_the_game_errs_as_seldom_as_it_says).

    >>> simulate_one_run(canaries=200, epsilon=2, leak=4).caught
    True
    """
    check_whole("canaries", canaries, 2)
    check_number("leak", leak, 1, 1e3)
    rng = Streams(seed).numpy("audit game", canaries)
    sigma = noise_multiplier(epsilon, DELTA, sample_rate=1.0, steps=1)
    included = rng.random(canaries) < 0.5
    scores = leak * included + sigma * rng.standard_normal(canaries)
    lower = one_run_best_bound(scores, included, DELTA, 1 - confidence)
    ceiling = one_run_ceiling(canaries, DELTA, 1 - confidence)
    true = gdp_epsilon(leak / sigma, DELTA)
    return SimulatedAudit(included, scores, sigma, epsilon, true, lower, ceiling)
