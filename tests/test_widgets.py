"""Controls and the dial."""

import html

import ipywidgets as w
import numpy as np
import pytest
from patience import WAIT

import fedlora_lab as fl
from fedlora_lab.plots.style import paper, picture
from fedlora_lab.widgets import controls


def plot(width=1.0, shape="line", bold=False):
    if width > 2:
        raise ValueError(f"width={width}: expected at most 2")
    with paper():
        figure = picture(3, 2)
        ax = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        ax.plot([0, width], lw=4 if bold else 1, marker="o" if shape == "dots" else "")
        ax.set_ylim(0, 3)
    return figure, f"The line ends at {width:g}."


def test_a_dial_draws_at_once():
    dial = fl.widgets.dial(plot, width=(1.0, 0.0, 3.0), shape=["line", "dots"], bold=False)
    assert bytes(dial.picture.value).startswith(b"\x89PNG")
    assert (dial.picture.width, dial.picture.height) == ("300", "200")
    assert "The line ends at 1." in dial.sentence.value
    assert [type(knob) for knob in dial.knobs.values()] == [w.FloatSlider, w.Dropdown, w.Checkbox]


def test_a_dial_draws_the_last():
    dial, calls = fl.widgets.dial(plot, width=(1.0, 0.0, 2.0)), []
    dial.plot = lambda **values: (calls.append(values), plot(**values))[1]
    first = dial.picture.value
    for value in np.linspace(1, 2, 41):
        dial.knobs["width"].value = value
    assert dial.settle(WAIT)
    assert calls[-1] == {"width": 2.0}
    assert len(calls) < 20
    assert dial.picture.value != first
    assert "ends at 2." in dial.sentence.value
    dial.children[0].children[-1].click()  # Reset
    assert dial.settle(WAIT)
    assert dial.picture.value == first


def test_a_dial_shows_an_error():
    dial = fl.widgets.dial(plot, width=(1.0, 0.0, 3.0))
    dial.knobs["width"].value = 2.5
    assert dial.settle(WAIT)
    assert 'role="alert"' in dial.sentence.value
    assert "width=2.5: expected at most 2" in dial.sentence.value
    dial.knobs["width"].value = 1.5
    assert dial.settle(WAIT)
    assert 'role="status"' in dial.sentence.value


@pytest.mark.parametrize("given", [(1, 2), (5, 0, 3), [], "text", None, ("a", 0, 1)])
def test_a_dial_refuses_unknown_controls(given):
    with pytest.raises(ValueError, match=r"^width=.*: expected"):
        fl.widgets.dial(plot, width=given)


def test_words_are_escaped():
    place = controls.words()
    controls.say(place, "<script>alert(1)</script>", error=True)
    assert "<script>" not in place.value
    assert html.escape("<script>") in place.value
