"""The table at the end of a comparison: one row for each method, with intervals over seeds."""

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlora_lab.checks import check

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("task", "method", "seed", "round", "layer", "measure", "value")


def t_interval(values: "np.ndarray", level: float = 0.95) -> tuple[float, float]:
    """Mean and half-width of Student's t interval of ``values`` (n,); the half-width of one value is NaN,
    and so is that of values of which one is not finite.

    Guarantees: equals ``scipy.stats.t.interval`` (test_t_interval_is_scipys).
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=float)
    mean = float(values.mean()) if values.size else math.nan
    if values.size < 2 or not np.isfinite(values).all():
        return mean, math.nan
    half = float(t.ppf((1 + level) / 2, values.size - 1)) * float(values.std(ddof=1)) / math.sqrt(values.size)
    return mean, half


def headline(frame: "pd.DataFrame") -> str:
    """The measure a run is judged by: accuracy where the task has it, else the test loss."""
    return "accuracy" if "accuracy" in set(frame["measure"]) else "loss"


def worse(measure: str, before: float, after: float) -> bool:
    """Whether a score is worse than another: less accuracy, or more loss; False where one of them is NaN."""
    return after < before if measure.startswith("accuracy") else after > before


def fall(measure: str, before: float, after: float) -> str:
    """Words on a run that ended worse than it began; "" for one that did not, or was not measured."""
    if not worse(measure, before, after):
        return ""
    way = "fell below" if after < before else "rose above"
    return f"{way} its start: {_apart(before, after)}"


def _apart(before: float, after: float) -> str:
    """Two numbers with as many digits as show that they differ, at least two."""
    digits = next((n for n in range(2, 6) if f"{before:.{n}f}" != f"{after:.{n}f}"), 6)
    return f"{before:.{digits}f} to {after:.{digits}f}".replace("inf", "∞")


def _per_seed(frame: Any, measure: str, how: str) -> Any:
    """A value of each method and seed: of the first round, of the last one, or the sum over all of them.

    What was not measured is NaN and stays NaN: no earlier round stands in for the last one, and a sum with an unknown
    part is unknown.
    """
    whole = frame[frame["layer"] == "all"]
    runs = whole.groupby(["method", "seed"], sort=False, dropna=False)["round"]
    ends = {"first": whole["round"] == runs.transform("min"), "last": whole["round"] == runs.transform("max")}
    part = whole[(whole["measure"] == measure) & ends.get(how, True)]
    values = part.groupby(["method", "seed"], sort=False, dropna=False)["value"]
    return values.agg(lambda some: some.sum(skipna=False) if how == "sum" else some.iloc[-1])


def summary(frame: "pd.DataFrame") -> "pd.DataFrame":
    """One row for each method of a tidy frame.

    Columns: ``method``, ``seeds`` (how many), ``fell`` (how many of their runs ended worse than they began), the
    headline measure before training (``before``), after the last round (``score``) and its 95 % half-width over seeds
    (``interval``), ``deviation`` (relative, last round, mean over seeds), ``epsilon`` (the largest over seeds),
    ``bytes_up`` and ``bytes_down`` and ``seconds`` (totals of a run, means over seeds). NaN is what was not measured
    in every run. The measure's name is in ``attrs["measure"]``.

    Raises: ``ValueError`` when columns or rows are missing.
    Guarantees: nothing that was not measured is a number (test_what_was_not_measured_is_no_number).
    """
    import pandas as pd

    check(set(COLUMNS) <= set(frame.columns), "frame", list(frame.columns), f"columns {', '.join(COLUMNS)}")
    check(len(frame) > 0, "frame", "empty", "at least one row")
    measure = headline(frame)
    wanted = [("before", measure, "first"), ("score", measure, "last"), ("deviation", "deviation", "last"),
              ("epsilon", "epsilon", "last"), ("bytes_up", "bytes_up", "sum"), ("bytes_down", "bytes_down", "sum"),
              ("seconds", "seconds", "sum")]  # fmt: skip
    cells = pd.DataFrame({name: _per_seed(frame, of, how) for name, of, how in wanted})
    cells["fell"] = [worse(measure, *pair) for pair in zip(cells["before"], cells["score"], strict=True)]
    rows = []
    for method in frame["method"].unique():
        part = cells.loc[method]
        score, interval = t_interval(part["score"].to_numpy())
        means = part.mean(skipna=False).to_dict()
        counts = {"seeds": len(part), "fell": int(part["fell"].sum())}
        rows.append({"method": method, **means, **counts, "score": score, "epsilon": part["epsilon"].max(skipna=False),
                     "interval": interval})  # fmt: skip
    order = [
        "method",
        "seeds",
        "fell",
        "before",
        "score",
        "interval",
        *(name for name, _, _ in wanted if name not in ("before", "score")),
    ]
    table = pd.DataFrame(rows, columns=order)
    table.attrs["measure"] = measure
    return table


def markdown(rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; the first row is its head, and a bar within a cell becomes a stroke."""
    cells = [[str(cell).replace("|", "/") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


SILENT = re.compile(r" {0,3}(%|\+\+\+|\([^()\s]+\)=\s*$|:::)")
"""How a line begins that MyST takes for a comment, the end of a block, a target or a directive, even within prose."""


def silent_lines(page: str) -> list[str]:
    """The lines of a Markdown page, outside code, that the site would not show as text."""
    lines, fence = [], ""
    for line in page.splitlines():
        mark = re.match(r" {0,3}(```+|~~~+)", line)
        if mark:
            fence = ("" if mark[1].startswith(fence) else fence) if fence else mark[1]
        elif not fence and SILENT.match(line):
            lines.append(line)
    return lines


def shown_whole(page: str) -> str:
    """The page as it is. Raises ``ValueError`` for one with a line that the site would not show; wrap it elsewhere."""
    found = silent_lines(page)
    check(not found, "page", found, "no line that MyST takes for a comment, a target or a directive: wrap it elsewhere")
    return page


def number(value: float, digits: int = 3, infinite: str = "not private") -> str:
    """A number for people: fixed digits, a dash for what was not measured, words for infinity."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return infinite if value > 0 else "-∞"
    if value != 0 and abs(value) < 10**-digits:
        return f"{value:.0e}"
    return f"{value:.{digits}f}"


AGAINST = {
    "local": "whoever sees the uploads",
    "secagg": "whoever sees the sums of the uploads",
    "central": "whoever sees the released models only",
}
"""Trust -> against whom ε holds, in a few words; `Ledger.statement` says it in full."""


def against(trust: str | None) -> str:
    """Words that follow an ε and name its observer; "" without privacy. Args: trust: of the ledger or the plan."""
    return "" if trust is None else f" against {AGAINST[trust]}"


def distance(value: float) -> str:
    """A relative deviation for people: what rounding leaves is nothing, and a dash is what was not measured."""
    return "0" if value <= 1e-6 else number(value, infinite="∞")


def size(count: float) -> str:
    """A number of bytes for people: 1 kB is 1000 bytes."""
    if math.isnan(count):
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def words(table: "pd.DataFrame") -> list[dict[str, str]]:
    """The summary with every value as it is shown, in the terminal and in the report alike."""
    measure = table.attrs.get("measure", "accuracy")
    return [
        {
            "method": str(row["method"]),
            "seeds": str(row["seeds"]),
            "before": number(row["before"], infinite="∞"),
            "score": number(row["score"], infinite="∞")
            + ("" if math.isnan(row["interval"]) else f" ± {number(row['interval'])}"),
            "deviation": distance(row["deviation"]),
            "epsilon": number(row["epsilon"], 2),
            "up": size(row["bytes_up"]),
            "down": size(row["bytes_down"]),
            "seconds": number(row["seconds"], 1),
            "fell": _fell(measure, row),
        }
        for row in table.to_dict("records")
    ]


def _fell(measure: str, row: "dict[str, Any]") -> str:
    """Words on the runs of a method that ended worse than they began; "" where none did."""
    if not row.get("fell"):
        return ""
    if row["seeds"] == 1:
        return fall(measure, row["before"], row["score"])
    start = "fell below" if measure.startswith("accuracy") else "rose above"
    told = f"{row['fell']} of {row['seeds']} runs {start} their start"
    return told if math.isnan(row["score"]) else f"{told}; mean {_apart(row['before'], row['score'])}"
