"""Right and wrong answers to the exercises of lesson 10."""

import numpy as np

from fedlora_course.exercises import FunctionAnswer


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
CALLS = {
    "10.1": FunctionAnswer("one and other", draw=_pair),
    "10.2": FunctionAnswer("scores", (MISLEADING,), (FOUR_METHODS,), draw=_scores),
}


# ---- 10.1: the half-width of a paired interval


def half_width(one, other):
    from scipy.stats import t

    difference = one - other
    n = len(one)
    return t.ppf(0.975, n - 1) * difference.std(ddof=1) / n**0.5


# ---- 10.2: what is tied with the best


def upper_ends(scores):
    from scipy.stats import t

    m, n = scores.shape
    best = scores.mean(axis=1).argmax()
    gaps = np.delete(scores, best, axis=0) - scores[best]
    factor = t.ppf(1 - 0.05 / (m * (m - 1)), n - 1)
    return gaps.mean(axis=1) + factor * gaps.std(axis=1, ddof=1) / n**0.5
