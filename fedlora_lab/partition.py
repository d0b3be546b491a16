"""Who holds which example: splits of one pool over clients. NumPy only, deterministic, every example exactly once."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedlora_lab.checks import check, check_number, check_whole
from fedlora_lab.streams import Streams

Split = list[np.ndarray]


def _column(name: str, values: Any) -> np.ndarray:
    """A vector with at least one entry."""
    column = np.asarray(values)
    check(column.ndim == 1 and column.size > 0, name, column.shape, "a vector with at least one entry")
    return column


def _check_room(count: int, clients: int, min_size: int) -> None:
    check_whole("clients", clients, 1)
    check_whole("min_size", min_size, 1)
    room = f"at most {count // min_size}: {count} examples, {min_size} each"
    check(clients * min_size <= count, "clients", clients, room)


def _level(parts: list[list[int]], min_size: int) -> Split:
    """Give every part at least ``min_size`` entries, taking them one by one from whoever has most."""
    while len(poorest := min(parts, key=len)) < min_size:
        poorest.append(max(parts, key=len).pop())
    return [np.sort(np.asarray(part, dtype=np.int64)) for part in parts]


def iid(count: int, clients: int, seed: int | None = 0, min_size: int = 1) -> Split:
    """Shuffle and cut into parts whose sizes differ by at most one.

    Args:
        count: number of examples in the pool, >= clients.
        clients: number of parts, >= 1.
        seed: a whole number >= 0; ``None`` draws from the operating system.
        min_size: examples that every client holds at least.
    Returns: one sorted int64 index vector per client.
    Raises: ValueError when the pool has fewer than clients * min_size examples.
    Guarantees: test_partition.py::test_every_example_exactly_once, ::test_iid_sizes_differ_by_at_most_one.
    """
    check_whole("count", count, 1)
    _check_room(count, clients, min_size)
    order = Streams(seed).numpy("partition iid").permutation(count)
    return [np.sort(part).astype(np.int64) for part in np.array_split(order, clients)]


def dirichlet(labels: Any, clients: int, alpha: float, seed: int | None = 0, min_size: int = 1) -> Split:
    """Deal the examples of each label to the clients in proportions drawn from a symmetric Dirichlet(alpha).

    Args:
        labels: (n,) labels of any kind that can be sorted, array or CPU tensor.
        clients: number of parts, >= 1.
        alpha: concentration, > 0; small: few labels per client, infinite: equal proportions.
        seed: a whole number >= 0; ``None`` draws from the operating system.
        min_size: examples that every client holds at least; a client short of it gets some of the largest one's.
    Returns: one sorted int64 index vector per client.
    Raises: ValueError when alpha <= 0 or the pool has fewer than clients * min_size examples.
    Guarantees: test_partition.py::test_every_example_exactly_once, ::test_minimum_size_holds_for_extreme_alpha,
        ::test_alpha_sets_the_skew.
    Source: proportions per label as in Yurochkin et al., arXiv:1905.12022, section 4.
    """
    labels = _column("labels", labels)
    check_number("alpha", alpha, 0, open_low=True)
    _check_room(len(labels), clients, min_size)
    rng = Streams(seed).numpy("partition dirichlet")
    parts: list[list[int]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.rint(np.cumsum(_proportions(clients, alpha, rng))[:-1] * len(members)).astype(int)
        for part, share in zip(parts, np.split(members, cuts), strict=True):
            part.extend(share.tolist())
    return _level(parts, min_size)


def _proportions(clients: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """One draw of a symmetric Dirichlet, in logarithms: a tiny alpha would underflow to 0 / 0 otherwise."""
    if np.isinf(alpha):
        return np.full(clients, 1 / clients)
    # log Gamma(alpha) variate = log Gamma(alpha + 1) variate + log(U) / alpha
    logs = np.log(rng.gamma(alpha + 1, size=clients)) + np.log1p(-rng.random(clients)) / alpha
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


def by_group(groups: Any, parts: int = 1, seed: int | None = 0) -> Split:
    """One client per group (a domain, a site, a writer), or ``parts`` clients per group, cut at random.

    Args:
        groups: (n,) group of each example, of any kind that can be sorted.
        parts: clients made of each group, >= 1; every group needs that many examples.
        seed: used when parts > 1; a whole number >= 0, or ``None``.
    Returns: one sorted int64 index vector per client, in the sorted order of the groups.
    Raises: ValueError when a group has fewer examples than parts.
    Guarantees: test_partition.py::test_every_example_exactly_once, ::test_groups_stay_apart.
    """
    groups = _column("groups", groups)
    check_whole("parts", parts, 1)
    split: Split = []
    for i, group in enumerate(np.unique(groups)):
        members = np.flatnonzero(groups == group)
        check(len(members) >= parts, "parts", parts, f"at most {len(members)}, the examples of group {group!s}")
        order = Streams(seed).numpy("partition group", i).permutation(members) if parts > 1 else members
        split.extend(np.sort(part).astype(np.int64) for part in np.array_split(order, parts))
    return split


def check_split(split: Sequence[Any], count: int) -> Split:
    """The split as int64 vectors, none empty, no index twice or out of range.

    Raises: ValueError saying which client is wrong.
    Guarantees: test_partition.py::test_bad_splits_are_refused.
    """
    listed = isinstance(split, (list, tuple))
    check(
        listed and len(split) > 0, "partition", split if listed else type(split).__name__, "one index vector per client"
    )
    seen = np.zeros(count, dtype=bool)
    clean: Split = []
    for k, indices in enumerate(split):
        part = _column(f"partition[{k}]", indices)
        check(np.issubdtype(part.dtype, np.integer), f"partition[{k}]", str(part.dtype), "whole-number indices")
        inside = bool(((part >= 0) & (part < count)).all())
        check(inside, f"partition[{k}]", (int(part.min()), int(part.max())), f"indices in [0, {count - 1}]")
        again = len(np.unique(part)) < len(part) or bool(seen[part].any())
        check(not again, f"partition[{k}]", "an index again", "every example with one client only")
        seen[part] = True
        clean.append(part.astype(np.int64))
    return clean
