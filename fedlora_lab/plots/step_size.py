"""Runs that differ in alpha: with everything else held fixed, and with the step and the clip moved along."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator

from fedlora_lab.plots import tidy
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import Picture, paper, picture


def _panel(ax: Any, frames: Mapping[float, pd.DataFrame], measure: str) -> list[Label]:
    labels = []
    for i, (alpha, frame) in enumerate(frames.items()):
        mean = tidy.rows(frame, measure).groupby("round")["value"].mean()
        colour = to_hex(colormaps["viridis"](0.05 + 0.75 * i / max(1, len(frames) - 1)))
        ax.plot(mean.index, mean, color=colour, lw=1.5 + 1.6 * (len(frames) - 1 - i))
        labels.append(Label(float(mean.index[-1]), float(mean.iloc[-1]), f"α = {alpha:g}", colour))
    return labels


def step_size(
    alone: Mapping[float, pd.DataFrame], together: Mapping[float, pd.DataFrame], measure: str = "accuracy"
) -> Picture:
    """Two panels over rounds: alpha changed by itself, and alpha changed together with step and clip.

    Args: alone, together: alpha -> tidy frame of a run. Where runs agree the lines lie on top of each other, thick
        below thin.
    Guarantees: both panels have the same axes (test_step_size_has_equal_axes).
    """
    with paper():
        figure = picture(10.4, 3.9)
        left, right = figure.add_axes((0.065, 0.15, 0.36, 0.72)), figure.add_axes((0.56, 0.15, 0.36, 0.72))
        labels = [_panel(left, alone, measure), _panel(right, together, measure)]
        limits = [edge for ax in (left, right) for edge in ax.get_ylim()]
        left.set_title("α alone is changed")
        right.set_title("with α → cα also η → η/c², C → cC")
        for ax, words in zip((left, right), labels, strict=True):
            ax.set(xlabel="round", ylabel=f"test {measure}", ylim=(min(limits), max(limits)))
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set_xlim(0, max(word.x for word in words))
            beside(ax, words)
    return figure
