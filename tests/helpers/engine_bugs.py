"""Bugs in the place of the engine's clip, for tests and notebook 12 only.

Each has the signature of `fedlora_lab.privacy.privatizer.clip_sum`; the ledger of a run with one
certifies no epsilon.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedlora_lab.methods.state import Tensors
from fedlora_lab.privacy.privatizer import ClipCounts, clip_sum, row_norms

Clipped = tuple[dict, ClipCounts]


def clips_nothing(rows: Tensors, clip: float, owner: Tensor, owners: int, *rest: Any) -> Clipped:
    """Adds up the rows as they are.

    Args: see `clip_sum`.
    """
    return clip_sum(rows, math.inf, owner, owners)


def clips_the_mean(rows: Tensors, clip: float, owner: Tensor, owners: int, *rest: Any) -> Clipped:
    """Adds up first and clips each owner's sum, as if its mean were one row.

    Args: see `clip_sum`.
    """
    sums, counts = clip_sum(rows, math.inf, owner, owners)
    scaled = clip * max(1, len(owner)) / owners
    return clip_sum(sums, scaled, torch.arange(owners), owners)[0], counts


def clips_each_tensor(
    rows: Tensors, clip: float, owner: Tensor, owners: int, *rest: Any
) -> Clipped:
    """Clips every tensor to C and counts one release.

    Args: see `clip_sum`.
    """
    releases = [clip_sum({key: x}, clip, owner, owners) for key, x in rows.items()]
    sums = {key: x for tensors, _ in releases for key, x in tensors.items()}
    return sums, sum((counts for _, counts in releases), ClipCounts())


def clips_at_the_median(
    rows: Tensors, clip: float, owner: Tensor, owners: int, *rest: Any
) -> Clipped:
    """Takes the threshold from the batch.

    Args: see `clip_sum`.
    """
    norms = row_norms(rows)
    norms = norms[norms.isfinite()]
    return clip_sum(rows, float(norms.median()) if len(norms) else clip, owner, owners)


BUGS: dict[str, Callable[..., Clipped]] = {
    "clips nothing": clips_nothing,
    "clips the mean": clips_the_mean,
    "clips each tensor": clips_each_tensor,
    "clips at the median": clips_at_the_median,
}
"""Name -> bug. A review finds every one (test_engine.py::test_every_broken_clip_is_found)."""
