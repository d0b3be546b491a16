"""The widget of notebook 04."""

from fedlora_lab.course.lesson_04 import figures
from fedlora_lab.course.widgets import controls


def noise_explorer() -> controls.InteractiveFigure:
    """Offers noise, rank, α, width and the size of B as sliders beside `noise_amplification`."""
    knob, stds = controls.value_slider, [0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03]
    stds += [0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0]
    size = "norm of B over A's; 0 before training"
    return controls.interactive_figure(
        figures.noise_amplification,
        std=knob("noise std", stds, 0.05, "standard deviation on every entry of both factors"),
        rank=knob("rank r", [1, 2, 4, 8, 16, 32, 64], 4, "inner dimension of B A"),
        alpha=knob("α", [1, 2, 4, 8, 16, 32], 8, "the product is multiplied by α / r"),
        width=knob("layer width", [64, 256, 768, 4096], 64, "d_in = d_out of the layer"),
        size_B=controls.slider("size of B", 0.0, 0.0, 2.0, 0.1, size),
    )
