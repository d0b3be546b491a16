"""The figures of notebook 00: the clients' data, where runs end, and who leads where."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from fedlora_lab.plots import style
from fedlora_lab.plots.tidy import confidence_interval
from fedlora_lab.tasks.task import Task, concatenate

if TYPE_CHECKING:
    from fedlora_lab.federated.records import Round

TUNED, FIXED = "tuned", "fixed"
"""How the clip norm of a cell was chosen: for each method and budget, or once for all."""
CLIPS = {
    FIXED: (style.WRONG, "s", 0.98, "one clip norm for all, 0.5"),
    TUNED: (style.RIGHT, "o", 1.02, "clip norm and rates tuned"),
}
"""Colour, marker, shift and words of each."""


def printed_digit(digit: int) -> np.ndarray:
    """Draws a printed digit as the scans are stored: 32 pixels high, counted in 4 x 4 blocks."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font, page = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), 36), Image.new("L", (64, 64))
    ImageDraw.Draw(page).text((32, 32), str(digit), font=font, fill=255, anchor="mm")
    ink = page.crop(page.getbbox())
    wide = min(32, round(32 * ink.width / ink.height))
    bitmap, left = np.zeros((32, 32)), (32 - wide) // 2
    bitmap[:, left : left + wide] = np.asarray(ink.resize((wide, 32))) > 127
    return bitmap.reshape(8, 4, 8, 4).sum((1, 3)) / 16


@style.paper()
def client_data(task: Task) -> style.Picture:
    """Draws printed digits above handwritten ones, and how many of each digit a client holds.

    Args: task: of digits.
    """
    figure, (scans, mix) = style.row(9.6, 3.5, (0.14, 0.74), (0.075, 0.42), (0.56, 0.42))
    x, y = concatenate(task.clients)
    rows = [[printed_digit(digit) for digit in range(10)]]
    rows += [[x[y == digit][which].numpy() for digit in range(10)] for which in range(0, 15, 3)]
    page = np.zeros((10 * len(rows) - 2, 10 * 10 - 2))
    for i, images in enumerate(rows):
        for j, image in enumerate(images):
            page[10 * i : 10 * i + 8, 10 * j : 10 * j + 8] = image
    scans.imshow(page, cmap="Greys", vmin=0, vmax=1)
    scans.set_anchor("N")
    scans.set(xticks=[], yticks=[])
    scans.grid(False)
    scans.spines[:].set_visible(False)
    scans.axhline(8.6, color=style.RIGHT, lw=1.5)
    put: Any = {"transform": scans.transData, "ha": "right", "va": "center"}
    style.note(scans, -3, 4, "printed:\nknown", style.RIGHT, 9, **put)
    style.note(scans, -3, 34, "hand-\nwritten:\nnew", style.INK, 9, **put)
    scans.set_title("The model knows print, not handwriting")
    counts = np.array([np.bincount(np.asarray(labels), minlength=10) for _, labels in task.clients])
    mix.imshow(counts, cmap="Blues", vmax=1.3 * counts.max(), aspect="auto")
    mix.grid(False)
    for (k, digit), count in np.ndenumerate(counts):
        if count:
            mix.text(digit, k, f"{count}", ha="center", va="center", fontsize=7.5)
    mix.set_xticks(range(10))
    mix.set_yticks(range(len(counts)), [f"{k + 1}" for k in range(len(counts))])
    mix.set(xlabel="digit", ylabel="client", title="Every client holds its own mix of digits")
    return figure


