"""Notebook 12: the simulated audit states what it spends, and errs as seldom as it says."""

import numpy as np
import pytest

from fedlora_lab.audit import bounds
from fedlora_lab.course.lesson_12.figures import reach_table


@pytest.mark.slow
def test_the_game_errs_as_seldom_as_it_says():
    played = [bounds.simulate_one_run(60, 0.3, confidence=0.8, seed=seed) for seed in range(400)]
    assert played[0].true == pytest.approx(0.3, rel=1e-6), "the noise spends what is stated"
    assert np.mean([one.lower > one.true for one in played]) <= 0.2 + 4 * (0.16 / 400) ** 0.5
    assert abs(np.mean([one.included.mean() for one in played]) - 0.5) < 0.02
    loud = [bounds.simulate_one_run(500, 1.0, leak=6, seed=seed).caught for seed in range(40)]
    assert np.mean(loud) > 0.8


@pytest.mark.slow
def test_more_canaries_do_not_find_everything():
    """Fault: enough canaries were said to refute a factor of the root of two."""
    table = reach_table(3.0)
    least = table.groupby("leak")["value"].min()
    assert (least[:2] > 0.05).all() and (least[2:] < 0.02).all()
    most = table[table["canaries"] == 1_000_000]
    assert (most["value"] / most["limit"]).between(0.5, 1.1).all()
    assert most["limit"].round(4).tolist() == [0.227, 0.1218, 0.0119, 0.0017]
