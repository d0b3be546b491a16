"""A study's frame over one of its labels: means with intervals, and differences paired by seed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from fedlora_lab.checks import check
from fedlora_lab.plots import tidy
from fedlora_lab.plots.curves import AXES, footer
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import CARD, GREY, Picture, look, name, paper, picture

KNOBS = {
    "epsilon": "privacy budget ε",
    "alpha": "Dirichlet α of the split",
    "noise": "noise multiplier σ",
    "clip": "clip norm C",
    "scale": "α / r",
}
"""Labels of a study as an axis names them; others by their own name."""


class View(NamedTuple):
    """What is looked at: a measure over a label, some methods, one of them to compare with, the other labels held."""

    measure: str
    x: str
    methods: tuple[str, ...]
    against: str
    held: Mapping[str, Any]


def chosen(frame: Any, held: Mapping[str, Any]) -> Any:
    """The rows with these labels; a label that is missing (no privacy) is one like the others."""
    for label, value in held.items():
        column = frame[label]
        frame = frame[column.isna() if value is None or value != value else column == value]
    return frame


def _order(values: Any) -> list[Any]:
    """The values of a label in order, what is missing last."""
    there = sorted(values.dropna().unique().tolist())
    return [*there, math.nan] if values.isna().any() else there


def measured(frame: Any, view: View) -> tuple[Any, Any]:
    """Means and paired gaps: frames with columns method, place, mean, low, high, seeds.

    Raises: ``ValueError`` when no row is left, or a column is missing.
    Guarantees: Student's 95 % interval over seeds, gaps seed by seed (test_lesson_09.py::test_measured_by_hand).
    """
    for column in (view.measure, view.x, "method", "seed"):
        check(column in frame.columns, "column", column, "one of " + ", ".join(map(str, frame.columns)))
    rows = chosen(frame, view.held)
    rows = rows[rows["method"].isin([*view.methods, view.against]) & rows[view.measure].notna()]
    check(len(rows) > 0, "methods", list(view.methods), "some that the frame holds in this setting")
    means, gaps = [], []
    for place, value in enumerate(_order(frame[view.x])):
        table: Any = chosen(rows, {view.x: value}).pivot_table(view.measure, "seed", "method")
        for slug in (slug for slug in view.methods if slug in table.columns):
            values = table[slug].dropna()
            means.append((slug, place, float(values.mean()), *tidy.band(values), len(values)))
            if slug != view.against and view.against in table.columns:
                gap = (table[slug] - table[view.against]).dropna()
                if len(gap) > 1:
                    gaps.append((slug, place, float(gap.mean()), *tidy.band(gap), len(gap)))
    columns = ["method", "place", "mean", "low", "high", "seeds"]
    return pd.DataFrame(means, columns=columns), pd.DataFrame(gaps, columns=columns)


def results(frame: pd.DataFrame, view: View) -> Picture:
    """Left a measure over a label, mean and 95 % interval; right what each method adds to the one compared with.

    Raises: as `measured`.
    Guarantees: the axes follow the means in the frame, the measure and the labels alone, not the methods
        (test_lesson_09.py::test_the_results_figure_stands_still).
    """
    means, gaps = measured(frame, view)
    places = _order(frame[view.x])
    low, high, far = _reach(frame, view)
    with paper():
        figure = picture(9.4, 4.0)
        left, right = figure.add_axes((0.07, 0.165, 0.36, 0.73)), figure.add_axes((0.51, 0.165, 0.33, 0.73))
        labels = _lines(left, means, view.methods)
        ends = _lines(right, gaps, view.methods)
        left.set_ylim(low - 0.2 * (high - low), high + 0.2 * (high - low))
        right.set_ylim(-1.3 * far, 1.3 * far)
        right.axhline(0, color=GREY, lw=1.2)
        title, unit = AXES.get(view.measure, (view.measure, view.measure))
        left.set(ylabel=unit)
        left.set_title(title)
        right.set(ylabel="difference, paired by seed")
        right.set_title(f"Above {name(view.against)}")
        for ax in (left, right):
            ax.set_xlim(-0.4, len(places) - 0.6)
            ax.set_xticks(range(len(places)), [_tick(value, view.x) for value in places])
            ax.set_xlabel(KNOBS.get(view.x, view.x))
        if ends and (means["method"] == view.against).any():
            ends.append(Label(ends[0].x, 0.0, name(view.against), look(view.against).colour))
        beside(right, ends or labels, together=False)
        footer(figure, "bars: Student's 95 % interval over the seeds, each for itself")
    return figure


def _reach(frame: Any, view: View) -> tuple[float, float, float]:
    """The lowest and the highest mean, and how far two of one place are apart at most, all methods of the frame."""
    means = chosen(frame, view.held).groupby([view.x, "method"], dropna=False)[view.measure].mean().dropna()
    spread = means.groupby(level=0, dropna=False).agg(lambda values: values.max() - values.min())
    low, high = float(means.min()), float(means.max())
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    return low, high, float(spread.max()) or high - low


def _tick(value: Any, x: str) -> str:
    if value != value:
        return "none"
    return f"{value:g}" if isinstance(value, float | int) else str(value)


def _lines(ax: Any, table: Any, slugs: Sequence[str]) -> list[Label]:
    """One line a method, a little aside of the others, with a bar at each place."""
    labels = []
    for i, slug in enumerate(slugs):
        part, seen = table[table["method"] == slug], look(slug)
        if not len(part):
            continue
        x = part["place"] + 0.5 * (i - (len(slugs) - 1) / 2) / max(len(slugs), 4)
        ax.vlines(x, part["low"], part["high"], color=seen.colour, lw=1.4, alpha=0.8)
        ax.plot(x, part["mean"], color=seen.colour, lw=1.1, alpha=0.7)
        ax.plot(x, part["mean"], seen.marker, ms=6, color=seen.colour, mec=CARD, mew=0.6)
        labels.append(Label(float(x.iloc[-1]), float(part["mean"].iloc[-1]), name(slug), seen.colour))
    return labels


def results_words(frame: pd.DataFrame, view: View) -> str:
    """What the figure shows at the place with most methods, in words."""
    means, gaps = measured(frame, view)
    place = int(means.groupby("place").size().idxmax())
    here = means[means["place"] == place].sort_values("mean", ascending=False)
    best, where = here.iloc[0], f"{view.x} {_tick(_order(frame[view.x])[place], view.x)}"
    text = f"At {where}: {name(best['method'])} {best['mean']:.3f} [{best['low']:.3f}, {best['high']:.3f}], "
    text += f"{best['seeds']} seeds, highest of {len(here)}. "
    gap = gaps[gaps["place"] == place]
    clear = [
        f"{name(g.method)} {g.mean:+.3f} [{g.low:+.3f}, {g.high:+.3f}]" for g in gap.itertuples() if g.low * g.high > 0
    ]
    told = "; ".join(clear[:3]) + ("; …" if len(clear) > 3 else "")
    open_ = len(gap) - len(clear)
    return f"{text}Against {name(view.against)}: {told or 'no interval leaves zero'}" + (
        f"; {open_} cannot be told from it." if open_ else "."
    )
