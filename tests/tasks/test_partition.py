"""Splits of one pool over clients."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from fedlora_lab.tasks import partition

LABELS = np.repeat(np.arange(10), 120)
NAMES = np.array(["south", "north", "east"])[np.arange(300) % 3]
SPLITS = {
    "iid": (lambda seed: partition.iid(1200, 7, seed), 1200),
    "dirichlet": (lambda seed: partition.dirichlet(LABELS, 7, 0.5, seed), 1200),
    "infinite alpha": (lambda seed: partition.dirichlet(LABELS, 7, float("inf"), seed), 1200),
    "one client": (lambda seed: partition.dirichlet(LABELS, 1, 0.5, seed), 1200),
    "by group": (lambda seed: partition.by_group(NAMES), 300),
    "by group, cut": (lambda seed: partition.by_group(NAMES, 4, seed), 300),
}


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", SPLITS)
def test_every_example_exactly_once(name: str) -> None:
    """The same seed makes the same split, another seed another."""
    build, count = SPLITS[name]
    split = build(3)
    assert sorted(np.concatenate(split).tolist()) == list(range(count))
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in split)
    assert same(split, build(3))
    assert same(split, build(4)) == (name in ("one client", "by group"))


def test_without_a_seed_nobody_draws_it_again() -> None:
    assert not same(partition.iid(300, 5, None), partition.iid(300, 5, None))


def test_iid_sizes_differ_by_at_most_one() -> None:
    sizes = [len(part) for part in partition.iid(1205, 9, seed=1)]
    assert max(sizes) - min(sizes) == 1
    assert len(partition.iid(5, 5)) == 5


@pytest.mark.parametrize("alpha", [1e-9, 1e-3, 0.1, 1e6])
@pytest.mark.parametrize("clients", [1, 3, 150])
def test_minimum_size_holds_for_extreme_alpha(alpha: float, clients: int) -> None:
    split = partition.dirichlet(LABELS, clients, alpha, seed=0, min_size=8)
    assert len(split) == clients and min(len(part) for part in split) >= 8
    assert sorted(np.concatenate(split).tolist()) == list(range(1200))


def test_alpha_sets_the_skew() -> None:
    def top_share(alpha: float, seed: int) -> float:
        """Share of a client's commonest label, averaged over the clients."""
        split = partition.dirichlet(LABELS, 10, alpha, seed=seed)
        return float(np.mean([np.bincount(LABELS[p]).max() / len(p) for p in split if len(p)]))

    skew = [np.mean([top_share(a, seed) for seed in range(20)]) for a in (0.05, 0.5, 50)]
    assert skew[0] > 0.6 > skew[1] > 0.25 > skew[2]
    even = partition.dirichlet(LABELS, 10, float("inf"), seed=0)
    assert all((np.bincount(LABELS[part]) == 12).all() for part in even)


def test_proportions_follow_the_dirichlet_law() -> None:
    # Var of one share of a symmetric Dirichlet over K clients: (K - 1) / (K^2 (K alpha + 1)).
    labels, clients, alpha = np.zeros(2_000, dtype=int), 5, 0.7
    splits = [partition.dirichlet(labels, clients, alpha, seed=seed) for seed in range(400)]
    shares = np.array([[len(part) / 2_000 for part in split] for split in splits])
    variance = (clients - 1) / (clients**2 * (clients * alpha + 1))
    assert abs(shares.mean(0) - 1 / clients).max() < 0.04
    assert abs(shares.var() / variance - 1) < 0.1


@pytest.mark.parametrize("labels", [torch.from_numpy(LABELS), np.array(list("abcdefghij"))[LABELS]])
def test_labels_may_be_tensors_or_words(labels: Any) -> None:
    numbers = partition.dirichlet(LABELS, 4, 0.5, seed=2)
    assert same(numbers, partition.dirichlet(labels, 4, 0.5, seed=2))


def test_groups_stay_apart() -> None:
    names = ["east", "north", "south"]
    assert [set(NAMES[part]) for part in partition.by_group(NAMES)] == [{name} for name in names]
    cut = partition.by_group(NAMES, parts=3)
    assert [set(NAMES[part]) for part in cut] == [{name} for name in names for _ in range(3)]
    assert {len(part) for part in cut} == {33, 34}


def dirichlet(labels: Any = LABELS, clients: Any = 4, alpha: Any = 1, **options: Any) -> Any:
    return partition.dirichlet(labels, clients, alpha, **options)


BAD = {
    "clients=6: expected at most 5: 5 examples, 1 each": lambda: partition.iid(5, 6),
    "clients=6: expected at most 5: 50 examples, 9 ": lambda: partition.iid(50, 6, min_size=9),
    "clients=0: expected a whole number >= 1": lambda: partition.iid(5, 0),
    "clients='2': expected a whole number >= 1": lambda: dirichlet(clients="2"),
    "count=0: expected a whole number >= 1": lambda: partition.iid(0, 1),
    "seed=-1: expected None or a whole number >= 0": lambda: partition.iid(5, 2, seed=-1),
    "alpha=0: expected a number > 0": lambda: dirichlet(alpha=0),
    "alpha=nan: expected a number > 0": lambda: dirichlet(alpha=float("nan")),
    "alpha=None: expected a number > 0": lambda: dirichlet(alpha=None),
    "clients=151: expected at most 150: 1200 ": lambda: dirichlet(clients=151, min_size=8),
    "min_size=0: expected a whole number >= 1": lambda: dirichlet(min_size=0),
    r"labels=\(0,\): expected a vector with at least one entry": lambda: dirichlet([]),
    r"labels=\(3, 2\): expected a vector": lambda: dirichlet(np.zeros((3, 2))),
    "parts=101: expected at most 100, the exam": lambda: partition.by_group(NAMES, parts=101),
    "parts=0: expected a whole number >= 1": lambda: partition.by_group(NAMES, parts=0),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_calls(message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        BAD[message]()
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_no_torch_needed() -> None:
    code = "import runpy, sys; module = runpy.run_path(sys.argv[1]); "
    code += "module['dirichlet']([0, 1] * 9, 3, 1.0); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, partition.__file__]
    assert subprocess.run(command, check=False).returncode == 0