@style.paper()
def learning_curves(runs: "Mapping[str, Sequence[Round]]", title: str) -> style.Picture:
    """Draws the accuracy of runs over the rounds in which it was measured, and before training.

    Args: runs: words -> records, from one start; title: the finding.
    """
    figure, (ax,) = style.panels(7.2, 3.3, (0.09, 0.15, 0.58, 0.74))
    labels = []
    for colour, (words, records) in zip(style.SERIES, runs.items(), strict=False):
        points = [(record.index, record.metrics["accuracy"]) for record in records]
        rounds, accuracy = zip(*(point for point in points if np.isfinite(point[1])), strict=True)
        words = f"{words} {accuracy[-1]:.2f}"
        labels.append(style.named_line(ax, rounds, accuracy, words, colour, lw=2.2))
    first = next(iter(runs.values()))
    before = first[0].metrics["accuracy"]
    ax.axhline(before, color=style.GREY, lw=1, ls=style.DOTTED)
    labels.append(style.Label(first[-1].index, before, f"before training {before:.2f}", style.SOFT))
    ax.set(xlim=(0, first[-1].index), ylim=(0.6, 1.0), xlabel="round", ylabel="test accuracy")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_title(title)
    style.draw_labels(ax, labels, together=False, wide=28)
    return figure


@style.paper()
def six_methods(ends: pd.DataFrame, title: str) -> style.Picture:
    """Draws each method's final accuracy: seeds as dots, the mean with its 95 % interval.

    Args: ends: columns method, seed, accuracy, before_accuracy; title: the finding.
    """
    methods = list(dict.fromkeys(ends["method"]))
    figure, (ax,) = style.panels(7.2, 3.2, (0.14, 0.2, 0.82, 0.68))
    for y, slug in enumerate(methods):
        values = ends.loc[ends["method"] == slug, "accuracy"]
        colour = style.look(slug).colour
        style.dots(ax, values, np.full(len(values), y - 0.22), colour, 4, alpha=0.35, mew=0)
        ax.plot(confidence_interval(values), [y, y], color=colour, lw=3, solid_capstyle="butt")
        style.mark(ax, values.mean(), y, slug, 8)
    ax.set_yticks(range(len(methods)), [style.name(slug) for slug in methods])
    before = ends["before_accuracy"].iloc[0]
    ax.axvline(before, color=style.GREY, lw=1, ls=style.DOTTED)
    put: Any = {"va": "top", "transform": ax.get_xaxis_transform()}
    style.note(ax, before, 0.97, f" before {before:.2f}", **put)
    ax.set(xlim=(0.64, 0.9), ylim=(len(methods) - 0.5, -0.6))
    ax.set_xlabel("test accuracy after 20 rounds")
    ax.set_title(title)
    seeds = ends["seed"].nunique()
    words = f"line: 95 % interval of the mean over {seeds} seeds; pale dots: the seeds"
    style.footer(figure, words)
    return figure


@style.paper()
def crossing(ends: pd.DataFrame, title: str) -> style.Picture:
    """Draws the accuracy of methods over ε with 95 % intervals, and counts runs below the start.

    Args: ends: columns method, epsilon, seed, accuracy, before_accuracy; title: the finding.
    """
    budgets, before = sorted(ends["epsilon"].unique()), ends["before_accuracy"].iloc[0]
    figure, (ax,) = style.panels(7.2, 3.5, (0.09, 0.19, 0.7, 0.7))
    labels = []
    for shift, slug in zip((-0.03, 0.03), dict.fromkeys(ends["method"]), strict=True):
        part, look = ends[ends["method"] == slug], style.look(slug)
        groups = [part.loc[part["epsilon"] == e, "accuracy"] for e in budgets]
        place = np.arange(len(budgets)) + shift
        for x, values in zip(place, groups, strict=True):
            beside = np.full(len(values), x + 2 * shift)
            style.dots(ax, beside, values, look.colour, 4, alpha=0.4, mew=0)
            ax.plot([x, x], confidence_interval(values), color=look.colour, lw=3)
            fell = int((values < before).sum())
            if fell:
                words, put = f"{fell} of {len(values)} runs\nend below the start", ax.transData
                style.note(ax, x + 0.07, values.mean() - 0.02, words, transform=put, va="top")
        means = [values.mean() for values in groups]
        kind: Any = {"marker": look.marker, "ms": 8, "mec": style.CARD, "lw": 2}
        labels.append(style.named_line(ax, place, means, style.name(slug), look.colour, **kind))
    ax.axhline(before, color=style.GREY, lw=1, ls=style.DOTTED)
    words = f"before training {before:.2f}"
    labels.append(style.Label(len(budgets) - 0.7, before, words, style.SOFT))
    ax.set_xticks(range(len(budgets)), [f"ε = {e:g}" for e in budgets])
    ax.set(xlim=(-0.3, len(budgets) - 0.7), ylim=(0.4, 1.0), ylabel="test accuracy", title=title)
    style.draw_labels(ax, labels, together=False)
    seeds = ends["seed"].nunique()
    style.footer(figure, f"bar: 95 % interval of the mean over {seeds} seeds; pale dots: the seeds")
    return figure


