"""Right and wrong answers to the built exercises of notebook 09."""

from functools import partial
from itertools import combinations

import numpy as np
from scipy.stats import t as student
from scipy.stats import ttest_rel

from fedlora_lab.course.exercises import Calls


def _pair(rng, methods=2, seeds=8):
    together = rng.normal(0.75, 0.05, seeds)
    return tuple(together + rng.normal(0.01 * i, 0.02, seeds) for i in range(methods))


def _scores(rng):
    return (np.stack(_pair(rng, methods=5, seeds=10)),)


CALLS = {
    "09.1": Calls("two arrays", draw=_pair),
    "09.2": Calls("scores", draw=_scores),
}


# ---- 09.1: the half-width of a paired interval


def half_width(one, other):
    from scipy.stats import t

    difference, n = one - other, len(one)
    return t.ppf(0.975, n - 1) * difference.std(ddof=1) / n**0.5


def with_the_library(one, other):
    low, high = ttest_rel(one, other).confidence_interval()
    return (high - low) / 2


def unpaired(one, other):
    n = len(one)
    return student.ppf(0.975, 2 * n - 2) * ((one.var(ddof=1) + other.var(ddof=1)) / n) ** 0.5


def one_sided(one, other):
    n = len(one)
    return student.ppf(0.95, n - 1) * (one - other).std(ddof=1) / n**0.5


normal = lambda one, other: 1.96 * (one - other).std(ddof=1) / len(one) ** 0.5
of_single_differences = lambda one, other: half_width(one, other) * len(one) ** 0.5
biased = lambda one, other: half_width(one, other) * (1 - 1 / len(one)) ** 0.5
mean_difference = lambda one, other: (one - other).mean()


# ---- 09.2: what cannot be told from the best


def upper_ends(scores):
    from scipy.stats import t

    m, n = scores.shape
    best = scores.mean(axis=1).argmax()
    gaps = np.delete(scores, best, axis=0) - scores[best]
    factor = t.ppf(1 - 0.05 / (m * (m - 1)), n - 1)
    return gaps.mean(axis=1) + factor * gaps.std(axis=1, ddof=1) / n**0.5


def pair_by_pair(scores):
    order = range(len(scores))
    best = max(order, key=lambda i: scores[i].mean())
    level = 1 - 0.05 / len([*combinations(order, 2)])
    pairs = [ttest_rel(scores[i], scores[best]) for i in order if i != best]
    return np.array([pair.confidence_interval(level).high for pair in pairs])


def _for_all_pairs(m):
    return 1 - 0.05 / (m * (m - 1))


def _upper_ends(scores, quantile=_for_all_pairs, paired=True, sign=1, end=1):
    m, n = scores.shape
    best = scores.mean(axis=1).argmax()
    others = np.delete(scores, best, axis=0)
    gaps = sign * (others - scores[best])
    spread = gaps.std(axis=1, ddof=1)
    if not paired:
        spread = np.sqrt(others.var(axis=1, ddof=1) + scores[best].var(ddof=1))
    return gaps.mean(axis=1) + end * student.ppf(quantile(m), n - 1) * spread / n**0.5


uncorrected = partial(_upper_ends, quantile=lambda m: 0.975)
with_the_best_only = partial(_upper_ends, quantile=lambda m: 1 - 0.05 / (2 * (m - 1)))
on_one_side = partial(_upper_ends, quantile=lambda m: 1 - 0.05 / (m * (m - 1) / 2))
lower_ends = partial(_upper_ends, end=-1)
turned = partial(_upper_ends, sign=-1)
columns_apart = partial(_upper_ends, paired=False)
