"""Right and wrong answers to the exercises of lesson 10."""

from functools import partial

import numpy as np
from scipy.special import ndtri
from scipy.stats import t as student

from fedlora_course.exercises import Calls, vary


def _pair(rng, methods=2):
    """Accuracies of some methods that share what a seed does; as many seeds as it happens."""
    seeds = int(rng.integers(4, 13))
    together = rng.normal(0.75, 0.05, seeds)
    return tuple(together + rng.normal(0.01 * i, 0.02, seeds) for i in range(methods))


def _scores(rng):
    """In any order, and with the best single score at a method that is not the best."""
    scores = rng.permutation(_pair(rng, methods=int(rng.integers(4, 8))))
    lucky = scores[scores.mean(axis=1).argmin()]
    lucky[lucky.argmax()] += 0.2
    lucky -= 0.02
    return (scores,)


# The best mean is the second method's, the best median the first's, the best score the third's.
MISLEADING = np.array([[0.8, 0.8, 0.8, 0.4], [0.76, 0.74, 0.78, 0.72], [0.9, 0.6, 0.65, 0.65]])
FOUR_METHODS = np.array(
    [[0.5, 0.7, 0.6], [0.9, 0.3, 0.9], [0.75, 0.7, 0.8], [0.95, 0.6, 0.6]],
)
SMALL_STEP = tuple(np.array(pair) for pair in ([1.0, 2.0], [4.0, 1.0], [1.0, 4.0]))


def _step(rng):
    """Squared norms of two factors: of the mean gradient, of single ones, and their noise."""
    s = rng.uniform(1, 9, 2)
    return s * rng.uniform(0.1, 0.9, 2), s, rng.uniform(0.5, 8, 2)


CALLS = {
    "10.1": Calls("one and other", draw=_pair),
    "10.2": Calls("scores", (MISLEADING,), (FOUR_METHODS,), draw=_scores),
    "10.4": Calls("u, s and J", SMALL_STEP, draw=_step),
}


# ---- 10.1: the half-width of a paired interval


def half_width(one, other):
    from scipy.stats import t

    difference = one - other
    n = len(one)
    return t.ppf(0.975, n - 1) * difference.std(ddof=1) / n**0.5


# Luck of the seed that both methods share is counted as noise.
def unpaired(one, other, freedom=2):
    n = len(one)
    variance = (one.var(ddof=1) + other.var(ddof=1)) / n
    return student.ppf(0.975, freedom * (n - 1)) * variance**0.5


# The same with the degrees of freedom of one sample.
unpaired_of_one = partial(unpaired, freedom=1)


# How uncertain the mean is, which an interval multiplies by t.
def standard_error(one, other):
    return (one - other).std(ddof=1) / len(one) ** 0.5


# Few seeds: the spread is itself uncertain.
def normal(one, other):
    return 1.96 * (one - other).std(ddof=1) / len(one) ** 0.5


def _half(one, other, level=0.975, more=0):
    difference = one - other
    n = len(one)
    return student.ppf(level, n - 1 + more) * difference.std(ddof=1) / n**0.5


# Leaves 5 % on either side.
one_side = partial(_half, level=0.95)
# One degree of freedom goes to the mean.
one_degree_more = partial(_half, more=1)


# NumPy's standard deviation divides by n unless it is told otherwise.
def normal_and_spread_of_all(one, other):
    return 1.96 * (one - other).std() / len(one) ** 0.5


def one_side_and_spread_of_all(one, other):
    n = len(one)
    return student.ppf(0.95, n - 1) * (one - other).std() / n**0.5


def paired_spread_of_all(one, other):
    return half_width(one, other) * ((len(one) - 1) / len(one)) ** 0.5


# A number that is right for one number of seeds.
def of_twenty_seeds(one, other):
    return student.ppf(0.975, 19) * (one - other).std(ddof=1) / len(one) ** 0.5


def by_variance(one, other):
    return half_width(one, other) * (one - other).std(ddof=1)


# The interval of one difference, not of their mean.
def of_single_differences(one, other):
    return half_width(one, other) * len(one) ** 0.5


# ---- 10.2: what is tied with the best


def upper_ends(scores):
    from scipy.stats import t

    m, n = scores.shape
    best = scores.mean(axis=1).argmax()
    gaps = np.delete(scores, best, axis=0) - scores[best]
    factor = t.ppf(1 - 0.05 / (m * (m - 1)), n - 1)
    return gaps.mean(axis=1) + factor * gaps.std(axis=1, ddof=1) / n**0.5


