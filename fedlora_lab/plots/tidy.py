"""What plots take from a tidy frame: the rows of a measure, the mean over seeds and its 95 % band."""

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from fedlora_lab.checks import check

COLUMNS = ("task", "method", "seed", "round", "layer", "measure", "value")


def rows(frame: Any, measure: str, *, layers: bool = False, some: bool = True) -> Any:
    """Rows of one measure that hold a finite value, of the whole model or, with ``layers``, of each layer.

    There is at least one, unless ``some`` is false.

    Raises: ``ValueError`` in one line when the frame is none, mixes tasks, or lacks the measure.
    Guarantees: test_a_frame_without_the_measure_is_refused.
    """
    check(isinstance(frame, pd.DataFrame), "frame", type(frame).__name__, "a pandas frame as fl.compare gives it")
    missing = [column for column in COLUMNS if column not in frame.columns]
    check(not missing, "frame.columns", list(map(str, frame.columns)), f"also {', '.join(missing)}")
    check(frame["task"].nunique() <= 1, "task", sorted(frame["task"].unique()), "one task; select it first")
    where = (frame["layer"] != "all") if layers else (frame["layer"] == "all")
    part = frame[where & (frame["measure"] == measure)]
    there = ", ".join(sorted(frame[where]["measure"].unique())) or "nothing"
    kind = "a measure of each layer" if layers else "a measure of the whole model"
    check(len(part) > 0, "measure", measure, f"{kind} in the frame, which has {there}")
    part = part[np.isfinite(part["value"].astype(float))]
    check(len(part) > 0 or not some, "measure", measure, "a finite value in at least one row")
    return part.astype({"value": float})


def order(frame: Any) -> list[str]:
    """Slugs in the order in which the frame first shows them."""
    return list(dict.fromkeys(frame["method"]))


def band(values: Any) -> tuple[float, float]:
    """The 95 % interval of a mean by Student's t: (low, high); the mean itself when there is one value."""
    values = np.asarray(values, dtype=float)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, mean
    half = float(stdtrit(n - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def seeds(part: Any) -> str:
    """How many seeds a mean has, in words for the figure."""
    counts = part.groupby("method")["seed"].nunique()
    low, high = int(counts.min()), int(counts.max())
    if high == 1:
        return "one seed, no band"
    return f"mean of n = {low if low == high else f'{low}–{high}'} seeds, band: 95 % interval (Student's t)"


def ends(part: Any) -> Any:
    """Mean over seeds at each method's last round: index method, columns round, value."""
    last = part[part["round"] == part.groupby("method")["round"].transform("max")]
    return last.groupby("method", sort=False).agg(round=("round", "max"), value=("value", "mean"))


def cumulative(frame: pd.DataFrame, measures: tuple[str, ...]) -> Any:
    """Sum of some measures, added up over the rounds of each method and seed: columns method, seed, round, value."""
    parts: Any = pd.concat([rows(frame, measure) for measure in measures])
    each = parts.groupby(["method", "seed", "round"], sort=False)["value"].sum().reset_index()
    each = each.sort_values(["method", "seed", "round"], kind="stable")
    each["value"] = each.groupby(["method", "seed"])["value"].cumsum()
    return each


def sized(count: float) -> tuple[float, str]:
    """The divisor and unit in which a number of bytes is easy to read: B, kB, MB, GB."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return 10.0**power, unit
    return 1.0, "B"
