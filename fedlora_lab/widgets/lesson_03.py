"""Widgets of notebook 03: plan a promise, and choose where to clip."""

from typing import TYPE_CHECKING

from jaxtyping import Float

from fedlora_lab.plots.clipping import Clip
from fedlora_lab.plots.promise import planner
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.dial import Dial, dial

if TYPE_CHECKING:
    import numpy as np


def privacy_planner() -> Dial:
    """Turn the noise, the draw and the number of releases; see ε and what it leaves to an attacker."""
    return dial(
        planner,
        unit=controls.choice("unit", ["example", "client"], "example", "whom the promise is made to"),
        noise_multiplier=controls.slider("noise σ", 2.0, 0.5, 6.0, 0.1, "noise std in units of the clip threshold"),
        drawn=controls.slider("drawn", 16, 1, 64, 1, "examples (or clients) expected in one release"),
        of=controls.slider("out of", 120, 20, 2000, 20, "examples the client holds (or clients there are)"),
        releases=controls.slider("releases", 100, 1, 1000, 1, "how many noised gradients leave the client"),
    )


def clip_explorer(rows: "Float[np.ndarray, 'n p']") -> Dial:
    """Move the clip threshold over real gradient norms; see what is cut, the bias and the noise.

    Args: rows: one example's gradient each, see `experiments.example_gradients`.
    """
    thresholds = [
        0.03,
        0.05,
        0.1,
        0.2,
        0.3,
        0.5,
        0.7,
        1.0,
        1.5,
        2.0,
        3.0,
        5.0,
        7.0,
        10.0,
        15.0,
        20.0,
        30.0,
        50.0,
        100.0,
    ]
    return dial(
        Clip(rows),
        clip_norm=controls.steps("threshold C", thresholds, 1.0, "longest gradient that is left as it is"),
        noise_multiplier=controls.slider("noise σ", 1.0, 0.1, 4.0, 0.1, "noise std in units of C"),
        batch=controls.steps("averaged", [16, 64, 256, 1024], 1024, "examples in the released mean"),
    )
