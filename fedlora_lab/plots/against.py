"""A closed form drawn over what was measured."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from fedlora_lab.checks import check
from fedlora_lab.plots import tidy
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import CARD, FACTOR, GREY, INK, RIGHT, SOFT, WRONG, Picture, darker, paper, picture
from fedlora_lab.theory import Band

NEEDED = ("x", "mean", "low", "high", "closed")


def inside(table: Any) -> float:
    """Share of rows whose interval [low, high] holds the closed form. Raises ``ValueError`` for other tables."""
    check(isinstance(table, pd.DataFrame), "table", type(table).__name__, "a frame")
    missing = [name for name in NEEDED if name not in table.columns]
    check(not missing and len(table) > 0, "table.columns", list(table.columns), f"also {', '.join(missing)}, and rows")
    return float(((table["low"] <= table["closed"]) & (table["closed"] <= table["high"])).mean())


def against(
    table: Any,
    *,
    x: str,
    y: str,
    title: str,
    parts: Mapping[str, Any] | None = None,
    mark: Mapping[str, float] | None = None,
) -> Picture:
    """Closed forms as lines, measured means as dots with their intervals, on two logarithmic axes.

    Args:
        table: one row a measurement: x, mean, low, high (of the measured mean), closed (the closed form), and
            ``group`` where several curves share the figure; all > 0. A dot whose interval misses the line is red.
        x, y: what the axes say, with units.
        title: of the figure.
        parts: column name -> words, further closed forms, drawn dashed.
        mark: words -> x, upright lines.

    Raises: ``ValueError`` when a column is missing.
    Guarantees: the footer states `inside` (test_lesson_02.py::test_the_figure_counts_what_lies_inside).
    """
    share = inside(table)
    groups = table["group"] if "group" in table.columns else pd.Series("", index=table.index)
    colours = (INK, FACTOR["B"], FACTOR["A"], RIGHT)
    with paper():
        figure = picture(8.6, 5.2)
        ax = figure.add_axes((0.09, 0.385, 0.63, 0.555))
        under = figure.add_axes((0.09, 0.135, 0.63, 0.185))
        ax.set(xscale="log", yscale="log", ylabel=y)
        ax.set_title(title)
        _ratio(under, table, x)
        labels = []
        for colour, (group, rows) in zip(colours * len(table), table.groupby(groups, sort=False), strict=False):
            line = rows.groupby("x")["closed"].mean()
            ax.plot(line.index, line, color=colour, lw=2)
            labels.append(Label(float(line.index[-1]), float(line.iloc[-1]), str(group) or "closed form", colour))
            _dots(ax, rows, colour)
            _dots(under, _relative(rows), colour)
        for place, (column, words) in enumerate((parts or {}).items()):
            line = table.groupby("x")[column].mean()
            colour = (GREY, FACTOR["B"], FACTOR["A"])[place % 3]
            ax.plot(line.index, line, color=colour, lw=1.3, ls=(0, (4, 2)), zorder=1)
            labels.append(Label(float(line.index[-1]), float(line.iloc[-1]), words, colour))
        low, high = float(table["low"].min()), float(table["high"].max())
        ax.set_ylim(low / 2.5, high * 2)
        for words, place in (mark or {}).items():
            ax.axvline(place, color=SOFT, lw=1, ls=(0, (1, 2)))
            ax.text(place, high * 1.5, f"{words} ", fontsize=8, color=SOFT, ha="right", va="top")
        for each in (ax, under):
            each.set_xlim(float(table["x"].min()) / 1.15, float(table["x"].max()) * 1.15)
            if table["x"].nunique() <= 8:
                each.xaxis.set_minor_locator(NullLocator())
                each.xaxis.set_major_locator(FixedLocator(sorted(table["x"].unique())))
            each.xaxis.set_major_formatter("{x:g}")
        ax.tick_params(labelbottom=False)
        beside(ax, [label for label in labels if label.y > low / 2.5], together=False)
        words = (
            f"dots: measured means, bars: their 95 % interval, lines: closed form; inside: {share:.0%} of {len(table)}"
        )
        figure.text(0.012, 0.012, words, fontsize=7.5, color=SOFT, ha="left", va="bottom")
    return figure


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


def predicted(frame: Any, measure: str, band: Band, *, y: str, title: str) -> Picture:
    """Every layer's value of a measure in every round, as a dot, over one closed form and the band it should stay in.

    Args:
        frame: tidy, one task and method; round 0 is left out.
        measure: of each layer.
        band: the closed form as ``mean``, and the interval for a single value.
        y: what the axis says, with its unit.
        title: of the figure.

    Raises: ``ValueError`` when the frame lacks the measure.
    Guarantees: the footer states the share inside (test_lesson_02.py::test_predicted_counts_the_dots).
    """
    part = tidy.rows(frame, measure, layers=True)
    part = part[part["round"] > 0]
    share = float(part["value"].between(band.low, band.high).mean())
    names, rounds = list(dict.fromkeys(part["layer"])), int(part["round"].max())
    with paper():
        figure = picture(8.6, 3.9)
        ax = figure.add_axes((0.09, 0.17, 0.66, 0.73))
        ax.axhspan(band.low, band.high, color=FACTOR["A"], alpha=0.16, lw=0)
        ax.axhline(band.mean, color=FACTOR["A"], lw=1.8)
        shift = part["layer"].map({name: (i + 0.5) / len(names) - 0.5 for i, name in enumerate(names)})
        held = part["value"].between(band.low, band.high)
        for rows, ink in ((held, INK), (~held, WRONG)):
            place = part["round"][rows] + 0.7 * shift[rows]
            ax.plot(place, part["value"][rows], "o", ms=4.2, color=ink, mec=CARD, mew=0.6)
        ax.set(xlim=(0.4, rounds + 0.6), ylim=(0, 1.25 * max(band.high, float(part["value"].max()))))
        ax.set(xlabel="round (one dot for each layer and seed)", ylabel=y)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_title(title)
        middle = (ax.get_xlim()[1], band.mean)
        beside(ax, [Label(*middle, "closed form,\nfrom σ alone", FACTOR["A"])], together=False)
        words = f"band: 95 % of single values; inside: {share:.0%} of {len(part)}"
        figure.text(0.012, 0.012, words, fontsize=7.5, color=SOFT, ha="left", va="bottom")
    return figure
