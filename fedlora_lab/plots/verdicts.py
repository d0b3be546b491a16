"""Draws comparisons: the map of which family of methods leads, and the verdicts on claims."""

import math
import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from fedlora_lab._utils.validation import check
from fedlora_lab.measures.statistics import POINTS_FOR_A_LINE, Line, fit_line
from fedlora_lab.plots import style

LOW, HIGH = -0.8, 0.7  # shares of the room beyond them are drawn at the edge
MARKERS = "os^DvP"
FITS = style.SERIES[1], style.SERIES[2], style.SERIES[3]  # colours of the lines, task by task
APART = 1.045  # cells of one amplification stand side by side, by this factor
BOTH, ONE = "both factors", "one factor"  # leaders, and verdicts, as the map names them
HIT, MISS, UNDECIDED = "hit", "miss", "not decided"
UNIT_TITLES = {"example": "Every example protected", "client": "Every client protected"}


@style.paper()
def regime(cells: pd.DataFrame) -> style.Picture:
    """Draws the lead of both factors over one, cell by cell, over the predicted amplification.
    The amplification was known before the runs; each unit of privacy has a panel.

    A cell on a tinted field was predicted rightly: left of the boundary both factors ahead, right
    of it one. On the hatched band nothing was predicted. Colours say who leads by the thin
    intervals, which hold for all cells together; a ring marks a cell that was predicted wrongly.
    A line goes through the cells of each task that has six or more, with its 95 % band, and a bar
    on the axis is the interval of its zero: where the lead changes sign as measured.

    Args: cells: as `experiments.map_cells` gives them.
    Raises: ``ValueError`` for a map without a measured cell.
    Guarantees: test_regime.py::test_the_figure_shows_every_cell_and_rings_the_misses.
    """
    there: Any = cells[(cells["pair"] == "both") & cells["mean"].notna()]
    check(len(there) > 0, "cells", "no measured cell", "at least one")
    colours = {BOTH: style.look("fedlora").colour, ONE: style.look("ffa-lora").colour}
    units = [unit for unit in UNIT_TITLES if unit in set(there["unit"])]
    tasks = sorted(set(there["task"]))
    gap, left, right = 0.035, 0.078, 0.988
    wide = (right - left - gap * (len(units) - 1)) / len(units)
    across = [(left + i * (wide + gap), wide) for i in range(len(units))]
    (figure, axes), lines = style.row(9.6, 5.2, (0.175, 0.61), *across), {}
    for ax, unit in zip(axes, units, strict=True):
        part = there[there["unit"] == unit]
        edge, close = part["boundary"].iloc[0], part["close"].iloc[0]
        ends = min(part["amplification"].min(), edge) / 2, max(part["amplification"].max(), edge)
        ax.set(xscale="log", xlim=(ends[0], 2 * ends[1]), ylim=(LOW - 0.04, HIGH + 0.04))
        fields: Any = {"lw": 0, "alpha": 0.10, "zorder": 0}
        ax.fill_between([ends[0], edge / close], 0, HIGH + 1, color=colours[BOTH], **fields)
        ax.fill_between([edge * close, 2 * ends[1]], LOW - 1, 0, color=colours[ONE], **fields)
        band: Any = {"fc": "none", "ec": style.FAINT, "hatch": "////", "lw": 0, "zorder": 0}
        ax.axvspan(edge / close, edge * close, **band)
        ax.axvline(edge, color=style.SOFT, lw=1.2, ls=style.DASHED, zorder=1)
        ax.axhline(0, color=style.INK, lw=1, zorder=1)
        box: Any = {"bbox": {"fc": style.CARD, "lw": 0, "pad": 1.5, "alpha": 0.8}, "zorder": 6}
        paper: Any = {"transform": ax.get_xaxis_transform(), "va": "top", "weight": "bold", **box}
        middle = [(ends[0] * edge / close) ** 0.5, (2 * ends[1] * edge * close) ** 0.5]
        words = ("predicted:\nboth factors lead", "predicted:\none factor leads")
        for x, text, who in zip(middle, words, (BOTH, ONE), strict=True):
            style.note(ax, x, 0.985, text, colours[who], 8.5, ha="center", **paper)
        style.note(ax, edge, 0.97, "too\nclose", style.SOFT, 7.5, ha="center", **paper)
        lines[unit], told = [], []
        for i, task in enumerate(tasks):
            own, colour = part[part["task"] == task], FITS[i % len(FITS)]
            if len(own) >= POINTS_FOR_A_LINE:
                lines[unit].append(_line(ax, own, colour))
                told.append((f"{task}: {_level(lines[unit][-1])}", colour))
        for row, x in zip(part.itertuples(), _side_by_side(part["amplification"]), strict=True):
            _cell(ax, x, row, colours, MARKERS[tasks.index(row.task) % len(MARKERS)])
        ax.set_title(UNIT_TITLES[unit], fontsize=9.5)
        told.append((f"predicted: level at {edge:g}", style.SOFT))
        for i, (text, colour) in enumerate(reversed(told)):
            low: Any = {"va": "bottom", "weight": "bold", **box}
            style.note(ax, 0.02, 0.025 + 0.06 * i, text, colour, 8.5, **low)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_major_locator(FixedLocator([x / 10 for x in range(-8, 7, 2)]))
        ax.yaxis.set_major_formatter(FuncFormatter(_share))
        ax.tick_params(labelleft=ax is axes[0])
        ax.set_xlabel("ρ₁: noise amplification, known before the run")
    axes[0].set_ylabel("lead of both factors over one, share of the room")
    verdicts = there["verdict"].value_counts()
    hits, misses, open_ = (int(verdicts.get(word, 0)) for word in (HIT, MISS, UNDECIDED))
    head = "Both factors, or one? " + _head({unit: lines[unit] for unit in units})
    figure.text(0.012, 0.98, head, size=12.5, weight="bold", va="top")
    told = f"Cells decided one by one: {hits} as predicted before the runs, {misses} otherwise; "
    told += f"{open_} are not decided."
    figure.text(0.012, 0.93, told, size=9, va="top", color=style.SOFT)
    _legend(figure, colours, tasks)
    seeds = f"{int(there['seeds'].min())} to {int(there['seeds'].max())}"
    seeds = seeds.split(" to ")[0] if len(set(seeds.split(" to "))) == 1 else seeds
    style.footer(
        figure,
        f"n = {seeds} seeds. Thick or pale line: 95 % of a cell by itself; thin: 95 % for all "
        "cells together, which decides. Room: best row's mean accuracy less the start's.\n"
        f"Leads beyond {_share(LOW)} stand at the edge as triangles; cells of one amplification "
        "stand side by side. Lines: through the cells of a task, with their 95 % band; "
        "diamond and bar: their zero.",
    )
    return figure


