"""The grammar of figures: rows of intervals, lines with bands, closed forms, heat maps, films.

Every figure of the course that is not a picture of its own is one of these. A frame has one row a
measurement, such as one a seed, from which the means and their 95 % intervals (Student's t) are
computed; or it has the means already, in the columns ``mean``, ``low`` and ``high``. The column
``method`` holds slugs: methods keep their colours, markers and names in every figure.

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
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from fedlora_lab._utils.validation import check, check_one_of
from fedlora_lab.measures.runs import last_scores, setting_text, varied_columns
from fedlora_lab.plots import style, tidy
from fedlora_lab.plots.style import Label, Picture

Colours = Mapping[str, str]
"""Value of a column -> colour; what it leaves out is coloured by its place."""

LINE_COLOURS = (style.INK, style.FACTOR["B"], style.FACTOR["A"], style.RIGHT, *style.SERIES)
PART_COLOURS = (style.GREY, style.FACTOR["B"], style.FACTOR["A"])
BANDS = ("area", "bars", "none")


# ---- what a figure says of its frame


def value_looks(values: Sequence[Any], by: str, colours: Colours | None = None) -> list[style.Look]:
    """Returns the look of each value of a column: a method's own, or a colour by its place.

    Args:
        values: of the column, each once.
        by: its name; values of "method" are slugs.
        colours: value -> colour, before all other rules.
    """
    looks = []
    for value, colour in zip(values, itertools.cycle(LINE_COLOURS)):
        look = style.look(str(value)) if by == "method" else style.Look(colour)
        looks.append(look._replace(colour=(colours or {}).get(value, look.colour)))
    return looks


def value_name(value: object, by: str) -> str:
    """Returns the words for a value of a column: a method's name, or the value itself."""
    return style.name(str(value)) if by == "method" else str(value)


def _split(frame: pd.DataFrame, panel: str | None) -> dict[str, pd.DataFrame]:
    """Splits a frame into the rows of each panel, in their order; without one, one panel."""
    if panel is None:
        return {"": frame}
    return {str(key): part for key, part in frame.groupby(panel, sort=False)}


