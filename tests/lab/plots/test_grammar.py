"""The grammar of figures draws the means, intervals and counts of its frame, in its own layout."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from frames import line_of
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from scipy import stats

from fedlora_lab import plots
from fedlora_lab.plots import grammar, style, tidy

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
    at_8: Any = frame[frame["epsilon"] == 8]
    means: Any = plots.intervals(tidy.means(at_8, ["method"])).axes[0]
    for ax, gain, level in ((panels[0], 0.01, 1 - 0.05 / 6), (means, 0.08, 0.95)):
        assert [tick.get_text() for tick in ax.get_yticklabels()] == ["FedLoRA", "FFA-LoRA", "mine"]
        for row, (bar, scores) in enumerate(zip(ax.collections, SCORES.values(), strict=True)):
            middle = np.mean(scores) + gain
            low, high = stats.t.interval(level, len(scores) - 1, middle, stats.sem(scores))
            assert bar.get_segments()[0] == pytest.approx(np.array([[low, row], [high, row]]))
        numbers = [text.get_text() for text in ax.texts]
        assert numbers == [f"{np.mean(scores) + gain:.1%}" for scores in SCORES.values()]


def open_marks(ax) -> list[Any]:
    """The open marks of axes, (x, y)."""
    lines = [line for line in ax.lines if line.get_markerfacecolor() == style.CARD]
    return [tuple(map(float, place)) for line in lines for place in line.get_xydata()]


def test_a_mean_of_one_seed_has_no_interval_and_an_open_marker(frame):
    """In rows, in short lines, at the end of a long line, and of curves; with three seeds none."""
    assert np.isnan(tidy.confidence_interval([0.7])).all()
    first = frame[frame["method"] == "fedlora"].assign(round=1)
    one = first[first["seed"] == 0]
    table = tidy.means(one, ["epsilon"])
    assert table[["low", "high"]].isna().all(axis=None)
    assert list(table["mean"]) == [0.51, 0.58]
    (ax,) = plots.intervals(one, by="epsilon").axes
    assert open_marks(ax) == [(0.51, 0), (0.58, 1)]
    assert "no interval" in ax.figure.get_supxlabel()
    for band in ("area", "bars"):
        (ax,) = plots.lines(one, "epsilon", band=band).axes
        assert open_marks(ax) == [(1, 0.51), (8, 0.58)]
        paths = [path for bars in ax.collections for path in bars.get_paths()]
        drawn = [np.asarray(path.vertices) for path in paths]
        assert not any(np.isfinite(places).all() and places.size for places in drawn)
    mixed = pd.concat([first[first["epsilon"] == 1], one[one["epsilon"] == 8]])
    (ax,) = plots.lines(mixed, "epsilon").axes
    assert open_marks(ax) == [(8, 0.58)] and "open marks" in ax.figure.get_supxlabel()
    rounds = pd.concat([one[one["epsilon"] == 1].assign(round=t) for t in range(40)])
    (ax,) = plots.lines(rounds).axes
    assert open_marks(ax) == [(39, 0.51)]
    (ax,) = plots.lines(first, "epsilon").axes
    assert open_marks(ax) == []


def test_lines_go_through_the_means(frame):
    (ax,) = plots.lines(frame, "epsilon", log="x", band="bars").axes
    drawn = line_of(ax, style.look("fedlora").colour).get_xydata()
    assert drawn == pytest.approx(np.array([[1, 1.9 / 3 + 0.01], [8, 1.9 / 3 + 0.08]]))
    (ax,) = plots.lines(frame.astype({"epsilon": str}), "epsilon").axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "8"]


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


def test_a_closed_form_counts_what_lies_inside():
    """Three of ten means beside x² miss it."""
    x = np.arange(1.0, 11.0)
    table = pd.DataFrame({"x": x, "closed": x**2, "mean": x**2})
    table.loc[:2, "mean"] *= 3
    table = table.assign(low=table["mean"] * 0.9, high=table["mean"] * 1.1)
    figure = plots.closed_form(table, x="x", y="y", title="t")
    assert grammar.share_inside(table) == 0.7 and "inside: 70%" in figure.get_supxlabel()
    red = [line for line in figure.axes[0].lines if line.get_color() == style.WRONG]
    assert sum(np.size(line.get_xdata()) for line in red) == 3


def test_single_measurements_are_judged_by_the_band_of_the_closed_form():
    bands = [(1.0, 0.5, 1.5), (2.0, 1.5, 2.5)]
    table = plots.measurements([1, 2], [[0.4, 1.0], [1.6, 2.0, 9.0]], bands)
    assert grammar.share_inside(table) == pytest.approx(3 / 5)


def test_a_heat_map_writes_every_number(frame):
    table = frame.pivot_table("value", "method", "epsilon")
    table.iloc[0, 0] = np.nan
    ax: Any = plots.heat({"one": table, "two": table}, unit="accuracy").axes[0]
    assert [text.get_text() for text in ax.texts] == ["0.71", "0.73", "0.80", "0.93", "1.00"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["FedLoRA", "FFA-LoRA", "mine"]


def test_an_infinite_cell_of_a_heat_map_is_red():
    table = pd.DataFrame([[0.5, np.inf], [np.nan, 2.0]])
    ax: Any = plots.heat(table).axes[0]
    assert [text.get_text() for text in ax.texts] == ["0.50", "∞", "2.00"]
    ax.figure.canvas.draw()
    colours = [to_hex(colour).upper() for colour in ax.collections[0].get_facecolors()]
    assert [colour == style.WRONG for colour in colours] == [False, True, False, False]
