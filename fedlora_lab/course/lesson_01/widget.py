"""The dial of notebook 01."""

from typing import Any

import numpy as np

from fedlora_lab import theory
from fedlora_lab._utils.validation import check
from fedlora_lab.course.widgets.dial import Dial, round_to_digits

RANKS, ALPHAS = (1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16, 32)
STEPS, EVERY, RATE = 200, 4, 0.3


def low_rank_explorer(change: Any) -> Dial:
    """Offers rank and α beside the error that a rank can reach, and the way there.

    The descents of every rank and α are worked out here, once, and sent: 200 steps at rate 0.3.

    Args: change: (d_out, d_in), what training in full did to a layer.
    Guarantees: the floor is `theory.reachable_error` (tests/browser/test_dials.py::test_formulas).
    """
    change = np.asarray(change, dtype=float)
    check(change.ndim == 2, "change", change.shape, "a matrix (d_out, d_in)")
    ranks = [rank for rank in RANKS if rank <= min(change.shape)]
    paths = [
        [theory.descent_errors(change, rank, alpha, STEPS, RATE)[::EVERY] for alpha in ALPHAS]
        for rank in ranks
    ]
    data = {
        "ranks": ranks,
        "alphas": list(ALPHAS),
        "step": EVERY,
        "values": round_to_digits(np.linalg.svd(change, compute_uv=False)),
        "errors": round_to_digits(np.where(np.isfinite(paths), paths, np.nan), 3),
    }
    about = "What rank and α let an adapter learn of a change: where it ends, and how fast."
    return Dial(1, "low_rank_explorer", about, data, rank=min(4, ranks[-1]), alpha=8)
