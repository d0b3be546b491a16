"""Widget of notebook 07: what a low-pass filter does to a noised gradient."""

from fedlora_lab.plots.smoothing import filter_explorer as draw
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.dial import Dial, dial


def filter_explorer() -> Dial:
    """Turn filter, smoothness and noise, shuffle the channels; figure as `plots.filter_explorer`.

    Guarantees: test_lesson_07.py::test_the_widget_says_what_it_shows.
    """
    return dial(
        draw,
        taps=controls.steps("taps", (1, 3, 5, 7, 9, 15), 5, "length of the filter; 1 leaves everything as it is"),
        smoothness=controls.slider("smoothness", 0.6, 0.0, 1.0, 0.05, "how alike neighbouring channels are"),
        noise=controls.slider("noise", 1.0, 0.0, 2.0, 0.1, "standard deviation on every channel; the gradient's is 1"),
        shuffle=controls.control("shuffle_the_channels", False),
    )
