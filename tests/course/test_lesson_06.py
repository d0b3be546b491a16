"""Notebook 06: shaped noise measured and drawn, runs in turns followed, comparisons drawn."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.course.lesson_06 import figures
from fedlora_lab.methods.filters import factor_space, product_space


def peer(size: float) -> torch.Tensor:
    unit = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 12)))
    return size * unit / torch.linalg.matrix_norm(unit, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "mu"), [(factor_space, 2.0 / 0.8), (product_space, 1 / 0.8)])
def test_separation_follows_the_closed_form(rule, mu):
    """The clip holds: a change that is too large stands out no more than the worst."""
    band = theory.measured_band(mu, 200)
    found = [fl.measures.separation(rule, peer(2.0), None, 0.8, seed=seed) for seed in range(40)]
    assert np.mean([value in band for value in found]) >= 0.85
    assert np.mean(found) == pytest.approx(mu, rel=0.03)
    worst = fl.measures.worst_change(rule, peer(2.0))
    for size, expected in ((0.5, mu / 2), (50, mu)):
        far = fl.measures.separation(rule, peer(2.0), size * worst, 0.8, draws=2000)
        assert far == pytest.approx(expected, rel=0.08)


def test_the_path_follows_the_factors():
    """Three rounds of a layer of rank 2: turns, the resting factor's stretches, and no gaps."""
    task = fl.tasks.regression(clients=2, examples=16)
    plan = fl.Plan(rounds=3, local_steps=2, batch=8)
    records = list(fl.run(task, "rolora", None, plan, lora=fl.Lora(rank=2, alpha=2.0)))
    path = figures.turns_path(records, fl.methods.RoLoRA, "map")
    assert [step["moves"] + step["rests"] for step in path] == ["BA", "AB", "BA"]
    for t, step in enumerate(path):
        frozen = records[t].adapter["map"][t % 2].double()
        frozen = frozen if t % 2 == 0 else frozen.mT
        sizes = torch.linalg.svdvals(frozen).tolist()
        turn = np.radians(step["angle"])
        along = np.array([np.cos(turn), np.sin(turn)]) @ frozen.numpy()
        assert step["stretches"] == pytest.approx(sizes, rel=1e-5)
        assert np.linalg.norm(along) == pytest.approx(sizes[0], rel=1e-5)
        resting = 1 if step["moves"] == "B" else 0
        assert step["from"][resting] == step["to"][resting]
    assert all(step["to"] == later["from"] for step, later in pairwise(path))
