"""Closed forms as lines, and what was measured beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fedlora_lab.plots import style, tidy
from fedlora_lab.plots.grammar import name_values, place_ticks, write_plain_ticks
from fedlora_lab.plots.style import Picture


@style.paper()
def closed_form(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    title: str,
    log: str = "xy",
    parts: Mapping[str, str] | None = None,
) -> Picture:
    """Draws closed forms as lines, and what was measured beside them.

    A table with ``mean``, ``low`` and ``high`` holds measured means and their intervals; their
    ratio to the closed form stands below. A table with ``value`` holds single measurements, and
    ``low`` and ``high`` are then the 95 % band of one measurement, as the closed form says; see
    `measurements`. What misses is red.

    Args:
        table: columns x, closed, low, high, and mean or value; ``group`` where several curves share
            the figure. Numbers on a logarithmic axis are > 0.
        x, y: words for the axes, with units.
        title: the finding.
        log: the axes that are logarithmic: "", "x", "y" or "xy".
        parts: column -> words, further closed forms, drawn dashed.

    Raises: ``ValueError`` when a column is missing.
    Guarantees: the caption states `share_inside`
        (test_grammar.py::test_a_closed_form_counts_what_lies_inside).
    """
    share = share_inside(table)
    single = "value" in table.columns
    if "group" not in table.columns:
        table = table.assign(group="closed form")
    heights = [1] if single else [3, 1]
    size = (8.2, 4.3 if single else 5.2)
    figure, axes = style.subplots(*size, len(heights), sharex=True, height_ratios=heights)
    ax = axes[0]
    for axis in log:
        ax.set(**{f"{axis}scale": "log"})
    labels = []
    table, looks = name_values(table, "group")
    for group, look in looks.items():
        rows = table[table["group"] == group]
        curve: Any = rows.groupby("x")[["closed", "low", "high"]].mean()
        # Of measured means the interval is theirs, and no band of the closed form.
        edges = (curve["low"], curve["high"]) if single else ()
        line = style.named_line(ax, curve.index, curve["closed"], group, look.colour, *edges)
        labels.append(line)
        _draw_measured(axes, rows, look.colour)
    for column, name in (parts or {}).items():
        further: Any = table.groupby("x")[column].mean()
        dashed: Any = {"lw": 1.3, "ls": style.DASHED, "zorder": 1}
        labels.append(style.named_line(ax, further.index, further, name, style.GREY, **dashed))
    if "y" in log:
        write_plain_ticks(ax)
    place_ticks(axes[-1], table["x"])
    ax.set(ylabel=y, title=title)
    axes[-1].set_xlabel(x)
    style.label_ends(ax, labels, wide=18)
    words = "dots: measured means, bars: their 95 % interval (red: misses the line)"
    if single:
        words = f"band: 95 % of single measurements, dots: {len(table):,} of them (red: outside)"
    style.footer(figure, f"lines: closed form; {words}; inside: {100 * share:.3g}%")
    return figure


def _draw_measured(axes: Sequence[Axes], rows: pd.DataFrame, colour: str) -> None:
    """Draws the measurements of one group; into second axes their ratio to the closed form."""
    # Red on top of a line that fits is seen; a number in the caption alone would not be.
    agrees = _inside(rows)
    for part, ink in ((rows[agrees], colour), (rows[~agrees], style.WRONG)):
        if "value" in rows.columns:
            style.draw_dots(axes[0], part["x"], part["value"], ink, 3, mew=0, alpha=0.5)
            continue
        for ax, scale in zip(axes, (1.0, part["closed"]), strict=True):
            low, mean, high = (part[name] / scale for name in ("low", "mean", "high"))
            ax.vlines(part["x"], low.clip(lower=1e-300), high, color=ink, lw=1.4)
            style.draw_dots(ax, part["x"], mean, ink, 5, zorder=4)
    if len(axes) > 1:
        axes[1].axhline(1, color=style.GREY, lw=1.2, zorder=1)
        axes[1].set_ylabel("measured /\nclosed form")


def measurements(
    x: Sequence[float], values: Sequence[Any], bands: Sequence[Any], group: str = "closed form"
) -> pd.DataFrame:
    """Tabulates single measurements beside the band of their closed form, for `closed_form`.

    Args:
        x: places, (n,).
        values: at each place, n arrays of any length.
        bands: mean, low and high of one measurement at each place, n of them (`theory.Band`).
        group: name of the curve.

    Returns: columns x, value, closed, low, high, group; one row a measurement.
    """
    rows = [
        (float(place), float(number), *band, group)
        for place, drawn, band in zip(x, values, bands, strict=True)
        for number in np.ravel(drawn)
    ]
    return pd.DataFrame(rows, columns=["x", "value", "closed", "low", "high", "group"])


def _inside(table: pd.DataFrame) -> pd.Series:
    """Tells which rows agree with their closed form."""
    number = table.get("value", table["closed"])
    return (table["low"] <= number) & (number <= table["high"])


def share_inside(table: pd.DataFrame) -> float:
    """Computes the share of rows that agree with their closed form.

    A measured mean agrees if its interval holds the closed form; a single measurement if it lies in
    the band of the closed form.

    Args: table: see `closed_form`.
    Raises: ``ValueError`` for no row, or a table without x, closed, low, high, or both of mean and
        value.
    """
    tidy.value_column(table, "value", "x", "low", "high", "closed")
    return float(_inside(table).mean())
