"""What a code of few levels does to numbers, what it costs in accuracy, and what it hides."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from fedlora_lab import theory
from fedlora_lab.checks import check, check_one_of, check_whole
from fedlora_lab.plots.clipping import log_axis
from fedlora_lab.plots.curves import footer
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import CARD, FAINT, GREY, INK, SOFT, WRONG, Picture, darker, look, paper, picture
from fedlora_lab.plots.tidy import band
from fedlora_lab.wire import normal_float, normal_levels

CODE = look("fedlpp").colour
HUES = ("#0F7F94", "#7A4FD0", "#8F5A33")
WIDTHS = (2, 3, 4, 5, 6, 7, 8)
KINDS = ("a normal draw", "outliers", "a trained factor")


def numbers(kind: str, trained: "Float[np.ndarray, '...'] | None" = None, seed: int = 2) -> np.ndarray:
    """Numbers to quantise, mean square 1: 4,096 normal ones, the same with one in 256 made 8 times larger, or given."""
    check_one_of("kind", kind, KINDS)
    row = np.random.default_rng(seed).standard_normal(4096)
    if kind == "outliers":
        row[::256] *= 8
    elif kind == "a trained factor":
        check(trained is not None, "trained", trained, "the numbers of a factor")
        row = np.asarray(trained, float).ravel()
    return row / np.sqrt(np.mean(row**2))


def quantiser_explorer(
    width: int = 3, block: int = 64, kind: str = "a normal draw", trained: "Float[np.ndarray, '...'] | None" = None
) -> tuple[Picture, str]:
    """Levels under the numbers they stand for, the staircase, and error against bits; and the same in words.

    Args: width: bits of a code, 2 to 8. block: numbers to a scale. kind: which numbers, see `numbers`.
    Guarantees: axes stand still; the dot is the measured error (test_lesson_08.py::test_the_explorer).
    """
    row, levels = numbers(kind, trained), np.array(normal_levels(width))
    rule = normal_float(width, block)
    received = rule(torch.from_numpy(row)).numpy()
    error = float(np.sqrt(np.mean((received - row) ** 2) / np.mean(row**2)))
    closed = closed_line(block)[WIDTHS.index(width)]
    bits = rule.bits(row.size) / row.size
    with paper():
        figure = picture(8.4, 3.6)
        one, two, three = (
            figure.add_axes((x, 0.15, w, 0.74)) for x, w in ((0.065, 0.26), (0.405, 0.235), (0.735, 0.255))
        )
        _histogram(one, row, levels, block)
        _staircase(two, levels)
        three.plot(WIDTHS, closed_line(block), color=GREY, lw=1.6)
        three.plot([width], [error], "o", ms=10, color=CODE, mec=CARD, zorder=5, clip_on=False)
        three.set(yscale="log", xlim=(1.6, 8.4), ylim=(0.003, 1.2), xlabel="bits of a code", ylabel="relative error")
        three.set_xticks(WIDTHS[::2])
        log_axis(three.yaxis, (0.01, 0.1, 1))
        three.set_title(f"error {error:.1%}")
        three.text(0.98, 0.96, "line: closed form,\nnormal numbers", transform=three.transAxes, fontsize=8, color=SOFT,
                   ha="right", va="top")  # fmt: skip
    text = (
        f"{width} bits, {len(levels)} levels, blocks of {block}: {bits:.3g} bits a number on the wire, "
        f"{32 / bits:.1f} times fewer than float32. What arrives is {error:.1%} off; normal numbers would be "
        f"{closed:.1%} off."
    )
    return figure, text


@functools.cache
def closed_line(block: int) -> list[float]:
    """Relative error of normal numbers for each of `WIDTHS`."""
    return [theory.quantiser_error(normal_levels(w), block) ** 0.5 for w in WIDTHS]


def _histogram(ax: Any, row: np.ndarray, levels: np.ndarray, block: int) -> None:
    """Numbers over their block's largest, with a tick for every level."""
    padded = np.pad(row, (0, -len(row) % block)).reshape(-1, block)
    scale = np.abs(padded).max(1, keepdims=True)
    unit = (padded / np.where(scale > 0, scale, 1)).ravel()[: len(row)]
    heights, edges = np.histogram(unit, np.linspace(-1, 1, 61), density=True)
    ax.stairs(heights, edges, fill=True, color=FAINT)  # one shape: quicker to draw than 60 bars
    ax.vlines(levels, -0.16, 0, color=CODE, lw=2 if len(levels) <= 16 else 0.9)
    ax.axhline(0, color=SOFT, lw=0.8)
    ax.set(xlim=(-1.03, 1.03), ylim=(-0.18, 2.2), xlabel="number ÷ largest of its block", ylabel="density")
    ax.set(xticks=(-1, 0, 1), yticks=())  # a tick costs as much time as a curve
    ax.set_title("numbers, levels below")