def _check_panels(name: str, panels: object) -> None:
    filled = isinstance(panels, Mapping) and len(panels) > 0
    check(filled, name, panels, "a mapping from words to what is drawn under them, at least one")


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
    ax: Axes | None = None,
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
        ax: of a figure of your own, which gets no caption; no ``panel`` then.

    Raises: ``ValueError`` for a frame without a row, or without one of the columns.
    Guarantees: means and intervals are those of the rows
        (test_grammar.py::test_intervals_draw_means_and_their_bands).
    """
    column = tidy.value_column(frame, "value", by, hue, panel)
    panels = _split(frame, panel)
    rows = list(dict.fromkeys(frame[by]))
    crowded = hue is not None and frame.groupby(by)[hue].nunique().max() > 1
    lines_of_words = max(_row_name(row, by).count("\n") + 1 for row in rows)
    height = 1.3 + len(rows) * max(0.5 if crowded else 0.34, 0.17 * lines_of_words)
    width = 7.6 if len(panels) == 1 else min(11.0, 2.0 + 3.2 * len(panels))
    figure, axes = style.subplots(width, height, columns=len(panels), ax=ax, sharey=True)
    for ax, part in zip(axes, panels.values(), strict=True):
        draw_intervals(ax, part, by, rows, hue, number, colours, comparisons)
        if reference is not None:
            ax.axvline(reference, color=style.GREY, lw=1, ls=style.DOTTED, zorder=0.9)
        ax.set_xlabel(xlabel)
    if hue is not None:
        axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8.5)
    together = f", all {comparisons} together" if comparisons > 1 else ""
    caption = f"mark: mean, bar: its 95 % interval{together}"
    if column != "mean":
        count = tidy.count_measurements(frame, [by, hue, panel])
        caption = f"dots: {count}; {caption} (Student's t)"
        if count.startswith("1 "):
            caption += "; open marks: one measurement, no interval"
    return _finish(figure, axes, list(panels), title, caption)


def draw_intervals(
    ax: Axes,
    frame: pd.DataFrame,
    by: str,
    rows: Sequence[Any],
    hue: str | None = None,
    number: str = "",
    colours: Colours | None = None,
    comparisons: int = 1,
) -> None:
    """Draws rows of intervals into axes; see `intervals`.

    Args:
        ax, frame, by: where, what, and by which column.
        rows: values of ``by`` from top to bottom.
        hue, number, colours, comparisons: see `intervals`.
    """
    groups = [by] if hue is None else [by, hue]
    table = tidy.means(frame, groups, comparisons=comparisons)
    # In the order of the frame, which is the author's.
    column = hue or by
    keys = list(dict.fromkeys(frame[hue])) if hue else list(rows)
    # Marks of one row stand beside one another, unless each row has one of its own.
    side_by_side = hue is not None and table.groupby(by).size().max() > 1
    shifts = np.linspace(-0.25, 0.25, len(keys)) if side_by_side else np.zeros(len(keys))
    for key, look, shift in zip(keys, value_looks(keys, column, colours), shifts, strict=True):
        part = table[table[column] == key]
        y = np.array([rows.index(row) for row in part[by]]) + shift
        wide = 7 if hue is None else 4
        # The band is pale, so that dots and mean stand out on it.
        ax.hlines(
            y, part["low"], part["high"], color=look.colour, lw=wide, alpha=0.3, capstyle="butt"
        )
        if "mean" not in frame.columns:
            dots = frame[frame[column] == key]
            places = np.array([rows.index(row) for row in dots[by]]) + shift
            style.draw_dots(ax, dots["value"], places, look.colour, 4, mew=0, alpha=0.55)
        marker = look.marker if hue == "method" else "D"
        label = value_name(key, hue) if hue else None
        single = part["low"].isna().to_numpy()
        style.draw_dots(ax, part["mean"], y, look.colour, 6.5, label=label, marker=marker, zorder=3)
        style.draw_open_dots(
            ax, part["mean"][single], y[single], look.colour, 6.5, marker, zorder=4
        )
        if number and hue is None:
            beside: Any = {"transform": ax.get_yaxis_transform(), "weight": "bold", "va": "center"}
            for place, mean in zip(y, part["mean"], strict=True):
                text = number.format(mean).replace("-", "−")
                style.note(ax, 1.02, place, text, style.darken(look.colour), 9, **beside)
    # The first row stands on top.
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_yticks(range(len(rows)), [_row_name(row, by) for row in rows], color=style.INK)
    ax.grid(visible=False, axis="y")


def _row_name(row: object, by: str) -> str:
    return textwrap.fill(value_name(row, by), 50)


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
        colours: value of ``by`` -> colour, for lines with a meaning. ax: see `intervals`.

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
    check_one_of("band", band, BANDS)
    check_one_of("log", log, ("", "x", "y", "xy"))
    numbers = pd.api.types.is_numeric_dtype(frame[x]) and not frame[x].isna().any()
    if numbers:
        log = log or ("x" if x == "lr" else "")
    else:  # of no epsilon, say, or a rate for each factor
        frame = frame.assign(**{x: frame[x].map(setting_text)})
        log = log.replace("x", "")
        expected = f"None where {x} is not a number in every run"
        check(not suggested, "suggested", suggested, expected)
    panels = _split(frame, panel)
    width = 7.6 if len(panels) == 1 else min(11.0, 1.6 + 3.6 * len(panels))
    figure, axes = style.subplots(width, 4.1, columns=len(panels), ax=ax, sharey=True)
    for ax, part in zip(axes, panels.values(), strict=True):
        for axis in log:
            ax.set(**{f"{axis}scale": "log"})
        style.label_ends(ax, draw_lines(ax, part, x, by, value=value, band=band, colours=colours))
        if reference is not None:
            ax.axhline(reference, color=style.GREY, lw=1, ls=style.DOTTED, zorder=0.9)
        ends = suggested or {}
        for look, end in zip(value_looks([*ends], by, colours), ends.values()):
            ax.axvline(end, color=look.colour, lw=1, ls=style.DASHED, zorder=0.9)
        ax.set_xlabel(xlabel or ("learning rate" if x == "lr" else x))
        if "y" in log:
            _write_plain_ticks(ax)
        if "x" in log:
            _place_ticks(ax, part[x])
        elif pd.api.types.is_integer_dtype(part[x]):
            style.whole_ticks(ax.xaxis)
    axes[0].set_ylabel(ylabel)
    caption = ""
    if band != "none":
        mark = "band" if band == "area" else "bars"
        caption = f"{mark}: 95 % interval"
        if column != "mean":
            caption = tidy.describe_means(frame, [x, by, panel], mark)
    if suggested:
        caption += "; dashed: the rate of fl.suggest_lr, below the predicted end of the range"
    caption = (caption + privacy).removeprefix("; ")
    return _finish(figure, axes, list(panels), title, caption)


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
    table = tidy.means(frame, [by, x], value)
    places = list(dict.fromkeys(frame[x]))
    # Words, such as a budget of "∞", have no distance: they stand side by side.
    numbers = pd.api.types.is_numeric_dtype(frame[x])
    ax.margins(x=0.02)
    if not numbers:
        ax.set_xticks(range(len(places)), [str(place) for place in places])
        ax.margins(x=0.08)
        table[x] = table[x].map(places.index)
    keys = list(dict.fromkeys(frame[by]))
    labels = []
    for i, (key, look) in enumerate(zip(keys, value_looks(keys, by, colours), strict=True)):
        part = table[table[by] == key].sort_values(x)
        # Beside one another, bars of several lines can be told apart.
        shift = 0.06 * (i - (len(keys) - 1) / 2) if band == "bars" and not numbers else 0.0
        at = part[x].to_numpy(float) + shift
        mean = part["mean"].to_numpy(float)
        if band == "area" and len(part) > 1:
            ax.fill_between(at, part["low"], part["high"], color=look.colour, alpha=0.12, lw=0)
        elif band != "none":
            ax.vlines(at, part["low"], part["high"], color=look.colour, lw=1.6, alpha=0.6)
        drawn: Any = {"color": look.colour, "dashes": look.dashes or (None, None)}
        # On a long line markers would hide its dashes.
        if len(part) <= 12:
            drawn |= {"marker": look.marker, "ms": 5, "mec": style.CARD, "mew": 0.6}
        ax.plot(at, mean, **drawn)
        if band != "none":
            # Where nothing says how uncertain a mean is; of a long line at its end.
            single = np.flatnonzero(part["low"].isna() & np.isfinite(mean))
            single = single if len(part) <= 12 else single[-1:]
            style.draw_open_dots(ax, at[single], mean[single], look.colour, 5, look.marker)
        # A run that diverged or was not scored leaves a gap: the name stands beside what is drawn.
        drawn_at = np.flatnonzero(np.isfinite(mean))
        if len(drawn_at):
            end = float(at[drawn_at[-1]]), float(mean[drawn_at[-1]])
            labels.append(Label(*end, value_name(key, by), look.colour))
    return labels


# ---- a closed form beside what was measured


@style.paper()
def closed_form(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    title: str,
    log: str = "xy",
    parts: Mapping[str, str] | None = None,
) -> Picture:
    """Draws closed forms as lines, and what was measured beside them.

    A table with ``mean``, ``low`` and ``high`` holds measured means and their intervals; their
    ratio to the closed form stands below. A table with ``value`` holds single measurements, and
    ``low`` and ``high`` are then the 95 % band of one measurement, as the closed form says; see
    `measurements`. What misses is red.

    Args:
        table: columns x, closed, low, high, and mean or value; ``group`` where several curves share
            the figure. Numbers on a logarithmic axis are > 0.
        x, y: words for the axes, with units.
        title: the finding.
        log: the axes that are logarithmic: "", "x", "y" or "xy".
        parts: column -> words, further closed forms, drawn dashed.

    Raises: ``ValueError`` when a column is missing.
    Guarantees: the caption states `share_inside`
        (test_grammar.py::test_a_closed_form_counts_what_lies_inside).
    """
    share = share_inside(table)
    single = "value" in table.columns
    if "group" not in table.columns:
        table = table.assign(group="closed form")
    groups = list(dict.fromkeys(table["group"]))
    looks = value_looks(groups, "group")
    heights = [1] if single else [3, 1]
    figure, axes = style.subplots(
        8.2, 4.3 if single else 5.2, len(heights), sharex=True, height_ratios=heights
    )
    ax = axes[0]
    for axis in log:
        ax.set(**{f"{axis}scale": "log"})
    labels = [
        _draw_closed_form(axes, table[table["group"] == group], look.colour)
        for group, look in zip(groups, looks, strict=True)
    ]
    for (column, name), colour in zip((parts or {}).items(), PART_COLOURS, strict=False):
        curve = table.groupby("x")[column].mean()
        dashed: Any = {"lw": 1.3, "ls": style.DASHED, "zorder": 1}
        labels.append(style.named_line(ax, curve.index, curve, name, colour, **dashed))
    if "y" in log:
        _fit_log_axis(ax, table[["value" if single else "low", "closed"]].to_numpy())
        labels = [label for label in labels if label.y > ax.get_ylim()[0]]
    _place_ticks(axes[-1], table["x"])
    ax.set(ylabel=y, title=title)
    axes[-1].set_xlabel(x)
    style.label_ends(ax, labels, wide=18)
    words = "dots: measured means, bars: their 95 % interval (red: misses the line)"
    if single:
        words = f"band: 95 % of single measurements, dots: {len(table):,} of them (red: outside)"
    style.footer(figure, f"lines: closed form; {words}; inside: {100 * share:.3g}%")
    return figure


def _fit_log_axis(ax: Axes, shown: np.ndarray) -> None:
    """Fits a logarithmic y axis to what was measured."""
    # Dashed parts may fall far below what was measured, which must fill the axes.
    bottom = float(shown[shown > 0].min()) / 2.5
    top = max(ax.get_ylim()[1], float(shown.max()))
    ax.set_ylim(bottom, top)
    _write_plain_ticks(ax)


def _write_plain_ticks(ax: Axes) -> None:
    """Writes plain numbers, not powers, at the ticks of a logarithmic y axis."""
    bottom, top = ax.get_ylim()
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")
    if top < 30 * bottom:  # powers of ten alone would leave a tick or two
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def _draw_closed_form(axes: Sequence[Axes], rows: pd.DataFrame, colour: str) -> Label:
    """Draws the curve of one group and its measurements; returns the label of the curve."""
    curve = rows.groupby("x")[["closed", "low", "high"]].mean()
    # Of measured means the interval is theirs, and no band of the closed form.
    edges = (curve["low"], curve["high"]) if "value" in rows.columns else ()
    name = str(rows["group"].iloc[0])
    label = style.named_line(axes[0], curve.index, curve["closed"], name, colour, *edges)
    _draw_measured(axes, rows, colour)
    return label


def _draw_measured(axes: Sequence[Axes], rows: pd.DataFrame, colour: str) -> None:
    """Draws the measurements of one group; into second axes their ratio to the closed form."""
    # Red on top of a line that fits is seen; a number in the caption alone would not be.
    agrees = _inside(rows)
    for part, ink in ((rows[agrees], colour), (rows[~agrees], style.WRONG)):
        if "value" in rows.columns:
            style.draw_dots(axes[0], part["x"], part["value"], ink, 3, mew=0, alpha=0.5)
            continue
        for ax, scale in ((axes[0], 1.0), (axes[1], part["closed"])):
            low, mean, high = (part[name] / scale for name in ("low", "mean", "high"))
            ax.vlines(part["x"], low.clip(lower=1e-300), high, color=ink, lw=1.4)
            style.draw_dots(ax, part["x"], mean, ink, 5, zorder=4)
    if len(axes) > 1:
        axes[1].axhline(1, color=style.GREY, lw=1.2, zorder=1)
        axes[1].set_ylabel("measured /\nclosed form")


def _place_ticks(ax: Axes, places: pd.Series) -> None:
    """Puts the ticks of an x axis at the places that were measured, where they are few."""
    marked = sorted(set(places.astype(float)))
    ax.xaxis.set_major_formatter("{x:g}")
    # Where they are many, Matplotlib's own ticks are easier to read.
    if len(marked) <= 8:
        ax.xaxis.set_major_locator(FixedLocator(marked))
        ax.xaxis.set_minor_locator(NullLocator())


def measurements(
    x: Sequence[float], values: Sequence[Any], bands: Sequence[Any], group: str = "closed form"
) -> pd.DataFrame:
    """Tabulates single measurements beside the band of their closed form, for `closed_form`.

    Args:
        x: places, (n,).
        values: at each place, n arrays of any length.
        bands: mean, low and high of one measurement at each place, n of them (`theory.Band`).
        group: name of the curve.

    Returns: columns x, value, closed, low, high, group; one row a measurement.
    """
    rows = [
        (float(place), float(number), *band, group)
        for place, drawn, band in zip(x, values, bands, strict=True)
        for number in np.ravel(drawn)
    ]
    return pd.DataFrame(rows, columns=["x", "value", "closed", "low", "high", "group"])


def _inside(table: pd.DataFrame) -> pd.Series:
    """Tells which rows agree with their closed form."""
    number = table.get("value", table["closed"])
    return (table["low"] <= number) & (number <= table["high"])


def share_inside(table: pd.DataFrame) -> float:
    """Computes the share of rows that agree with their closed form.

    A measured mean agrees if its interval holds the closed form; a single measurement if it lies in
    the band of the closed form.

    Args: table: see `closed_form`.
    Raises: ``ValueError`` for no row, or a table without x, closed, low, high, or both of mean and
        value.
    """
    tidy.value_column(table, "value", "x", "low", "high", "closed")
    return float(_inside(table).mean())


# ---- heat maps and films


LETTER = 0.085
"""Width of a letter of a label, inches."""
WIDEST = 11.0
"""Inches beyond which a heat map's cells shrink and the words under them are slanted."""


