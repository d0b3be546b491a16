"""Splits a pool of examples over clients, each example once.

Every function is deterministic, needs NumPy only, and returns one sorted int64 index vector per
client. A seed is a whole number >= 0; ``None`` draws from the operating system.

>>> from fedlora_lab.tasks import partition
>>> [len(part) for part in partition.iid(10, 3)]
[4, 3, 3]
"""

from typing import Any

import numpy as np

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_number, check_whole

__all__ = ["dirichlet", "iid"]
__dir__ = __all__.copy  # completion shows no imports
Split = list[np.ndarray]


def iid(count: int, clients: int, seed: int | None = 0, min_size: int = 1) -> Split:
    """Shuffles examples and cuts them into parts whose sizes differ by at most one.

    Args:
        count: number of examples, >= clients * min_size.
        clients: number of parts, >= 1.
        seed: of the order.
        min_size: smallest number of examples of a client, >= 1.
    Raises: ValueError for fewer examples.
    Guarantees: test_partition.py::test_every_example_exactly_once.

    >>> [len(part) for part in iid(11, 3)]
    [4, 4, 3]
    """
    check_whole("count", count, 1)
    _check_room(count, clients, min_size)
    order = Streams(seed).numpy("partition iid").permutation(count)
    return [np.sort(part).astype(np.int64) for part in np.array_split(order, clients)]


def dirichlet(
    labels: Any, clients: int, alpha: float | None, seed: int | None = 0, min_size: int = 1
) -> Split:
    """Deals each label's examples in proportions drawn from a symmetric Dirichlet(alpha).

    Args:
        labels: (n,) labels of any kind that can be sorted, array or CPU tensor.
        clients: number of parts, >= 1.
        alpha: concentration, > 0; small: few labels per client, infinite: equal proportions;
            ``None``: labels do not matter, as in `iid`.
        seed: of the proportions and of who gets which example.
        min_size: smallest number of examples of a client; a client short of it gets some of the
            largest client's.
    Raises: ValueError when alpha <= 0 or for fewer than clients * min_size examples.
    Guarantees: test_partition.py::test_every_example_exactly_once,
        ::test_proportions_follow_the_dirichlet_law.
    Source: proportions per label as in Yurochkin et al., arXiv:1905.12022, section 4.

    >>> [part.tolist() for part in dirichlet([0, 0, 1, 1], 2, alpha=float("inf"))]
    [[1, 2], [0, 3]]
    """
    if alpha is None:
        return iid(len(labels), clients, seed, min_size)
    labels = np.asarray(labels)
    expected = "a vector with at least one entry"
    check(labels.ndim == 1 and labels.size > 0, "labels", labels.shape, expected)
    check_number("alpha", alpha, 0, open_low=True)
    _check_room(len(labels), clients, min_size)
    rng = Streams(seed).numpy("partition dirichlet")
    dealt: list[list[int]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        weights = np.full(clients, 1 / clients)
        if np.isfinite(alpha):
            # In logarithms, for a tiny alpha would underflow to 0 / 0:
            # log Gamma(alpha) variate = log Gamma(alpha + 1) variate + log(U) / alpha.
            logs = np.log(rng.gamma(alpha + 1, size=clients))
            logs += np.log1p(-rng.random(clients)) / alpha
            weights = np.exp(logs - logs.max())
            weights /= weights.sum()
        cuts = np.rint(np.cumsum(weights)[:-1] * len(members)).astype(int)
        for part, share in zip(dealt, np.split(members, cuts), strict=True):
            part.extend(share.tolist())
    # A part that is too small takes entries one by one from the largest.
    while len(smallest := min(dealt, key=len)) < min_size:
        smallest.append(max(dealt, key=len).pop())
    return [np.sort(np.asarray(part, dtype=np.int64)) for part in dealt]


def _check_room(count: int, clients: int, min_size: int) -> None:
    check_whole("clients", clients, 1)
    check_whole("min_size", min_size, 1)
    room = f"at most {count // min_size}: {count} to deal, {min_size} each; give fewer as clients="
    check(clients * min_size <= count, "clients", clients, room)
