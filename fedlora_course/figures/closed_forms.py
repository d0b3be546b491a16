"""Closed forms as lines, and what was measured beside them."""

from typing import Any

import numpy as np
import pandas as pd

from fedlora_lab.plots import style, tidy
from fedlora_lab.plots.grammar import name_values, place_ticks, write_plain_ticks
from fedlora_lab.plots.style import Picture


@style.paper()
def closed_form(table: pd.DataFrame, *, x: str, y: str, title: str, log: str = "xy") -> Picture:
    """Draws closed forms as lines, and beside them measured means with their intervals.

    The ratio of each mean to its closed form stands below. What misses is red.

    Args:
        table: columns x, closed, mean, low, high; ``group`` where several curves share the figure.
            Numbers on a logarithmic axis are > 0.
        x, y: words for the axes, with units.
        title: the finding.
        log: the axes that are logarithmic: "", "x", "y" or "xy".

    Raises: ``ValueError`` when a column is missing.
    Guarantees: the caption states the share of intervals that hold their closed form
        (test_closed_forms.py::test_a_closed_form_counts_what_lies_inside).
    """
    tidy.check_columns(table, "x", "closed", "mean", "low", "high")
    if "group" not in table.columns:
        table = table.assign(group="closed form")
    agrees = (table["low"] <= table["closed"]) & (table["closed"] <= table["high"])
    table = table.assign(agrees=agrees, one=1.0)
    figure, axes = style.subplots(8.2, 5.2, 2, sharex=True, height_ratios=[3, 1])
    ax, below = axes
    for axis in log:
        ax.set(**{f"{axis}scale": "log"})
    labels = []
    table, looks = name_values(table, "group")
    for group, look in looks.items():
        rows = table[table["group"] == group]
        curve: Any = rows.groupby("x")["closed"].mean()
        labels.append(style.named_line(ax, curve.index, curve, group, look.colour))
        # Red on top of a line that fits is seen; a number in the caption alone would not be.
        for part, ink in (
            (rows[rows["agrees"]], look.colour),
            (rows[~rows["agrees"]], style.WRONG),
        ):
            for axes_of, unit in ((ax, "one"), (below, "closed")):
                low, mean, high = (part[name] / part[unit] for name in ("low", "mean", "high"))
                axes_of.vlines(part["x"], low.clip(lower=1e-300), high, color=ink, lw=1.4)
                style.draw_dots(axes_of, part["x"], mean, ink, 5, zorder=4)
    below.axhline(1, color=style.GREY, lw=1.2, zorder=1)
    below.set(xlabel=x, ylabel="measured /\nclosed form")
    if "y" in log:
        write_plain_ticks(ax)
    place_ticks(below, table["x"])
    ax.set(ylabel=y, title=title)
    style.label_ends(ax, labels, wide=18)
    words = "dots: measured means, bars: their 95 % interval (red: misses the line)"
    share = 100 * np.mean(table["agrees"])
    style.footer(figure, f"lines: closed form; {words}; inside: {share:.3g}%")
    return figure
