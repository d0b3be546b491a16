"""Notebook 15: how far one example reaches, a move measured without a seed, mistakes by check."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from frames import marked

from fedlora_lab.course.lesson_15 import figures
from fedlora_lab.review import mistakes
from fedlora_lab.review.mistakes.steps import sums_into_itself

UNIT = mistakes.CLIP / mistakes.BATCH


def test_a_sound_step_reaches_1():
    """Fault: a reach that forgets a tensor, the denominator, or one of the three changes."""
    batch = mistakes.examples(6)
    found = figures.reach_by_change(mistakes.dp_sgd, batch, UNIT)
    assert found == pytest.approx(dict.fromkeys(figures.CHANGES, 1.0))
    twice = figures.reach_by_change(sums_into_itself, batch, UNIT)
    assert twice == pytest.approx(dict.fromkeys(figures.CHANGES, 2.0))


def test_the_reaches_are_drawn():
    """Fault: a step that goes beyond the line and is not counted in the title."""
    values = [[1.0, 1.0, 1.0], [2.0, 0.5, 20.0], [1.0, 1.5, 0.9]]
    frame = pd.DataFrame(values, index=["a", "b", "c"], columns=[*figures.CHANGES])
    picture: Any = figures.reach(frame)
    drawn = [float(x) for line in picture.axes[0].lines for x in line.get_xdata()]
    assert {*np.ravel(values).tolist()} <= {*drawn}
    assert (picture.axes[0].get_title(loc="left") or picture.axes[0].get_title())[:6] == "2 of 3"


def test_a_direction_learned_elsewhere_flatters_nobody():
    """Fault: the direction measured on the calls that it was learned on, which overstates."""
    for shift in (0.0, 1.0, 3.0):
        found = figures.holdout(shift, sigma=1.1, numbers=36, calls=16, repeats=20_000)
        assert found.mean() < shift + 0.02
        assert found.std() == pytest.approx(1.1 * (2 / 16) ** 0.5, rel=0.35)
    assert figures.holdout(3.0, 1.1, 36, 4096).mean() == pytest.approx(3, abs=0.02)


def test_more_calls_tell_more():
    """Fault: bands that do not shrink, or a title that names a number of calls too few."""
    picture, frame = figures.shift_without_seeds(calls=(8, 64, 512))
    for _, part in frame.groupby("step"):
        assert (part["high"] - part["low"]).is_monotonic_decreasing
    table = frame.pivot(index="calls", columns="step")
    assert table["low"]["broken"][512] > table["high"]["sound"][512]
    title = picture.axes[0].get_title(loc="left") or picture.axes[0].get_title()
    first = table.index[table["low"]["broken"] > table["high"]["sound"]][0]
    assert f"{first} calls" in title


def test_the_matrix_is_complete():
    """Fault: a verdict that is not drawn, or a mistake counted as found that was not."""
    names = "Clipping the mean gradient of a batch", "One key for all tensors"
    some = [mistakes.MISTAKES[name] for name in names]
    reviews = {one.name: one.review() for one in some}
    picture = figures.verdicts(reviews, {one.name: frozenset(one.checks) for one in some})
    squares = marked(picture.axes[0], "s")
    assert len(squares) == sum(len(one.broken) for one in reviews.values())
    assert picture.axes[0].get_title(loc="left").startswith("2 of 2")
    other = figures.verdicts(reviews, {name: frozenset({"sampling"}) for name in reviews})
    assert other.axes[0].get_title(loc="left").startswith("0 of 2")
