"""Figures of runs: what is drawn is what the frame says, it looks the same every time, and what
cannot be drawn is refused in one line."""

import itertools
import threading
from typing import Any

import matplotlib
import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from calls import Options, refused
from frames import line_of, marked, scores_frame, tidy_frame
from matplotlib.text import Text

import fedlora_lab as fl
from fedlora_course.drawing import contrast, on_screen
from fedlora_course.figures import method_diagrams
from fedlora_lab import plots
from fedlora_lab.plots import style
from fedlora_lab.recipes.dry_run import DryRun


@pytest.fixture(scope="module")
def frame():
    return tidy_frame()


def where(frame, keep, **labels):
    """The frame with NaN in the rows of these labels that are not to be kept."""
    chosen = np.logical_and.reduce([frame[key].isin(value) for key, value in labels.items()])
    return frame.assign(value=frame["value"].where(~chosen | keep))


# ---- what is drawn


def test_noise_alone_is_drawn_beside_the_trained_model():
    alone = pd.DataFrame({"lr": [0.1, 1.0], "score": [0.6, 0.2]})
    trained = pd.DataFrame({"lr": [0.1, 0.1, 1.0], "score": [0.7, 0.9, 0.5]})
    dry = DryRun(alone, 0.5, 10.0, None)
    (ax,) = plots.noise_alone(dry, trained).axes
    drawn = {label.get_text(): line for label, line in zip(ax.texts, ax.lines, strict=False)}
    assert drawn["noise alone"].get_ydata() == pytest.approx([0.6, 0.2])
    assert drawn["trained"].get_ydata() == pytest.approx([0.8, 0.5])
    assert line_of(ax, style.GREY).get_xdata() == pytest.approx([0.5, 0.5])


def test_deviation_names_the_exact(frame):
    figure = plots.deviation(frame)
    assert "zero: FFA-LoRA, RoLoRA, DEeR" in figure.get_supxlabel()
    rounding = frame.assign(value=frame["value"] * 1e-8)
    assert plots.deviation(rounding).axes[0].get_ylim()[1] > 1e-4, "rounding is not enlarged"


def test_plots_leave_out_what_was_not_measured(frame):
    """The zero of a run's start is no measurement: no line; the figure says who is missing."""
    start = frame["round"] == 0
    part = where(frame, start, method=["rolora"], measure=["deviation"])
    figure = plots.deviation(part)
    assert "not measured: RoLoRA" in figure.get_supxlabel()
    assert not any("RoLoRA" in text.get_text() for text in figure.axes[0].texts)
    with refused("measure='deviation': expected a finite value"):
        plots.deviation(where(frame, start, measure=["deviation"]))


def test_runs_that_collapsed_are_marked():
    """A mean hides them: one below its start, and one that learned next to nothing."""
    figure = plots.curves(scores_frame({"fedlora": [0.9, 0.51, 0.9], "rolora": [0.8, 0.8, 0.4]}))
    crosses = [line.get_xydata()[:, 1] for line in marked(figure.axes[0], "x")]
    assert sorted(np.concatenate(crosses)) == pytest.approx([0.4, 0.51])
    assert "×: runs that collapsed, 2" in figure.get_supxlabel()
    # A release has no seed.
    fell = scores_frame({"fedlora": [0.2]}).assign(seed=None)
    assert "×: runs that collapsed, 1" in plots.curves(fell).get_supxlabel()


# ---- what is refused


REFUSED: Options = {
    "measure='accuracy': expected a measure": lambda f: f[f["measure"] != "accuracy"],
    "frame.columns=.*: expected also seed": lambda f: f.drop(columns="seed"),
    r"frame\['value'\]=.*: expected numbers": lambda f: f.assign(value="high"),
    "frame='.* rows of the same method": lambda f: pd.concat([f, f]),
    "task=.*: expected one task": lambda f: pd.concat([f, f.assign(task="other")]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_frame_without_the_measure_is_refused(frame, message):
    with refused(f"^{message}"):
        plots.curves(REFUSED[message](frame))


# ---- how it looks

DARK_PAGES = ("#111111", "#14181E", "#1E1E1E", "#383838")
"""Of JupyterLab, the site, VS Code and Colab."""


def in_the_dark(colour):
    """The colour under `style.IN_THE_DARK`: CSS's invert(.93) and hue-rotate(180deg)."""
    turned = np.array([[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]])
    mixed: Any = turned @ (0.93 - 0.86 * np.array(matplotlib.colors.to_rgb(colour)))
    return matplotlib.colors.to_hex(np.clip(mixed, 0, 1))


def test_lines_and_their_names_are_seen_on_the_card():
    """In the dark too. And a method keeps a colour of its own, whoever else is drawn."""
    assert len({look.colour for look in style.LOOKS.values()}) == len(style.LOOKS)
    for slug in (*style.LOOKS, "mine", "another"):
        colour = style.look(slug).colour
        for drawn, least in ((colour, 3), (style.darken(colour), 4.5)):
            assert contrast(style.CARD, drawn) >= least, slug
            assert contrast(in_the_dark(style.CARD), in_the_dark(drawn)) >= least, slug
        light, dark = on_screen(colour)
        assert contrast(light, "#FFFFFF") >= 4.5, slug
        assert all(contrast(dark, ground) >= 4.5 for ground in DARK_PAGES), slug


def test_names_are_those_of_the_table():
    """And of a row of one's own."""
    row = fl.methods.RoLoRA.replace(name="Two to One")
    assert all(style.name(x.slug) == x.name for x in (*fl.methods.ALL.values(), row))


@pytest.fixture
def nothing_leaks():
    """Settings, pyplot and random numbers stay as they were."""
    before = dict(matplotlib.rcParams)
    state = np.random.get_state(legacy=False)  # noqa: NPY002
    yield
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == []
    np.testing.assert_equal(np.random.get_state(legacy=False), state)  # noqa: NPY002


@pytest.mark.slow
def test_threads_may_draw_at_once(frame, nothing_leaks):
    """And each draws the same bytes, without a date."""
    drawn = []

    def draw():
        drawn.append(style.png(plots.curves(frame)))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for act in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            act(thread)
    (picture,) = {*drawn, style.png(plots.curves(frame))}
    assert len(drawn) == 4 and b"tIME" not in picture and b"tEXt" not in picture


@pytest.mark.slow
@pytest.mark.parametrize("draw", [plots.deviation, method_diagrams])
def test_nothing_is_cut_off_and_nothing_leaks(frame, draw, nothing_leaks):
    long = pd.concat([frame, tidy_frame(("la-lora-unfiltered", "deer-literal"))])
    figure = draw(fl.methods.ALL if draw is method_diagrams else long)
    style.png(figure)
    axes = ((*ax.texts, ax._left_title, ax.xaxis.label, ax.yaxis.label) for ax in figure.axes)
    for text in itertools.chain(figure.texts, *axes):
        box = Text.get_window_extent(text)
        if text.get_text().strip():
            assert box.x0 >= -1 and box.y0 >= -1, text
            assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text