@style.paper()
def heat(
    tables: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    unit: str = "",
    number: str = "{:.2f}",
    limits: tuple[float, float] | None = None,
) -> Picture:
    """Draws tables of numbers as coloured cells, with the number in each.

    Cells of an infinite number are red, and missing ones stay empty.

    Args:
        tables: a table whose index and columns are the places, or one for each panel by its title.
        title, xlabel, ylabel: the finding, and what columns and rows are; an index of the name
            "method" holds slugs.
        unit: words beside the colour bar.
        number: format of a cell's number; "" for none.
        limits: of the colours; ``None``: of all numbers.

    Raises: ``ValueError`` for no table, or tables without a finite number.
    Guarantees: test_grammar.py::test_a_heat_map_writes_every_number,
        test_an_infinite_cell_of_a_heat_map_is_red.
    """
    import seaborn as sns  # slow to import

    shown = {"": tables} if isinstance(tables, pd.DataFrame) else tables
    _check_panels("tables", shown)
    # All panels have one scale, so that a colour means the same number in each.
    numbers = np.concatenate([table.to_numpy(float).ravel() for table in shown.values()])
    finite = numbers[np.isfinite(numbers)]
    check(finite.size > 0, "tables", "no finite number", "at least one")
    low, high = limits or (float(finite.min()), float(finite.max()))
    colours = colormaps["cividis"]
    if np.isposinf(numbers).any():
        colours = colours.with_extremes(over=style.WRONG)
    named = {}
    for name, table in shown.items():
        if table.index.name == "method":
            table = table.rename(index=style.name)
        # Long words over narrow cells would run into each other.
        named[name] = table.rename(columns=lambda words: textwrap.fill(str(words), 12))
    width, height = _size_for_words(list(named.values()), title)
    slanted = width > WIDEST
    figure, axes = style.subplots(min(width, WIDEST), height, columns=len(named), sharey=True)
    for ax, (name, table) in zip(axes, named.items(), strict=True):
        texts = table.map(lambda cell: _cell_text(cell, number))
        cells: Any = {"vmin": low, "vmax": high, "cmap": colours, "cbar": False, "fmt": ""}
        cells |= {"annot_kws": {"fontsize": 8}, "linewidths": 0.6, "linecolor": style.CARD}
        # Matplotlib leaves infinite cells empty, so they become numbers above the colours' limit.
        drawn = table.astype(float).replace(np.inf, high + abs(high) + 1)
        sns.heatmap(drawn, annot=texts if number else None, ax=ax, **cells)
        ax.grid(visible=False)
        ax.set_title(name, fontsize=9.5)
        ax.set(xlabel=xlabel, ylabel=ylabel if ax is axes[0] else "")
        ax.tick_params(axis="both", rotation=0)
        if slanted:
            for label in ax.get_xticklabels():
                label.set(rotation=40, ha="right", rotation_mode="anchor")
    figure.colorbar(axes[0].collections[0], ax=axes, pad=0.02, label=unit)
    # At the figure's edge: one panel of few columns is narrower than its title.
    style.headline(figure, title)
    return figure


