"""Widget of notebook 11: a scan read from an update, and the noise that hides it."""

from fedlora_lab.plots.leak import Fading
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.dial import Dial, dial

NOISES = (0.003, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0)


def attack_dial() -> Dial:
    """Turn noise, releases and rank, and see the image fade; figure as `plots.fading`.

    Guarantees: test_lesson_11.py::test_the_dial_says_what_it_shows.
    """
    return dial(
        Fading(),
        noise=controls.steps("noise σ", NOISES, 0.1, "noise std of a release in units of the clip threshold"),
        releases=controls.steps("releases", (1, 2, 5, 10, 20, 50, 100), 1, "updates for this scan that are averaged"),
        rank=controls.steps("rank r", (1, 2, 4, 8, 16, 32), 8, "rank of the adapter: rows of the gradient of A"),
        scan=controls.slider("scan", 7, 0, 9, 1, "which of the client's scans is attacked"),
    )
