"""The figure and the dial of notebook 01: what rank and alpha let an adapter learn of a layer."""

from typing import Any

import numpy as np
from jaxtyping import Float

from fedlora_lab import theory
from fedlora_lab._utils.validation import check
from fedlora_lab.course.widgets.dial import Dial, round_to_digits
from fedlora_lab.plots import style

RANKS, ALPHAS = (1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16, 32)
STEPS, EVERY, RATE = 200, 4, 0.3
HEIGHTS = (0, 0.25, 0.5, 0.75, 1)


@style.paper()
def low_rank_fit(
    change: Float[np.ndarray, "d_out d_in"], rank: int = 4, alpha: float = 8.0
) -> style.Picture:
    """Draws a change's singular values, each rank's best error, and a descent towards it.

    Args:
        change: what training the layer in full did to its weight.
        rank: of the adapter, at most min(d_out, d_in).
        alpha: the scale is alpha / rank; the way is 200 steps of descent at learning rate 0.3.

    Guarantees: axes do not depend on rank and alpha (test_explorers.py::test_axes_stand_still).
    """
    values = np.linalg.svd(change, compute_uv=False)
    floor = theory.reachable_error(values)
    errors = theory.descent_errors(change, rank, alpha, STEPS, RATE)
    count = len(values)
    best = floor[rank]
    last = errors[-1]
    lost = not np.isfinite(last)
    blue = style.FACTOR["B"]
    place = np.arange(1, count + 1)
    figure, (first, second, third) = style.subplots(8.8, 3.2, columns=3)
    first.vlines(place[rank:], 0, values[rank:], color=style.FAINT, lw=120 / count)
    first.vlines(place[:rank], 0, values[:rank], color=blue, lw=120 / count)
    first.set(xlim=(0, count + 1), xticks=(1, count // 2, count), ylim=(0, 1.08 * values[0]))
    first.set(xlabel="direction, largest first", ylabel="singular value")
    first.set_title(f"Keeps {rank} of {count} directions")
    second.plot(place, floor[1:], color=style.INK)
    style.dots(second, [rank], [best], blue, 9, clip_on=False, zorder=5)
    second.set(xscale="log", xlim=(1, count), ylim=(0, 1.02), xlabel="rank r")
    second.set(ylabel="best error, share of the change", yticks=HEIGHTS)
    style.log_axis(second.xaxis, tuple(2**i for i in range(count.bit_length()) if 2**i <= count))
    second.set_title(f"Rank {rank} misses {best:.0%} at best")
    for ax in (second, third):
        ax.axhline(best, color=blue, lw=1, ls=style.DASHED)
    third.text(STEPS, best - 0.02, "best of this rank", size=8, color=blue, ha="right", va="top")
    shown = np.where(np.isfinite(errors), errors, 2.0)
    third.plot(np.arange(STEPS + 1), shown, color=style.WRONG if lost else style.RIGHT, lw=2.4)
    third.set(xlim=(0, STEPS), ylim=(0, 1.02), xticks=(0, 100, 200), yticks=HEIGHTS)
    third.set(xlabel="gradient step", ylabel="error, share of the change")
    near = np.flatnonzero(errors <= best + 0.01)
    found = f"Still at {last:.0%}\nat step {STEPS}"
    if lost:
        found = "The descent diverges"
    elif len(near):
        found = f"Within 1 point of the best\nat step {near[0]}"
    third.set_title(found)
    third.text(STEPS, 0.96, f"scale γ = {alpha / rank:g}", size=8, color=style.SOFT, ha="right")
    return figure


def low_rank_explorer(change: Any) -> Dial:
    """Makes a dial for rank and α: the best error of a rank, and a descent towards it.

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
