"""Splits of one pool over clients."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from fedlora_lab import partition

LABELS = np.repeat(np.arange(10), 120)
NAMES = np.array(["south", "north", "east"])[np.arange(300) % 3]


def splits() -> list[tuple[str, list[np.ndarray], int]]:
    return [
        ("iid", partition.iid(1200, 7, seed=3), 1200),
        ("dirichlet", partition.dirichlet(LABELS, 7, 0.5, seed=3), 1200),
        ("tiny alpha", partition.dirichlet(LABELS, 40, 1e-6, seed=3, min_size=9), 1200),
        ("infinite alpha", partition.dirichlet(LABELS, 7, float("inf"), seed=3), 1200),
        ("one client", partition.dirichlet(LABELS, 1, 0.5, seed=3), 1200),
        ("by group", partition.by_group(NAMES), 300),
        ("by group, cut", partition.by_group(NAMES, parts=4, seed=3), 300),
    ]


@pytest.mark.parametrize(("name", "split", "count"), splits(), ids=[name for name, _, _ in splits()])
def test_every_example_exactly_once(name: str, split: list[np.ndarray], count: int) -> None:
    assert sorted(np.concatenate(split).tolist()) == list(range(count))
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in split)


def test_iid_sizes_differ_by_at_most_one() -> None:
    sizes = [len(part) for part in partition.iid(1205, 9, seed=1)]
    assert max(sizes) - min(sizes) == 1
    assert len(partition.iid(5, 5)) == 5


@pytest.mark.parametrize("alpha", [1e-9, 1e-3, 0.1, 1.0, 1e6])
@pytest.mark.parametrize("clients", [1, 3, 50, 150])
def test_minimum_size_holds_for_extreme_alpha(alpha: float, clients: int) -> None:
    for seed in range(3):
        split = partition.dirichlet(LABELS, clients, alpha, seed=seed, min_size=8)
        assert len(split) == clients
        assert min(len(part) for part in split) >= 8
        assert sorted(np.concatenate(split).tolist()) == list(range(1200))


def top_share(split: list[np.ndarray]) -> float:
    """Share of a client's commonest label, averaged over the clients."""
    return float(np.mean([np.bincount(LABELS[part]).max() / len(part) for part in split if len(part)]))


def test_alpha_sets_the_skew() -> None:
    skew = [
        np.mean([top_share(partition.dirichlet(LABELS, 10, a, seed=s)) for s in range(20)]) for a in (0.05, 0.5, 50)
    ]
    assert skew[0] > 0.6 > skew[1] > 0.25 > skew[2]
    even = partition.dirichlet(LABELS, 10, float("inf"), seed=0)
    assert all((np.bincount(LABELS[part]) == 12).all() for part in even)


def test_proportions_follow_the_dirichlet_law() -> None:
    # Var of one share of a symmetric Dirichlet over K clients: (K - 1) / (K^2 (K alpha + 1)).
    labels, clients, alpha = np.zeros(20_000, dtype=int), 5, 0.7
    shares = np.array(
        [[len(p) / 20_000 for p in partition.dirichlet(labels, clients, alpha, seed=s)] for s in range(400)]
    )
    variance = (clients - 1) / (clients**2 * (clients * alpha + 1))
    assert abs(shares.mean(0) - 1 / clients).max() < 0.04
    assert abs(shares.var() / variance - 1) < 0.1


def test_same_seed_same_split_and_other_seeds_differ() -> None:
    for build in (
        lambda s: partition.iid(300, 5, s),
        lambda s: partition.dirichlet(LABELS, 5, 0.5, s),
        lambda s: partition.by_group(NAMES, 2, s),
    ):
        assert all(np.array_equal(a, b) for a, b in zip(build(1), build(1), strict=True))
        assert not all(np.array_equal(a, b) for a, b in zip(build(1), build(2), strict=True))
    assert not np.array_equal(partition.iid(300, 5, None)[0], partition.iid(300, 5, None)[0])


