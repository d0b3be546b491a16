"""Closed forms of a row as (metric, schedule, aggregation), against simulation and search."""

import numpy as np
import pytest
from scipy.optimize import minimize

from fedlora_lab import theory


def test_the_cost_of_a_metric_is_that_of_a_clipped_and_noised_step():
    """At a clip norm and a noise multiplier of 1, both of which cancel."""
    rng = np.random.default_rng(0)
    B = rng.normal(size=(12, 3))
    A = rng.normal(size=(3, 9))
    weights = np.array([1.6, 0.4])
    squares = [30.0, 200.0]
    # The clip scales every block by one over the weighted norm.
    squared_norm = weights**2 @ squares
    noise_B, noise_A = (
        rng.normal(scale=1 / w, size=(4000, *factor.shape))
        for w, factor in zip(weights, (B, A), strict=True)
    )
    # First order in the noise: the product of both noises is another function's matter.
    energies = np.sum((noise_B @ A + B @ noise_A) ** 2, axis=(1, 2)) * squared_norm
    linear_B, linear_A, _ = theory.noise_terms(B, A, std_B=1.0, std_A=1.0)
    cost = theory.weighted_cost(squares, (linear_B, linear_A), weights)
    assert cost in theory.mean_band(energies)


def test_no_weights_cost_less_than_the_best():
    energies, costs = [2.0, 0.1, 5.0], [1.0, 3.0, 0.2]
    best = theory.best_block_weights(energies, costs)

    def cost(logs):
        return np.log(theory.weighted_cost(energies, costs, np.exp(logs)))

    searched = minimize(cost, np.zeros(3))
    assert np.prod(best) == pytest.approx(1)
    assert np.log(theory.weighted_cost(energies, costs, best)) == pytest.approx(searched.fun)
