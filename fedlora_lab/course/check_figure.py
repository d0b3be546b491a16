"""Figures of the notebooks' checks: closed forms as lines, measured means as dots, their ratio; and
the runs of several settings, a row each."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from fedlora_lab.plots import style
from fedlora_lab.plots.tidy import confidence_interval


def mean_row(*keys: Any, values: Any, expected: float) -> tuple:
    """Makes one row of `check_table`: the mean of some seeds' values with its Student band.

    Args: keys: of the row; values: one a seed; expected: the closed form.
    """
    low, high = confidence_interval(values)
    return *keys, float(np.mean(values)), expected, (high - low) / 2


def check_table(rows: list[tuple], *keys: str) -> Any:
    """A table of measurements: keys, measured, expected, half (of the 95 % band), inside."""
    table = pd.DataFrame(rows, columns=[*keys, "measured", "expected", "half"])
    return table.assign(inside=(table["measured"] - table["expected"]).abs() <= table["half"])


def check_figure(
    table: Any, x: str, lines: Mapping[Any, tuple[str, str]], seeds: int, *, apart: float = 1.07
) -> tuple[style.Picture, Any, Any]:
    """Draws a check on logarithmic axes, a line for each value of the table's second key.

    Args: table: as of `check_table`, x and the lines' key first; lines: value -> words and colour;
        seeds: behind a dot; apart: factor between dots of one x.
    Returns: the figure, the axes of the values, and those of measured over closed form.
    """
    figure, left, right = check_panels()
    key = next(name for name in table.columns[:2] if name != x)
    for i, (value, (words, colour)) in enumerate(lines.items()):
        part = table[table[key] == value]
        draw_closed_form(left, part[x], part["expected"], part["measured"], colour, words, 1.12)
        draw_ratios(right, part[x] * apart ** (i - 1), part, colour)
    left.set_yscale("log")
    finish_check(figure, left, right, table, seeds)
    return figure, left, right


def check_panels(left: float = 0.065, room: float = 0.0) -> tuple[style.Picture, Any, Any]:
    """A figure with axes for the values, and for measured over closed form; ``room`` for labels."""
    places = (left, 0.17, 0.515 - left - room, 0.73), (0.6, 0.17, 0.385, 0.73)
    figure, (values, ratios) = style.panels(10.2, 3.9, *places)
    return figure, values, ratios


def draw_closed_form(
    ax: Any, x: Any, expected: Any, measured: Any, colour: str, words: str = "", far: float = 1.0
) -> None:
    """Draws a closed form as a line with its name, and measurements as dots.

    Args: ax, x, expected, measured, colour: what stands where; words: the name of the line; far: it
        stands at so many times the last x.
    """
    ax.plot(x, expected, color=colour)
    style.dots(ax, x, measured, colour)
    bold = {"fontsize": 9, "va": "center", "weight": "bold"}
    ax.text(x.iloc[-1] * far, expected.iloc[-1], words, color=colour, **bold)


def draw_ratios(ax: Any, x: Any, part: Any, colour: str) -> None:
    """Draws measured over expected, each dot with its band around 1; red where it misses the band.

    Args: ax, x, colour: what stands where; part: rows of a `check_table`.
    """
    slack = part["half"] / part["expected"]
    ax.vlines(x, 1 - slack, 1 + slack, color=colour, alpha=0.3, lw=6)
    ink = [colour if inside else style.WRONG for inside in part["inside"]]
    ratio = part["measured"] / part["expected"]
    ax.scatter(x, ratio, s=30, c=ink, edgecolors=style.CARD, zorder=3)


def log_panels(left: Any, right: Any, label: str, ticks: tuple[float, ...], end: float) -> None:
    """Makes the x axes logarithmic.

    Args: left, right: the axes; label, ticks: of both; end: the left one has room for words to it.
    """
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_xlabel(label)
        style.log_axis(ax.xaxis, ticks)
    left.set_xlim(None, end)


def finish_check(
    figure: Any, left: Any, right: Any, table: Any, seeds: Any, more: str = "", across: bool = False
) -> None:
    """Writes titles with the share inside, the line at 1, and a footer that says what a dot is.

    Args: figure, left, right, table: of the check; seeds, more: what a dot is a mean over; across:
        the ratio runs from left to right.
    """
    line = right.axvline if across else right.axhline
    line(1, color=style.INK, lw=1)
    right.set(**{"xlabel" if across else "ylabel": "measured / closed form"})
    left.set_title("Lines: closed form. Dots: measured")
    right.set_title(f"{table['inside'].mean():.0%} of {len(table)} dots inside their 95 % band")
    bar = "bar: 95 % of such means lie here if the closed form is right (red: misses)"
    style.footer(figure, f"each dot: mean over {seeds} seeds{more}; {bar}")


def accuracy_row(ax: Any, row: int, values: Any, colour: str) -> None:
    """Draws the accuracies of some runs: dots, their mean with its 95 % interval, and its number.

    Args: ax: with one row for each setting; row: its place; values: one a seed; colour: of all.
    """
    ends: Any = confidence_interval(values)
    ax.plot(ends, [row, row], color=colour, lw=7, alpha=0.25, solid_capstyle="butt")
    style.dots(ax, values, np.full(len(values), row), colour, 4, mew=0, alpha=0.6)
    ax.plot([values.mean()], [row], "D", ms=7, color=colour, mec=style.CARD)
    put: Any = {"weight": "bold", "va": "center", "transform": ax.get_yaxis_transform()}
    style.note(ax, 1.02, row, f"{values.mean():.1%}", colour, 10, **put)
