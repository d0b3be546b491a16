"""Notebook 12: bounds err as seldom as they say, and a simulated audit states what it spends."""

import math

import numpy as np
import pytest
from edge_numbers import best_threshold_bound

from fedlora_course.lesson_12 import bounds
from fedlora_lab import theory
from fedlora_lab.audit.bounds import count_correct

GOLDEN = [
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
    proves more, or less."""
    assert bound(*counts) == pytest.approx(expected, abs=6e-4)


def by_thirty_guesses(rng, p):
    """A lower bound from a hundred canaries, of a sum with noise of one deviation."""
    included = rng.random(100) < 0.5
    right = count_correct(included + rng.standard_normal(100), included, (15, 15))
    return bounds.gaussian_one_run_lower_bound(100, 30, right, 1e-5, p)


def by_two_thresholds(rng, p):
    """A lower bound from two hundred runs with the canary and as many without."""
    inside, outside = 1 + rng.standard_normal(200), rng.standard_normal(200)
    return best_threshold_bound(inside, outside, 1e-2, p, thresholds=[0.5, 1.5])


@pytest.mark.parametrize(("audit", "delta"), [(by_thirty_guesses, 1e-5), (by_two_thresholds, 1e-2)])
def test_a_bound_errs_as_often_as_it_says(audit, delta):
    """Fault: above the truth too often, as where two looks have the price of one; or so seldom
    that it proves nothing."""
    truth = theory.gdp_epsilon(1.0, delta)
    rng = np.random.default_rng(5)
    p = 0.2
    runs = 300
    lower = np.array([audit(rng, p) for _ in range(runs)])
    assert np.mean(lower > truth) <= p + 4 * math.sqrt(p * (1 - p) / runs)
    assert np.median(lower) >= 0.25 * truth


@pytest.mark.slow
def test_the_game_errs_as_seldom_as_it_says():
    played = [bounds.simulate_one_run(60, 0.3, confidence=0.8, seed=seed) for seed in range(400)]
    assert played[0].true == pytest.approx(0.3, rel=1e-6), "the noise spends what is stated"
    assert np.mean([one.lower > one.true for one in played]) <= 0.2 + 4 * (0.16 / 400) ** 0.5
    assert abs(np.mean([one.included.mean() for one in played]) - 0.5) < 0.02
    loud = [bounds.simulate_one_run(500, 1.0, leak=6, seed=seed).caught for seed in range(40)]
    assert np.mean(loud) > 0.8
