"""The table at the end of a comparison: one row for each method, with intervals over seeds."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlora_lab.checks import check

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("task", "method", "seed", "round", "layer", "measure", "value")


def t_interval(values: "np.ndarray", level: float = 0.95) -> tuple[float, float]:
    """Mean and half-width of Student's t interval of ``values`` (n,); the half-width of one value is NaN.

    Guarantees: equals ``scipy.stats.t.interval`` (test_t_interval_is_scipys).
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=float)
    mean = float(values.mean()) if values.size else math.nan
    if values.size < 2:
        return mean, math.nan
    half = float(t.ppf((1 + level) / 2, values.size - 1)) * float(values.std(ddof=1)) / math.sqrt(values.size)
    return mean, half


def headline(frame: "pd.DataFrame") -> str:
    """The measure a run is judged by: accuracy where the task has it, else the test loss."""
    return "accuracy" if "accuracy" in set(frame["measure"]) else "loss"


def _per_seed(frame: Any, measure: str, how: str) -> Any:
    part = frame[(frame["layer"] == "all") & (frame["measure"] == measure)].sort_values("round")
    grouped = part.groupby(["method", "seed"], sort=False, dropna=False)["value"]
    return {"first": grouped.first, "last": grouped.last, "sum": grouped.sum}[how]()


def summary(frame: "pd.DataFrame") -> "pd.DataFrame":
    """One row for each method of a tidy frame.

    Columns: ``method``, ``seeds`` (how many), the headline measure before training (``before``), after the last round
    (``score``) and its 95 % half-width over seeds (``interval``), ``deviation`` (relative, last round, mean over
    seeds), ``epsilon`` (the largest over seeds), ``bytes_up`` and ``bytes_down`` and ``seconds`` (totals of a run,
    means over seeds). The measure's name is in ``attrs["measure"]``.

    Raises: ``ValueError`` when columns or rows are missing.
    """
    import pandas as pd

    check(set(COLUMNS) <= set(frame.columns), "frame", list(frame.columns), f"columns {', '.join(COLUMNS)}")
    check(len(frame) > 0, "frame", "empty", "at least one row")
    measure = headline(frame)
    wanted = [("before", measure, "first"), ("score", measure, "last"), ("deviation", "deviation", "last"),
              ("epsilon", "epsilon", "last"), ("bytes_up", "bytes_up", "sum"), ("bytes_down", "bytes_down", "sum"),
              ("seconds", "seconds", "sum")]  # fmt: skip
    cells = pd.DataFrame({name: _per_seed(frame, of, how) for name, of, how in wanted})
    rows = []
    for method in frame["method"].unique():
        part = cells.loc[method]
        score, interval = t_interval(part["score"].to_numpy())
        means = part.mean().to_dict()
        rows.append({"method": method, "seeds": len(part), **means, "score": score, "epsilon": part["epsilon"].max(),
                     "interval": interval})  # fmt: skip
    order = [
        "method",
        "seeds",
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


def number(value: float, digits: int = 3) -> str:
    """A number for people: fixed digits, a dash for what was not measured, words for infinity."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "not private" if value > 0 else "-∞"
    if value != 0 and abs(value) < 10**-digits:
        return f"{value:.0e}"
    return f"{value:.{digits}f}"


def distance(value: float) -> str:
    """A relative deviation for people: what rounding leaves is nothing."""
    return "0" if value <= 1e-6 else number(value)


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
    return [
        {
            "method": str(row["method"]),
            "seeds": str(row["seeds"]),
            "before": number(row["before"]),
            "score": number(row["score"]) + ("" if math.isnan(row["interval"]) else f" ± {number(row['interval'])}"),
            "deviation": distance(row["deviation"]),
            "epsilon": number(row["epsilon"], 2),
            "up": size(row["bytes_up"]),
            "down": size(row["bytes_down"]),
            "seconds": number(row["seconds"], 1),
        }
        for row in table.to_dict("records")
    ]