@style.paper()
def gap_by_amplification(cells: pd.DataFrame, title: str) -> style.Picture:
    """Draws how far FedLoRA is ahead of FFA-LoRA against ρ, with 95 % intervals.

    Args: cells: columns epsilon, clip (TUNED or FIXED), rho, gap, low, high; title: the finding.
    """
    figure, (ax,) = style.panels(7.2, 3.6, (0.11, 0.19, 0.85, 0.7))
    ax.axhline(0, color=style.INK, lw=1)
    ax.axvline(1, color=style.GREY, lw=1, ls=style.DOTTED)
    for _, both in cells.groupby("epsilon"):
        ax.plot(both["rho"], both["gap"], color=style.FAINT, lw=1.2, zorder=1)
    # Two cells may have one ρ: squares stand a little to the left, circles to the right of it.
    for clip, (colour, marker, aside, words) in CLIPS.items():
        part = cells[cells["clip"] == clip]
        x = part["rho"] * aside
        ax.vlines(x, part["low"], part["high"], color=colour, lw=2.5)
        style.dots(ax, x, part["gap"], colour, 6, marker=marker)
        for place, epsilon, low, high in np.c_[x, part[["epsilon", "low", "high"]]]:
            height, edge = (high, "bottom") if clip == FIXED else (low, "top")
            put: Any = {"transform": ax.transData, "ha": "center", "va": edge, "weight": "bold"}
            gap = 0.01 if clip == FIXED else -0.025
            style.note(ax, place, height + gap, f"ε = {epsilon:g}", colour, 8.5, **put)
        at = 0.31 if clip == FIXED else 0.22
        style.dots(ax, [0.185], [at + 0.02], colour, 6, marker=marker, transform=ax.transAxes)
        style.note(ax, 0.21, at, words, colour, 9.5, weight="bold")
    words = "ρ = 1: half of the noise is noise × noise"
    style.note(ax, 1.03, 0.04, words, transform=ax.get_xaxis_transform())
    ax.set(xscale="log", xlim=(0.6, 20), ylim=(-0.36, 0.13))
    ax.set(xlabel="amplification number ρ of both factors", ylabel="FedLoRA − FFA-LoRA, accuracy")
    style.log_axis(ax.xaxis, (1, 2, 5, 10))
    ax.set_title(title)
    words = "bar: 95 % interval over 10 seeds (squares) or 20 (circles); a grey line joins one ε"
    style.footer(figure, words)
    return figure


def gaps(ends: pd.DataFrame, clip: str) -> pd.DataFrame:
    """Computes FedLoRA's lead over FFA-LoRA at each ε, paired by seed, with its 95 % interval.

    Args: ends: columns method, epsilon, seed, accuracy; clip: TUNED or FIXED, kept as a column.
    """
    rows = []
    for epsilon, part in ends.groupby("epsilon"):
        wide = part.pivot(index="seed", columns="method", values="accuracy")
        difference = wide["fedlora"] - wide["ffa-lora"]
        rows.append((epsilon, clip, difference.mean(), *confidence_interval(difference)))
    return pd.DataFrame(rows, columns=["epsilon", "clip", "gap", "low", "high"])
