"""Bugs to inject in the place of the library's clip, for tests and lesson 12 only.

Each has the signature of `mechanism.clip_sum`. The ledger of a run with one is uncertified.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from fedlora_lab.privacy.mechanism import ClipCounts, clip_sum, row_norms


def _clips_nothing(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Adds up the rows as they are."""
    return clip_sum(rows, math.inf, owner, owners)


def _clips_the_mean(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Adds up first and clips each owner's sum, as if its mean were one row (pitfall 3)."""
    sums, counts = clip_sum(rows, math.inf, owner, owners)
    scaled = clip * max(1, len(owner)) / owners
    return clip_sum(sums, scaled, torch.arange(owners), owners)[0], counts


def _clips_each_tensor(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Clips every tensor to C and counts one release (pitfall 7)."""
    parts = [clip_sum({key: x}, clip, owner, owners) for key, x in rows.items()]
    sums = {key: x for part, _ in parts for key, x in part.items()}
    return sums, sum((n for _, n in parts), ClipCounts())


def _clips_at_the_median(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Takes the threshold from the batch (pitfall 4)."""
    norms = row_norms(rows)
    norms = norms[norms.isfinite()]
    return clip_sum(rows, float(norms.median()) if len(norms) else clip, owner, owners)


BUGS: dict[str, Callable[..., Any]] = {
    bug.__name__.strip("_").replace("_", " "): bug
    for bug in (_clips_nothing, _clips_the_mean, _clips_each_tensor, _clips_at_the_median)
}
"""Name -> bug. The self-check finds every one (test_lesson_12.py::test_every_bug_is_found)."""
