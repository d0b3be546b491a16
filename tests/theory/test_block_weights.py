"""Closed forms of a row as (metric, schedule, aggregation), against simulation and search."""

import numpy as np
import pytest
from scipy.optimize import minimize

from fedlora_lab import theory


def test_the_cost_of_a_metric_is_that_of_a_clipped_and_noised_step():
    rng = np.random.default_rng(0)
    d_out, rank, d_in, clip, sigma = 12, 3, 9, 0.7, 1.3
    B, A = rng.normal(size=(d_out, rank)), rng.normal(size=(rank, d_in))
    gradients = {"B": rng.normal(size=B.shape), "A": 3 * rng.normal(size=A.shape)}
    weights = {"B": 1.6, "A": 0.4}
    norm = np.sqrt(sum(weights[x] ** 2 * np.sum(gradients[x] ** 2) for x in "BA"))
    signal = clip / norm  # every block is scaled by it
    noise_B = rng.normal(scale=sigma * clip / weights["B"], size=(4000, *B.shape))
    noise_A = rng.normal(scale=sigma * clip / weights["A"], size=(4000, *A.shape))
    # First order in the noise: the product of both noises is another function's matter.
    energies = np.sum((noise_B @ A + B @ noise_A) ** 2, axis=(1, 2)) / signal**2 / sigma**2
    cost = theory.weighted_cost(
        [np.sum(gradients[x] ** 2) for x in "BA"],
        theory.factor_costs(B, A),
        [weights[x] for x in "BA"],
    )
    error = energies.std() / np.sqrt(len(energies))
    assert abs(energies.mean() - cost) < 4 * error


def test_no_weights_cost_less_than_the_best():
    energies, costs = [2.0, 0.1, 5.0], [1.0, 3.0, 0.2]
    best = theory.best_block_weights(energies, costs)

    def cost(logs):
        return np.log(theory.weighted_cost(energies, costs, np.exp(logs)))

    searched = minimize(cost, np.zeros(3))
    assert np.prod(best) == pytest.approx(1)
    assert np.log(theory.weighted_cost(energies, costs, best)) == pytest.approx(searched.fun)


def test_one_factor_at_a_time_is_never_the_worse_greedy_step():
    rng = np.random.default_rng(2)
    for useful, energy, cost in rng.exponential(size=(200, 3, 2)):
        single = [theory.turn_merit(*block) for block in zip(useful, energy, cost, strict=True)]
        both = useful.sum() ** 2 / theory.weighted_cost(
            energy, cost, theory.best_block_weights(energy, cost)
        )
        assert min(single) * (1 - 1e-9) <= both <= max(single) * (1 + 1e-9)
