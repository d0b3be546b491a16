"""Reads tidy frames for the figures: rows of a measure, means over seeds and 95 % intervals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from fedlora_lab._utils.validation import check
from fedlora_lab.measures.runs import (
    COLUMNS,
    check_measure,
    describe_unequal_privacy,
    run_ends,
    t_interval,
)

RUN = ["method", "seed"]


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


def select_measure(
    frame: pd.DataFrame, measure: str, *, layers: bool = False, required: bool = True
) -> pd.DataFrame:
    """Selects the finite values of a measure of the whole model or, with ``layers``, of each layer.

    There is at least one, unless ``required`` is false. A run that has a value of its start only
    was not measured: it has no rows, since the zero it began with is no result.

    Args: frame: tidy, one task; measure: its name; layers, required: see above.
    Raises: ``ValueError`` in one line when the frame is none, mixes tasks, or lacks the measure.
    Guarantees: test_a_frame_without_the_measure_is_refused,
        test_plots_leave_out_what_was_not_measured.
    """
    value_column(frame, "value", *COLUMNS)
    tasks = sorted(frame["task"].unique())
    check(len(tasks) <= 1, "task", tasks, "one task; select it first")
    scope = frame[(frame["layer"] == "all") != layers]
    check_measure(scope, measure, "each layer" if layers else "the whole model")
    part = scope[scope["measure"] == measure].astype({"value": float})
    # A missing seed is a group of its own, which pandas would drop.
    run = [part[key].map(str) for key in RUN]
    finite = np.isfinite(part["value"])
    later = part["round"] > part.groupby(run)["round"].transform("min")
    measured = (later & finite).groupby(run).transform("any")
    only_start = ~later.groupby(run).transform("any")
    part = part[finite & (measured | only_start)]
    check(len(part) > 0 or not required, "measure", measure, "a finite value in at least one row")
    return part


def unmeasured_methods(frame: pd.DataFrame, part: pd.DataFrame) -> list[str]:
    """Lists slugs of the frame of which a part of it has no row."""
    return [slug for slug in slugs_in_order(frame) if slug not in set(part["method"])]


def collapsed_ends(part: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Selects the last rows of runs that collapsed by this measure.

    See `fl.measures.find_collapsed`.

    Args: part: rows of the measure as `select_measure` gives them. measure: a score of the model.
    """
    runs = run_ends(part, measure).reset_index()
    last = part.sort_values("round").drop_duplicates(RUN, keep="last")

    def keys(table: pd.DataFrame) -> list[tuple[str, float]]:
        # A run without a seed has None or NaN, which no merge takes for the same.
        seeds = pd.to_numeric(table["seed"]).fillna(-1)
        return list(zip(table["method"], seeds, strict=True))

    chosen = set(keys(runs[runs["collapsed"]]))
    return last[[key in chosen for key in keys(last)]]


def slugs_in_order(frame: pd.DataFrame) -> list[str]:
    """Lists slugs in the order in which the frame first shows them."""
    return list(dict.fromkeys(frame["method"]))


def confidence_interval(values: ArrayLike) -> tuple[float, float]:
    """Computes the 95 % interval of a mean by Student's t; one value has none, and both are NaN."""
    mean, half = t_interval(np.asarray(values, float))
    return mean - half, mean + half


def means(
    frame: pd.DataFrame, by: Sequence[str], value: str = "value", comparisons: int = 1
) -> pd.DataFrame:
    """Computes the mean of each group with its 95 % interval: columns by, mean, low, high.

    Groups keep the order in which the frame shows them. A group of one row has no interval: low
    and high are NaN. A frame of means, with the columns mean, low and high, is returned as it is.

    Args:
        frame: one row a measurement.
        by, value: columns of the groups, and of what was measured.
        comparisons: so many intervals hold together (Bonferroni).
    Guarantees: test_grammar.py::test_intervals_draw_means_and_their_bands,
        test_a_mean_of_one_seed_has_no_interval_and_an_open_marker.
    """
    if {"mean", "low", "high"} <= {*frame.columns}:
        return frame[[*by, "mean", "low", "high"]].copy()
    groups = frame.groupby(list(by), sort=False, dropna=False)[value]
    table = groups.agg(["mean", "std", "count"]).reset_index()
    point = stdtrit(table["count"].clip(lower=2) - 1, 1 - 0.025 / comparisons)
    # The standard deviation of a single value is NaN, which must not be read as a spread of zero.
    half = point * table["std"] / table["count"] ** 0.5
    table["low"] = table["mean"] - half
    table["high"] = table["mean"] + half
    return table[[*by, "mean", "low", "high"]]


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
        return f"{count}, no {band}, open marks"
    said = f"mean of {count}, {band}: 95 % interval of the mean (Student's t)"
    return f"{said}, open marks: one, no {band}" if count.startswith("1 ") else said


def describe_privacy(frame: pd.DataFrame) -> str:
    """Says behind a caption that the methods of a tidy frame spent unequal epsilons."""
    unequal = {*COLUMNS} <= {*frame.columns} and describe_unequal_privacy(frame)
    return "; the methods spent unequal ε" if unequal else ""


def cumulative_sum(frame: pd.DataFrame, measures: tuple[str, ...]) -> pd.DataFrame:
    """Adds some measures up over the rounds: columns method, seed, round, value.

    A run with a round that was not measured is left out: its sum is unknown.
    """
    for measure in measures:
        select_measure(frame, measure, required=False)  # refuses a frame without it
    # A missing round counts as missing, not as zero bytes.
    part = frame[(frame["layer"] == "all") & frame["measure"].isin(measures)]
    # The groups' own sum takes skipna from pandas 3 on only.
    total = part.groupby([*RUN, "round"])["value"].agg(lambda x: x.sum(skipna=False))
    runs = total.groupby(RUN)
    complete = runs.transform(lambda values: np.isfinite(values).all()).astype(bool)
    return runs.cumsum(skipna=False)[complete].reset_index()
