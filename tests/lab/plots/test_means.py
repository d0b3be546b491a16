"""Means, intervals and counts are those of the frame, and every figure has its own layout."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from scipy import stats

from fedlora_lab import plots
from fedlora_lab.plots import style

SCORES = {"fedlora": (0.5, 0.6, 0.8), "ffa-lora": (0.7, 0.72, 0.74), "mine": (0.9, 0.91, 0.95)}


@pytest.fixture
def frame():
    """Three seeds of three methods at the budgets 1 and 8."""
    rows = [
        (method, epsilon, seed, score + epsilon / 100)
        for method, scores in SCORES.items()
        for epsilon in (1, 8)
        for seed, score in enumerate(scores)
    ]
    return pd.DataFrame(rows, columns=["method", "epsilon", "seed", "value"])


def test_intervals_draw_means_and_their_bands(frame):
    """Student's intervals, of several together wider ones; a table of means is taken as it is."""
    panels: Any = plots.intervals(frame, panel="epsilon", comparisons=6).axes
    assert [ax.get_title(loc="left") for ax in panels] == ["1", "8"]
    table = pd.DataFrame({"method": [*SCORES], "mean": [0.5, 0.7, 0.9], "low": 0.1, "high": 0.95})
    means: Any = plots.intervals(table).axes[0]
    wide = stats.t.interval(1 - 0.05 / 6, 2, np.mean(SCORES["mine"]), stats.sem(SCORES["mine"]))
    for ax, ends in ((panels[0], np.array(wide) + 0.01), (means, (0.1, 0.95))):
        assert [tick.get_text() for tick in ax.get_yticklabels()] == ["FedLoRA", "FFA-LoRA", "mine"]
        bars = [bar.get_segments() for bar in ax.collections]
        assert bars[2][0] == pytest.approx(np.array([[ends[0], 2], [ends[1], 2]]))
    numbers = [f"{np.mean(scores) + 0.01:.1%}" for scores in SCORES.values()]
    assert [text.get_text() for text in panels[0].texts] == numbers
    assert [text.get_text() for text in means.texts] == ["50.0%", "70.0%", "90.0%"]


def test_marks_of_a_hue_stand_beside_one_another(frame):
    """And each group's dots on its own bar."""
    ax: Any = plots.intervals(frame, hue="epsilon").axes[0]
    assert [text.get_text() for text in ax.get_legend().texts] == ["1", "8"]
    heights = [[path[0, 1] for path in bar.get_segments()] for bar in ax.collections]
    assert heights == [[-0.25, 0.75, 1.75], [0.25, 1.25, 2.25]]
    # Fault: rows joined by a line, and bars longer than their intervals.
    assert {line.get_linestyle() for line in ax.lines} == {"None"}
    assert {bar.get_capstyle() for bar in ax.collections} == {"butt"}


def test_a_mean_of_one_seed_has_no_interval(frame):
    """In rows and in lines: no bar, no band, and the caption says so."""
    one = frame[frame["seed"] == 0]
    rows = plots.intervals(one[one["epsilon"] == 1])
    assert "no bar: one measurement" in rows.get_supxlabel()
    assert plots.lines(one, "epsilon", band="bars").get_supxlabel() == "1 seed, no bars"
    for figure in (rows, plots.lines(one, "epsilon"), plots.lines(one, "epsilon", band="bars")):
        paths = [path for drawn in figure.axes[0].collections for path in drawn.get_paths()]
        corners = [np.asarray(path.vertices) for path in paths]
        assert not any(np.isfinite(places).all() and places.size for places in corners)


def test_lines_go_through_the_means(frame):
    """Fault: seaborn takes geometric means where an axis is logarithmic before it draws."""
    figure = plots.lines(frame[frame["method"] == "fedlora"], "epsilon", log="xy")
    (ax,) = figure.axes
    assert ax.get_yscale() == "log" and "mean of 3 seeds" in figure.get_supxlabel()
    drawn = ax.lines[0].get_xydata()
    assert drawn == pytest.approx(np.array([[1, 1.9 / 3 + 0.01], [8, 1.9 / 3 + 0.08]]))


@pytest.mark.parametrize("ax", [None, Figure(layout="tight").subplots()])
def test_labels_beside_lines_keep_apart(frame, monkeypatch, ax):
    """Also where every line ends at one height, and in somebody's figure, which gets no caption."""
    level = pd.concat([frame.assign(method=f"row {i}", value=0.5) for i in range(7)])
    figure = plots.lines(level, "epsilon", ax=ax)
    assert ax is None or (figure is ax.figure and not figure.get_supxlabel())
    drawn = []
    monkeypatch.setattr(Annotation, "draw", lambda text, _: drawn.append(text.get_position()))
    style.png(figure)
    assert len({*drawn}) == 7, "they are apart as they are drawn, not afterwards"
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]
    assert len(boxes) == 7
    for first, second in itertools.combinations(boxes, 2):
        assert first.y1 - 2 <= second.y0 or second.y1 - 2 <= first.y0
    assert max(box.x1 for box in boxes) <= figure.bbox.x1, "the layout makes room for a label"
