"""The dials of notebook 03."""

from typing import Any

import numpy as np

from fedlora_lab.course.lesson_03 import figures
from fedlora_lab.course.widgets.dial import Dial, round_to_digits


def two_worlds() -> Dial:
    """Offers σ, C, q, releases and ε beside the two laws, the attacker's curve and δ(ε).

    For q = 1 everything is closed form; otherwise the browser composes the privacy loss on a grid.

    Guarantees: the curve is the ledger's (tests/browser/test_dials.py::test_the_composed_loss).
    """
    about = "Two worlds, with and without one example: the laws of what is released, the best "
    about += "attacker's curve, and δ at every ε."
    return Dial(3, "two_worlds", about, sigma=1.0, C=1.0, q=1, N=1, epsilon=1.0)


def clip_explorer(rows: Any) -> Dial:
    """Offers clip norm, noise and batch beside gradient norms and the cost of the clip.

    What 36 clip norms do is worked out here, once, and sent with at most 500 of the norms.

    Args: rows: (n, p), one example's gradient each.
    """
    rows = np.asarray(rows, float)
    effect, norms = figures.clip_effect(rows, 36), np.sort(np.linalg.norm(rows, axis=1))
    data = {
        "norms": round_to_digits(
            norms[np.linspace(0, len(norms) - 1, min(len(norms), 500)).astype(int)]
        ),
        **{name: round_to_digits(values) for name, values in effect._asdict().items()},
        "mean": float(np.linalg.norm(rows.mean(0))),
        "count": len(rows),
        "numbers": rows.shape[1],
    }
    about = (
        "What the clip does to the mean gradient: too low turns it, too high drowns it in noise."
    )
    values = {"clip_norm": 1.0, "noise_multiplier": 1.0, "batch": 1024}
    return Dial(3, "clip_explorer", about, data, **values)


def privacy_planner() -> Dial:
    """Offers unit, noise, draw and number of releases beside ε and what it leaves to an attacker.

    Guarantees: ε is the ledger's (tests/browser/test_dials.py::test_the_composed_loss).
    """
    values = {"unit": "example", "noise_multiplier": 2.0, "drawn": 16, "of": 120, "releases": 100}
    about = "A plan's ε at δ = 0.0001 over its releases, and what that leaves to an attacker."
    return Dial(3, "privacy_planner", about, **values)
