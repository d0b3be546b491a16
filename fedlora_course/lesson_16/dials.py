"""The dial of notebook 16: what a step states, and what its measured reach and noise give."""

import math

import numpy as np

from fedlora_course.widgets.dial import Dial
from fedlora_course.widgets.scene import Scene, axis, bars, line, panel, text
from fedlora_lab import theory
from fedlora_lab._utils.rounding import round_up
from fedlora_lab.privacy.accounting import noise_multiplier

DELTA = 1e-5
LEFT, RIGHT = 0.05, 1000.0


def _step_scene(stated: float, reach: float, size: float) -> Scene:
    """Draws what is released with and without an example, and ε as stated and as spent."""
    sigma = size * noise_multiplier(stated, DELTA, sample_rate=1.0, steps=1)
    # The noise was found from ε and gives it back up to rounding.
    spent = round(theory.gdp_epsilon(reach / sigma, DELTA), 6)
    x = np.linspace(-4, 8, 97)

    def law(mean: float) -> np.ndarray:
        return np.exp(-(((x - mean) / sigma) ** 2) / 2)

    kept = spent <= stated
    colour = "green" if kept else "red"
    shown = round_up(spent, ".3g") if spent < 100 else f"{math.ceil(spent):,}"
    finding = "The step keeps what it states" if kept else "The step spends more than it states"
    panels = [
        panel(
            "What leaves, without the example and with it",
            axis("along the example's move, in clip norms", -4, 8),
            axis("", 0, 1.25, ticks=[]),
            line(x, law(0.0), "blue", "without"),
            line(x, law(reach), "pink", "with"),
            text(0, 1.08, "without", "blue", anchor="end"),
            text(reach, 1.08, "with", "pink"),
        ),
        panel(
            finding,
            axis("ε of one release at δ = 0.00001", LEFT, RIGHT, log=True),
            axis("", 1.6, -0.6, ticks=[0, 1], names=["stated", "spent"]),
            bars(LEFT, -0.3, stated, 0.3, "soft"),
            bars(LEFT, 0.7, spent, 1.3, colour),
            text(stated, 0, f"{stated:g}", "soft", dx=4, dy=4),
            text(spent, 1, shown, colour, dx=4, dy=4),
        ),
    ]
    return panels, [
        f"Beside the noise the example reaches {reach / size:.3g} times as far as stated: "
        f"ε is {shown} where {stated:g} is stated.",
    ]


def step_explorer() -> Dial:
    """Makes a dial for the stated ε, how far an example reaches, and how large the noise is.

    What is spent is `theory.gdp_epsilon` of one release.
    """
    return Dial(
        "16/step_explorer",
        _step_scene,
        stated=(1, 2, 4, 8),
        reach=(0.5, 1, 1.41, 2, 4),
        size=(0.25, 0.5, 1, 2, 4),
    )
