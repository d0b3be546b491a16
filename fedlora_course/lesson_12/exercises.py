"""Right and wrong answers to the exercises of notebook 12: audits by many runs and by one."""

import numpy as np

from fedlora_course.exercises import Calls


def _scores(rng):
    n = int(rng.integers(200, 600))
    shift = rng.uniform(1, 2)
    inside = shift + rng.standard_normal(n)
    outside = rng.standard_normal(int(rng.integers(200, 1000)))
    return inside, outside, shift / 2 + rng.uniform(-0.2, 0.4), 0.01, 0.05


def _guesses(rng):
    """Counts at which ε is refuted or nearly so, for instance 90 of 120."""
    from scipy.stats import binom

    m = int(rng.integers(200, 1000))
    epsilon = rng.uniform(0.3, 1.5)
    g = int(m * rng.uniform(0.2, 0.6))
    s = int(binom.ppf(rng.uniform(0.8, 0.97), g, 1 / (1 + np.exp(-epsilon))))
    return m, g, s, epsilon, rng.uniform(0.5, 1) * 0.1 / m


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
# A δ with which anything may happen: the sum of the two terms is more than one.
ANYTHING = 1000, 10, 7, 0.5, 0.01
# The largest gain is at i = 1, where fewer are right than are expected; at i = 1 = s; and beyond
# the half of s, where all are right.
FEW_RIGHT = 10, 6, 2, 0.4, 0.02
ONE_RIGHT = 10, 2, 1, 0.3, 0.01
ALL_RIGHT = 20, 10, 10, 0.1, 0.01
# The threshold lies beyond all scores: no canary is found, and nobody is accused.
NONE_FOUND = np.zeros(20), np.zeros(30), 1.0, 0.01, 0.05
CALLS = {
    "12.1": Calls(
        "inside, outside, threshold, delta and significance",
        FEW_RUNS,
        NONE_FOUND,
        FEW_MISSED,
        NOTHING_SEEN,
        draw=_scores,
    ),
    "12.2": Calls(
        "m, g, s, epsilon and delta",
        ANYTHING,
        FEW_RIGHT,
        ONE_RIGHT,
        ALL_RIGHT,
        draw=_guesses,
    ),
}


# ---- 12.1: a threshold audit


def threshold_audit(inside, outside, threshold, delta, significance):
    from scipy.stats import beta

    def upper_end(errors, runs):
        return beta.ppf(1 - significance / 2, errors + 1, runs - errors) if errors < runs else 1.0

    fpr = upper_end((outside > threshold).sum(), len(outside))
    fnr = upper_end((inside <= threshold).sum(), len(inside))
    return np.log(max(1, (1 - delta - fnr) / fpr, (1 - delta - fpr) / fnr))


# ---- 12.2: the p-value of a one-run audit


def p_value(m, g, s, epsilon, delta):
    from scipy.stats import binom

    right = 1 / (1 + np.exp(-epsilon))
    tail = binom.sf(s - 1, g, right)
    i = np.arange(1, s + 1)
    gain = (binom.sf(s - i - 1, g, right) - tail) / i
    return min(1, tail + 2 * m * delta * gain.max())