def _staircase(ax: Any, levels: np.ndarray) -> None:
    middles = (levels[1:] + levels[:-1]) / 2
    ax.plot([-1, 1], [-1, 1], color=GREY, lw=1)
    ax.stairs(levels, [-1, *middles, 1], baseline=None, color=CODE, lw=1.8)
    ax.set(xlim=(-1.03, 1.03), ylim=(-1.06, 1.06), xlabel="sent", ylabel="received")
    ax.set(xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    ax.set_title("what arrives")


def quantiser_check(
    widths: Sequence[int] = (2, 3, 4, 6, 8), blocks: Sequence[int] = (16, 64, 256), seeds: int = 100, size: int = 2048
) -> tuple[Picture, pd.DataFrame]:
    """Squared error of the library's quantiser on normal numbers, measured and closed form, over bits and blocks.

    Args: size: numbers a seed; a multiple of every block.
    Returns: the figure; and a table block, width, bits, measured, expected, half (of the 95 % band), inside.
    """
    check_whole("seeds", seeds, 2)
    check(all(size % block == 0 for block in blocks), "size", size, "a multiple of every block")
    rows = []
    for block in blocks:
        for width in widths:
            rule, expected = normal_float(width, block), theory.quantiser_error(normal_levels(width), block)
            draws = np.random.default_rng([block, width]).standard_normal((seeds, size))
            off = ((rule(torch.from_numpy(draws)).numpy() - draws) ** 2).mean(1)
            low, high = band(off)
            rows.append((block, width, rule.bits(size) / size, float(off.mean()), expected, (high - low) / 2))
    table = pd.DataFrame(rows, columns=["block", "width", "bits", "measured", "expected", "half"])
    table["inside"] = (table["measured"] - table["expected"]).abs() <= table["half"]
    with paper():
        figure = picture(9.6, 3.9)
        left, right = figure.add_axes((0.075, 0.16, 0.38, 0.73)), figure.add_axes((0.625, 0.16, 0.36, 0.73))
        labels = []
        for shift, (colour, (block, part)) in enumerate(zip(HUES * 9, table.groupby("block"), strict=False)):
            left.plot(part["bits"], part["expected"] ** 0.5, color=colour)
            left.plot(part["bits"], part["measured"] ** 0.5, "o", ms=5.5, color=colour, mec=CARD)
            end = part.iloc[-1]
            labels.append(Label(float(end["bits"]), float(end["expected"]) ** 0.5, f"blocks of {block}", colour))
            place, half = part["width"] + 0.18 * (shift - 1), part["half"] / part["expected"]
            right.vlines(place, 1 - half, 1 + half, color=colour, alpha=0.3, lw=6)
            ink = [colour if held else WRONG for held in part["inside"]]
            right.scatter(place, part["measured"] / part["expected"], s=30, c=ink, edgecolors=CARD, zorder=3)
        left.set(yscale="log", xlabel="bits a number on the wire, scale included", ylabel="relative error")
        log_axis(left.yaxis, (0.003, 0.01, 0.03, 0.1, 0.3, 1))
        left.set_ylim(0.003, 1)
        left.set_title("Lines: closed form. Dots: measured")
        beside(left, labels, together=False)
        right.axhline(1, color=INK, lw=1)
        right.set_xticks(list(widths))
        right.set(xlabel="bits of a code", ylabel="squared error, measured / closed form")
        right.set_title(f"{table['inside'].mean():.0%} of {len(table)} dots inside the 95 % band")
        footer(figure, f"each dot: mean over {seeds} seeds of {size:,} normal numbers")
    return figure, table


VIEWS = {
    "server": "the server's adapter",
    "received": "what a client receives",
    "averaged": "mean of the last five received",
    "trained": "the best client, after its own training",
}
INKS = {"server": INK, "received": CODE, "averaged": "#C06A2B", "trained": "#0F7F94"}


def protection(table: pd.DataFrame, start: float | None = None) -> Picture:
    """Accuracy that each party holds at the end, over bits: the gap between server and clients is all that is hidden.

    Args:
        table: as `experiments.quantised_runs` gives it. start: accuracy before training.
    Guarantees: dots are the means over seeds (test_lesson_08.py::test_protection).
    """
    part: Any = table[table["measure"] == "accuracy"]
    means = part.groupby(["method", "width"], sort=False)["value"].agg(["mean", band])
    with paper():
        figure = picture(8.6, 4.1)
        ax = figure.add_axes((0.08, 0.15, 0.5, 0.74))
        widths, labels = sorted(part["width"].unique()), []
        places = {width: i for i, width in enumerate(widths)}
        for shift, who in enumerate(part["method"].unique()):
            line = means.loc[who].sort_index()
            x = np.array([places[w] for w in line.index]) + 0.06 * (shift - 1.5)
            for at, (low, high) in zip(x, line["band"], strict=True):
                ax.plot([at, at], [low, high], color=INKS[who], alpha=0.4, lw=1.4)
            ax.plot(x, line["mean"], "o-", color=INKS[who], ms=6, mec=CARD)
            labels.append(Label(float(x[-1]), float(line["mean"].iloc[-1]), VIEWS[who], INKS[who]))
        if start is not None:
            ax.axhline(start, color=GREY, lw=1, ls=(0, (1, 2)))
            ax.text(-0.25, start, "before training", fontsize=8, color=SOFT, va="bottom")
        ax.set(xlim=(-0.3, len(widths) - 0.7), xlabel="bits of a code", ylabel="share of test examples right")
        low = min(float(part["value"].min()), 1 if start is None else start)
        ax.set_ylim(max(0, low - 0.06), 1)
        ax.set_xticks(range(len(widths)), [f"{w:g}" for w in widths])
        ax.set_title("Who holds how good a model")
        beside(ax, labels, together=False, wide=30)
        footer(figure, f"dots: mean over {part['seed'].nunique()} seeds; bars: 95 % interval of the mean")
    return figure


def levels(width: int = 4) -> Picture:
    """Where the levels of a code come from: equal steps of probability under the bell, then scaled to [-1, 1].

    Guarantees: the marks are `wire.normal_levels` (test_lesson_08.py::test_the_levels_figure).
    """
    code = np.array(normal_levels(width))
    edge = 1.848  # the quantile 0.9677083 of the normal law, where the outermost level stands before scaling
    x = np.linspace(-3, 3, 301)
    with paper():
        figure = picture(8.2, 2.9)
        ax = figure.add_axes((0.05, 0.19, 0.92, 0.68))
        ax.fill_between(x, np.exp(-(x**2) / 2), color=FAINT, lw=0)
        ax.vlines(code * edge, 0, np.exp(-((code * edge) ** 2) / 2), color=CODE, lw=1.8)
        ax.plot(code * edge, np.exp(-((code * edge) ** 2) / 2), "o", ms=5, color=CODE, mec=CARD)
        ax.vlines([0], 0, 1, color=INK, lw=2.2)
        ax.set(xlim=(-3, 3), ylim=(0, 1.08), yticks=[], xlabel="a normal number, in standard deviations")
        ax.set_title(f"{len(code)} levels: dense where numbers are many, one of them exactly zero", color=darker(INK))
        ax.grid(False)
    return figure
