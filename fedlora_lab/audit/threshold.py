"""What many independent runs prove: a threshold on one score a run, and exact intervals for its two error rates.

One score from each run. Scores of many canaries of one run are not independent; for them there is `one_run`.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import beta

from fedlora_lab.checks import check, check_number, check_whole


def upper(count: int, trials: int, significance: float) -> float:
    """Clopper-Pearson: a rate that the true one exceeds with probability at most ``significance``.

    Guarantees: test_clopper_pearson.
    """
    check_whole("trials", trials, 1)
    check_whole("count", count, 0, trials)
    check_number("significance", significance, 0, 1, open_low=True)
    return 1.0 if count == trials else float(beta.isf(significance, count + 1, trials - count))


def from_rates(fpr: float, fnr: float, delta: float) -> float:
    """The least epsilon that allows these error rates, both ways round; 0 where any does."""
    found = [0.0]
    for one, other in ((fpr, fnr), (fnr, fpr)):
        if 1 - delta - other > 0 and one > 0:
            found.append(math.log((1 - delta - other) / one))
    return max(found)


def epsilon_lower(
    false_positives: int, outs: int, false_negatives: int, ins: int, delta: float, significance: float
) -> float:
    """Lower bound on epsilon from the counts of one threshold that was fixed beforehand.

    Args:
        false_positives: of ``outs`` runs without the canary, those taken for runs with it.
        false_negatives: of ``ins`` runs with it, those taken for runs without.
        significance: half of it for each of the two rates.

    Guarantees: test_threshold_vectors, test_the_threshold_bound_errs_as_often_as_it_says.
    Source: arXiv:2006.07709, section 4; arXiv:2101.04535, section 4.
    """
    fpr, fnr = upper(false_positives, outs, significance / 2), upper(false_negatives, ins, significance / 2)
    return from_rates(fpr, fnr, delta)


def numbers(name: str, scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Scores as an array without NaN: no threshold would count one as an error.

    Raises: ``ValueError`` where one is NaN: what cannot be scored proves nothing.
    """
    scores = np.asarray(scores, float)
    check(not np.isnan(scores).any(), name, "with NaN", "numbers: a release that is not finite is a finding by itself")
    return scores


def best(
    inside: Sequence[float] | np.ndarray,
    outside: Sequence[float] | np.ndarray,
    delta: float,
    significance: float,
    thresholds: Sequence[float],
) -> float:
    """The largest lower bound over several thresholds, each at its share of the significance (Bonferroni).

    Args:
        inside, outside: (n,) scores of independent runs with and without the canary, high where it looks included.
        thresholds: fixed before these scores were seen.

    Guarantees: test_a_plain_gaussian_release_is_seen.
    """
    inside, outside = numbers("inside", inside), numbers("outside", outside)
    check(len(thresholds) > 0, "thresholds", thresholds, "at least one")
    share = significance / len(thresholds)
    return max(
        epsilon_lower(int((outside > t).sum()), len(outside), int((inside <= t).sum()), len(inside), delta, share)
        for t in thresholds
    )


def split(
    inside: Sequence[float] | np.ndarray, outside: Sequence[float] | np.ndarray, delta: float, significance: float
) -> float:
    """The threshold is chosen on the first half of the runs and judged on the second: nothing to correct for.

    Guarantees: test_a_plain_gaussian_release_is_seen.
    """
    scores = numbers("inside", inside), numbers("outside", outside)
    (learn_in, judge_in), (learn_out, judge_out) = (np.array_split(x, 2) for x in scores)
    grid = np.unique(np.quantile(np.concatenate([learn_in, learn_out]), np.linspace(0.001, 0.999, 200)))
    values = [best(learn_in, learn_out, delta, significance, [t]) for t in grid]
    return best(judge_in, judge_out, delta, significance, [grid[int(np.argmax(values))]])


def ceiling(runs: int, delta: float, significance: float) -> float:
    """What ``runs`` runs with and as many without the canary show when no guess is wrong.

    Guarantees: test_ceilings.
    """
    return epsilon_lower(0, runs, 0, runs, delta, significance)
