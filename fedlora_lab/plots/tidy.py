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

    There is at least one, unless ``some`` is false. A run whose only finite value is that of its start has none: it was
    not measured, and the zero it began with is no result.

    Raises: ``ValueError`` in one line when the frame is none, mixes tasks, or lacks the measure.
    Guarantees: test_a_frame_without_the_measure_is_refused, test_plots_leave_out_what_was_not_measured.
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
    part = part[_measured(part)]
    check(len(part) > 0 or not some, "measure", measure, "a finite value in at least one row")
    return part.astype({"value": float})


def _measured(part: Any) -> Any:
    """Which rows of a measure hold a finite value, of a run that has one after its start (or is its start alone)."""
    finite = np.isfinite(part["value"].astype(float))
    keys = [part[name].astype(object).where(part[name].notna(), "none") for name in ("method", "seed")]
    later = part["round"] > part.groupby(keys)["round"].transform("min")
    only_start = ~later.groupby(keys).transform("any")
    return finite & ((later & finite).groupby(keys).transform("any") | only_start)


def unmeasured(frame: Any, measure: str) -> list[str]:
    """Slugs of the frame of which `rows` has none of this measure, in order."""
    return [slug for slug in order(frame) if slug not in set(rows(frame, measure, some=False)["method"])]


def last(frame: Any, measure: str) -> Any:
    """The finite values of a measure after the last round of each run; never those of an earlier round."""
    part = rows(frame, measure)
    whole = frame[frame["layer"] == "all"]
    ends = whole.groupby(["method", "seed"], dropna=False)["round"].max().rename("end").reset_index()
    part = part.merge(ends, on=["method", "seed"])
    part = part[part["round"] == part["end"]].drop(columns="end")
    check(len(part) > 0, "measure", measure, "a finite value after the last round of at least one run")
    return part


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
    end = part[part["round"] == part.groupby("method")["round"].transform("max")]
    return end.groupby("method", sort=False).agg(round=("round", "max"), value=("value", "mean"))


def cumulative(frame: pd.DataFrame, measures: tuple[str, ...]) -> Any:
    """Sum of some measures, added up over the rounds of each method and seed: columns method, seed, round, value.

    A run with a round that was not measured is left out: its sum is unknown.
    """
    for measure in measures:
        rows(frame, measure, some=False)  # refuses a frame without it
    part = frame[(frame["layer"] == "all") & frame["measure"].isin(measures)]
    grouped = part.groupby(["method", "seed", "round"], sort=False)["value"]
    each = grouped.agg(lambda some: some.sum(skipna=False)).reset_index()
    each = each.sort_values(["method", "seed", "round"], kind="stable")
    each["value"] = each.groupby(["method", "seed"])["value"].transform(lambda some: some.cumsum(skipna=False))
    kept = each.groupby(["method", "seed"])["value"].transform(lambda some: np.isfinite(some).all())
    return each[kept.astype(bool)]


def sized(count: float) -> tuple[float, str]:
    """The divisor and unit in which a number of bytes is easy to read: B, kB, MB, GB."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return 10.0**power, unit
    return 1.0, "B"
