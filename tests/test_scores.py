"""Scores, timelines and the figures of a run under way."""

from typing import Any

import matplotlib.colors
import numpy as np
import pytest
from frames import line_of, tidy_frame

import fedlora_lab as fl
from fedlora_lab import plots
from fedlora_lab.plots import style
from fedlora_lab.plots.live import KINDS, _mosaic, images, kind, live
from fedlora_lab.plots.score import meaning


@pytest.fixture(scope="module")
def frame():
    return tidy_frame()


def beats(ax):
    """Position and colour of the filled beats of a score."""
    return sorted((round(p.get_x(), 2), matplotlib.colors.to_hex(p.get_facecolor()).upper()) for p in ax.patches)


def both(word):
    """Where each layer chooses, both factors are drawn, pale and with a question mark."""
    return word.replace("*", "AB")


@pytest.mark.parametrize("row", [*fl.methods.ALL.values(), fl.methods.FedLoRA.replace(name="odd", share="A")])
def test_a_score_is_read_from_the_row(row):
    rounds, steps = 3, 4
    ax: Any = plots.score(row, rounds=rounds, steps=steps).axes[0]
    expected = [
        (round(t * (steps + 1.25) + 0.12 + s, 2), style.FACTOR[factor].upper())
        for t in range(rounds)
        for s in range(steps)
        for factor in both(row.moves(t, s))
    ]
    assert beats(ax) == sorted(expected)
    text = [t.get_text() for t in ax.texts]
    arrows = sum(t.arrow_patch is not None for t in ax.texts if hasattr(t, "arrow_patch"))
    assert arrows == sum(len(both(row.sent(t, steps))) for t in range(rounds))
    kept = sum(len(row.moved(t, steps)) - len(row.sent(t, steps)) for t in range(rounds))
    assert any("?" in word for word in text) == ("*" in row.moved(0, steps))
    assert text.count("↺") == kept
    averaged = sum(bool(row.sent(t, steps)) for t in range(rounds))
    assert (text.count("="), text.count("≠")) == ((averaged, 0) if row.exact else (0, averaged))


def test_a_score_shows_the_rules():
    def glyphs(row):
        return {t.get_text() for t in plots.score(row).axes[0].texts}

    plain = fl.methods.FedLoRA
    assert "~" in glyphs(plain)
    assert "≈" in glyphs(plain.replace(smooth=fl.methods.LALoRA.smooth))
    assert "◇" in glyphs(plain.replace(whiten=fl.methods.DEeR.whiten))
    assert "~+" in glyphs(plain.replace(penalty=lambda tensors, start: 0))
    stairs = len(plots.score(fl.methods.FedLPP).axes[0].lines) - len(plots.score(plain).axes[0].lines)
    assert stairs == 4
    double = plain.replace(aggregate=lambda state, sent, uploads, weights: state)
    assert any(text.startswith("server:") for text in glyphs(double))


def test_a_row_without_a_place_in_the_table_is_described_by_its_fields():
    mine = fl.methods.FedLoRA.replace(name="mine", train=fl.Cycle(("B B A",)), share="A")
    assert meaning(fl.methods.FedLoRA) == fl.methods.FedLoRA.note
    assert meaning(mine) == "the factors take turns within a round"
    assert meaning(mine.replace(train=fl.Cycle(("B", "A")), exact=True)).startswith("the factors take turns between")
    assert meaning(mine.replace(train=fl.Cycle(("B",)), share=None)) == "A never moves"


def test_a_page_of_scores_is_the_table():
    page: Any = plots.scores()
    titles = [t.get_text() for ax in page.axes for t in ax.texts if t.get_weight() == "bold"]
    assert [t for t in titles if t in {row.name for row in fl.methods.ALL.values()}] == [
        row.name for row in fl.methods.ALL.values()
    ]


@pytest.mark.parametrize("cycle", [fl.Cycle(("AB",)), fl.Cycle(("B", "A")), fl.Cycle(("B B A",))])
def test_timeline_follows_the_schedule(cycle):
    rounds, steps = 4, 3
    ax: Any = plots.timeline(cycle, rounds=rounds, steps=steps).axes[0]
    filled = [p for p in ax.patches if p.get_facecolor()[3] > 0]
    assert len(filled) == sum(len(cycle(t, s)) for t in range(rounds) for s in range(steps))
    share = sum("A" in cycle(t, s) for t in range(rounds) for s in range(steps)) / (rounds * steps)
    assert f"{share:.0%} of steps" in [t.get_text() for t in ax.texts]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.score("nobody"), "^method='nobody': expected one of"),
        (lambda: plots.scores([]), "at least one method"),
        (lambda: plots.score("rolora", rounds=0), "^rounds=0: expected"),
        (lambda: plots.scores(columns=0), "^columns=0: expected"),
        (lambda: plots.timeline(fl.Cycle(("B",)), steps=-1), "^steps=-1: expected"),
        (lambda: plots.timeline(lambda t, s: "C"), "expected \"A\", \"B\" or \"AB\""),
        (lambda: live(None, rounds=0, start=0.5), "^rounds=0: expected"),
        (lambda: images(np.zeros((3, 64)), [0] * 3, [0] * 3), r"^x.shape=\(3, 64\): expected"),
    ],
)  # fmt: skip
def test_bad_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# the live figures -------------------------------------------------------------------------------------------------


def test_live_axes_stand_still(frame):
    one = frame[(frame.method == "rolora") & (frame.seed == 0)]
    wild = one.assign(value=one["value"] * 5)
    limits = []
    for shown in (None, one[one["round"] == 0], one, wild):
        figure = live(shown, rounds=10, start=0.6, target=8.0, past=() if shown is None else (one,))
        limits.append([(ax.get_xlim(), ax.get_ylim(), ax.get_position().bounds) for ax in figure.axes])
    assert all(found == limits[0] for found in limits)


def test_live_draws_what_the_frame_says(frame):
    one = frame[(frame.method == "rolora") & (frame.seed == 0)]
    ax = live(one, rounds=10, start=0.6, target=8.0).axes[0]
    line = line_of(ax, style.look("rolora").colour)
    np.testing.assert_allclose(line.get_ydata(), one[one.measure == "accuracy"]["value"])


def test_images_show_what_turned():
    kinds = [kind(*case) for case in ((1, 1, 1), (1, 2, 1), (1, 2, 3), (1, 1, 3))]
    assert kinds == ["right", "turned right", "wrong", "turned wrong"]
    figure = images(np.zeros((4, 8, 8)), [1, 1, 1, 1], [1, 2, 2, 1], [1, 1, 3, 3], columns=2)
    frames: Any = figure.axes[0].collections[0]
    edges = [matplotlib.colors.to_hex(c).upper() for c in frames.get_edgecolor()]
    assert edges == [KINDS[k][0].upper() for k in kinds]
    assert frames.get_linewidths() == [KINDS[k][1] for k in kinds]
    assert [t.get_text() for t in figure.axes[0].texts] == ["3", "3"]


def test_a_mosaic_puts_every_image_in_its_place():
    x = np.arange(3 * 8 * 8, dtype=float).reshape(3, 8, 8)
    mosaic = _mosaic(x, lines=2, columns=2)
    np.testing.assert_array_equal(mosaic[1:9, 11:19], x[1])
    np.testing.assert_array_equal(mosaic[11:19, 1:9], x[2])
    assert mosaic[11:, 11:].max() == 0
