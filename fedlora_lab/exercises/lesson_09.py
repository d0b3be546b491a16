"""Exercises of notebook 09: which method, when?"""

import numpy as np
from scipy.stats import t as student

from fedlora_lab.exercises.exercise import Calls, Exercise, Mistake, near, number

_DRAWS = np.random.default_rng(90)
_COMMON = _DRAWS.normal(0.75, 0.05, 8)
ONE, OTHER = _COMMON + _DRAWS.normal(0.01, 0.01, 8), _COMMON + _DRAWS.normal(0.0, 0.01, 8)


def half_width(one: np.ndarray, other: np.ndarray) -> float:
    """Half-width of the paired 95 % interval of the mean difference, Student's t."""
    gap = np.asarray(one) - np.asarray(other)
    return float(student.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / len(gap) ** 0.5)


def _unpaired(one: np.ndarray, other: np.ndarray) -> float:
    n = len(one)
    return float(student.ppf(0.975, 2 * n - 2) * ((one.var(ddof=1) + other.var(ddof=1)) / n) ** 0.5)


def _normal(one: np.ndarray, other: np.ndarray) -> float:
    return half_width(one, other) * 1.96 / float(student.ppf(0.975, len(one) - 1))


def _one_sided(one: np.ndarray, other: np.ndarray) -> float:
    n = len(one)
    return half_width(one, other) * float(student.ppf(0.95, n - 1) / student.ppf(0.975, n - 1))


def _spread(one: np.ndarray, other: np.ndarray) -> float:
    return half_width(one, other) * len(one) ** 0.5


def _biased(one: np.ndarray, other: np.ndarray) -> float:
    n = len(one)
    return half_width(one, other) * ((n - 1) / n) ** 0.5


def _mean(one: np.ndarray, other: np.ndarray) -> float:
    return float((one - other).mean())


CALLED = Calls("two arrays", (ONE, OTHER), within=2e-4)

EXERCISES = (
    Exercise(
        key="09.1",
        question=(
            "Twelve methods that are in truth equally good are compared, every pair with its own 95 % interval. How "
            "many pairs will, on average, look different?"
        ),
        hint="Count the pairs first: each of them is wrong with chance 5 %.",
        solution=(
            "12 · 11 / 2 = 66 pairs, 5 % of them: 3.3. So a table of twelve methods always has its winners, and the "
            "guide corrects for the number of pairs."
        ),
        answer=lambda: 0.05 * 12 * 11 / 2,
        read=number,
        right=near(3.3),
        why="66 pairs, each wrong one time in twenty: without a correction, three discoveries that are none.",
        mistakes=(
            Mistake(0.6, near(0.6), "that is 5 % of twelve methods; there are 66 pairs."),
            Mistake(66.0, near(66.0), "66 is the number of pairs; 5 % of them look different."),
            Mistake(6.6, near(6.6), "every pair was counted twice: 12 · 11 / 2."),
            Mistake(7.2, near(7.2), "not 12 · 12: no method is compared with itself, and every pair counts once."),
            Mistake(
                1 - 0.95**66, near(1 - 0.95**66, 1e-3), "near the chance of at least one; the mean number was asked."
            ),
            Mistake(0.0, near(0.0), "equal methods do not look equal: each interval misses one time in twenty."),
        ),
        others=("3.3", 66 / 20),
        difficulty=1,
        minutes=4,
    ),
    Exercise(
        key="09.2",
        question=(
            "Two methods ran on the same seeds. Write a function of two NumPy arrays, their accuracies seed by seed, "
            "that gives the half-width of the 95 % interval of the mean difference: paired, Student's t. Hand in the "
            "function itself."
        ),
        hint="Take the differences first. scipy.stats.t.ppf(0.975, n - 1) is the factor; ddof=1.",
        solution=(
            "def half(one, other): d = one − other; n = len(d); return t.ppf(0.975, n − 1) · d.std(ddof=1) / √n. "
            "What a seed does to both alike (its draw of the start and of the batches) drops out of d."
        ),
        answer=lambda: half_width,
        read=CALLED,
        right=CALLED.gives(half_width),
        why="what a seed does to both methods alike drops out of the difference; unpaired it would widen the interval.",
        mistakes=(
            Mistake(
                _unpaired,
                CALLED.gives(_unpaired),
                "that treats the two as unrelated; the seeds are shared: take differences.",
            ),
            Mistake(_normal, CALLED.gives(_normal), "1.96 is for many seeds; with eight, Student's t is wider."),
            Mistake(_one_sided, CALLED.gives(_one_sided), "the quantile for both sides is 0.975, not 0.95."),
            Mistake(
                _spread, CALLED.gives(_spread), "that is the spread of single differences; the mean's is √n times less."
            ),
            Mistake(_biased, CALLED.gives(_biased), "the standard deviation of a sample divides by n − 1: ddof=1."),
            Mistake(_mean, CALLED.gives(_mean), "that is the mean difference; asked is how far it may be off."),
        ),
        others=(lambda one, other: np.float64(half_width(one, other)),),
        difficulty=2,
        minutes=8,
    ),
)