def _head(lines: dict[str, list[Line]]) -> str:
    """Says in which units every line falls."""
    falls = [
        unit
        for unit, own in lines.items()
        if own and all(line.slope + line.half_slope < 0 for line in own)
    ]
    if len(falls) == len(lines):
        return "A number known before the run orders the lead"
    if not falls:
        return "The lead of both, over the noise that a run will have"
    return f"With {UNIT_TITLES[falls[0]].lower()}, noise known before a run orders the lead"


def _line(ax: Any, part: Any, colour: str) -> Line:
    """Draws the line through a task's cells, its band, and the interval of its zero on the axis."""
    found = fit_line(np.log10(part["amplification"]), part["mean"])
    x = np.geomspace(part["amplification"].min(), part["amplification"].max(), 60)
    y, half = found.at(np.log10(x))
    ax.plot(x, y, color=colour, lw=1.8, zorder=2)
    ax.fill_between(x, y - half, y + half, color=colour, alpha=0.18, lw=0, zorder=1)
    zero, low, high = (10**value for value in found.zero)
    ax.plot([low, high], [0, 0], color=colour, lw=5, solid_capstyle="butt", zorder=2, alpha=0.7)
    ax.plot([zero], [0], "D", ms=8, color=colour, mec=style.CARD, zorder=5)
    return found


def _level(line: Line) -> str:
    """Says where the lead changes sign."""
    if math.isnan(line.zero[0]):
        return "no trend can be told"
    zero, low, high = (f"{10**value:.2g}" for value in line.zero)
    return f"level at {zero}, 95 % interval {low} to {high}"


