"""Which rows two tables share: public rows that are private ones have exact, unprotected scores."""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import gcd
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedlora_lab.tasks.ragged import Ragged

FEW_PEOPLE = 10
"""Persons, or without persons rows, below which nothing is told: it would be of single ones."""


class SharedRows(NamedTuple):
    """What public and private rows have in common.

    Args:
        rows: number of public rows.
        twins: public rows that equal a private one.
        people: persons whose private rows are public; rows where persons are not known.
        excess: share of one table that lies in the other, of both the larger one, beyond `_chance`.
    """

    rows: int
    twins: int
    people: int
    excess: float


def row_keys(tensors: Iterable[Tensor | Ragged]) -> list[int]:
    """A number for each row of these tensors; those of equal rows are equal."""
    # 64 bits: a chance pair among a million rows of each has a probability below one in a million.
    hashed = [[hash(row.tobytes()) for row in _rows(x)] for x in tensors]
    return [hash(row) for row in zip(*hashed, strict=True)]


def _rows(column: Tensor | Ragged) -> Iterable[np.ndarray]:
    """The numbers of each row; of texts without their padding, which hangs on other texts."""
    if isinstance(column, Ragged):
        return [row.numpy() for row in column.rows()]
    flat = column.detach().cpu().contiguous().reshape(len(column), -1)
    return flat.view(torch.uint8).numpy()


def shared_rows(
    private: Sequence[int], public: Sequence[int], persons: Sequence[int] | None = None
) -> SharedRows:
    """Compares two tables by the keys of their rows.

    Args: private, public: from `row_keys`. persons: whose each private row is; ``None``: unknown.
    Guarantees: test_public_rows.py::test_rows_that_coincide_by_chance_are_left_alone.
    """
    ours, theirs = Counter(private), Counter(public)
    twins = sum(row in ours for row in public)
    people = {
        person
        for person, row in zip(private if persons is None else persons, private, strict=True)
        if row in theirs
    }
    told = sum(row in theirs for row in private)
    excess = max(twins / len(public) - _chance(ours), told / len(private) - _chance(theirs))
    return SharedRows(len(public), twins, len(people), excess)


def _chance(counts: Counter[int]) -> float:
    """The share of a table's rows that have a twin there: as many fresh rows have one by chance.

    Of a table that was repeated as a whole, or drawn from equally often, one copy counts.
    """
    copies = gcd(*counts.values())
    return sum(n for n in counts.values() if n > copies) / counts.total()
