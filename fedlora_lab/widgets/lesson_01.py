"""The widget of notebook 01: rank and alpha on a real layer."""

from typing import Any

import numpy as np

from fedlora_lab.checks import check
from fedlora_lab.plots.reach import drawn, reached, says
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.dial import Dial, dial

RANKS, ALPHAS = (1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16, 32)


def reach(change: Any) -> Dial:
    """Two sliders, rank and alpha, on the change that training in full made to a layer; figure as `plots.reach`.

    Args: change: (d_out, d_in), array or tensor.

    Raises: ``ValueError`` for anything but a matrix.
    Guarantees: test_lesson_01.py::test_the_dial_says_what_it_shows.
    """
    change = np.asarray(change, dtype=float)
    check(change.ndim == 2, "change", change.shape, "a matrix (d_out, d_in)")
    values = np.linalg.svd(change, compute_uv=False)
    ranks = [rank for rank in RANKS if rank <= min(change.shape)]

    def draw(rank: int, alpha: float) -> tuple:
        seen = reached(change, rank, alpha, values)
        return drawn(seen, rank, alpha), says(seen, rank, alpha)

    return dial(
        draw,
        rank=controls.steps("rank r", ranks, min(4, ranks[-1]), "how many directions the adapter has"),
        alpha=controls.steps("alpha α", ALPHAS, 8, "numerator of the scale s = α / r"),
    )
