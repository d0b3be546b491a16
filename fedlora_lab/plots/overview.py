"""The one figure that answers why it is hard: accuracy, deviation, privacy and bytes side by side."""

from typing import Any

import pandas as pd

from fedlora_lab.plots import tidy
from fedlora_lab.plots.curves import footer, frame_axes, lines, not_measured, start_line
from fedlora_lab.plots.deviation import panel as deviation_panel
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import INK, Picture, paper, picture
from fedlora_lab.plots.traffic import panel as traffic_panel
from fedlora_lab.plots.traffic import table as traffic_table


def _accuracy(ax: Any, part: Any) -> None:
    labels = lines(ax, part)
    frame_axes(ax, part, "accuracy")
    start_line(ax, part)
    beside(ax, labels, together=False)


def _spent(ax: Any, part: Any) -> None:
    """Privacy spent: one line in ink where all methods spend the same, words where nothing finite is spent."""
    if len(part) == 0:
        not_measured(ax, "no finite ε in this frame")
        return
    gap = part.groupby("round")["value"].agg(lambda values: values.max() - values.min()).max()
    if part["method"].nunique() > 1 and gap < 1e-6:
        one = part.groupby("round")["value"].mean()
        ax.plot(one.index, one.to_numpy(), color=INK, marker="o", markevery=[-1])
        labels = [Label(float(one.index[-1]), float(one.iloc[-1]), f"every method\nε = {one.iloc[-1]:.2f}", INK)]
    else:
        labels = lines(ax, part)
    frame_axes(ax, part, "epsilon")
    beside(ax, labels)


def overview(frame: pd.DataFrame) -> Picture:
    """Accuracy, aggregation deviation and ε over rounds, and accuracy against bytes, in one figure.

    Args: frame: tidy, one task.
    Raises: ``ValueError`` when the frame lacks one of the measures.
    Guarantees: test_overview_has_four_panels.
    """
    accuracy, drift = tidy.rows(frame, "accuracy"), tidy.rows(frame, "deviation", some=False)
    spent, means = tidy.rows(frame, "epsilon", some=False), traffic_table(frame)
    with paper():
        figure = picture(9.9, 7.2)
        width, height = 0.315, 0.36
        places = {"nw": (0.065, 0.575), "ne": (0.565, 0.575), "sw": (0.065, 0.105), "se": (0.565, 0.105)}
        axes = {key: figure.add_axes((*corner, width, height)) for key, corner in places.items()}
        _accuracy(axes["nw"], accuracy)
        axes["nw"].set_title("1  How well it learns")
        deviation_panel(axes["ne"], drift) if len(drift) else not_measured(axes["ne"], "deviation: not measured")
        axes["ne"].set_title("2  How far it misses the mean product")
        _spent(axes["sw"], spent)
        axes["sw"].set_title("3  What privacy it spends")
        traffic_panel(axes["se"], means) if len(means) else not_measured(axes["se"], "bytes: not measured")
        axes["se"].set_title("4  What it sends and receives")
        footer(figure, tidy.seeds(accuracy))
    return figure