def _cell_text(cell: float, number: str) -> str:
    """Writes the number of a cell of a heat map: nothing for a missing one."""
    if np.isposinf(cell):
        return "∞"
    return number.format(cell) if np.isfinite(cell) else ""


def _size_for_words(tables: Sequence[pd.DataFrame], title: str) -> tuple[float, float]:
    """Computes a size in inches at which the words of heat maps and their title have room."""
    rows, columns = tables[0].shape
    longest_row = max(len(str(place)) for table in tables for place in table.index)
    lines = [line for table in tables for name in table.columns for line in name.splitlines()]
    cell = max(0.62, LETTER * max(map(len, lines)) + 0.1)
    width = 1.4 + LETTER * longest_row + len(tables) * max(1.6, cell * columns)
    width = max(width, 1.2 * LETTER * len(title) + 0.5)
    return width, 1.7 + 0.42 * rows


@style.paper()
def film(pictures: Mapping[str, Any], *, title: str = "") -> Picture:
    """Draws small pictures in a row, such as one thing round by round, each under its own words.

    Args: pictures: words -> rows of grey values in [0, 1], (h, w). title: the finding.
    Raises: ``ValueError`` for no picture.
    """
    _check_panels("pictures", pictures)
    figure, axes = style.subplots(1.35 * len(pictures), 2.1, columns=len(pictures))
    for ax, (text, picture) in zip(axes, pictures.items(), strict=True):
        # A frame, since white pixels at the edge would run into the paper.
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=True)
        ax.imshow(
            np.asarray(picture, float), interpolation="nearest", cmap="gray", vmin=0.0, vmax=1.0
        )
        ax.set_title(text, fontsize=8.5, weight="normal", loc="left")
    style.headline(figure, title)
    return figure
