"""The widget of notebook 07."""

from fedlora_lab.course.lesson_07 import figures
from fedlora_lab.course.widgets import controls


def filter_explorer() -> controls.InteractiveFigure:
    """Offers filter, smoothness, noise and shuffled channels beside `low_pass`."""
    length = "length of the filter; 1 leaves everything as it is"
    alike = "how alike neighbouring channels are"
    std = "standard deviation on every channel; the gradient's is 1"
    return controls.interactive_figure(
        figures.low_pass,
        taps=controls.value_slider("taps", (1, 3, 5, 7, 9, 15), 5, length),
        smoothness=controls.slider("smoothness", 0.6, 0.0, 1.0, 0.05, alike),
        noise=controls.slider("noise", 1.0, 0.0, 2.0, 0.1, std),
        shuffle=controls.make_control("shuffle_the_channels", False),
    )
