"""Right and wrong answers to the exercises of notebook 12: audits by many runs and by one."""

import numpy as np

from fedlora_course.exercises import FunctionAnswer


def _scores(rng):
    n = int(rng.integers(200, 600))
    shift = rng.uniform(1, 2)
    inside = shift + rng.standard_normal(n)
    outside = rng.standard_normal(int(rng.integers(200, 1000)))
    return inside, outside, shift / 2 + rng.uniform(-0.2, 0.4), 0.01, 0.05


def _guesses(rng):
    """Counts at which ε is refuted or nearly so, for instance 90 of 120."""
    from scipy.stats import binom

    epsilon = rng.uniform(0.3, 1.5)
    g = int(rng.integers(50, 500))
    s = int(binom.ppf(rng.uniform(0.8, 0.97), g, 1 / (1 + np.exp(-epsilon))))
    return g, s, epsilon


# Asked at every check: more false alarms than misses, with scores at the threshold, and a threshold
# at which nothing is seen.
FEW_MISSED = np.arange(100.0) + 55, np.arange(200.0) % 100, 60.0, 0.01, 0.05
NOTHING_SEEN = np.arange(100.0), np.arange(100.0), 49.5, 0.01, 0.05
# Few runs, more of them missed than false alarms, and one score of either kind at the threshold.
FEW_RUNS = (
    np.array([2.5, 1.0, 4.0, 5.0, 6.5, 3.0, 7.0, 5.5]),
    np.array([0.0, 1.5, 2.5, 0.5, 3.5, 1.0, 2.0, -1.0, 0.3, -0.5, 1.2, 0.8]),
    2.5,
    0.01,
    0.2,
)
# Fewer are right than are expected; and all are right.
FEW_RIGHT = 10, 2, 0.4
ALL_RIGHT = 10, 10, 0.1
# The threshold lies beyond all scores: no canary is found, and nobody is accused.
NONE_FOUND = np.zeros(20), np.zeros(30), 1.0, 0.01, 0.05
CALLS = {
    "12.1": FunctionAnswer(
        "inside, outside, threshold, delta and significance",
        FEW_RUNS,
        NONE_FOUND,
        FEW_MISSED,
        NOTHING_SEEN,
        draw=_scores,
    ),
    "12.2": FunctionAnswer(
        "g, s and epsilon",
        FEW_RIGHT,
        ALL_RIGHT,
        draw=_guesses,
    ),
}


# ---- 12.1: a threshold audit


def threshold_audit(inside, outside, threshold, delta, significance):
    """A lower bound on epsilon from scores on either side of a threshold.

    Args:
        inside, outside: scores of runs with and without the canary, one number a run.
        threshold: a score above it counts as "with"; fixed beforehand.
        delta: of the promise, in [0, 1).
        significance: how often the bound may be wrong, in (0, 1).
    Returns: the bound, >= 0.
    """
    from scipy.stats import beta

    def upper_end(errors, runs):
        return beta.ppf(1 - significance / 2, errors + 1, runs - errors) if errors < runs else 1.0

    fpr = upper_end((outside > threshold).sum(), len(outside))
    fnr = upper_end((inside <= threshold).sum(), len(inside))
    return np.log(max(1, (1 - delta - fnr) / fpr, (1 - delta - fpr) / fnr))


# ---- 12.2: the p-value of a one-run audit


def p_value(g, s, epsilon):
    from scipy.stats import binom

    right = 1 / (1 + np.exp(-epsilon))
    return binom.sf(s - 1, g, right)
