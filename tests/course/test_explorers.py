"""Every lesson's explorer: its sentence says what its picture shows, and reset undoes all moves."""

import html
from functools import partial

import numpy as np
import pytest

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.course.lesson_11.figures import AttackedClient
from fedlora_lab.plots.style import png

pytestmark = pytest.mark.slow

lesson = fl.course.lesson
CHANGE = np.diag(2.0 ** (1 - np.arange(8)))
HEAVY = np.exp(np.random.default_rng(0).standard_normal((200, 1))) * np.ones(20)
OFF = f"{fl.methods.table().loc['flexlora', 'deviation']:.1%}"
FLOOR = theory.reachable_error(np.linalg.svd(CHANGE, compute_uv=False))
COSINE = f"|cos| with the scan {AttackedClient().read(0.5, 100, 8, 7)[1]:.2f}"
SPENT = f"ε = {theory.gdp_epsilon(theory.gaussian_mu(0.5, 100), 1e-4):,.0f} at"
SIGNS, FEDEX = "four sign pairs", "FedEx-LoRA"
LESS = {"first": 0.5, "second": 0.4, "clip": "factor"}

# Lesson and explorer -> its arguments, words at first, then controls and the words they lead to.
MOVES = {
    (6, "regulator_explorer"): (
        (),
        "more than the 1.00 promised",
        ({"clip": "product"}, "exactly as promised"),
        (LESS, "less than the 1.00 promised"),
    ),
    (7, "filter_explorer"): ((), "tells them apart", ({"shuffle": True}, "look alike")),
    (10, "exactness_explorer"): (
        (),
        f"{FEDEX} sends and receives 163.8 kB a round, 5 times",
        ({"width": 4096, "way": "down"}, "receives 11.5 MB a round, 11 times"),
        ({"rank": 1}, f"{FEDEX} receives"),
        ({"mark": "flexlora", "rank": 4}, f"its server is {OFF} off"),
        ({"mark": "fedsa-lora"}, "forms no common product"),
    ),
}


@pytest.mark.parametrize(("key", "case"), MOVES.items(), ids=[name for _, name in MOVES])
def test_an_explorer_says_what_it_shows(key, case):
    given, first, *moves = case
    widget = getattr(lesson(key[0]), key[1])(*given)
    try:
        start = widget.picture.value, widget.sentence.value
        assert first in html.unescape(start[1])
        for controls, words in moves:
            for control, value in controls.items():
                widget.knobs[control].value = value
            assert widget.settle(30)
            assert words in html.unescape(widget.sentence.value)
            assert 'role="alert"' not in widget.sentence.value
            assert widget.picture.value != start[0]
        widget.reset()
        assert widget.settle(30)
        assert (widget.picture.value, widget.sentence.value) == start
    finally:
        widget.close()


@pytest.mark.parametrize(
    ("draw", "calls"),
    [
        (
            partial(lesson(1).low_rank_fit, CHANGE),
            [{"rank": r, "alpha": a} for r, a in ((1, 1), (4, 8), (8, 32))],
        ),
        (lesson(2).client_cloud, [{}, {"spread_B": 0.0}, {"pattern": SIGNS}]),
        (lesson(6).regulator, [{}, {"first": 2.6, "sigma": 2.5}, {"clip": "product", "angle": 90}]),
        (
            lesson(11).attack_under_noise,
            [{}, {"noise": 3.0, "releases": 100, "rank": 32, "scan": 1}],
        ),
    ],
)
def test_axes_stand_still(draw, calls):
    figures = [draw(**given)[0] for given in calls]
    first, *others = (
        [(ax.get_xlim(), ax.get_ylim(), ax.get_position().bounds) for ax in figure.axes]
        for figure in figures
    )
    assert all(other == first for other in others)
    assert len({png(figure) for figure in figures}) == len(calls)