def _cell(ax: Any, x: float, row: Any, colours: Any, marker: str) -> None:
    """Draws one cell, with two intervals where it decides; open and pale where it does not."""
    decided = row.leader in colours
    colour = colours[row.leader] if decided else style.GREY
    reach: list[Any] = [((row.low, row.high), 2.4 if decided else 1.2)]
    if decided:  # what nobody can tell needs no second interval to say so
        reach.append(((row.low_together, row.high_together), 0.8))
    for ends, width in reach:
        ends, put = np.clip(ends, LOW - 0.04, HIGH + 0.04), {"color": colour, "lw": width}
        pale = 1 if decided else 0.45
        ax.plot([x, x], ends, alpha=pale, solid_capstyle="butt", zorder=3, **put)
    y = float(np.clip(row.mean, LOW, HIGH))
    marker = marker if y == row.mean else "v" if row.mean < 0 else "^"
    put = {"ms": 7 if decided else 5, "mfc": colour if decided else style.CARD, "mec": colour}
    ax.plot([x], [y], marker, color=colour, mew=1.1, zorder=4 + decided, **put)
    if row.verdict == MISS:
        ax.plot([x], [y], "o", ms=14, mfc="none", mec=style.WRONG, mew=1.8, zorder=5)


def _side_by_side(values: Any) -> list[float]:
    """Moves equal values apart."""
    groups: Any = values.map(lambda x: f"{x:.2g}")
    order, sizes = groups.groupby(groups).cumcount(), groups.groupby(groups).transform("size")
    return list(values * APART ** (order - (sizes - 1) / 2))


def _share(value: float, _: Any = None) -> str:
    return f"{100 * value:+.0f} %".replace("-", "−") if abs(value) > 1e-9 else "0"


def _legend(figure: Any, colours: Any, tasks: list[str]) -> None:
    """Draws colours, markers and the ring in one line below the title."""
    entry: Any = {"ls": "none", "ms": 6.5}
    names = {f"{who} lead{'s' * (who[-1] != 's')}": colour for who, colour in colours.items()}
    handles = [Line2D([], [], marker="o", color=c, label=who, **entry) for who, c in names.items()]
    open_: Any = {"color": style.GREY, "mfc": style.CARD, **entry}
    handles.append(Line2D([], [], marker="o", label="cannot tell", **open_))
    ring: Any = {"color": style.WRONG, "mfc": "none", "mew": 1.8, "ls": "none", "ms": 11}
    handles.append(Line2D([], [], marker="o", label="predicted wrongly", **ring))
    for i, task in enumerate(tasks):
        mark: Any = {"color": style.SOFT, "mfc": "none", **entry}
        handles.append(Line2D([], [], marker=MARKERS[i % len(MARKERS)], label=task, **mark))
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.005, 0.905),
        ncol=len(handles),
        fontsize=8.5,
        handletextpad=0.2,
        columnspacing=1.4,
    )


# ---- published claims: a row a claim, an interval a place, a colour a verdict

VERDICT_LOOKS = {  # verdict: (colour, marker, what stands at the right)
    "holds": (style.RIGHT, "o", "holds"),
    "opposite": (style.WRONG, "X", "opposite"),
    "no difference of that size": ("#7A4FD0", "s", "not of that size"),
    "cannot tell": (style.GREY, "D", "cannot tell"),
    "no room here": ("#C77700", "v", "no room here"),
}
AXIS_LIMIT = 0.8  # shares beyond it are drawn at the edge
ROW, HEAD, FOOT = 0.245, 0.66, 0.88  # inches
WIDE, LEFT, RIGHT = 11.0, 0.468, 0.745  # inches; shares of the width that the axes fill


