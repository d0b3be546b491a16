"""A bug put into the engine for the length of a block, so that an audit may find it: for lessons, never for work."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fedlora_lab import engine, upload
from fedlora_lab.checks import check_one_of
from fedlora_lab.mechanism import Clipped, clip_sum, row_norms


def _nothing(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    return clip_sum(rows, math.inf, owner, owners)


def _mean(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    sums, counts = clip_sum(rows, math.inf, owner, owners)
    return clip_sum(sums, clip * max(1, len(owner)) / owners, torch.arange(owners), owners)[0], counts


def _tensors(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    parts = [clip_sum({slot: x}, clip, owner, owners) for slot, x in rows.items()]
    return {slot: x for part, _ in parts for slot, x in part.items()}, sum((n for _, n in parts), Clipped())


def _median(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    norms = row_norms(rows)
    norms = norms[norms.isfinite()]
    return clip_sum(rows, float(norms.median()) if len(norms) else clip, owner, owners)


PLANTS: dict[str, Callable[..., Any]] = {
    "clips nothing": _nothing,
    "clips the mean": _mean,
    "clips each tensor": _tensors,
    "clips at the median": _median,
}
"""Name -> what stands in the place of the clip: edges 3, 4 and 7, and no clip at all."""


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Inside the block every run clips as this bug does, and its ledger knows nothing of it.

    Args: name: one of `PLANTS`.
    Raises: ``ValueError`` for another name.
    Guarantees: afterwards all is as it was, also after an error; the self-check finds every one of them
        (test_lesson_12.py::test_every_plant_is_found_and_gone). Not for several threads at once.
    """
    check_one_of("name", name, tuple(PLANTS))
    before = engine.clip_sum, upload.clip_sum
    engine.clip_sum = upload.clip_sum = PLANTS[name]
    try:
        yield
    finally:
        engine.clip_sum, upload.clip_sum = before
