"""Figures: the same colours, bytes and frames every time, nothing cut off, nothing left behind."""

import itertools
import threading
from typing import Any

import matplotlib
import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from frames import FOUNDING, FRAME_PLOTS, line_of, tidy_frame
from matplotlib.text import Text

import fedlora_lab as fl
from fedlora_lab import plots
from fedlora_lab.plots import labels, style


@pytest.fixture(scope="module")
def frame():
    return tidy_frame()


# how it looks -----------------------------------------------------------------------------------------------------

# Machado, Oliveira, Fernandes (2009), severity 1, on linear RGB.
SEEN = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour):
    c = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB of a linear RGB colour."""
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x = np.array(matrix) @ np.clip(rgb, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", SEEN)
def test_the_founding_colours_are_told_apart(eye):
    seen = {slug: lab(np.array(SEEN[eye]) @ linear(style.look(slug).colour)) for slug in FOUNDING}
    nearest = min(np.linalg.norm(seen[a] - seen[b]) for a, b in itertools.combinations(FOUNDING, 2))
    assert nearest > 25


@pytest.mark.parametrize("slug", [*style.LOOKS, "mine", "another"])
def test_a_line_and_its_name_are_seen_on_the_card(slug):
    def contrast(colour):
        light = [0.05 + np.array([0.2126, 0.7152, 0.0722]) @ linear(c) for c in (style.CARD, colour)]
        return light[0] / light[1]

    colour = style.look(slug).colour
    assert contrast(colour) >= 3
    assert contrast(style.darker(colour)) >= 4.5


def test_a_method_keeps_its_colour(frame):
    assert set(fl.methods.ALL) <= set(style.LOOKS)
    colours = [look.colour for look in style.LOOKS.values()]
    assert len(set(colours)) == len(colours)
    for slug in ("mine", "yours"):
        assert style.look(slug) == style.look(slug)
        alone = plots.curves(tidy_frame((slug,))).axes[0]
        among = plots.curves(tidy_frame(("fedlora", slug))).axes[0]
        assert line_of(alone, style.look(slug).colour)
        assert line_of(among, style.look(slug).colour)


@pytest.mark.parametrize("name", FRAME_PLOTS)
def test_same_frame_same_bytes(frame, name):
    first, second = (style.png(getattr(plots, name)(frame)) for _ in range(2))
    assert first == second
    assert b"tIME" not in first
    assert b"tEXt" not in first


def test_nothing_leaks(frame):
    before, state = dict(matplotlib.rcParams), np.random.get_state(legacy=False)  # noqa: NPY002
    for name in FRAME_PLOTS:
        style.png(getattr(plots, name)(frame))
    plots.scores()
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []
    np.testing.assert_equal(np.random.get_state(legacy=False), state)  # noqa: NPY002


def test_threads_may_draw(frame):
    before, expected = dict(matplotlib.rcParams), style.png(plots.curves(frame))
    found = []
    threads = [threading.Thread(target=lambda: found.append(style.png(plots.curves(frame)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
    assert dict(matplotlib.rcParams) == before


def test_labels_keep_apart():
    sizes = [0.1, 0.2, 0.1, 0.1]
    places = labels.spread([0.5, 0.5, 0.52, 0.05], sizes)
    edges = sorted((p - s / 2, p + s / 2) for p, s in zip(places, sizes, strict=True))
    assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(edges))
    assert edges[0][0] >= 0
    assert edges[-1][1] <= 1
    assert np.argsort(places, kind="stable").tolist() == [3, 0, 1, 2]
    assert labels.spread([0.2, 0.8], [0.1, 0.1]) == pytest.approx([0.2, 0.8])


def test_a_thin_line_leads_from_every_label_to_its_point():
    with style.paper():
        figure = style.picture(6, 4)
        ax = figure.add_axes((0.1, 0.1, 0.6, 0.8), xlim=(0, 10), ylim=(0, 1))
        points = [(2.0, 0.2), (9.0, 0.5), (9.0, 0.51)]
        labels.beside(ax, [labels.Label(x, y, f"{y}", style.INK) for x, y in points], together=False)
        style.png(figure)
    lines: Any = ax.collections[0]
    inches = 72 * figure.get_size_inches() * ax.get_position().size
    starts = [np.array(text.get_position()) for text in ax.texts]
    for start, (x, y), (near, far) in zip(starts, points, lines.get_segments(), strict=True):
        gaps = [np.linalg.norm((a - b) * inches) for a, b in ((near, start), (far, (x / 10, y)))]
        assert gaps == pytest.approx(labels.SHRINK)


def test_names_inside_lie_above_the_curves_that_pass():
    with style.paper():
        figure = style.picture(6, 4)
        ax = figure.add_axes((0.1, 0.1, 0.6, 0.8), xlim=(0, 10), ylim=(0, 1))
        for x, y in (((0, 10), (0.4, 0.6)), ((0, 4), (0.3, 0.49))):
            ax.plot(x, y)
        ends = [labels.Label(4, 0.49, "short", style.INK), labels.Label(10, 0.6, "long", style.INK)]
        labels.beside(ax, ends, together=False, inside=True, above=True)
        style.png(figure)
    short, long = ax.texts
    (_, low), (right, _) = ax.transData.inverted().transform(short.get_window_extent())
    assert low > 0.4 + 0.02 * right
    assert long.get_position()[1] == pytest.approx(0.6)


@pytest.mark.parametrize("name", FRAME_PLOTS)
def test_names_do_not_overlap(frame, name):
    close = frame.assign(value=frame["value"].where(frame["measure"] != "accuracy", 0.7 + 0.001 * frame["round"]))
    figure = getattr(plots, name)(close)
    style.png(figure)
    for ax in figure.axes:
        boxes = [Text.get_window_extent(t) for t in ax.texts if t.get_weight() == "bold" and t.get_text()]
        assert not any(a.y1 - 2 > b.y0 and b.y1 - 2 > a.y0 and a.x1 > b.x0 and b.x1 > a.x0
                       for a, b in itertools.combinations(boxes, 2))  # fmt: skip


@pytest.mark.parametrize("name", [*FRAME_PLOTS, "scores", "score", "timeline", "live"])
def test_nothing_is_cut_off(frame, name):
    given = {"scores": (), "score": ("deer-literal",), "timeline": (fl.Cycle(("B A",)),)}
    given["live"] = (tidy_frame(("la-lora-unfiltered",), seeds=1),)
    long = pd.concat([frame, tidy_frame(("la-lora-unfiltered", "deer-literal"))])
    figure = getattr(plots, name)(*given.get(name, (long,)))
    style.png(figure)
    page = figure.bbox
    texts = [t for ax in figure.axes for t in [*ax.texts, ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label]]
    for text in [*texts, *figure.texts]:
        box = Text.get_window_extent(text)
        if text.get_text().strip():
            assert box.x0 >= -1, text
            assert box.y0 >= -1, text
            assert box.x1 <= page.x1 + 1, text
            assert box.y1 <= page.y1 + 1, text
