"""The pictures of a lesson keep their axes, whatever is asked of them."""

from functools import partial

import numpy as np
import pytest

import fedlora_lab as fl
from fedlora_lab.plots.style import png

pytestmark = pytest.mark.slow

lesson = fl.course.lesson
CHANGE = np.diag(2.0 ** (1 - np.arange(8)))


@pytest.mark.parametrize(
    ("draw", "calls"),
    [
        (
            partial(lesson(1).low_rank_fit, CHANGE),
            [{"rank": r, "alpha": a} for r, a in ((1, 1), (4, 8), (8, 32))],
        ),
        (
            partial(lesson(2).client_cloud, np.arange(3.0)),
            [{"A": np.ones(3)}, {"A": np.arange(3)}, {"A": np.array([2, 0, 1])}],
        ),
        (lesson(6).regulator, [{}, {"first": 2.6, "sigma": 2.5}, {"clip": "product", "angle": 90}]),
    ],
)
def test_axes_stand_still(draw, calls):
    drawn = [draw(**given) for given in calls]
    figures = [one[0] if isinstance(one, tuple) else one for one in drawn]
    first, *others = (
        [(ax.get_xlim(), ax.get_ylim(), ax.get_position().bounds) for ax in figure.axes]
        for figure in figures
    )
    assert all(other == first for other in others)
    assert len({png(figure) for figure in figures}) == len(calls)
