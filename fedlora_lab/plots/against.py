"""A closed form drawn over measured means and their intervals."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.ticker import FixedLocator, NullLocator

from fedlora_lab.checks import check
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import CARD, FACTOR, GREY, INK, RIGHT, SOFT, WRONG, Picture, darker, paper, picture

COLOURS = (INK, FACTOR["B"], FACTOR["A"], RIGHT)
NEEDED = ("x", "mean", "low", "high", "closed")


def inside(table: Any) -> float:
    """Share of rows whose interval [low, high] holds the closed form. Raises ``ValueError`` for other tables."""
    check(isinstance(table, pd.DataFrame), "table", type(table).__name__, "a frame")
    missing = [name for name in NEEDED if name not in table.columns]
    check(not missing and len(table) > 0, "table.columns", list(table.columns), f"also {', '.join(missing)}, and rows")
    return float(((table["low"] <= table["closed"]) & (table["closed"] <= table["high"])).mean())


def against(table: Any, *, x: str, y: str, title: str, parts: Mapping[str, Any] | None = None) -> Picture:
    """Closed forms as lines, measured means as dots with their intervals, on two logarithmic axes; and their ratio.

    Where single measurements are to be shown, and the band that the closed form gives them, see `band_check`.

    Args:
        table: one row a measurement: x, mean, low, high (of the measured mean), closed (the closed form), and
            ``group`` where several curves share the figure; all > 0. A dot whose interval misses the line is red.
        x, y: what the axes say, with units.
        title: of the figure.
        parts: column name -> words, further closed forms, drawn dashed.

    Raises: ``ValueError`` when a column is missing.
    Guarantees: the footer states `inside` (test_lesson_02.py::test_the_figure_counts_what_lies_inside).
    """
    share = inside(table)
    with paper():
        figure = picture(8.6, 5.2)
        ax = figure.add_axes((0.09, 0.385, 0.63, 0.555))
        under = figure.add_axes((0.09, 0.135, 0.63, 0.185))
        ax.set(xscale="log", yscale="log", ylabel=y)
        ax.set_title(title)
        _ratio(under, table, x)
        labels = [*_curves(ax, under, table), *_parts(ax, table, parts or {})]
        lowest = float(table["low"].min()) / 2.5
        ax.set_ylim(lowest, 2 * float(table["high"].max()))
        for each in (ax, under):
            _places(each, table["x"])
        ax.tick_params(labelbottom=False)
        beside(ax, [label for label in labels if label.y > lowest], together=False)
        words = (
            "dots: measured means, bars: their 95 % interval (red: misses the line), lines: closed form; "
            f"inside: {share:.0%} of {len(table)}"
        )
        figure.text(0.012, 0.012, words, fontsize=7.5, color=SOFT, ha="left", va="bottom")
    return figure


def _curves(ax: Any, under: Any, table: Any) -> list[Label]:
    """Each group's closed form and dots, and below the dots over their closed form."""
    groups = table["group"] if "group" in table.columns else pd.Series("", index=table.index)
    labels = []
    for colour, (group, rows) in zip(COLOURS * len(table), table.groupby(groups, sort=False), strict=False):
        line = rows.groupby("x")["closed"].mean()
        ax.plot(line.index, line, color=colour, lw=2)
        labels.append(Label(float(line.index[-1]), float(line.iloc[-1]), str(group) or "closed form", colour))
        _dots(ax, rows, colour)
        _dots(under, _relative(rows), colour)
    return labels


def _parts(ax: Any, table: Any, parts: Mapping[str, Any]) -> list[Label]:
    """Further closed forms, dashed."""
    labels = []
    for place, (column, words) in enumerate(parts.items()):
        line, colour = table.groupby("x")[column].mean(), (GREY, FACTOR["B"], FACTOR["A"])[place % 3]
        ax.plot(line.index, line, color=colour, lw=1.3, ls=(0, (4, 2)), zorder=1)
        labels.append(Label(float(line.index[-1]), float(line.iloc[-1]), words, colour))
    return labels


def _places(ax: Any, x: Any) -> None:
    """Limits, and a tick for every place where they are few."""
    ax.set_xlim(float(x.min()) / 1.15, float(x.max()) * 1.15)
    if x.nunique() <= 8:
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_locator(FixedLocator(sorted(x.unique())))
    ax.xaxis.set_major_formatter("{x:g}")


def _relative(rows: Any) -> Any:
    """The rows divided by their closed form."""
    return rows.assign(**{name: rows[name] / rows["closed"] for name in ("mean", "low", "high", "closed")})


def _ratio(ax: Any, table: Any, x: str) -> None:
    """Axes for measured over closed form, one being agreement."""
    seen = _relative(table)
    far = max(0.05, 1.2 * float((seen[["low", "high"]] - 1).abs().max().max()))
    ax.axhline(1, color=GREY, lw=1.2)
    ax.set(xscale="log", xlabel=x, ylim=(1 - far, 1 + far))
    ax.set_ylabel("measured /\nclosed form")


def _dots(ax: Any, rows: Any, colour: str) -> None:
    held = (rows["low"] <= rows["closed"]) & (rows["closed"] <= rows["high"])
    for part, ink in ((rows[held], colour), (rows[~held], WRONG)):
        if len(part):
            bars = [part["mean"] - part["low"].clip(lower=1e-300), part["high"] - part["mean"]]
            ax.errorbar(part["x"], part["mean"], yerr=bars, fmt="none", ecolor=darker(ink), elinewidth=1.1, zorder=3)
            ax.plot(part["x"], part["mean"], "o", ms=4.6, color=ink, mec=CARD, mew=0.7, zorder=4)
