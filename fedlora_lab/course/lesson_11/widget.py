"""The widget of notebook 11."""

from fedlora_lab.course.lesson_11 import figures
from fedlora_lab.course.widgets import controls


def attack_explorer() -> controls.InteractiveFigure:
    """Offers noise, releases, rank and scan beside `attack_under_noise`."""
    noises = (0.003, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0)
    averaged, knob = "updates for this scan that are averaged", controls.value_slider
    rows, which = "rows of the gradient of A", "which of the client's scans is attacked"
    return controls.interactive_figure(
        figures.attack_under_noise,
        noise=knob("noise σ", noises, 0.1, "noise std of a release in units of C"),
        releases=knob("releases", (1, 2, 5, 10, 20, 50, 100), 1, averaged),
        rank=knob("rank r", (1, 2, 4, 8, 16, 32), 8, f"rank of the adapter: {rows}"),
        scan=controls.slider("scan", 7, 0, 9, 1, which),
    )
