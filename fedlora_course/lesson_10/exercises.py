"""Right and wrong answers to the exercises of lesson 10."""

from fedlora_course.exercises import FunctionAnswer


def _pair(rng):
    """Accuracies of two methods that share what a seed does; as many seeds as it happens."""
    seeds = int(rng.integers(4, 13))
    together = rng.normal(0.75, 0.05, seeds)
    return tuple(together + rng.normal(0.01 * i, 0.02, seeds) for i in range(2))


def _pair_of_many(rng):
    return *_pair(rng), int(rng.integers(3, 60))


CALLS = {
    "10.1": FunctionAnswer("one and other", draw=_pair),
    "10.2": FunctionAnswer("one, other and pairs", draw=_pair_of_many),
}


# ---- 10.1: the half-width of a paired interval


def half_width(one, other):
    from scipy.stats import t

    difference = one - other
    n = len(one)
    return t.ppf(0.975, n - 1) * difference.std(ddof=1) / n**0.5


# ---- 10.2: the half-width of one of many intervals


def widened(one, other, pairs):
    from scipy.stats import t

    difference = one - other
    n = len(one)
    return t.ppf(1 - 0.05 / (2 * pairs), n - 1) * difference.std(ddof=1) / n**0.5