def _all_pairs(m):
    return m * (m - 1) / 2


def _ends_at(scores, pairs=_all_pairs, sign=1, quantile=student.ppf, score=np.mean):
    """Ends that hold together for a number of pairs, a function of m; the lower ones for -1.

    Args: score: of a method's accuracies, by which the best one is chosen.
    """
    m, n = scores.shape
    best = score(scores, axis=1).argmax()
    gaps = np.delete(scores, best, axis=0) - scores[best]
    factor = sign * quantile(1 - 0.025 / pairs(m), n - 1)
    return gaps.mean(axis=1) + factor * gaps.std(axis=1, ddof=1) / n**0.5


def turned(scores):
    return -lower_ends(scores)


# The spread about the mean of the same seeds is too small by a root of n / (n − 1).
def spread_of_all(scores):
    n = scores.shape[1]
    best = scores.mean(axis=1).argmax()
    means = np.delete(scores - scores[best], best, axis=0).mean(axis=1)
    return means + (upper_ends(scores) - means) * ((n - 1) / n) ** 0.5


# Valid where the intervals are independent, which those of pairs are not.
def by_sidak(scores):
    return _ends_at(scores, lambda m: 0.05 / (1 - 0.95 ** (2 / (m * (m - 1)))))


# Each interval leaves 5 % over the number of pairs on one side alone.
one_sided = partial(_ends_at, pairs=lambda m: m * (m - 1) / 4)


# Student's t is wider than the normal distribution.
normal_ends = partial(_ends_at, quantile=lambda p, n: ndtri(p))


# What a seed does to both methods is counted as noise.
def unpaired_ends(scores):
    m, n = scores.shape
    means = scores.mean(axis=1)
    best = means.argmax()
    errors = ((scores.var(axis=1, ddof=1) + scores[best].var(ddof=1)) / n) ** 0.5
    ends = means - means[best] + student.ppf(1 - 0.05 / (m * (m - 1)), 2 * (n - 1)) * errors
    return np.delete(ends, best)


# What one seed or the middle one gave is not what was asked.
best_by_one_score = partial(_ends_at, score=np.max)
best_by_median = partial(_ends_at, score=np.median)
# As for losses, of which the least is best.
worst_as_best = partial(_ends_at, score=lambda scores, axis: -np.mean(scores, axis=axis))
# A method is tied where its gap may be zero: the upper end.
lower_ends = partial(_ends_at, sign=-1)
# Many pairs are looked at: some gaps look large by luck.
uncorrected = partial(_ends_at, pairs=lambda m: 1)
# Every method has a gap to each of the others.
one_for_each = partial(_ends_at, pairs=lambda m: m)
# Whether a method is tied follows from its upper end.
tied = vary(upper_ends, then=lambda ends: ends >= 0)
# A method beside another is the same pair as the other beside it.
each_pair_twice = partial(_ends_at, pairs=lambda m: m * (m - 1))
# Which one is best was seen in the same numbers, so all pairs count.
with_the_best_only = partial(_ends_at, pairs=lambda m: m - 1)


# ---- 10.4: the merit of a step on both factors


def best_merit(u, s, J):
    return u.sum() ** 2 / np.sqrt(s * J).sum() ** 2


# What a plain joint clip has.
def equal_weights(u, s, J):
    return u.sum() ** 2 / (s.sum() * J.sum())


def weights_turned(u, s, J):
    squared = np.sqrt(s / J)
    return u.sum() ** 2 / ((squared * s).sum() * (J / squared).sum())


# As if each factor had a clip and a release of its own.
def sum_of_merits(u, s, J):
    return (u**2 / (s * J)).sum()


def the_better_alone(u, s, J):
    return (u**2 / (s * J)).max()


def root_of_the_merit(u, s, J):
    return u.sum() / np.sqrt(s * J).sum()


def least_cost(u, s, J):
    return np.sqrt(s * J).sum() ** 2


def sum_of_squares(u, s, J):
    return (u**2).sum() / np.sqrt(s * J).sum() ** 2


def not_squared_below(u, s, J):
    return u.sum() ** 2 / np.sqrt(s * J).sum()


# The roots are added before the square.
def products_added(u, s, J):
    return u.sum() ** 2 / (s * J).sum()


def product_of_means(u, s, J):
    return u.prod() / np.sqrt(s * J).sum() ** 2
