"""Notebook 06: how far a change stands out of shaped noise."""

import numpy as np
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab import theory
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
