"""Splits of one pool over clients."""

from typing import Any

import numpy as np
import pytest
import torch

from fedlora_lab.tasks import partition

LABELS = np.repeat(np.arange(10), 120)


def dirichlet(labels: Any = LABELS, clients: Any = 4, alpha: Any = 1, **options: Any) -> Any:
    return partition.dirichlet(labels, clients, alpha, **options)


SPLITS = {
    "iid": lambda seed: dirichlet(alpha=None, seed=seed),
    "dirichlet": lambda seed: dirichlet(seed=seed),
    "infinite alpha": lambda seed: dirichlet(alpha=float("inf"), seed=seed),
}


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("build", SPLITS.values(), ids=SPLITS)
def test_every_example_exactly_once(build: Any) -> None:
    """In sorted parts; the same seed makes the same split, another seed or none another."""
    split = build(3)
    joined = np.sort(np.concatenate(split))
    assert np.array_equal(joined, np.arange(len(joined)))
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in split)
    assert same(split, build(3))
    assert not same(split, build(4)) and not same(build(None), build(None))


@pytest.mark.parametrize(("clients", "alpha"), [(1, 0.1), (3, 1e-9), (150, 0.1), (150, 1e6)])
def test_minimum_size_holds_for_extreme_alpha(clients: int, alpha: float) -> None:
    split = dirichlet(clients=clients, alpha=alpha, min_size=8)
    assert len(split) == clients and min(len(part) for part in split) >= 8
    assert sorted(np.concatenate(split).tolist()) == list(range(1200))


def test_proportions_follow_the_dirichlet_law() -> None:
    # Var of one share of a symmetric Dirichlet over K clients: (K - 1) / (K^2 (K alpha + 1)).
    labels = np.zeros(2_000, dtype=int)
    clients = 5
    alpha = 0.7
    splits = [dirichlet(labels, clients, alpha, seed=seed) for seed in range(400)]
    shares = np.array([[len(part) / 2_000 for part in split] for split in splits])
    variance = (clients - 1) / (clients**2 * (clients * alpha + 1))
    assert abs(shares.mean(0) - 1 / clients).max() < 0.04
    assert abs(shares.var() / variance - 1) < 0.1


def test_labels_may_be_tensors_or_words() -> None:
    for labels in (torch.from_numpy(LABELS), np.array(list("abcdefghij"))[LABELS]):
        assert same(dirichlet(), dirichlet(labels))
