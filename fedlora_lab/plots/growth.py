"""What grows with the number of clients, and what does not."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from fedlora_lab.checks import check
from fedlora_lab.plots import tidy
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import INK, Picture, paper, picture

COLOURS = {"if all took part": "#D55E00", "by those that do": "#0072B2"}


def table(frames: Mapping[int, pd.DataFrame]) -> Any:
    """Number of clients as index; clients and bytes up of a round that took part, and of all if they did, means."""
    rows = []
    for clients, frame in frames.items():
        played: Any = frame[frame["round"] > 0]
        part = float(tidy.rows(played, "participants")["value"].sum())
        sent = float(tidy.rows(played, "bytes_up")["value"].sum())
        rounds = played["round"].nunique()
        each = sent / part if part else np.nan
        rows.append((clients, part / rounds, sent / rounds, each * clients))
    return pd.DataFrame(rows, columns=["clients", "part", "bytes", "all"]).set_index("clients")


def growth(frames: Mapping[int, pd.DataFrame]) -> Picture:
    """Bytes that the server receives in a round against the number of clients, and what it would be if all took part.

    Args: frames: number of clients -> tidy frame of a run with at least one round.
    Raises: ``ValueError`` for an empty mapping.
    Guarantees: points are the frames' own means (tests/test_lesson_14.py::test_growth_shows_the_frames).
    """
    check(len(frames) > 1, "frames", len(frames), "runs with at least two numbers of clients")
    means = table(frames)
    with paper():
        figure = picture(7.6, 3.8)
        ax = figure.add_axes((0.11, 0.17, 0.6, 0.72))
        labels = []
        for column, words in (("all", "if all took part"), ("bytes", "by those that do")):
            y = means[column] / 2**20
            ax.plot(
                means.index, y, color=COLOURS[words], marker="o", dashes=(4, 2) if column == "all" else (None, None)
            )
            labels.append(Label(float(means.index[-1]), float(y.iloc[-1]), words, COLOURS[words]))
        ax.set(xscale="log", yscale="log", xlabel="clients in the federation", ylabel="MiB sent up in a round")
        ax.set_title("A round costs what takes part, not what exists", color=INK)
        beside(ax, labels, wide=20)
    return figure
