"""The mean of the clients' products: how many directions it has, and what a server that keeps a few of them loses."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import NullLocator

from fedlora_lab.checks import check, check_whole
from fedlora_lab.plots.curves import footer
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import CARD, FACTOR, GREY, RIGHT, SOFT, Picture, darker, paper, picture

COLOURS = (FACTOR["A"], RIGHT, FACTOR["B"])
FLOOR = 1e-7


def mean_products(cases: Mapping[str, tuple[Any, Any]], rank: int) -> Picture:
    """Left: singular values of mean products. Right: error of a sketching server over the width of its sketch.

    Args:
        cases: words -> (singular values, falling; frame of `measures.sketched`), one to three.
        rank: that the server's factors have: the line on the left, and the best error on the right.

    Raises: ``ValueError`` without cases.
    Guarantees: dots are the values, the dashed lines the error of the best approximation of the rank
        (test_lesson_10.py::test_the_figure_of_mean_products).
    """
    check(0 < len(cases) <= len(COLOURS), "cases", list(cases), "one to three")
    check_whole("rank", rank, 1)
    with paper():
        figure = picture(9.2, 3.9)
        left, right = figure.add_axes((0.085, 0.185, 0.36, 0.69)), figure.add_axes((0.56, 0.185, 0.29, 0.69))
        labels, ends = [], []
        for (words, (values, errors)), colour in zip(cases.items(), COLOURS, strict=False):
            values = np.asarray(values, dtype=float)
            kept = values > 1e-6 * values[0]
            places = np.arange(1, len(values) + 1)
            left.plot(places[kept], values[kept] / values[0], "o-", ms=4, lw=1, color=colour, mec=CARD, mew=0.4)
            labels.append(Label(float(places[kept][-1]), float((values / values[0])[kept][-1]), words, colour))
            ends.append(_errors(right, words, values, errors, rank, colour))
        left.axvline(rank + 0.5, color=GREY, lw=1.2, ls=(0, (4, 2)))
        left.text(rank + 0.9, 1.2, f"rank {rank} ends here", fontsize=8, color=SOFT, va="bottom")
        left.set(yscale="log", ylim=(1e-6, 4), xlabel="direction, largest first", ylabel="singular value, relative")
        left.yaxis.set_minor_locator(NullLocator())
        left.set_title("What the mean product is made of")
        for label in labels:
            left.annotate(
                label.text, (label.x, label.y), xytext=(6, 6), textcoords="offset points", fontsize=8.3, weight="bold",
                color=darker(label.colour),
            )  # fmt: skip
        left.set_xlim(0, 1.02 * max(len(values) for values, _ in cases.values()))
        _axes(right)
        beside(right, ends, together=False)
        footer(
            figure, "right: one dot a public draw of the sketch; dashed: the best that any factors of the rank can do"
        )
    return figure


def _errors(ax: Any, words: str, values: Any, errors: Any, rank: int, colour: str) -> Label:
    """Dots over widths, their mean, and the best approximation of the rank as a dashed line."""
    best = float(np.linalg.norm(values[rank:]) / np.linalg.norm(values))
    shown = errors["value"].clip(lower=FLOOR)
    ax.plot(errors["width"], shown, "o", ms=3.5, mew=0, color=colour, alpha=0.4)
    means = shown.groupby(errors["width"]).mean()
    ax.plot(means.index, means.to_numpy(), color=colour, lw=1.6)
    ax.axhline(max(best, FLOOR), color=colour, lw=1, ls=(0, (4, 2)))
    return Label(float(means.index[-1]), float(means.iloc[-1]), words, colour)


def _axes(ax: Any) -> None:
    ax.set(xscale="log", yscale="log", ylim=(FLOOR / 2, 2), xlabel="width of the sketch", ylabel="relative error")
    ax.set_yticks((1e-7, 1e-5, 1e-3, 0.1, 1), ("rounding", "1e−5", "1e−3", "0.1", "1"))
    places = (2, 4, 8, 16, 32)
    ax.set_xticks(places, [str(place) for place in places])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
    ax.set_title("What a sketch makes of it")
