"""Splits of one pool over clients."""

from functools import partial

import numpy as np
import pytest

from fedlora_lab.tasks.partition import dirichlet

LABELS = np.repeat(np.arange(10), 120)
SPLITS = [(4, None), (4, 1), (4, float("inf")), (1, 0.1), (3, 1e-9), (150, 0.1)]


@pytest.mark.parametrize(("clients", "alpha"), SPLITS)
def test_every_example_exactly_once(clients, alpha):
    """In sorted parts of a minimum size; the same seed makes the same split, and none another."""
    split = partial(dirichlet, LABELS, clients, alpha, min_size=8)
    first = split(seed=3)
    assert len(first) == clients and min(len(part) for part in first) >= 8
    assert sorted(np.concatenate(first).tolist()) == list(range(len(LABELS)))
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in first)
    assert all(map(np.array_equal, first, split(seed=3)))
    for seed in (4, None):
        assert clients == 1 or not all(map(np.array_equal, split(seed=seed), first))


def test_proportions_follow_the_dirichlet_law():
    # Var of one share of a symmetric Dirichlet over K clients: (K - 1) / (K^2 (K alpha + 1)).
    labels = np.zeros(2_000, dtype=int)
    splits = [dirichlet(labels, 5, 0.7, seed=seed) for seed in range(400)]
    shares = np.array([[len(part) / 2_000 for part in split] for split in splits])
    variance = (5 - 1) / (5**2 * (5 * 0.7 + 1))
    assert abs(shares.mean(0) - 1 / 5).max() < 0.04
    assert abs(shares.var() / variance - 1) < 0.1
