"""Figures of notebook 09: any study's results, effects of ingredients, and rankings."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from fedlora_lab._utils.validation import check
from fedlora_lab.course.widgets.dial import Dial, round_to_digits
from fedlora_lab.experiments.method_guide import (
    describe_label,
    label_columns,
    rank_methods,
    situations,
)
from fedlora_lab.methods.published import ALL
from fedlora_lab.plots import style, tidy
from fedlora_lab.plots.style import look, name
from fedlora_lab.plots.training_curves import AXES

KNOBS = {
    "epsilon": "privacy budget ε",
    "alpha": "Dirichlet β of the split",
    "noise": "noise multiplier σ",
    "clip": "clip norm C",
    "scale": "α / r",
}
"""Labels of a study as an axis names them; others by their own name."""
MEASURES = {"accuracy": False, "loss": True, "deviation": True}
"""What the explorer offers, of what a study holds -> whether less is better."""
COLOURS = (style.FACTOR["B"], style.FACTOR["A"], style.RIGHT, style.INK)
BOLD: Any = {"weight": "bold"}


class View(NamedTuple):
    """A view of results: a measure over the label x, methods, a reference, fixed other labels."""

    measure: str
    x: str
    methods: tuple[str, ...]
    against: str
    held: Mapping[str, Any]


def _chosen(frame: Any, held: Mapping[str, Any]) -> Any:
    """Selects the rows with these labels; a missing label (no privacy) is a value of its own."""
    for label, value in held.items():
        column = frame[label]
        frame = frame[column.isna() if value is None or value != value else column == value]
    return frame


def _order(values: Any) -> list[Any]:
    """Sorts the values of a label, what is missing last."""
    there = sorted(values.dropna().unique().tolist())
    return [*there, math.nan] if values.isna().any() else there


def _tick(value: Any) -> str:
    if value != value:
        return "none"
    return f"{value:g}" if isinstance(value, float | int) else str(value)


def means_and_gaps(frame: Any, view: View) -> tuple[Any, Any]:
    """Computes means and paired gaps: frames with columns method, place, mean, low, high, seeds.

    Raises: ``ValueError`` when no row is left, or a column is missing.
    Guarantees: Student's 95 % interval over seeds, gaps seed by seed
        (test_lesson_09.py::test_means_and_gaps_by_hand).
    """
    there = "one of " + ", ".join(map(str, frame.columns))
    for column in (view.measure, view.x, "method", "seed"):
        check(column in frame.columns, "column", column, there)
    rows = _chosen(frame, view.held)
    rows = rows[rows["method"].isin([*view.methods, view.against]) & rows[view.measure].notna()]
    check(len(rows) > 0, "methods", list(view.methods), "some that the frame holds in this setting")
    means, gaps = [], []

    def add(found: list, slug: str, place: int, values: Any) -> None:
        found.append(
            (slug, place, float(values.mean()), *tidy.confidence_interval(values), len(values))
        )

    for place, value in enumerate(_order(frame[view.x])):
        table: Any = _chosen(rows, {view.x: value}).pivot_table(view.measure, "seed", "method")
        for slug in (slug for slug in view.methods if slug in table.columns):
            add(means, slug, place, table[slug].dropna())
            if slug != view.against and view.against in table.columns:
                gap = (table[slug] - table[view.against]).dropna()
                if len(gap) > 1:
                    add(gaps, slug, place, gap)
    columns = ["method", "place", "mean", "low", "high", "seeds"]
    return pd.DataFrame(means, columns=columns), pd.DataFrame(gaps, columns=columns)


@style.paper()
def results(frame: pd.DataFrame, view: View) -> style.Picture:
    """Draws a measure over a label, and the paired difference of each method to a reference.

    Raises: as `means_and_gaps`.
    Guarantees: the axes follow the means in the frame, the measure and the labels alone, not the
        methods (test_lesson_09.py::test_the_results_figure_stands_still).
    """
    means, gaps = means_and_gaps(frame, view)
    places = _order(frame[view.x])
    every: Any = _chosen(frame, view.held).groupby([view.x, "method"], dropna=False)[view.measure]
    every = every.mean().dropna()
    low, high = float(every.min()), float(every.max())
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    far = float(every.groupby(level=0, dropna=False).agg(np.ptp).max()) or high - low
    figure, (left, right) = style.row(9.4, 4.0, (0.165, 0.73), (0.07, 0.36), (0.51, 0.33))
    labels, ends = _lines(left, means, view.methods), _lines(right, gaps, view.methods)
    title, unit = AXES.get(view.measure, (view.measure, view.measure))
    beyond = 0.2 * (high - low)
    left.set(ylabel=unit, ylim=(low - beyond, high + beyond), title=title)
    right.axhline(0, color=style.GREY, lw=1.2)
    right.set(ylabel="difference, paired by seed", ylim=(-1.3 * far, 1.3 * far))
    right.set_title(f"Above {name(view.against)}")
    for ax in (left, right):
        ax.set(xlim=(-0.4, len(places) - 0.6), xlabel=KNOBS.get(view.x, view.x))
        ax.set_xticks(range(len(places)), [_tick(value) for value in places])
    if ends and (means["method"] == view.against).any():
        colour = look(view.against).colour
        ends.append(style.Label(ends[0].x, 0.0, name(view.against), colour))
    style.draw_labels(right, ends or labels, together=False)
    style.footer(figure, "bars: Student's 95 % interval over the seeds, each for itself")
    return figure


def _lines(ax: Any, table: Any, slugs: Sequence[str]) -> list[style.Label]:
    """Draws one line a method, shifted against the others, with a bar at each place."""
    labels = []
    for i, slug in enumerate(slugs):
        part, (colour, marker, _) = table[table["method"] == slug], look(slug)
        if not len(part):
            continue
        x = part["place"] + 0.5 * (i - (len(slugs) - 1) / 2) / max(len(slugs), 4)
        ax.vlines(x, part["low"], part["high"], color=colour, lw=1.4, alpha=0.8)
        labels.append(style.named_line(ax, x, part["mean"], name(slug), colour, lw=1.1, alpha=0.7))
        ax.plot(x, part["mean"], marker, ms=6, color=colour, mec=style.CARD, mew=0.6)
    return labels


def results_words(frame: pd.DataFrame, view: View) -> str:
    """Describes `results` in words at the place with most methods."""

    def words(row: Any, sign: str = "") -> str:
        mean = format(row.mean, sign + ".3f")
        return f"{name(row.method)} {mean} [{row.low:{sign}.3f}, {row.high:{sign}.3f}]"

    means, gaps = ([*table.itertuples()] for table in means_and_gaps(frame, view))
    placed = [row.place for row in means]
    place = max(sorted(set(placed)), key=placed.count)
    here = sorted((row for row in means if row.place == place), key=lambda row: -row.mean)
    gap = [row for row in gaps if row.place == place]
    clear = [words(row, "+") for row in gap if row.low * row.high > 0]
    shown = "; ".join(clear[:3]) + ("; …" if len(clear) > 3 else "")
    unclear = len(gap) - len(clear)
    return (
        f"At {view.x} {_tick(_order(frame[view.x])[place])}: {words(here[0])}, {here[0].seeds} "
        f"seeds, highest of {len(here)}. Against {name(view.against)}: "
        f"{shown or 'no interval leaves zero'}"
        + (f"; {unclear} cannot be told from it." if unclear else ".")
    )


@style.paper()
def ranking(frames: Mapping[str, Any]) -> style.Picture:
    """Draws how far each method is behind the best in every situation of the studies.

    A frame is the best, a dot cannot be told from it (see `rank_methods`); what was not run is
    empty.

    Raises: ``ValueError`` when there is no situation.
    Guarantees: test_guide.py::test_the_figure_of_the_guide.
    """
    found: list[tuple[Any, Any]] = [(one, rank_methods(one.rows)) for one in situations(frames)]
    check(bool(found), "frames", list(frames), "at least one study with results")
    order = {slug: i for i, slug in enumerate(ALL)}
    ranked = [sorted(table.index, key=lambda slug: order.get(slug, len(ALL))) for _, table in found]
    slugs = list(dict.fromkeys(slug for column in ranked for slug in column))
    gaps = np.full((len(slugs), len(found)), np.nan)
    for column, (_, table) in enumerate(found):
        for slug in table.index:
            gaps[slugs.index(slug), column] = -abs(table.loc[slug, "gap"])
    lowest = min(-0.15, float(np.nanmin(gaps)))
    wide, tall = max(6.9, 2.3 + 0.78 * len(found)), 1.65 + 0.32 * len(slugs)
    width = min(0.78 * len(found), wide - 1.6) / wide
    figure, (ax,) = style.panels(wide, tall, (1.45 / wide, 0.42 / tall, width, 1 - 1.6 / tall))
    title = "Best in each situation, and how far behind it the others are"
    figure.text(0.02, 1 - 0.16 / tall, title, fontsize=10.5, va="top", **BOLD)
    ax.imshow(gaps, cmap="YlGnBu_r", vmin=lowest, vmax=0.06, aspect="auto")
    for column, (_, table) in enumerate(found):
        for slug, row in table.iterrows():
            y, best = slugs.index(str(slug)), slug == table.index[0]
            behind = f"−{abs(row['gap']):.2f}".replace("−0.00", "0.00")
            text = f"{row['mean']:.2f}" if best else behind + " •" * bool(row["tied"])
            ink = "white" if gaps[y, column] < 0.5 * lowest else style.INK
            put: Any = {"fontsize": 8, "ha": "center", "va": "center", "color": ink}
            ax.text(column, y, text, weight="bold" if best else "normal", **put)
        y = slugs.index(str(table.index[0]))
        ax.plot([column], [y], "s", ms=22, mfc="none", mec=style.INK, mew=1.6)
    ax.grid(False)
    ax.set_yticks(range(len(slugs)), [name(slug) for slug in slugs])
    for tick, slug in zip(ax.get_yticklabels(), slugs, strict=True):
        tick.set(color=style.darken(look(slug).colour), size=8.8, **BOLD)
    heads = [f"{one.study}, {one.words}".replace("-", ", ").replace(", ", "\n") for one, _ in found]
    ax.xaxis.tick_top()
    ax.set_xticks(range(len(found)), heads, fontsize=7.8, color=style.SOFT)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    words = "framed: best mean; others: how far behind; •: cannot be told from the best (95 %,"
    style.footer(figure, f"{words} all pairs)")
    return figure


def study_cells(frame: pd.DataFrame) -> dict[str, Any]:
    """Converts a study's frame for the results explorer.

    Args: frame: one study, as `experiments.read_studies` reads it.
    Returns: ``labels`` with their values in words, ``methods``, ``measures``, and ``cells``: for
        each case its method and label values by number, and of each measure the seeds' scores.
    Raises: ``ValueError`` when the frame is of no study, or holds no measure of `MEASURES`.
    """
    labels = label_columns(frame)
    measures = [m for m in MEASURES if m in frame.columns and frame[m].notna().any()]
    check(bool(measures), "frame.columns", list(frame.columns), f"one of {', '.join(MEASURES)}")
    slugs, seeds = list(dict.fromkeys(frame["method"])), sorted(frame["seed"].unique())
    ticks = {label: [_tick(value) for value in _order(frame[label])] for label in labels}
    cells = []
    for (slug, *values), rows in frame.groupby(["method", *labels], dropna=False, sort=False):
        at = [ticks[label].index(_tick(v)) for label, v in zip(labels, values, strict=True)]
        scores = rows.set_index("seed")[measures].reindex(seeds)
        scores = round_to_digits(scores.where(np.isfinite(scores)).to_numpy().T, 4)
        cells.append([slugs.index(slug), at, scores])
    return {
        "labels": [
            {
                "name": label,
                "axis": KNOBS.get(label, label.replace("_", " ")),
                "ticks": ticks[label],
                "words": [describe_label(label, value) for value in _order(frame[label])],
            }
            for label in labels
        ],
        "methods": [[slug, name(slug)] for slug in slugs],
        "measures": [[m, *AXES[m], MEASURES[m]] for m in measures],
        "cells": cells,
    }


def results_explorer(frames: "Mapping[str, pd.DataFrame] | pd.DataFrame") -> Dial:
    """Makes a dial for study, measure, axis and two methods, drawn among all methods.

    Args: frames: study -> frame as `experiments.read_studies` reads them, or one frame.
    Raises: ``ValueError`` when there is none.
    Guarantees: means, gaps and intervals are those of `means_and_gaps`
        (tests/browser/test_dials.py::test_formulas).
    """
    known = {"results": frames} if isinstance(frames, pd.DataFrame) else dict(frames)
    wanted = "at least one study's frame: `fedlora-lab study digits` makes one"
    check(bool(known), "frames", list(known), wanted)
    studies = {study: study_cells(frame) for study, frame in known.items()}
    most = max(int(frame["seed"].nunique()) for frame in known.values())
    quantiles = [0, 0, *stdtrit(np.arange(1, most), 0.975).tolist()]
    about = "Any study's results: two methods over a label, and every method against one of them."
    data = {"studies": studies, "t": quantiles}
    rest = dict.fromkeys(("measure", "x", "where", "method", "against"), "")
    return Dial(9, "results_explorer", about, data, study=next(iter(known)), at=0, **rest)
