"""Controls and the interactive figure."""

import ipywidgets as w
import numpy as np
import pytest
from wait_for_thread import WAIT

import fedlora_lab as fl
from fedlora_lab.plots.style import paper, picture


def plot(width=1.0, shape="line", bold=False):
    if width > 2:
        raise ValueError(f"width={width}: expected at most 2")
    with paper():
        figure = picture(3, 2)
        ax = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        ax.plot([0, width], lw=4 if bold else 1, marker="o" if shape == "dots" else "")
        ax.set_ylim(0, 3)
    return figure, f"The line ends at {width:g}."


def test_a_figure_draws_the_last_move():
    figure = fl.widgets.interactive_figure(
        plot, width=(1.0, 0.0, 2.0), shape=["line", "dots"], bold=False
    )
    assert [type(knob) for knob in figure.knobs.values()] == [w.FloatSlider, w.Dropdown, w.Checkbox]
    assert (figure.picture.width, figure.picture.height) == ("300", "200")
    first, calls = bytes(figure.picture.value), []
    assert first.startswith(b"\x89PNG") and "The line ends at 1." in figure.sentence.value
    figure.plot = lambda **values: (calls.append(values), plot(**values))[1]
    for value in np.linspace(1, 2, 41):
        figure.knobs["width"].value = value
    assert figure.settle(WAIT)
    assert calls[-1]["width"] == 2.0 and len(calls) < 20
    assert figure.picture.value != first and "ends at 2." in figure.sentence.value
    figure.children[0].children[-1].click()  # Reset
    assert figure.settle(WAIT)
    assert figure.picture.value == first


def test_a_figure_shows_an_error():
    figure = fl.widgets.interactive_figure(plot, width=(1.0, 0.0, 3.0))
    for value, role in ((2.5, "alert"), (1.5, "status")):
        figure.knobs["width"].value = value
        assert figure.settle(WAIT)
        assert f'role="{role}"' in figure.sentence.value
        assert ("width=2.5: expected at most 2" in figure.sentence.value) == (role == "alert")


@pytest.mark.parametrize("given", [(1, 2), (5, 0, 3), [], "text", None, ("a", 0, 1)])
def test_a_figure_refuses_unknown_controls(given):
    with pytest.raises(ValueError, match=r"^width=.*: expected"):
        fl.widgets.interactive_figure(plot, width=given)


def test_completion_offers_widgets_alone():
    assert dir(fl.widgets) == sorted(fl.widgets.__all__)
