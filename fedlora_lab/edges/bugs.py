"""Broken clips that a run can be given in place of its own, so that an audit can find them: for lessons and tests.

``fl.run(..., bug=fl.edges.BUGS["clips nothing"])``, and likewise in `audit.audit` and `audit.self_check`. Nothing in
the package is replaced: the function belongs to that run's setting, and the run's ledger certifies no epsilon.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from fedlora_lab.mechanism import Clipped, clip_sum, row_norms


def clips_nothing(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Adds up the rows as they are."""
    return clip_sum(rows, math.inf, owner, owners)


def clips_the_mean(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Adds up first and clips each owner's sum, as if its mean were one row (edge 3)."""
    sums, counts = clip_sum(rows, math.inf, owner, owners)
    return clip_sum(sums, clip * max(1, len(owner)) / owners, torch.arange(owners), owners)[0], counts


def clips_each_tensor(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Clips every tensor to C and counts one release (edge 7)."""
    parts = [clip_sum({slot: x}, clip, owner, owners) for slot, x in rows.items()]
    return {slot: x for part, _ in parts for slot, x in part.items()}, sum((n for _, n in parts), Clipped())


def clips_at_the_median(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Takes the threshold from the batch (edge 4)."""
    norms = row_norms(rows)
    norms = norms[norms.isfinite()]
    return clip_sum(rows, float(norms.median()) if len(norms) else clip, owner, owners)


BUGS: dict[str, Callable[..., Any]] = {
    bug.__name__.replace("_", " "): bug
    for bug in (clips_nothing, clips_the_mean, clips_each_tensor, clips_at_the_median)
}
"""Name -> what clips in the place of `mechanism.clip_sum`, with its arguments. The self-check finds every one of them
(test_lesson_12.py::test_every_bug_is_found)."""
