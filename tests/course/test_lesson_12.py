"""Notebook 12: what audits show, what they can show at most, and injected bugs."""

import numpy as np
import pytest

from fedlora_lab import theory
from fedlora_lab.audit import bounds
from fedlora_lab.course.lesson_12 import figures


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


def test_repeated_audits_stay_below_the_truth():
    found, again = (bounds.simulate_many_runs(500, 2.0, repeats=60) for _ in range(2))
    for kind, values in found.items():
        assert np.mean(values > 2.0) <= 0.05 + 4 * (0.05 * 0.95 / 60) ** 0.5
        assert np.array_equal(values, again[kind])
    assert found["Gaussian noise"].mean() > found["any mechanism"].mean() > 0


def test_the_power_of_audits_is_that_of_the_bounds():
    """Ceilings are those of perfect guesses; power is the share that exceeds what is stated."""
    table = figures.power_table(1.0, leaks=(1.0, 8.0), canaries=(10, 40), repeats=6)
    assert len(table) == 8
    for _, row in table.iterrows():
        gaussian = row["kind"] == "Gaussian noise"
        lower = bounds.gaussian_one_run_lower_bound if gaussian else bounds.one_run_lower_bound
        tried, m = bounds.default_guesses(row["canaries"]), row["canaries"]
        most = max(lower(m, sum(g), sum(g), bounds.DELTA, 0.05 / len(tried)) for g in tried)
        assert row["ceiling"] == most
        assert row["low"] <= row["mean"] <= row["high"]
        if most < 1.0 or row["leak"] == 1.0:
            assert row["mean"] == 0
    assert table["mean"].max() > 0.5
