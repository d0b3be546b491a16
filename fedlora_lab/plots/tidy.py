"""Reads frames for the figures: their columns, the rows of a measure, and what a caption says."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fedlora_lab._utils.validation import check
from fedlora_lab.measures.runs import COLUMNS, check_measure, spent_unequally


def check_columns(frame: pd.DataFrame, *names: str | None) -> None:
    """Refuses what is no frame, and one without a row or one of these columns.

    Args: frame: perhaps anything; names: of columns, ``None`` is none.
    """
    check(isinstance(frame, pd.DataFrame), "frame", type(frame).__name__, "a pandas DataFrame")
    columns = list(frame.columns)
    missing = [str(name) for name in names if name not in (None, *columns)]
    check(not missing, "frame.columns", columns, f"also {', '.join(missing)}")
    check(len(frame) > 0, "frame", "no row", "at least one row")


def value_column(frame: pd.DataFrame, value: str, *names: str | None) -> str:
    """Names the column of the numbers, ``mean`` in a frame of means, and refuses words in it.

    Args: frame, names: see `check_columns`. value: the column's name where there are no means.
    """
    check_columns(frame, *names)
    column = "mean" if "mean" in frame.columns else value
    check_columns(frame, column)
    kind = frame[column].dtype
    check(pd.api.types.is_numeric_dtype(kind), f"frame[{column!r}]", str(kind), "numbers")
    return column


def select_measure(frame: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Selects the finite values of a measure of the whole model.

    There may be none. A run that has a value of its start only was not measured: it has no rows,
    since the zero it began with is no result.

    Args: frame: tidy, one task; measure: its name.
    Raises: ``ValueError`` in one line when the frame is none, mixes tasks, or lacks the measure.
    Guarantees: test_a_frame_without_the_measure_is_refused,
        test_plots_leave_out_what_was_not_measured.
    """
    value_column(frame, "value", *COLUMNS)
    tasks = sorted(frame["task"].unique())
    check(len(tasks) <= 1, "task", tasks, "one task; select it first")
    scope = frame[frame["layer"] == "all"]
    check_measure(scope, measure, "the whole model")
    part = scope[scope["measure"] == measure].astype({"value": float})
    # A missing seed is a group of its own, which pandas would drop.
    run = [part[key].map(str) for key in ("method", "seed")]
    finite = np.isfinite(part["value"])
    later = part["round"] > part.groupby(run)["round"].transform("min")
    measured = (later & finite).groupby(run).transform("any")
    only_start = ~later.groupby(run).transform("any")
    return part[finite & (measured | only_start)]


def count_measurements(frame: pd.DataFrame, by: Sequence[str | None]) -> str:
    """Says how many measurements a mean has, such as "3 seeds".

    Args: frame: one row a measurement; by: columns of the groups, ``None`` is none.
    """
    counts = frame.groupby(list(filter(None, by)), dropna=False).size()
    kind = "seed" if "seed" in frame.columns else "measurement"
    # Groups may have different numbers of them.
    ends = dict.fromkeys([counts.min(), counts.max()])
    return " to ".join(map(str, ends)) + f" {kind}" + ("s" if counts.max() > 1 else "")


def describe_means(frame: pd.DataFrame, by: Sequence[str | None], band: str = "band") -> str:
    """Says what a mean and its band are made of.

    Args: frame, by: see `count_measurements`; band: what it is called.
    """
    count = count_measurements(frame, by)
    if count.startswith("1 ") and " to " not in count:
        return f"{count}, no {band}"
    said = f"mean of {count}, {band}: 95 % interval of the mean (Student's t)"
    return f"{said}; no {band}: one" if count.startswith("1 ") else said


def describe_privacy(frame: pd.DataFrame) -> str:
    """Says behind a caption that the methods of a tidy frame spent unequal epsilons."""
    unequal = {*COLUMNS} <= {*frame.columns} and spent_unequally(frame)
    return "; the methods spent unequal ε" if unequal else ""


def split_panels(frame: pd.DataFrame, panel: str | None) -> dict[str, pd.DataFrame]:
    """Splits a frame into the rows of each panel, in their order; without one, one panel."""
    if panel is None:
        return {"": frame}
    return {str(key): part for key, part in frame.groupby(panel, sort=False)}
