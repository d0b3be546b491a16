"""Right and wrong answers to the exercises of notebook 12: audits by many runs and by one."""

from functools import partial

import numpy as np
from scipy.special import ndtri

from fedlora_course.exercises import Calls, vary


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


# A rate of which no more is known than that it is at most 1.
def no_bound_where_all_are_missed(inside, outside, threshold, *rest):
    if (inside <= threshold).all():
        return np.nan
    return threshold_audit(inside, outside, threshold, *rest)


# The larger of two lower bounds is a lower bound, too.
def smaller_bound(inside, outside, threshold, *rest):
    return max(0, min(_logarithms(outside > threshold, inside <= threshold, *rest)))


# Rates of few runs are luck: a bound takes their upper ends.
def rates_as_measured(inside, outside, threshold, delta, significance):
    fpr = (outside > threshold).mean()
    fnr = (inside <= threshold).mean()
    return max(0, np.log((1 - delta - fnr) / fpr), np.log((1 - delta - fpr) / fnr))


# A score at the threshold is not above it.
at_the_threshold = vary(threshold_audit, threshold=lambda threshold: np.nextafter(threshold, 0))


def _logarithms(false_alarms, misses, delta, significance):
    """The logarithm of each direction, from a mask of the errors of each kind."""
    from scipy.stats import beta

    errors = false_alarms, misses
    fpr, fnr = (beta.ppf(1 - significance / 2, sum(x) + 1, sum(~x)) for x in errors)
    return np.log((1 - delta - fnr) / fpr), np.log((1 - delta - fpr) / fnr)


# A mechanism may leak by what it does not show.
def one_direction(inside, outside, threshold, *rest):
    return max(0, _logarithms(outside > threshold, inside <= threshold, *rest)[0])


# Or by what it shows.
def other_direction(inside, outside, threshold, *rest):
    return max(0, _logarithms(outside > threshold, inside <= threshold, *rest)[1])


# An ε is never negative.
def below_zero(inside, outside, threshold, *rest):
    return max(_logarithms(outside > threshold, inside <= threshold, *rest))


# A score at the threshold would be wrong for both kinds of runs.
def wrong_on_both_sides(inside, outside, threshold, *rest):
    return max(0, *_logarithms(outside >= threshold, inside <= threshold, *rest))


# A score of a run with the canary that lies at the threshold does not show it.
def miss_at_the_threshold(inside, outside, threshold, *rest):
    return max(0, *_logarithms(outside > threshold, inside < threshold, *rest))


# The lower end of a rate of errors bounds no rate from above.
def parameters_of_the_lower_end(inside, outside, threshold, delta, significance):
    from scipy.stats import beta

    def lower_end(errors, runs):
        return beta.ppf(1 - significance / 2, errors, runs - errors + 1)

    fpr = lower_end((outside > threshold).sum(), len(outside))
    fnr = lower_end((inside <= threshold).sum(), len(inside))
    return max(0, np.log((1 - delta - fnr) / fpr), np.log((1 - delta - fpr) / fnr))


def _at_ends(inside, outside, threshold, delta, significance, *, end):
    """The bound with other ends of the rates: ``end(a, errors, runs)``."""
    fpr = end(significance / 2, (outside > threshold).sum(), len(outside))
    fnr = end(significance / 2, (inside <= threshold).sum(), len(inside))
    return max(0, np.log((1 - delta - fnr) / fpr), np.log((1 - delta - fpr) / fnr))


def _lower_end(a, w, n):
    from scipy.stats import beta

    return beta.ppf(a, w, n - w + 1) if w else np.float64(0)


# The least that a rate may be, where the most that it may be was asked.
lower_ends = partial(_at_ends, end=_lower_end)


# Without a case for no errors, of which the lower end is 0.
def _lower_end_of_some(a, w, n):
    from scipy.stats import beta

    return beta.ppf(a, w, n - w + 1)


lower_ends_of_some = partial(_at_ends, end=_lower_end_of_some)


# With the right parameters, the quantile of the other end.
def _low_quantile(a, w, n):
    from scipy.stats import beta

    return beta.ppf(a, w + 1, n - w) if w < n else 1.0


