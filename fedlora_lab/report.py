"""Tables of results, a row a method; differences of two methods, seed by seed.

>>> from fedlora_lab import report
>>> report.PairedDifference(0.02, 0.01, 0.03, seeds=3).holds
'yes'
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from fedlora_lab._utils.rounding import round_up
from fedlora_lab._utils.validation import check, check_one_of, check_whole
from fedlora_lab.measures.runs import (
    COLUMNS,
    by_setting,
    check_equal_privacy,
    headline_measure,
    run_ends,
    setting_text,
    smaller_is_better,
    t_interval,
    varied_columns,
)
from fedlora_lab.plots import style, tidy

__all__ = ["PairedDifference", "display_table", "paired_difference"]
__dir__ = __all__.copy  # completion shows neither imports nor modules

TOTALS = ["bytes_up", "bytes_down", "seconds"]
"""Measures that are added up over the rounds."""


def display_table(frame: pd.DataFrame, measure: str | None = None) -> pd.DataFrame:
    """Summarizes a tidy frame as a paper shows it; its ``to_latex`` writes the table.

    A row for each method, and of a sweep for each of its settings: what the frame varies and the
    rate ``lr``, the number of seeds, the score before training and after the last round,
    the deviation (relative, last round, mean over seeds), the largest epsilon over the seeds, and
    totals of a run (means over seeds). The score has its 95 % interval over seeds, unless there is
    one seed or all agree, and the number of runs that collapsed, see `fl.measures.find_collapsed`.
    What was not measured in every run is a dash. Where the methods spent unequal epsilons at a
    setting the table is no comparison of methods: `paired_difference` refuses it.

    Args: frame: tidy. measure: the score; by default accuracy or, where there is none, the loss.

    Raises: ``ValueError`` for a frame that is not tidy, or has no such measure.
    Guarantees: nothing that was not measured is a number (test_what_was_not_measured_is_no_number).

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> table = display_table(fl.to_frame(fl.run(task, "rolora", None, fl.Plan(rounds=1))))
    >>> table.loc["RoLoRA", "sent up"]
    '96 B'
    """
    tidy.check_columns(frame, *COLUMNS)
    measure = headline_measure(frame) if measure is None else measure
    settings = [name for name in varied_columns(frame) if name != "lr"]
    settings += ["lr"] if "lr" in frame else []
    table = pd.DataFrame(
        row for part in by_setting(frame) for row in _rows(part, measure, settings)
    )
    # A method's settings stand below one another, in the order of the frame.
    order = list(frame["method"].unique())
    table = table.sort_values("method", key=lambda x: x.map(order.index), kind="stable")
    table.index = table.pop("method").map(style.name)
    return table.rename_axis(index=None, columns="method")


def _rows(part: pd.DataFrame, measure: str, settings: list[str]) -> Iterator[dict[str, str]]:
    """Yields a row of the table for each method of one setting.

    Args: part: of a tidy frame. measure: the score. settings: columns of the frame to keep.
    """
    ends = run_ends(part, measure)
    whole_model = part[part["layer"] == "all"].fillna({"seed": -1})
    table = whole_model.pivot(index=["method", "seed", "round"], columns="measure", values="value")
    runs = table.reindex(columns=["deviation", "epsilon", *TOTALS]).groupby(["method", "seed"])
    # No earlier round stands in for the last one, and a sum with an unknown part is unknown.
    last: Any = runs.tail(1).droplevel("round")
    totals: Any = runs[TOTALS].agg(lambda values: values.sum(skipna=False))
    for method, its in ends.groupby(level="method", sort=False):
        first = part[part["method"] == method].iloc[0]
        total = totals.loc[[method]].mean(skipna=False)
        deviation = last.loc[[method], "deviation"].mean(skipna=False)
        yield {
            "method": str(method),
            **{_head(name): setting_text(first[name]) for name in settings},
            "seeds": str(len(its)),
            f"{measure} before": format_number(its["before"].mean(skipna=False), infinite="∞"),
            f"{measure} after": _score_text(its),
            # What rounding leaves is nothing.
            "deviation": "0" if deviation <= 1e-6 else format_number(deviation, infinite="∞"),
            # The largest: a mean over runs is promised to nobody.
            "ε": epsilon_text(last.loc[[method], "epsilon"].max(skipna=False)),
            "sent up": bytes_text(total["bytes_up"]),
            "sent down": bytes_text(total["bytes_down"]),
            "seconds": format_number(total["seconds"], digits=1),
        }


def _head(setting: str) -> str:
    """How a column of what was varied is called beside what was measured."""
    return "target epsilon" if setting == "epsilon" else setting


def _score_text(ends: pd.DataFrame) -> str:
    """The score of a method's runs, its interval, and how many of them collapsed."""
    score, interval = t_interval(ends["after"].to_numpy())
    text = format_number(score, infinite="∞")
    # Seeds that agree, but for rounding, show no spread: ± 0.000 would claim certainty.
    if interval > 1e-9:
        text += f" ± {format_number(interval)}"
    if collapsed := int(ends["collapsed"].sum()):
        text += f" ({collapsed} collapsed)"
    return text


