"""Bounds from counts: golden values, limits, and how often each errs where epsilon is known."""

import math

import numpy as np
import pytest
from calls import refused
from edge_numbers import best_threshold_bound

from fedlora_lab import theory
from fedlora_lab.audit import bounds

GOLDEN = [
    # arXiv:2305.08846, two numbers of its text.
    (bounds.one_run_lower_bound, (1000, 100, 75, 1e-4, 0.05), 0.673),
    (bounds.one_run_lower_bound, (100_000, 1510, 1439, 1e-5, 0.05), 2.676),
    (bounds.one_run_ceiling, (100, 1e-5, 0.05, ((50, 50),)), 3.490),
    # No error in 100 runs, more of either kind, and guessing.
    (bounds.threshold_lower_bound, (0, 100, 0, 100, 0, 0.05), 3.281),
    (bounds.threshold_lower_bound, (25, 500, 200, 500, 0, 0.05), 2.031),
    (bounds.threshold_lower_bound, (200, 500, 25, 500, 0, 0.05), 2.031),
    (bounds.threshold_lower_bound, (250, 500, 250, 500, 0, 0.05), 0.0),
    # The tests of jax_privacy [primary]: 20,000 scores of which half are larger by 1 or 2; its best
    # of so many thresholds guesses so many canaries in, and is right so often.
    (bounds.gaussian_one_run_lower_bound, (20_000, 406, 379, 1e-6, 0.05 / 386), 2.164749),
    (bounds.gaussian_one_run_lower_bound, (20_000, 938, 934, 1e-6, 0.05 / 374), 4.7218075),
]


@pytest.mark.parametrize(("bound", "counts", "expected"), GOLDEN)
def test_bounds_are_those_of_papers_and_peers(bound, counts, expected):
    """Fault: another constant than a theorem's; one direction of the definition only; luck that
    proves more, or less; a term of delta left out; the other tail of the binomial law."""
    assert bound(*counts) == pytest.approx(expected, abs=6e-4)


def guessed(bound, guesses):
    """A lower bound from a hundred canaries, of a sum with noise of one deviation."""

    def audit(rng, p):
        included = rng.random(100) < 0.5
        scores = included + rng.standard_normal(100)
        return bounds.one_run_best_bound(scores, included, 1e-5, p, guesses, bound)

    return audit


def of_runs(bound, delta, **thresholds):
    """A lower bound from two hundred runs with the canary and as many without."""

    def audit(rng, p):
        inside, outside = 1 + rng.standard_normal(200), rng.standard_normal(200)
        return bound(inside, outside, delta=delta, significance=p, **thresholds)

    return audit


def noise_alone(rng, p):
    """The best of several numbers of guesses where nothing is to be seen."""
    return bounds.one_run_best_bound(rng.random(40), rng.random(40) < 0.5, 0.0, p)


@pytest.mark.parametrize(
    ("audit", "truth"),
    [
        (guessed(bounds.gaussian_one_run_lower_bound, ((15, 15),)), theory.gdp_epsilon(1.0, 1e-5)),
        (
            of_runs(best_threshold_bound, 1e-2, thresholds=[0.5, 1.5]),
            theory.gdp_epsilon(1.0, 1e-2),
        ),
        (noise_alone, 0.0),
    ],
)
def test_a_bound_errs_as_often_as_it_says(audit, truth):
    """Fault: above the truth too often, as where two looks have the price of one; or so seldom
    that it proves nothing."""
    rng = np.random.default_rng(5)
    p = 0.2
    runs = 300
    lower = np.array([audit(rng, p) for _ in range(runs)])
    assert np.mean(lower > truth) <= p + 4 * math.sqrt(p * (1 - p) / runs)
    assert np.median(lower) >= 0.25 * truth


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
