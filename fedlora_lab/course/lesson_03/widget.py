"""The widgets of notebook 03."""

from typing import Any

from fedlora_lab.course.lesson_03 import figures
from fedlora_lab.course.widgets import controls


def clip_explorer(rows: Any) -> controls.InteractiveFigure:
    """Offers threshold, noise and batch as sliders beside `clip_cost` of these gradients."""
    thresholds = [0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0]
    thresholds += [10.0, 15.0, 20.0, 30.0, 50.0, 100.0]
    left, std = "longest gradient that is left as it is", "noise std in units of C"
    mean = "examples in the mean that is released"
    return controls.interactive_figure(
        figures.clip_drawer(rows),
        clip_norm=controls.value_slider("threshold C", thresholds, 1.0, left),
        noise_multiplier=controls.slider("noise σ", 1.0, 0.1, 4.0, 0.1, std),
        batch=controls.value_slider("batch", [16, 64, 256, 1024], 1024, mean),
    )


def privacy_planner() -> controls.InteractiveFigure:
    """Offers unit, noise, draw and number of releases beside the figure `privacy_plan`."""
    who, of = "who is protected", "examples that the client holds, or clients in all"
    drawn = "expected number of examples, or of clients, in one release"
    released = "noised gradients released by the client"
    std = "noise std in units of C"
    return controls.interactive_figure(
        figures.privacy_plan,
        unit=controls.menu("unit", ["example", "client"], "example", who),
        noise_multiplier=controls.slider("noise σ", 2.0, 0.5, 6.0, 0.1, std),
        drawn=controls.slider("mean batch", 16, 1, 64, 1, drawn),
        of=controls.slider("total", 120, 20, 2000, 20, of),
        releases=controls.slider("releases", 100, 1, 1000, 1, released),
    )
