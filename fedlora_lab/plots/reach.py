"""What rank and alpha do to an adapter that should become a given change of a layer."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.ticker import FixedLocator, NullLocator

from fedlora_lab import theory
from fedlora_lab.plots.style import CARD, FACTOR, FAINT, INK, RIGHT, SOFT, WRONG, Picture, paper, picture

STEPS, RATE = 200, 0.3
HEIGHTS = (0, 0.25, 0.5, 0.75, 1)


class Reach(NamedTuple):
    """What the figure shows: singular values, the best error at every rank, and the errors of a descent."""

    values: np.ndarray
    floor: np.ndarray
    errors: np.ndarray


def reached(
    change: Float[np.ndarray, "d_out d_in"],
    rank: int,
    alpha: float,
    values: "Float[np.ndarray, ' n'] | None" = None,
) -> Reach:
    """The numbers behind `reach`: 200 steps of gradient descent at learning rate 0.3. ``values``: if known already."""
    change = np.asarray(change, dtype=float)
    values = np.linalg.svd(change, compute_uv=False) if values is None else values
    return Reach(values, theory.reachable_error(values), theory.approach(change, rank, alpha, STEPS, RATE))


def reach(change: Float[np.ndarray, "d_out d_in"], rank: int = 4, alpha: float = 8.0) -> Picture:
    """Spectrum of a wanted change, the error each rank can reach, and the way there at this alpha.

    Args:
        change: D, what training the layer in full did to its weight.
        rank: of the adapter, at most min(d_out, d_in).
        alpha: scaling is alpha / rank; the learning rate is always 0.3.

    Guarantees: axes do not depend on rank and alpha (test_lesson_01.py::test_axes_stand_still).
    """
    return drawn(reached(change, rank, alpha), rank, alpha)


def drawn(seen: Reach, rank: int, alpha: float) -> Picture:
    """The figure for numbers that are there already."""
    count = len(seen.values)
    with paper():
        figure = picture(7.8, 3.2)
        first, second, third = (figure.add_axes((left, 0.16, 0.245, 0.72)) for left in (0.07, 0.405, 0.74))
        place = np.arange(1, count + 1)
        first.vlines(place[rank:], 0, seen.values[rank:], color=FAINT, lw=120 / count)
        first.vlines(place[:rank], 0, seen.values[:rank], color=FACTOR["B"], lw=120 / count)
        first.set(xlim=(0, count + 1), xticks=(1, count // 2, count), ylim=(0, 1.08 * seen.values[0]))
        first.set(xlabel="direction, largest first", ylabel="singular value")
        first.set_title(f"Keeps {rank} of {count}")
        second.plot(place, seen.floor[1:], color=INK)
        second.plot([rank], [seen.floor[rank]], "o", ms=9, color=FACTOR["B"], mec=CARD, clip_on=False, zorder=5)
        second.axhline(seen.floor[rank], color=FACTOR["B"], lw=1, ls=(0, (4, 2)))
        second.set(xscale="log", xlim=(1, count), ylim=(0, 1.02), xlabel="rank r")
        second.set(ylabel="best error, share of the change", yticks=HEIGHTS)
        ticks = [2**i for i in range(count.bit_length()) if 2**i <= count]
        second.xaxis.set_minor_locator(NullLocator())
        second.xaxis.set_major_locator(FixedLocator(ticks))
        second.xaxis.set_major_formatter("{x:g}")
        second.set_title("Rank: where it ends")
        _way(third, seen, rank, alpha)
    return figure


def _way(ax: Any, seen: Reach, rank: int, alpha: float) -> None:
    ax.axhline(seen.floor[rank], color=FACTOR["B"], lw=1, ls=(0, (4, 2)))
    ax.text(STEPS, seen.floor[rank] - 0.02, "best of this rank", fontsize=8, color=FACTOR["B"], ha="right", va="top")
    errors = np.where(np.isfinite(seen.errors), seen.errors, 2.0)
    lost = not np.isfinite(seen.errors[-1])
    ax.plot(np.arange(STEPS + 1), errors, color=WRONG if lost else RIGHT, lw=2.4)
    if lost:
        ax.text(STEPS / 2, 0.62, "diverges", fontsize=13, weight="bold", color=WRONG, ha="center")
    ax.set(xlim=(0, STEPS), ylim=(0, 1.02), xlabel="gradient step", ylabel="error", yticks=HEIGHTS)
    ax.set_xticks((0, 100, 200))
    ax.set_title(f"α: how fast (s = {alpha / rank:g})", color=INK)
    ax.yaxis.label.set_color(SOFT)


def says(seen: Reach, rank: int, alpha: float) -> str:
    """What is seen, in words."""
    best, last = seen.floor[rank], seen.errors[-1]
    numbers = f"Rank {rank} can come within {best:.0%} of the change, whatever α is. "
    numbers += f"With α = {alpha:g} (s = {alpha / rank:g}) "
    if not np.isfinite(last):
        return numbers + "this learning rate is too large: the descent diverges. Lower α, or raise the rank."
    near = np.flatnonzero(seen.errors <= best + 0.01)
    if len(near):
        return numbers + f"the descent is within 1 point of that after {near[0]} steps."
    return numbers + f"{STEPS} steps end at {last:.0%}: the rank would allow more, α / r makes it slow."