def test_labels_may_be_tensors_or_words() -> None:
    numbers = partition.dirichlet(LABELS, 4, 0.5, seed=2)
    tensors = partition.dirichlet(torch.from_numpy(LABELS), 4, 0.5, seed=2)
    words = partition.dirichlet(np.array(list("abcdefghij"))[LABELS], 4, 0.5, seed=2)
    for other in (tensors, words):
        assert all(np.array_equal(a, b) for a, b in zip(numbers, other, strict=True))


def test_groups_stay_apart() -> None:
    assert [set(NAMES[part]) for part in partition.by_group(NAMES)] == [{"east"}, {"north"}, {"south"}]
    cut = partition.by_group(NAMES, parts=3)
    assert [set(NAMES[part]) for part in cut] == [{"east"}] * 3 + [{"north"}] * 3 + [{"south"}] * 3
    assert {len(part) for part in cut} == {33, 34}


BAD = [
    (lambda: partition.iid(5, 6), "clients=6: expected at most 5: 5 examples, 1 each"),
    (lambda: partition.iid(50, 6, min_size=9), "clients=6: expected at most 5: 50 examples, 9 each"),
    (lambda: partition.iid(5, 0), "clients=0: expected a whole number >= 1"),
    (lambda: partition.iid(5, "2"), "clients='2': expected a whole number >= 1"),  # type: ignore[arg-type]
    (lambda: partition.iid(0, 1), "count=0: expected a whole number >= 1"),
    (lambda: partition.iid(5, 2, seed=-1), "seed=-1: expected None or a whole number >= 0"),
    (lambda: partition.dirichlet(LABELS, 4, 0), "alpha=0: expected a number > 0"),
    (lambda: partition.dirichlet(LABELS, 4, -0.5), "alpha=-0.5: expected a number > 0"),
    (lambda: partition.dirichlet(LABELS, 4, float("nan")), "alpha=nan: expected a number > 0"),
    (lambda: partition.dirichlet(LABELS, 4, None), "alpha=None: expected a number > 0"),  # type: ignore[arg-type]
    (
        lambda: partition.dirichlet(LABELS, 151, 1, min_size=8),
        "clients=151: expected at most 150: 1200 examples, 8 each",
    ),
    (lambda: partition.dirichlet(LABELS, 4, 1, min_size=0), "min_size=0: expected a whole number >= 1"),
    (lambda: partition.dirichlet([], 4, 1), r"labels=\(0,\): expected a vector with at least one entry"),
    (lambda: partition.dirichlet(np.zeros((3, 2)), 1, 1), r"labels=\(3, 2\): expected a vector"),
    (lambda: partition.by_group(NAMES, parts=101), "parts=101: expected at most 100, the examples of group east"),
    (lambda: partition.by_group(NAMES, parts=0), "parts=0: expected a whole number >= 1"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message[:24] for _, message in BAD])
def test_bad_calls(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


BAD_SPLITS = [
    ([], r"partition=\[\]: expected one index vector per client"),
    (np.zeros((30, 2)), "partition='ndarray': expected one index vector per client"),
    ([[0, 1], []], r"partition\[1\]=\(0,\): expected a vector with at least one entry"),
    ([[0, 1], [1, 2]], r"partition\[1\]='an index again'"),
    ([[0, 0]], r"partition\[0\]='an index again'"),
    ([[0, 5]], r"partition\[0\]=\(0, 5\): expected indices in \[0, 4\]"),
    ([[-1, 2]], r"partition\[0\]=\(-1, 2\): expected indices in \[0, 4\]"),
    ([[0.0, 1.0]], r"partition\[0\]='float64': expected whole-number indices"),
    ([[True, False]], r"partition\[0\]='bool': expected whole-number indices"),
]


@pytest.mark.parametrize(("split", "message"), BAD_SPLITS)
def test_bad_splits_are_refused(split: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        partition.check_split(split, 5)


def test_good_splits_pass() -> None:
    clean = partition.check_split(([4, 0], torch.tensor([2])), 5)
    assert [part.tolist() for part in clean] == [[4, 0], [2]]


def test_no_torch_needed() -> None:
    code = "import sys, fedlora_lab.partition as p; p.dirichlet([0, 1] * 9, 3, 1.0); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