def format_number(value: float, digits: int = 3, infinite: str = "not private") -> str:
    """Formats a number for people: fixed digits, a dash for none, words for infinity.

    Args: value: or NaN, not measured. digits: after the point. infinite: the words for infinity.
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return infinite if value > 0 else "-∞"
    if value != 0 and abs(value) < 10**-digits:
        return f"{value:.0e}"
    return f"{value:.{digits}f}"


def epsilon_text(value: float, infinite: str = "not private") -> str:
    """Formats a spent epsilon for people, as `format_number` does, but never below the value."""
    if value is None or not math.isfinite(value):
        return format_number(value, 2, infinite)
    return round_up(value, ".0e" if 0 < value < 0.01 else ".2f")


def bytes_text(count: float) -> str:
    """Writes a number of bytes for people: 1 kB is 1000 bytes."""
    if math.isnan(count):
        return "–"
    power = next((i for i in range(3) if count < 1000 ** (i + 1)), 3)
    return f"{count / 1000**power:.{min(power, 1)}f} {('B', 'kB', 'MB', 'GB')[power]}"


# ---- two methods


class PairedDifference(NamedTuple):
    """Mean difference of two methods over the seeds they share, with its t interval.

    Args:
        mean: of the differences, in the unit of the measure; positive where the first is ahead.
        low, high: ends of its interval; NaN where all seeds differ by the same.
        seeds: how many both have.

    >>> print(PairedDifference(0.02, 0.01, 0.03, seeds=3))
    +0.020 [+0.010, +0.030]
    >>> print(PairedDifference(0.02, math.nan, math.nan, seeds=2))
    +0.020 (all 2 seeds differ by the same, so there is no interval)
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def holds(self) -> str:
        """Whether the first is ahead: "yes", "no" (the other is), or "cannot tell"."""
        return "yes" if self.low > 0 else "no" if self.high < 0 else "cannot tell"

    def __str__(self) -> str:
        mean, low, high = (f"{value:+.3f}".replace("-", "−") for value in self[:3])
        if math.isnan(self.low):
            return f"{mean} (all {self.seeds} seeds differ by the same, so there is no interval)"
        return f"{mean} [{low}, {high}]"


def paired_difference(
    frame: pd.DataFrame, one: str, other: str, measure: str = "accuracy", comparisons: int = 1
) -> PairedDifference:
    """Computes by how much one method is ahead of another, seed by seed, with its interval.

    Args:
        frame: columns method, seed and ``measure``, one row for each pair of the first two; or a
            tidy frame, whose last rounds count.
        one, other: slugs; they must share two seeds.
        measure: the column, or the measure of the tidy frame.
        comparisons: how many are looked at, this one among them. Their intervals hold together in
            95 % of studies (Bonferroni).
    Returns: an interval of NaN where all seeds differ by the same: they measure no spread.
    Raises: ``ValueError`` where they share fewer than two seeds; and where the frame tells which
        epsilons they spent, and these differ in a seed by more than 1 %, or only one is known.
    Guarantees: test_paired_difference.py::test_pairs_of_unequal_epsilon_are_refused.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"method": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1],
    ...                       "accuracy": [0.8, 0.9, 0.7, 0.8]})
    >>> difference = paired_difference(frame, "a", "b")
    >>> round(difference.mean, 3), difference.holds
    (0.1, 'cannot tell')

    Of losses the smaller one is ahead.

    >>> paired_difference(frame.rename(columns={"accuracy": "loss"}), "a", "b", "loss").mean < 0
    True
    >>> import fedlora_lab as fl
    >>> task, plan, pair = fl.tasks.regression(clients=2), fl.Plan(rounds=1), ["rolora", "fedlora"]
    >>> tidy = fl.compare(task, pair, None, plan, seeds=[0, 1], progress=False)
    >>> paired_difference(tidy, *pair, "loss").seeds
    2
    """
    check(hasattr(frame, "columns"), "frame", frame, "a frame, such as fl.compare returns")
    given = frame
    if measure not in frame:
        frame = run_ends(frame, measure).rename(columns={"after": measure}).reset_index()
    check_whole("comparisons", comparisons, 1)
    for slug in (one, other):
        check_one_of("method", slug, tuple(frame["method"].unique()))
    check_equal_privacy(given, one, other)
    both = frame[frame["method"].isin([one, other])]
    # The mean where a method has several rows of a seed.
    means: Any = both.groupby(["seed", "method"])[measure].mean().unstack()
    # Only seeds that both have: the spread between seeds cancels in pairs.
    table = means.reindex(columns=[one, other]).dropna()
    check(len(table) >= 2, "seeds", len(table), f"at least two that {one!r} and {other!r} share")
    ahead = table.diff(axis=1)[other] * (1 if smaller_is_better(measure) else -1)
    mean, half = t_interval(ahead.to_numpy(), 1 - 0.05 / comparisons)
    # Seeds may agree by chance, but for rounding.
    half = half if half > 1e-12 * table.abs().to_numpy().max() else math.nan
    return PairedDifference(mean, mean - half, mean + half, len(table))
