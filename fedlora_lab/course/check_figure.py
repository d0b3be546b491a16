"""Figures of the notebooks' checks: measured means beside closed forms, and their ratio; and the
runs of several settings, a row each."""

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


def check_panels(room: float = 0.0) -> tuple[style.Picture, Any, Any]:
    """A figure with axes for the values, and for measured over closed form; ``room`` for labels."""
    figure, axes = style.row(10.2, 3.9, (0.17, 0.73), (0.065, 0.45 - room), (0.6, 0.385))
    return figure, *axes


def draw_ratios(ax: Any, x: Any, part: Any, colour: str) -> None:
    """Draws measured over expected, each dot with its band around 1; red where it misses the band.

    Args: ax, x, colour: what stands where; part: rows of a `check_table`.
    """
    slack = part["half"] / part["expected"]
    ax.vlines(x, 1 - slack, 1 + slack, color=colour, alpha=0.3, lw=6)
    ink = [colour if inside else style.WRONG for inside in part["inside"]]
    ratio = part["measured"] / part["expected"]
    ax.scatter(x, ratio, s=30, c=ink, edgecolors=style.CARD, zorder=3)


def finish_check(figure: Any, right: Any, table: Any, seeds: Any, more: str = "") -> None:
    """Writes the share inside, the line at 1, and a footer that says what a dot is.

    Args: figure, right, table: of the check; seeds, more: what a dot is a mean over.
    """
    right.axhline(1, color=style.INK, lw=1)
    right.set(ylabel="measured / closed form")
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
