"""Tables of results: a row a method, a notebook's claims; and how numbers are shown."""

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fedlora_lab._utils.html_table import html_table
from fedlora_lab._utils.validation import check
from fedlora_lab.measures.statistics import (
    COLUMNS,
    count_collapsed,
    describe_collapse,
    headline_measure,
    run_ends,
    t_interval,
)
from fedlora_lab.methods.quantization import bytes_text

HEAD = ("claimed (source, its setting)", "here (our setting)", "holds?")


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Summarizes a tidy frame: one row for each method.

    Columns: ``method``, ``seeds`` (how many), ``fell`` (how many of their runs ended worse than
    they began), ``collapsed`` (these, and those far behind the others, see
    `fl.measures.find_collapsed`), the headline measure before training (``before``), after the
    last round (``score``) and its 95 % half-width over seeds (``interval``), ``deviation``
    (relative, last round, mean over seeds), ``epsilon`` (the largest over seeds), ``bytes_up``,
    ``bytes_down`` and ``seconds`` (totals of a run, means over seeds). NaN is what was not measured
    in every run. The measure's name is in ``attrs["measure"]``.

    Guarantees: nothing that was not measured is a number (test_what_was_not_measured_is_no_number).

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> summary(fl.to_frame(fl.run(task, "rolora", None, fl.Plan(rounds=1))))["bytes_up"].item()
    96.0
    """
    complete = set(COLUMNS) <= set(frame.columns)
    check(complete, "frame", list(frame.columns), f"columns {', '.join(COLUMNS)}")
    check(len(frame) > 0, "frame", "empty", "at least one row")
    measure = headline_measure(frame)
    rows_of_runs: Any = frame[frame["layer"] == "all"]
    keys: Any = {"by": ["method", "seed"], "sort": False, "dropna": False}
    rounds = rows_of_runs.groupby(**keys)["round"]
    ended = rows_of_runs["round"] == rounds.transform("max")
    counts = count_collapsed(run_ends(frame))

    def per_run(name: str, where: Any = True, total: bool = False) -> Any:
        """A value of each run: where it was measured last, or the sum over its rounds.

        No earlier round stands in for the last one, and a sum with an unknown part is unknown.
        """
        values = rows_of_runs[(rows_of_runs["measure"] == name) & where].groupby(**keys)["value"]
        return values.agg(lambda some: some.sum(skipna=False) if total else some.iloc[-1])

    last = {name: per_run(name, ended) for name in ("deviation", "epsilon")}
    sums = {name: per_run(name, total=True) for name in ("bytes_up", "bytes_down", "seconds")}
    cells = pd.DataFrame({"score": per_run(measure, ended), **last, **sums})
    rows = []
    for method in frame["method"].unique():
        part = cells.loc[method]
        score, interval = t_interval(part["score"].to_numpy())
        # The largest epsilon: a mean over runs is promised to nobody.
        row = {"score": score, "interval": interval, "epsilon": part["epsilon"].max(skipna=False)}
        row |= {"method": method, **counts[method]}
        rows.append(part.mean(skipna=False).to_dict() | row)
    first = ["method", "seeds", "fell", "collapsed", "before", "score", "interval"]
    table = pd.DataFrame(rows, columns=[*first, *last, *sums])
    table.attrs["measure"] = measure
    return table


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


def format_deviation(value: float) -> str:
    """Formats a relative deviation for people: what rounding leaves is nothing."""
    return "0" if value <= 1e-6 else format_number(value, infinite="∞")


AGAINST = {
    "local": "whoever sees the uploads",
    "secagg": "whoever sees the sums of the uploads",
    "central": "whoever sees the released models only",
}
"""Trust -> against whom ε holds, in a few words; `Ledger.statement` says it in full."""


def observer_phrase(trust: str | None) -> str:
    """Returns words that name the observer of an ε; "" without privacy (``None``)."""
    return "" if trust is None else f" against {AGAINST[trust]}"


def format_score(score: float, interval: float) -> str:
    """Formats a score with the half-width of its interval, if it has one."""
    half = "" if math.isnan(interval) else f" ± {format_number(interval)}"
    return format_number(score, infinite="∞") + half


def display_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    """Formats the summary as it is shown in the terminal and in the report."""
    measure = table.attrs.get("measure", "accuracy")
    rows: Any = table.to_dict("records")
    return [
        {
            "method": str(row["method"]),
            "seeds": str(row["seeds"]),
            "before": format_number(row["before"], infinite="∞"),
            "score": format_score(row["score"], row["interval"]),
            "deviation": format_deviation(row["deviation"]),
            "epsilon": format_number(row["epsilon"], 2),
            "up": bytes_text(row["bytes_up"]),
            "down": bytes_text(row["bytes_down"]),
            "seconds": format_number(row["seconds"], 1),
            "collapsed": describe_collapse(measure, row | {"after": row["score"]}),
        }
        for row in rows
    ]


def summary_lines(frame: pd.DataFrame, trust: str | None = None) -> list[str]:
    """Sets the table at the end, as in the report.

    Args: frame: tidy, of all runs. trust: names against whom ε holds.
    """
    table = summary(frame)
    measure = table.attrs["measure"]
    rows = display_rows(table)
    heads = {
        "method": "method",
        "seeds": "seeds",
        "before": f"{measure} before",
        "score": f"{measure} after",
        "deviation": "deviation",
        "epsilon": "ε",
        "up": "sent up",
        "down": "sent down",
        "seconds": "seconds",
    }
    cells = [list(heads.values()), *([row[key] for key in heads] for row in rows)]
    lines = align_columns(cells, right=range(1, len(heads)))
    observer = [f"ε:{observer_phrase(trust)}"] if trust else []
    collapsed = [f"{row['method']}: {row['collapsed']}" for row in rows if row["collapsed"]]
    return [*lines, *observer, *collapsed]


def align_columns(rows: list[list[str]], right: Container[int] = ()) -> list[str]:
    """Sets rows of text as lines with columns of equal width.

    Args: rows: of text. right: numbers of the columns that are set flush right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


# ---- papers against measurement


@dataclass(frozen=True)
class ClaimsTable:
    """Rows (claim with its source, what was measured here, verdict) as a notebook shows them."""

    rows: tuple[tuple[str, str, str], ...]

    def __repr__(self) -> str:
        return "\n".join(" | ".join(map(str, row)) for row in (HEAD, *self.rows))

    def _repr_html_(self) -> str:
        return html_table(self.rows, HEAD)


def claims_table(*rows: tuple[str, str, str]) -> ClaimsTable:
    """Makes the table of a notebook's claims: what was claimed where, what is measured, verdict.

    >>> claims_table(("A < B (paper)", "A < B", "yes"))
    claimed (source, its setting) | here (our setting) | holds?
    A < B (paper) | A < B | yes
    """
    return ClaimsTable(rows)
