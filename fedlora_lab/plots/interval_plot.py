"""A row for each method: measurements, their mean and its interval.

>>> import pandas as pd, fedlora_lab as fl
>>> slugs = ["fedlora"] * 3 + ["ffa-lora"] * 3
>>> frame = pd.DataFrame({"method": slugs, "value": [1, 2, 3, 4, 5, 6]})
>>> figure = fl.plots.intervals(frame, title="FFA-LoRA is ahead", xlabel="score")
>>> figure.axes[0].get_title(loc="left")
'FFA-LoRA is ahead'
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedlora_lab.plots import style, tidy
from fedlora_lab.plots.means import Colours, draw_means, name_values, with_statistics
from fedlora_lab.plots.style import Look


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
        (test_means.py::test_intervals_draw_means_and_their_bands).
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
    rows, statistics = with_statistics(shown, column, comparisons)
    panels = tidy.split_panels(rows, panel)
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
    return style.finish(figure, axes, list(panels), title, caption)


def _write_means(ax: Axes, means: pd.Series, looks: Mapping[Any, Look], number: str) -> None:
    """Writes the mean of each row right of it, in the row's colour."""
    beside: Any = {"transform": ax.get_yaxis_transform(), "weight": "bold", "va": "center"}
    for word, mean in means.items():
        colour = style.darken(looks[word].colour)
        text = number.format(mean).replace("-", "−")
        style.note(ax, 1.02, list(looks).index(word), text, colour, 9, **beside)
