"""FedLPP at several widths: the runs, and what server and clients hold at their end."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedlora_lab import measures
from fedlora_lab.loop import run
from fedlora_lab.methods import FedLPP
from fedlora_lab.plan import Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.record import to_frame
from fedlora_lab.tasks.task import Task
from fedlora_lab.wire import normal_float

if TYPE_CHECKING:
    import pandas as pd


def quantised_runs(
    task: Task,
    widths: Iterable[int],
    privacy: Privacy | None,
    plan: Plan,
    seeds: Iterable[int] = (0, 1, 2),
    block: int = 64,
) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Train FedLPP at several widths and seeds.

    Returns: the tidy frame of the runs, methods "fedlpp-2-bits" and so on; and who holds what at the end, see
        `measures.protection`, with a column ``width``.

    Guarantees: test_lesson_08.py::test_quantised_runs.
    """
    import pandas as pd

    frames, held, seeds = [], [], tuple(seeds)
    for width in widths:
        row = FedLPP.replace(name=f"FedLPP {width} bits", broadcast=normal_float(width, block))
        for seed in seeds:
            watched, seen = measures.watch(row)
            records = list(run(task, watched, privacy, plan, seed=seed))
            frames.append(to_frame(records))
            held.append(measures.protection(records[-1], row, seen, min(5, plan.rounds)).assign(width=width))
    return pd.concat(frames, ignore_index=True), pd.concat(held, ignore_index=True)