lower_quantile = partial(_at_ends, end=_low_quantile)


# Each rate has runs of its own.
def runs_exchanged(inside, outside, threshold, *rest):
    from scipy.stats import beta

    def of_the_others(a, w, n):
        others = len(inside) + len(outside) - n
        return beta.ppf(1 - a, w + 1, others - w) if w < others else 1.0

    return _at_ends(inside, outside, threshold, *rest, end=of_the_others)


# An approximation, which is poor for few errors: none at all would mean a rate of 0.
def _normal_end(a, w, n, factor=None):
    rate = w / n
    return rate + (factor or ndtri(1 - a)) * np.sqrt(rate * (1 - rate) / n)


by_the_normal = partial(_at_ends, end=_normal_end)
by_1_96 = partial(_at_ends, end=partial(_normal_end, factor=1.96))


# A rate of right guesses in place of a rate of errors bounds nothing.
def hits_for_errors(inside, outside, threshold, delta, significance):
    return threshold_audit(outside, inside, threshold, delta, significance)


# As for an interval with two ends.
two_sided = vary(threshold_audit, significance=lambda alpha: alpha / 2)
# Two rates are bounded, and each may fail.
whole_significance = vary(threshold_audit, significance=lambda alpha: 2 * alpha)


# ---- 12.2: the p-value of a one-run audit


def p_value(m, g, s, epsilon, delta):
    from scipy.stats import binom

    right = 1 / (1 + np.exp(-epsilon))
    tail = binom.sf(s - 1, g, right)
    i = np.arange(1, s + 1)
    gain = (binom.sf(s - i - 1, g, right) - tail) / i
    return min(1, tail + 2 * m * delta * gain.max())


# With probability δ anything may happen.
without_the_term = vary(p_value, delta=0.0)
# At least s right guesses: s itself counts.
strictly_more = vary(p_value, s=lambda s: s + 1)


def _more_than_s(m, g, s, epsilon, delta, *, subtracted):
    """The p-value with Pr[Y > s] as its first term; the other takes ``sf(subtracted(s))`` away."""
    from scipy.stats import binom

    right = 1 / (1 + np.exp(-epsilon))
    i = np.arange(1, s + 1)
    gains = (binom.sf(s - i - 1, g, right) - binom.sf(subtracted(s), g, right)) / i
    return min(1, binom.sf(s, g, right) + 2 * m * delta * gains.max())


# SciPy's `sf(s)` is the chance of more than s, here in both terms and here in the first alone.
tail_of_more = partial(_more_than_s, subtracted=lambda s: s)
luck_of_more = partial(_more_than_s, subtracted=lambda s: s - 1)


# Both worlds may fail.
delta_once = vary(p_value, delta=lambda delta: delta / 2)


# To give away many coins at once takes as much more of δ.
def not_divided(m, g, s, epsilon, delta):
    from scipy.stats import binom

    right = 1 / (1 + np.exp(-epsilon))
    tail = binom.sf(s - 1, g, right)
    return min(1, tail + 2 * m * delta * (1 - tail))


# The chance of exactly s right guesses.
def exactly_s(m, g, s, epsilon, delta):
    from scipy.stats import binom

    right = 1 / (1 + np.exp(-epsilon))
    tail = binom.sf(s - 1, g, right)
    return min(1, p_value(m, g, s, epsilon, delta) - tail + binom.pmf(s, g, right))


# `range(1, s)` leaves out s: where one guess is right, that is the only i.
def ends_before_s(m, g, s, epsilon, delta):
    from scipy.stats import binom

    right = 1 / (1 + np.exp(-epsilon))
    tail = binom.sf(s - 1, g, right)
    gains = [(binom.sf(s - i - 1, g, right) - tail) / i for i in range(1, s)]
    return min(1, tail + 2 * m * delta * max(gains, default=0.0))


# A bound on a chance that is more than one says nothing.
def without_limit(m, g, s, epsilon, delta):
    from scipy.stats import binom

    right = 1 / (1 + np.exp(-epsilon))
    tail = binom.sf(s - 1, g, right)
    i = np.arange(1, s + 1)
    return tail + 2 * m * delta * ((binom.sf(s - i - 1, g, right) - tail) / i).max()
