"""Right and wrong answers to exercise 09.2: half-width of the paired 95 % interval of a mean."""

import numpy as np
from scipy.stats import t as student

from fedlora_lab.course.exercise import Calls

_DRAWS = np.random.default_rng(90)
_COMMON = _DRAWS.normal(0.75, 0.05, 8)
PAIR = _COMMON + _DRAWS.normal(0.01, 0.01, 8), _COMMON + _DRAWS.normal(0.0, 0.01, 8)
CALLS = {"09.2": Calls("two arrays", PAIR, within=2e-4)}


def _error(one, other):
    return (one - other).std(ddof=1) / len(one) ** 0.5


def half_width(one, other):
    return student.ppf(0.975, len(one) - 1) * _error(one, other)


def unpaired(one, other):
    n = len(one)
    return student.ppf(0.975, 2 * n - 2) * ((one.var(ddof=1) + other.var(ddof=1)) / n) ** 0.5


def normal(one, other):
    return 1.96 * _error(one, other)


def one_sided(one, other):
    return student.ppf(0.95, len(one) - 1) * _error(one, other)


def of_single_differences(one, other):
    return half_width(one, other) * len(one) ** 0.5


def biased(one, other):
    return half_width(one, other) * (1 - 1 / len(one)) ** 0.5


def mean_difference(one, other):
    return (one - other).mean()
