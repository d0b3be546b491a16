"""The widget of notebook 01."""

from functools import partial
from typing import Any

import numpy as np

from fedlora_lab._utils.validation import check
from fedlora_lab.course.lesson_01 import figures
from fedlora_lab.course.widgets import controls


def low_rank_explorer(change: Any) -> controls.InteractiveFigure:
    """Offers rank and alpha as sliders beside `low_rank_fit` of a (d_out, d_in) change."""
    change = np.asarray(change, dtype=float)
    check(change.ndim == 2, "change", change.shape, "a matrix (d_out, d_in)")
    ranks = [rank for rank in (1, 2, 4, 8, 16, 32, 64) if rank <= min(change.shape)]
    many, scale = "how many directions the adapter has", "numerator of the scale s = α / r"
    return controls.interactive_figure(
        partial(figures.low_rank_fit, change),
        rank=controls.value_slider("rank r", ranks, min(4, ranks[-1]), many),
        alpha=controls.value_slider("alpha α", (1, 2, 4, 8, 16, 32), 8, scale),
    )
