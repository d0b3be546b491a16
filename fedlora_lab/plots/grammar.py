"""The grammar of figures: rows of intervals, lines with bands.

seaborn aggregates and draws. A frame has one row a measurement, such as one a seed, from which come
the means and their 95 % intervals (Student's t, `fl.measures.t_interval`); or it has the means
already, in the columns ``mean``, ``low`` and ``high``. The column ``method`` holds slugs: methods
keep their colours, markers and names in every figure.

>>> import pandas as pd, fedlora_lab as fl
>>> slugs = ["fedlora"] * 3 + ["ffa-lora"] * 3
>>> frame = pd.DataFrame({"method": slugs, "value": [1, 2, 3, 4, 5, 6]})
>>> figure = fl.plots.intervals(frame, title="FFA-LoRA is ahead", xlabel="score")
>>> figure.axes[0].get_title(loc="left")
'FFA-LoRA is ahead'
"""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from fedlora_lab._utils.validation import check
from fedlora_lab.measures.runs import last_scores, setting_text, t_interval, varied_columns
from fedlora_lab.plots import style, tidy
from fedlora_lab.plots.style import Label, Look

Colours = Mapping[str, str]
"""Value of a column -> colour; what it leaves out is coloured by its place."""

LINE_COLOURS = (style.INK, style.FACTOR["B"], style.FACTOR["A"], style.RIGHT, *style.SERIES)
BANDS = {"area": "band", "bars": "bars", "none": None}
"""How an interval of a line is drawn -> seaborn's word for it."""


# ---- what seaborn is given


def name_values(
    frame: pd.DataFrame, column: str, colours: Colours | None = None
) -> tuple[pd.DataFrame, dict[Any, Look]]:
    """Writes words in the place of a column's values: of slugs the methods' names.

    Args:
        frame, column: what is drawn, and the column.
        colours: value -> colour, before all other rules.

    Returns: the frame, and the look of each of its words in their order: a method's own, or a
        colour by its place.
    """
    words, looks = {}, {}
    for value, colour in zip(dict.fromkeys(frame[column]), itertools.cycle(LINE_COLOURS)):
        method = column == "method"
        words[value] = textwrap.fill(style.name(str(value)) if method else str(value), 50)
        look = style.look(str(value)) if method else Look(colour)
        looks[words[value]] = look._replace(colour=(colours or {}).get(value, look.colour))
    return frame.assign(**{column: [words[value] for value in frame[column]]}), looks


