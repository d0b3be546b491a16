"""Tables of results, a row a method; differences of two methods, seed by seed.

>>> from fedlora_lab import report
>>> report.PairedDifference(0.02, 0.01, 0.03, seeds=3).holds
'yes'
"""

import math
from collections.abc import Iterator
from functools import partial
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

__all__ = ["PairedDifference", "display_table", "paired_difference", "summary"]
__dir__ = __all__.copy  # completion shows neither imports nor modules

TOTALS = ["bytes_up", "bytes_down", "seconds"]
"""Measures that are added up over the rounds."""


def summary(frame: pd.DataFrame, measure: str | None = None) -> pd.DataFrame:
    """Summarizes a tidy frame: one row for each method, and of a sweep for each of its settings.

    Columns: ``method``, what the frame varies and its learning rate ``lr``, ``seeds`` (how many),
    ``fell`` (how many of their runs ended worse than they began), ``collapsed`` (these, and those
    far behind the others, see `fl.measures.find_collapsed`), the score before training
    (``before``), after the last round (``score``) and its 95 % half-width over seeds
    (``interval``), ``deviation`` (relative, last round, mean over seeds), ``epsilon`` (the largest
    over seeds), ``bytes_up``, ``bytes_down`` and ``seconds`` (totals of a run, means over seeds).
    NaN is what was not measured in every run.

    Args: frame: tidy. measure: the score; by default accuracy or, where there is none, the loss.
        Its name is in ``attrs["measure"]``.

    Raises: ``ValueError`` for a frame that is not tidy, or has no such measure.
    Guarantees: nothing that was not measured is a number (test_what_was_not_measured_is_no_number).

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> summary(fl.to_frame(fl.run(task, "rolora", None, fl.Plan(rounds=1))))["bytes_up"].item()
    96.0
    """
    tidy.check_columns(frame, *COLUMNS)
    measure = headline_measure(frame) if measure is None else measure
    settings = [name for name in varied_columns(frame) if name != "lr"]
    settings += ["lr"] if "lr" in frame else []
    rows = [row for part in by_setting(frame) for row in _rows(part, measure, settings)]
    heads = [*map(_head, settings)]
    columns = ["method", *heads, "seeds", "fell", "collapsed", "before", "score", "interval"]
    summarised = pd.DataFrame(rows, columns=[*columns, "deviation", "epsilon", *TOTALS])
    # A method's settings stand below one another, in the order of the frame.
    order = list(frame["method"].unique())
    summarised = summarised.sort_values("method", key=lambda x: x.map(order.index), kind="stable")
    summarised.attrs = {"measure": measure, "settings": heads}
    return summarised.reset_index(drop=True)


def _rows(part: pd.DataFrame, measure: str, settings: list[str]) -> Iterator[dict[str, Any]]:
    """Yields a row of the summary for each method of one setting.

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
        score, interval = t_interval(its["after"].to_numpy())
        yield {
            "method": method,
            **{_head(name): first[name] for name in settings},
            "seeds": len(its),
            "fell": int(its["fell"].sum()),
            "collapsed": int(its["collapsed"].sum()),
            "before": its["before"].mean(skipna=False),
            "score": score,
            "interval": interval,
            "deviation": last.loc[[method], "deviation"].mean(skipna=False),
            # The largest: a mean over runs is promised to nobody.
            "epsilon": last.loc[[method], "epsilon"].max(skipna=False),
            **totals.loc[[method]].mean(skipna=False),
        }


def _head(setting: str) -> str:
    """How a column of what was varied is called beside what was measured."""
    return "target epsilon" if setting == "epsilon" else setting


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


def format_deviation(value: float) -> str:
    """Formats a relative deviation for people: what rounding leaves is nothing."""
    return "0" if value <= 1e-6 else format_number(value, infinite="∞")


def display_table(frame: pd.DataFrame, measure: str | None = None) -> pd.DataFrame:
    """Sets the summary of a tidy frame as a paper shows it; its ``to_latex`` writes the table.

    A row for each method, and of a sweep for each setting; the score, by ``measure``, has its 95 %
    interval over seeds, unless there is one seed or all agree, and the number of runs that
    collapsed. Every row states the epsilon that it spent. Where these are not one at a setting the
    table is no comparison of methods: `paired_difference` refuses it.

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> table = display_table(fl.to_frame(fl.run(task, "rolora", None, fl.Plan(rounds=1))))
    >>> table.loc["RoLoRA", "sent up"]
    '96 B'
    """
    table = summary(frame, measure)
    measure = table.attrs["measure"]
    columns = {
        **{name: table[name].map(setting_text) for name in table.attrs["settings"]},
        "seeds": table["seeds"].astype(str),
        f"{measure} before": table["before"].map(partial(format_number, infinite="∞")),
        f"{measure} after": table.apply(_score_text, axis=1),
        "deviation": table["deviation"].map(format_deviation),
        "ε": table["epsilon"].map(epsilon_text),
        "sent up": table["bytes_up"].map(bytes_text),
        "sent down": table["bytes_down"].map(bytes_text),
        "seconds": table["seconds"].map(partial(format_number, digits=1)),
    }
    shown = pd.DataFrame(columns).set_axis(table["method"].map(style.name))
    return shown.rename_axis(index=None, columns="method")


def _score_text(row: Any) -> str:
    """The score of a row of the summary, its interval, and how many runs collapsed."""
    text = format_number(row["score"], infinite="∞")
    # Seeds that agree, but for rounding, show no spread: ± 0.000 would claim certainty.
    if row["interval"] > 1e-9:
        text += f" ± {format_number(row['interval'])}"
    if row["collapsed"]:
        text += f" ({row['collapsed']} collapsed)"
    return text


# ---- two methods


class PairedDifference(NamedTuple):
    """Mean difference of two methods over the seeds they share, with its t interval.

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
