"""Means with their 95 % intervals, as seaborn draws them.

A frame has one row a measurement, such as one a seed, from which come the means and their intervals
(Student's t, `fl.measures.t_interval`); or it has the means already, in the columns ``mean``,
``low`` and ``high``. The column ``method`` holds slugs: methods keep their colours, markers and
names in every figure.
"""

import itertools
import textwrap
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fedlora_lab.measures.runs import t_interval
from fedlora_lab.plots import style
from fedlora_lab.plots.style import Look

Colours = Mapping[str, str]
"""Value of a column -> colour; what it leaves out is coloured by its place."""

LINE_COLOURS = (style.INK, style.FACTOR["B"], style.FACTOR["A"], style.RIGHT, *style.SERIES)


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


def with_statistics(
    frame: pd.DataFrame, value: str, comparisons: int = 1
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Returns rows with a column ``value``, and how seaborn turns those of one place into a mean
    with its interval.

    Args: frame, value: what was measured, or means; comparisons: so many hold together.
    Guarantees: test_means.py::test_intervals_draw_means_and_their_bands.
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