@style.paper()
def forest(table: pd.DataFrame) -> style.Picture:
    """Draws claims as `experiments.judge_claims` judges them, those of a paper together.

    A row has the claim's sentence; filled, the place that decides, with its 95 % interval and the
    wider one that holds for all claims together as a thin line; open, the other places; a tick at
    the size that is asked for; and the verdict. Claims without a measurement have no row.

    Args: table: with the columns of `experiments.judge_claims`.
    Raises: ``ValueError`` for a table without a measured claim.
    Guarantees: test_claims.py::test_the_forest_has_a_row_for_each_measured_claim.
    """
    there: Any = table[table["mean"].notna()]
    main: Any = there[there["at"] != "away"]
    papers = list(dict.fromkeys(main["source"]))
    main = main.sort_values("source", key=lambda x: x.map(papers.index), kind="stable")
    check(len(main) > 0, "table", "no measured claim", "at least one")
    count = len(main)
    high = ROW * count + HEAD + FOOT
    place = (LEFT, FOOT / high, RIGHT - LEFT, ROW * count / high)
    figure, (ax,) = style.panels(WIDE, high, place)
    ax.set(xlim=(-AXIS_LIMIT, AXIS_LIMIT), ylim=(count - 0.5, -0.5), yticks=[])
    ax.axvline(0, color=style.INK, lw=1)
    across: Any = {"transform": ax.get_yaxis_transform(), "clip_on": False}
    sources = main["source"].to_numpy()
    for y, row in enumerate(main.itertuples()):
        if y and sources[y] != sources[y - 1]:
            ax.plot([-1.68, 1.92], [y - 0.5] * 2, color=style.FAINT, lw=0.8, **across)
        others = there[(there["slug"] == row.slug) & (there["at"] == "away")]
        for other in others.itertuples():
            _mark(ax, y, other, False)
        if row.asked == row.asked:
            ax.plot([row.asked] * 2, [y - 0.4, y + 0.4], color=style.INK, lw=1.6, zorder=3)
        if row.within > 0.01:
            for end in (-row.within, row.within):
                ax.plot([end, end], [y - 0.3, y + 0.3], color=style.INK, lw=0.7, zorder=3)
        _mark(ax, y, row, True)
        colour, _, words = VERDICT_LOOKS[row.verdict]
        sentence = textwrap.shorten(row.claim, 84, placeholder=" …")
        style.note(ax, -0.02, y, sentence, style.INK, 8, ha="right", va="center", **across)
        at = textwrap.shorten(row.place, 30, placeholder=" …")
        at += " *" if row.at == "stand-in" else ""
        style.note(ax, 1.02, y, words, colour, 8, weight="bold", va="center", **across)
        style.note(ax, 1.40, y, at, style.SOFT, 7.5, va="center", **across)
    ax.xaxis.set_major_locator(FixedLocator([-0.8, -0.4, 0.0, 0.4, 0.8]))
    ax.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{x:+.0%}".replace("-", "−") if x else "0")
    )
    ax.tick_params(axis="x", top=True, labeltop=True)
    unit = "share of the room" if (main["unit"] == "of the room").all() else "share"
    ax.set_xlabel(f"← against the claim      {unit}      with the claim →")
    found = main["verdict"].value_counts()
    told = ", ".join(f"{found[word]} {word}" for word in VERDICT_LOOKS if word in found)
    figure.text(0.012, 1 - 0.16 / high, f"{count} claims: {told}", size=11, weight="bold", va="top")
    style.footer(
        figure,
        "filled: the place that decides (* stands in for a nearer one that is not run yet); open: "
        "other places;\nblack tick: size asked for, two thin ones: bounds of an equality; thick "
        "line: 95 % by itself, thin line: 95 % for all claims together",
    )
    return figure


def _mark(ax: Any, y: float, row: Any, main: bool) -> None:
    """Draws one place of a claim: filled with its two intervals, or open."""
    colour, marker, _ = VERDICT_LOOKS[row.verdict]
    x, low, high = np.clip([row.mean, row.low, row.high], -AXIS_LIMIT, AXIS_LIMIT)
    if main:
        ends = np.clip([row.low_together, row.high_together], -AXIS_LIMIT, AXIS_LIMIT)
        ax.plot(ends, [y, y], color=colour, lw=0.8, zorder=4)
        ax.plot([low, high], [y, y], color=colour, lw=2.6, solid_capstyle="butt", zorder=4)
    face = colour if main else style.CARD
    drawn: Any = {"color": colour, "mfc": face, "mec": style.CARD if main else colour}
    size = 6.5 if main else 4.5
    ax.plot([x], [y], marker, ms=size, mew=0.7, clip_on=False, zorder=6 if main else 3.5, **drawn)
