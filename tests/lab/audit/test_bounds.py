"""Bounds from counts: golden values, limits, and how often each errs where epsilon is known."""

import math

import numpy as np
import pytest
from calls import refused

from fedlora_lab.audit import bounds

GOLDEN = [
    # arXiv:2305.08846, two numbers of its text.
    (bounds.one_run_lower_bound, (1000, 100, 75, 1e-4, 0.05), 0.673),
    (bounds.one_run_lower_bound, (100_000, 1510, 1439, 1e-5, 0.05), 2.676),
    (bounds.one_run_ceiling, (100, 1e-5, 0.05, ((50, 50),)), 3.490),
]


@pytest.mark.parametrize(("bound", "counts", "expected"), GOLDEN)
def test_bounds_are_those_of_papers(bound, counts, expected):
    """Fault: another constant than a theorem's; luck that proves more, or less; a term of delta
    left out; the other tail of the binomial law."""
    assert bound(*counts) == pytest.approx(expected, abs=6e-4)


def test_the_best_of_several_guesses_errs_as_often_as_it_says():
    """Fault: where nothing is to be seen, three numbers of guesses have the price of one."""
    rng = np.random.default_rng(5)
    p = 0.2
    runs = 300
    proved = [
        bounds.one_run_best_bound(rng.random(40), rng.random(40) < 0.5, 0.0, p) for _ in range(runs)
    ]
    assert np.mean(np.array(proved) > 0) <= p + 4 * math.sqrt(p * (1 - p) / runs)


def test_guesses_are_of_the_highest_and_the_lowest():
    """Fault: another order of scores; more guesses than canaries."""
    for guesses in ((1, 1), (2, 2), (4, 0)):
        assert bounds.count_correct([3.0, 2.0, 1.0, 0.0], [True, False, True, False], guesses) == 2
    assert bounds.default_guesses(40) == ((5, 5), (10, 10), (20, 20))
    assert all(sum(guess) <= m for m in range(2, 50) for guess in bounds.default_guesses(m))


NAN = np.where(np.arange(8) == 3, np.nan, 0.0)


def test_scores_that_are_no_numbers_are_refused():
    """Fault: NaN, which has no place in their order, is counted as a guess."""
    with refused("^scores=[^\n]*: expected [^\n]*$"):
        bounds.one_run_best_bound(NAN, [True] * 8, 0.0, 0.05)
