"""A row that was just put together: its score, what is said of it, and how it learns beside another."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fedlora_lab.plots.live import floor, series, trace, untrained
from fedlora_lab.plots.score import draw
from fedlora_lab.plots.style import (
    FAINT,
    INK,
    RIGHT,
    SOFT,
    WRONG,
    Picture,
    darker,
    look,
    name,
    paper,
    picture,
)

if TYPE_CHECKING:
    from fedlora_lab.method import Method

INKS = {"=": RIGHT, "!": WRONG, "≠": WRONG}


def composed(
    row: "Method",
    lines: Sequence[tuple[str, str]] = (),
    frames: Mapping[str, pd.DataFrame] | None = None,
    *,
    rounds: int = 10,
    start: float = 0.5,
    steps: int = 4,
) -> Picture:
    """Left the row's score and what is said of it, right the accuracy of some runs so far.

    Args:
        lines: (sign, words), one a property, see `traits.told`.
        frames: slug -> tidy frame of a run, as far as it has come.
        rounds: planned; start: the accuracy before training. The axes follow these two, and runs that fall out of them.
        steps: local steps to draw in the score.

    Guarantees: axes stand still (test_composer.py::test_the_figure_stands_still).
    """
    with paper():
        figure = picture(9.4, 3.75)
        ax = figure.add_axes((0.005, 0.47, 0.525, 0.5))
        draw(ax, row, 2, steps)
        _say(figure, lines)
        right = figure.add_axes((0.615, 0.14, 0.37, 0.76))
        _runs(right, frames or {}, rounds, start)
    return figure


def refused(line: str, *, rounds: int = 10, start: float = 0.5) -> Picture:
    """The same figure for fields that make no method: the reason in place of the score."""
    with paper():
        figure = picture(9.4, 3.75)
        figure.text(0.02, 0.9, "This cannot be", fontsize=11.5, weight="bold", color=WRONG)
        figure.text(0.02, 0.84, textwrap.fill(line, 72), fontsize=9, color=INK, va="top")
        _runs(figure.add_axes((0.615, 0.14, 0.37, 0.76)), {}, rounds, start)
    return figure


def _say(figure: Picture, lines: Sequence[tuple[str, str]]) -> None:
    y = 0.445
    figure.add_artist(_rule(figure, y + 0.012))
    for sign, words in lines:
        text = textwrap.wrap(words, 80)
        colour = INKS.get(sign, INK)
        figure.text(0.022, y - 0.01, sign, fontsize=10.5, weight="bold", color=colour, va="top", ha="center")
        figure.text(0.04, y - 0.012, "\n".join(text), fontsize=8.3, va="top", color=colour if sign == "!" else SOFT)
        y -= 0.04 + 0.043 * len(text)


def _rule(figure: Picture, y: float) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([0.015, 0.53], [y, y], color=FAINT, lw=0.9, transform=figure.transFigure)


def _runs(ax: Any, frames: Mapping[str, Any], rounds: int, start: float) -> None:
    """Accuracy over rounds, a line a run."""
    seen = [value for frame in frames.values() for value in series(frame, "accuracy")[1] if np.isfinite(value)]
    ax.set(xlim=(0, rounds), ylim=(floor(start, seen, below=0.2), 1.0), xlabel="round")
    ax.set_ylabel("share of test examples right")
    ax.xaxis.get_major_locator().set_params(integer=True)
    untrained(ax, rounds, start)
    x = 0.0
    for slug, frame in frames.items():
        trace(ax, frame, "accuracy")
        colour = darker(look(slug).colour)
        ax.text(x, 1.03, name(slug), transform=ax.transAxes, fontsize=9, weight="bold", color=colour)
        x += 0.06 + 0.026 * len(name(slug))
    if not frames:
        ax.set_title("Accuracy over the rounds", color=SOFT)
