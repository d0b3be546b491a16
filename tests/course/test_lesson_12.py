"""Notebook 12: what audits show, what they can show at most, and injected bugs."""

import numpy as np
import pytest

from fedlora_lab import theory
from fedlora_lab.audit import bounds


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 40.0])
def test_the_game_states_what_it_spends(epsilon):
    sigma = bounds.gaussian_noise_multiplier(epsilon)
    assert theory.gdp_epsilon(1 / sigma, bounds.DELTA) == pytest.approx(epsilon, rel=1e-6)
    one = bounds.simulate_one_run(50, epsilon)
    assert one.true == pytest.approx(epsilon, rel=1e-6)
    loud = theory.gdp_epsilon(2 / sigma, bounds.DELTA)
    assert bounds.simulate_one_run(50, epsilon, leak=2).true == pytest.approx(loud)
    assert one.ceiling == bounds.one_run_ceiling(50, bounds.DELTA, 0.05)


@pytest.mark.slow
def test_the_game_errs_as_seldom_as_it_says():
    played = [bounds.simulate_one_run(60, 0.3, confidence=0.8, seed=seed) for seed in range(400)]
    assert np.mean([one.lower > one.true for one in played]) <= 0.2 + 4 * (0.16 / 400) ** 0.5
    assert abs(np.mean([one.included.mean() for one in played]) - 0.5) < 0.02
    loud = [bounds.simulate_one_run(500, 1.0, leak=6, seed=seed).caught for seed in range(40)]
    assert np.mean(loud) > 0.8
