"""Runs with quantised broadcasts, and what server and clients hold at their end."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fedlora_lab import measures, methods
from fedlora_lab.loop import run
from fedlora_lab.method import Method
from fedlora_lab.plan import Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.record import to_frame
from fedlora_lab.tasks.task import Task
from fedlora_lab.wire import NormalFloat, normal_float

if TYPE_CHECKING:
    import pandas as pd


def fedlpp(width: int, block: int = 64) -> Method:
    """FedLPP with codes of this many bits, named after them: "fedlpp-2-bits"."""
    return methods.FedLPP.replace(name=f"FedLPP {width} bits", broadcast=normal_float(width, block))


def quantised_runs(
    task: Task,
    which: Iterable[Method | str],
    privacy: Privacy | None,
    plan: Plan | Mapping[str, Plan],
    seeds: Iterable[int] = (0, 1, 2),
) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Train rows at several seeds; for those that broadcast quantised factors, see who holds what at the end.

    Args: plan: one for all, or one for each slug.
    Returns: the tidy frame of the runs; and `measures.protection` of each run with columns ``row`` (its slug) and
        ``width`` (bits of a code). Models are judged before training and at the end.

    Guarantees: test_lesson_08.py::test_quantised_runs.
    """
    import pandas as pd

    frames, held, seeds = [], [], tuple(seeds)
    for row in map(methods.get, which):
        own = plan if isinstance(plan, Plan) else plan[row.slug]
        for seed in seeds:
            watched, seen = measures.watch(row)
            records = list(run(task, watched, privacy, own, seed=seed, evaluate_every=own.rounds))
            frames.append(to_frame(records))
            if isinstance(row.broadcast, NormalFloat):
                found = measures.protection(records[-1], row, seen, min(5, own.rounds))
                held.append(found.assign(row=row.slug, width=row.broadcast.width))
    return pd.concat(frames, ignore_index=True), pd.concat(held, ignore_index=True) if held else pd.DataFrame()