def aggregation(
    frame: pd.DataFrame, value: str, comparisons: int = 1
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Returns rows with a column ``value``, and how seaborn turns those of one place into a mean
    with its interval.

    Args: frame, value: what was measured, or means; comparisons: so many hold together.
    Guarantees: test_grammar.py::test_intervals_draw_means_and_their_bands.
    """
    means = ["mean", "low", "high"]
    if {*means} <= {*frame.columns}:
        # Three rows for each mean: their median is the mean, and their range is the interval.
        places = [name for name in frame.columns if name not in (*means, "value")]
        rows = frame.melt(places, means, var_name="edge", value_name="value")
        return rows.dropna(subset="value"), {"estimator": "median", "errorbar": ("pi", 100)}
    rows = frame.assign(value=frame[value].where(np.isfinite(frame[value].astype(float))))
    interval = partial(student_interval, comparisons=comparisons)
    return rows, {"estimator": "mean", "errorbar": interval}


def student_interval(values: Any, comparisons: int = 1) -> tuple[float, float]:
    """Returns the ends of a mean's 95 % interval; see `fl.measures.t_interval`.

    Args: values: (n,); comparisons: so many intervals hold together (Bonferroni).
    """
    mean, half = t_interval(np.asarray(values, float), 1 - 0.05 / comparisons)
    return mean - half, mean + half


def draw_means(
    ax: Axes,
    rows: pd.DataFrame,
    by: str,
    looks: Mapping[Any, Look],
    statistics: Mapping[str, Any],
    alpha: float,
    marked: bool = True,
    joined: bool = True,
    **options: Any,
) -> None:
    """Draws means with their intervals, each group in its look.

    Args:
        ax, rows: where, and what; see `aggregation`.
        by, looks: column of the groups, and the look of each of its words.
        statistics, options: see ``seaborn.lineplot``.
        alpha: of the intervals, which are pale, so that dots and means stand out on them.
        marked, joined: whether means have markers, and whether lines join them.
    """
    import seaborn as sns  # slow to import

    dashes: Any = {word: look.dashes or "" for word, look in looks.items()}
    sns.lineplot(
        rows,
        hue=by,
        style=by,
        hue_order=[*looks],
        style_order=[*looks],
        palette={word: look.colour for word, look in looks.items()},
        dashes=dashes if joined else False,
        linestyle="solid" if joined else "none",
        markers={word: look.marker for word, look in looks.items()} if marked else False,
        markeredgecolor=style.CARD if marked else None,
        solid_capstyle="butt",  # or bars would look longer than their intervals
        ax=ax,
        **statistics,
        **options,
    )
    for interval in ax.collections:
        interval.set_alpha(alpha)


def _split(frame: pd.DataFrame, panel: str | None) -> dict[str, pd.DataFrame]:
    """Splits a frame into the rows of each panel, in their order; without one, one panel."""
    if panel is None:
        return {"": frame}
    return {str(key): part for key, part in frame.groupby(panel, sort=False)}


def _finish(
    figure: Figure, axes: Sequence[Axes], names: Sequence[str], title: str, caption: str
) -> Figure:
    """Writes the finding above one panel or all of them, and the caption below."""
    if len(axes) == 1 and not names[0]:
        axes[0].set_title(title)
    else:
        for ax, name in zip(axes, names, strict=True):
            ax.set_title(name, fontsize=9.5)
        style.headline(figure, title)
    if caption:
        style.footer(figure, caption)
    return figure


# ---- a row a method: measurements, their mean and its interval


@style.paper()
def intervals(
    frame: pd.DataFrame,
    by: str = "method",
    *,
    hue: str | None = None,
    panel: str | None = None,
    title: str = "",
    xlabel: str = "",
    reference: float | None = None,
    number: str = "{:.1%}",
    colours: Colours | None = None,
    comparisons: int = 1,
) -> Figure:
    """Draws a row for each value of ``by``: measurements as dots, their mean with its interval.

    Args:
        frame: one row a measurement, in the column value, or means with ``mean``, ``low`` and
            ``high``.
        by: column whose values are the rows, in their order in the frame.
        hue: column that splits a row into several marks, named in a legend.
        panel: column whose values are panels side by side, with the same rows.
        title, xlabel: the finding, and what is measured, with its unit.
        reference: a value to compare with, drawn as a vertical line.
        number: format of the mean that stands right of a row; "" for none. With ``hue``: none.
        colours: value of ``hue``, or of ``by`` where there is none -> colour.
        comparisons: for how many of them the intervals hold together (Bonferroni). Those of a frame
            of means are drawn as they are.

    Raises: ``ValueError`` for a frame without a row, or without one of the columns.
    Guarantees: means and intervals are those of the rows
        (test_grammar.py::test_intervals_draw_means_and_their_bands).
    """
    column = tidy.value_column(frame, "value", by, hue, panel)
    shown, looks = name_values(frame, by, colours)
    words = list(looks)
    shown["place"] = shown[by].map(words.index).astype(float)
    # Marks of one row stand beside one another, unless each row has one of its own.
    crowded = hue is not None and shown.groupby(by)[hue].nunique().max() > 1
    if hue:
        shown, looks = name_values(shown, hue, colours)
        shifts = dict(zip(looks, np.linspace(-0.25, 0.25, len(looks)), strict=True))
        shown["place"] += shown[hue].map(shifts) * crowded
    rows, statistics = aggregation(shown, column, comparisons)
    panels = _split(rows, panel)
    row_height = max(0.5 if crowded else 0.34, 0.17 * (1 + max(x.count("\n") for x in words)))
    width = 7.6 if len(panels) == 1 else min(11.0, 2.0 + 3.2 * len(panels))
    size = (width, 1.3 + row_height * len(words))
    figure, axes = style.subplots(*size, columns=len(panels), sharey=True)
    marks = {
        word: look if hue == "method" else Look(look.colour, "D") for word, look in looks.items()
    }
    for ax, part in zip(axes, panels.values(), strict=True):
        place = {"x": "value", "y": "place", "legend": "full" if hue and ax is axes[-1] else False}
        bar = {"elinewidth": 4 if hue else 7}
        line = {"orient": "y", "joined": False, "markersize": 6.5, "zorder": 3}
        draw_means(
            ax,
            part,
            hue or by,
            marks,
            statistics,
            0.3,
            err_style="bars",
            err_kws=bar,
            **place,
            **line,
        )
        for word, dots in part.groupby(hue or by):
            if column != "mean":
                look = {"mew": 0, "alpha": 0.55}
                style.draw_dots(ax, dots["value"], dots["place"], looks[word].colour, 4, **look)
        if number and hue is None:
            _write_means(
                ax,
                part.groupby(by, sort=False)["value"].agg(statistics["estimator"]),
                looks,
                number,
            )
        if reference is not None:
            ax.axvline(reference, color=style.GREY, lw=1, ls=style.DOTTED, zorder=0.9)
        # The first row stands on top.
        ax.set_ylim(len(words) - 0.5, -0.5)
        ax.set_yticks(range(len(words)), words, color=style.INK)
        ax.grid(visible=False, axis="y")
        ax.set(xlabel=xlabel, ylabel="")
    if hue is not None:
        axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8.5)
    together = f", all {comparisons} together" if comparisons > 1 else ""
    caption = f"mark: mean, bar: its 95 % interval{together}"
    if column != "mean":
        count = tidy.count_measurements(frame, [by, hue, panel])
        caption = f"dots: {count}; {caption} (Student's t)"
        if count.startswith("1 "):
            caption += "; no bar: one measurement"
    return _finish(figure, axes, list(panels), title, caption)


def _write_means(ax: Axes, means: pd.Series, looks: Mapping[Any, Look], number: str) -> None:
    """Writes the mean of each row right of it, in the row's colour."""
    beside: Any = {"transform": ax.get_yaxis_transform(), "weight": "bold", "va": "center"}
    for word, mean in means.items():
        colour = style.darken(looks[word].colour)
        text = number.format(mean).replace("-", "−")
        style.note(ax, 1.02, list(looks).index(word), text, colour, 9, **beside)


# ---- a line a method: means over a knob, with their bands


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
    Guarantees: a line goes through the means (test_grammar.py::test_lines_go_through_the_means).
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
    panels = _split(frame, panel)
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
    return _finish(figure, axes, list(panels), title, (caption + privacy).removeprefix("; "))


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
    rows, statistics = aggregation(shown, value)
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
