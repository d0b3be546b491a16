"""Audits of a claim that is sharper than (epsilon, delta): Gaussian differential privacy.

They refute "mu-GDP", not "(epsilon, delta)-DP". A release without sampling is exactly Gaussian and may be held to it;
with Poisson sampling it is not, and only `one_run` and `threshold` apply.
"""

import numpy as np
from scipy.special import ndtr, ndtri

from fedlora_lab.audit.one_run import supremum
from fedlora_lab.audit.threshold import numbers, upper
from fedlora_lab.checks import check_number, check_whole
from fedlora_lab.theory import gdp_epsilon


def refuted(canaries: int, guesses: int, correct: int, mu: float, significance: float) -> bool:
    """Whether so many correct guesses in one run refute mu-GDP.

    Args: as of `one_run.p_value`; mu >= 0.
    Source: arXiv:2410.22235, algorithm 3 (the recursion from the last guess to the first).
    """
    if not guesses:
        return False
    right, wrong = significance * correct / canaries, significance * (guesses - correct) / canaries
    for i in range(correct - 1, -1, -1):
        least = max(wrong, float(ndtr(ndtri(right) - mu)))
        if least == wrong:
            break
        right, wrong = min(1.0, right + i / (guesses - i) * (least - wrong)), least
    return right + wrong > guesses / canaries


def one_run_lower(canaries: int, guesses: int, correct: int, delta: float, significance: float) -> float:
    """The epsilon at delta of the largest mu-GDP that one run refutes; tighter than `one_run.epsilon_lower`.

    Guarantees: test_the_gaussian_form_is_tighter_and_errs_no_more_often.
    Source: arXiv:2410.22235.
    """
    check_whole("canaries", canaries, 1)
    check_whole("guesses", guesses, 0, canaries)
    check_whole("correct", correct, 0, guesses)
    check_number("significance", significance, 0, 1, open_low=True)
    mu = supremum(lambda mu: refuted(canaries, guesses, correct, mu, significance))
    return gdp_epsilon(mu, delta) if mu else 0.0


def mu_lower(false_positives: int, outs: int, false_negatives: int, ins: int, significance: float) -> float:
    """Lower bound on mu from independent runs: Phi^-1(1 - FPR) - Phi^-1(FNR) at the upper ends of both rates.

    Args: counts of one threshold, fixed beforehand, and of how many runs each.
    Source: arXiv:2302.07956, section 4.
    """
    fpr, fnr = upper(false_positives, outs, significance / 2), upper(false_negatives, ins, significance / 2)
    return max(0.0, float(-ndtri(fpr) - ndtri(fnr)))


def threshold_lower(
    inside: np.ndarray, outside: np.ndarray, threshold: float, delta: float, significance: float
) -> float:
    """Epsilon at delta of `mu_lower`, from scores of independent runs with and without the canary.

    Args: inside, outside: (n,), one score a run; threshold: fixed before these scores were seen.
    Guarantees: test_a_plain_gaussian_release_is_seen.
    """
    inside, outside = numbers("inside", inside), numbers("outside", outside)
    false_positives, false_negatives = int((outside > threshold).sum()), int((inside <= threshold).sum())
    mu = mu_lower(false_positives, len(outside), false_negatives, len(inside), significance)
    return gdp_epsilon(mu, delta) if mu else 0.0
