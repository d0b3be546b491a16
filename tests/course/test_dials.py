"""Dials: their tables hold what Python draws at every stop, and what that says is the theory."""

import re

import numpy as np
import pytest
from dial_cases import DIALS, make_dial, shown

import fedlora_course as course
from fedlora_course.drawing import contrast
from fedlora_course.widgets.dial import HERE, plain_values
from fedlora_course.widgets.scene import COLOURS
from fedlora_lab import theory
from fedlora_lab._utils.rounding import round_up
from fedlora_lab.plots import style

LARGEST = 130_000
"""Bytes of a dial in a notebook."""


# ---- every dial


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("name", DIALS)
def test_a_dial_shows_what_its_scene_draws(name):
    """At stops drawn at random, at first and in every preset, which are stops; it is small enough
    for a page, and drawn without a browser."""
    dial = make_dial(name)
    stops = {key: control["values"] for key, control in dial.spec["controls"].items()}
    rng = np.random.default_rng(0)
    settings = [
        {key: some[rng.integers(len(some))] for key, some in stops.items()} for _ in "12345"
    ]
    for values in (dial.values, *dial.spec["presets"].values()):
        assert all(value in stops[key] for key, value in values.items()), values
    panels = say = ()
    for values in settings:
        panels, say = dial._scene(**values)
        assert shown(dial, **values) == (plain_values(panels), "".join(say)), values
    html = dial._repr_mimebundle_()[0]["text/html"]
    assert len(html) < LARGEST and "NaN" not in html and "Infinity" not in html
    figure = dial.picture(**values)
    assert style.png(figure).startswith(b"\x89PNG")
    assert figure.below == "".join(say) and len(figure.axes) == len(panels)


# ---- what they say


@pytest.mark.slow
@pytest.mark.parametrize(("table", "ground"), [("LIGHT", "#FFFFFF"), ("DARK", "#111111")])
def test_every_colour_of_the_widgets_is_seen_on_its_ground(table, ground):
    """Words in any of them but those of lines and fills alone; the grid need not be seen."""
    code = (HERE / "drawing.js").read_text(encoding="utf-8")
    (row,) = re.findall(rf"const {table} = {{(.*?)}};", code, re.S)
    colours = dict(re.findall(r'(\w+): "(#\w{6})"', row))
    assert {*COLOURS} <= {*colours}
    least = dict.fromkeys(colours, 4.5) | {"grid": 1, "card": 1, "edge": 3}
    least["pale"] = 1 if table == "LIGHT" else 3  # bars beside others, never a line on white
    faint = {name: contrast(colours[name], ground) for name in colours}
    assert {name: x for name, x in faint.items() if x < least[name]} == {}


def test_two_worlds_are_gaussian_differential_privacy():
    panels, say = shown(make_dial("two worlds"), sigma=2, releases=10, epsilon=1)
    mu = theory.gaussian_mu(2, 10)
    assert panels[2]["title"] == f"δ(1) = {round_up(theory.gdp_delta(mu, 1.0), '.2g')}"
    assert f"δ = 0.00001 with ε = {round_up(theory.gdp_epsilon(mu, 1e-5), '.3g')}" in say


def test_the_epsilon_by_observer():
    """Who trusts nobody is seen by nobody beyond the promise; colluders take noise away."""
    seen = course.lesson(13).epsilon_by_observer
    local, central, secagg = (seen(k, 2.0, 50, 25) for k in ("local", "central", "secagg"))
    assert local["public"] < local["server"] == local["together"] == central["public"]
    left = theory.gdp_epsilon(1 / (2.0 * 0.5**0.5), 1e-5)
    assert (central["server"], secagg["together"]) == (np.inf, pytest.approx(left))
