"""A line for each method: means over a knob, with their bands."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from fedlora_lab._utils.validation import check
from fedlora_lab.measures.runs import last_scores, setting_text, varied_columns
from fedlora_lab.plots import style, tidy
from fedlora_lab.plots.means import Colours, draw_means, name_values, with_statistics
from fedlora_lab.plots.style import Label

BANDS = {"area": "band", "bars": "bars", "none": None}
"""How an interval of a line is drawn -> seaborn's word for it."""


@style.paper()
def lines(
    frame: pd.DataFrame,
    x: str = "round",
    by: str = "method",
    *,
    value: str = "value",
    band: str = "area",
    panel: str | None = None,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    log: str = "",
    reference: float | None = None,
    suggested: Mapping[str, float] | None = None,
    colours: Colours | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws a line of means for each value of ``by`` over ``x``, with 95 % bands.

    Args:
        frame: one row a measurement, or means with ``mean``, ``low`` and ``high``. Of the tidy
            frame of a sweep the scores after the last round are drawn.
        x: column of the places, "lr" on a logarithmic axis; words, such as "∞", stand side by
            side in their order, and so does a column in which some value is none.
        by, value: columns of the lines, each named at its end, and of the measurements.
        band: "area", "bars" or "none". panel: column whose values are panels side by side.
        title, xlabel, ylabel: the finding, and the axes with their units.
        log: the axes that are logarithmic: "", "x", "y" or "xy".
        reference: a value to compare with, drawn as a horizontal line.
        suggested: value of ``by`` -> the rate of `fl.suggest_lr`, drawn as a dashed vertical line.
            There noise on an output of a client's copy has variance 0.2; a range of good rates is
            predicted to end further up, where that of the averaged model is 0.35.
        colours: value of ``by`` -> colour, for lines with a meaning.
        ax: of a figure of your own, which gets no caption; no ``panel`` then.

    Raises: ``ValueError`` for a frame without a row, or without one of the columns.
    Guarantees: a line goes through the means (test_means.py::test_lines_go_through_the_means).
    """
    column = tidy.value_column(frame, value, x, by, panel)
    privacy = tidy.describe_privacy(frame)
    if x != "round" and {"layer", "measure", "round"} <= {*frame.columns}:
        hidden = [name for name in varied_columns(frame) if name not in (x, by, panel)]
        expected = "one value each: select one, or make it the panel"
        check(not hidden, "frame", "several of " + ", ".join(hidden), expected)
        frame = last_scores(frame)
        ylabel = ylabel or f"{frame['measure'].iloc[0]} after the last round"
    scored = np.isfinite(frame[column].astype(float)).any()
    check(bool(scored), f"frame[{column!r}]", "nothing finite", "a score that was measured")
    if pd.api.types.is_numeric_dtype(frame[x]) and not frame[x].isna().any():
        log = log or ("x" if x == "lr" else "")
    else:  # of no epsilon, say, or a rate for each factor
        frame = frame.assign(**{x: frame[x].map(setting_text)})
        log = log.replace("x", "")
    panels = tidy.split_panels(frame, panel)
    width = 7.6 if len(panels) == 1 else min(11.0, 1.6 + 3.6 * len(panels))
    figure, axes = style.subplots(width, 4.1, columns=len(panels), ax=ax, sharey=True)
    for ax, part in zip(axes, panels.values(), strict=True):
        labels = draw_lines(ax, part, x, by, value=column, band=band, colours=colours)
        # After seaborn, whose means would be geometric on an axis that is logarithmic already.
        for axis in log:
            ax.set(**{f"{axis}scale": "log"})
        style.label_ends(ax, labels)
        if reference is not None:
            ax.axhline(reference, color=style.GREY, lw=1, ls=style.DOTTED, zorder=0.9)
        for key, rate in (suggested or {}).items():
            _, looks = name_values(pd.DataFrame({by: [key]}), by, colours)
            (look,) = looks.values()
            ax.axvline(rate, color=look.colour, lw=1, ls=style.DASHED, zorder=0.9)
        ax.set(xlabel=xlabel or ("learning rate" if x == "lr" else x), ylabel="")
        if "y" in log:
            write_plain_ticks(ax)
        if "x" in log:
            place_ticks(ax, part[x])
        elif pd.api.types.is_integer_dtype(part[x]):
            style.whole_ticks(ax.xaxis)
    axes[0].set_ylabel(ylabel)
    caption = ""
    if band != "none":
        caption = f"{BANDS[band]}: 95 % interval"
        if column != "mean":
            caption = tidy.describe_means(frame, [x, by, panel], str(BANDS[band]))
    if suggested:
        caption += "; dashed: the rate of fl.suggest_lr, below the predicted end of the range"
    return style.finish(figure, axes, list(panels), title, (caption + privacy).removeprefix("; "))


def draw_lines(
    ax: Axes,
    frame: pd.DataFrame,
    x: str,
    by: str,
    *,
    value: str = "value",
    band: str = "area",
    colours: Colours | None = None,
) -> list[Label]:
    """Draws lines of means into axes; returns their labels for `style.label_ends`.

    Args:
        ax, frame: where, and what.
        x, by, value, band, colours: see `lines`.
    """
    shown, looks = name_values(frame, by, colours)
    rows, statistics = with_statistics(shown, value)
    means = rows.groupby([by, x], sort=False)["value"].agg(statistics["estimator"]).dropna()
    if BANDS[band] is None:
        statistics["errorbar"] = None
    draw_means(
        ax,
        rows,
        by,
        looks,
        statistics,
        0.6 if band == "bars" else 0.12,
        marked=frame[x].nunique() <= 12,  # on a long line markers would hide its dashes
        x=x,
        y="value",
        err_style=BANDS[band] or "band",
        err_kws={"elinewidth": 1.6} if band == "bars" else {"lw": 0},
        markeredgewidth=0.6,
        legend=False,
    )
    ax.margins(x=0.02 if pd.api.types.is_numeric_dtype(frame[x]) else 0.08)
    # A run that diverged leaves a gap: the name stands beside the last that is drawn.
    places = means.reset_index()
    if pd.api.types.is_numeric_dtype(frame[x]):
        places = places.sort_values(x)
    ends = places.groupby(by, sort=False).last()
    return [
        Label(float(ax.convert_xunits(ends.at[word, x])), ends.at[word, "value"], word, look.colour)
        for word, look in looks.items()
        if word in ends.index
    ]


def place_ticks(ax: Axes, places: pd.Series) -> None:
    """Puts the ticks of an x axis at the places that were measured, where they are few."""
    marked = sorted(set(places.astype(float)))
    ax.xaxis.set_major_formatter("{x:g}")
    # Where they are many, Matplotlib's own ticks are easier to read.
    if len(marked) <= 8:
        ax.xaxis.set_major_locator(FixedLocator(marked))
        ax.xaxis.set_minor_locator(NullLocator())


def write_plain_ticks(ax: Axes) -> None:
    """Writes plain numbers, not powers, at the ticks of a logarithmic y axis."""
    bottom, top = ax.get_ylim()
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")
    if top < 30 * bottom:  # powers of ten alone would leave a tick or two
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
