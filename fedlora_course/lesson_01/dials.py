"""The dial of notebook 01: what rank and alpha let an adapter learn of a layer."""

from functools import partial

import numpy as np
from jaxtyping import Float

from fedlora_course.lesson_01.theory import reachable_error
from fedlora_course.widgets.dial import Dial
from fedlora_course.widgets.scene import Scene, axis, bars, dots, line, panel
from fedlora_lab._utils.validation import check

RANKS = (1, 2, 4, 8, 16, 32, 64)
STEPS = 200
EVERY = 4
RATE = 0.3


def descent_errors(
    target: Float[np.ndarray, "d_out d_in"],
    rank: int,
    alpha: float,
    steps: int = STEPS,
    lr: float = RATE,
) -> Float[np.ndarray, " n"]:
    """Computes the relative error of (alpha / rank) B A against a matrix while both descend.

    Plain gradient descent on half the squared distance, from B = 0 and a Kaiming A.

    Args:
        target: not zero.
        rank, alpha: of the adapter.
        steps, lr: of the descent.
    Returns: (steps + 1,), infinite from where it has diverged.
    Guarantees: takes the steps of the gradients (test_descent_takes_the_gradients_steps).
    """
    size = float(np.linalg.norm(target))
    gamma = alpha / rank
    d_out, d_in = target.shape
    A = np.random.default_rng(0).uniform(-1, 1, (rank, d_in)) / np.sqrt(d_in)
    B = np.zeros((d_out, rank))
    errors = np.full(steps + 1, np.inf)
    for step in range(steps + 1):
        G = gamma * B @ A - target
        error = np.linalg.norm(G) / size
        if not error < 1e3:
            break
        errors[step] = error
        # Both steps from the same point.
        step_B = lr * gamma * G @ A.T
        step_A = lr * gamma * B.T @ G
        B = B - step_B
        A = A - step_A
    return errors


def _low_rank_scene(change: Float[np.ndarray, "d_out d_in"], rank: int, alpha: int) -> Scene:
    """Draws singular values, the best error of a rank, and a descent towards it."""

    values = np.linalg.svd(change, compute_uv=False)
    floor = reachable_error(values)
    count = len(values)
    directions = np.arange(1, count + 1)
    ranks = [rank for rank in RANKS if rank <= count]
    share = axis("error, share of the change", 0, 1.02)
    best = floor[rank]
    errors = descent_errors(change, rank, alpha)
    diverges = not np.isfinite(errors[-1]) or errors[-1] > 1
    colours = [(directions[:rank], "blue"), (directions[rank:], "pale")]
    shown = [bars(some - 0.4, 0, some + 0.4, values[some - 1], colour) for some, colour in colours]
    # Beyond the axes the curve of a descent that diverges is cut off.
    path = np.where(np.isfinite(errors), np.minimum(errors, 9), 9)[::EVERY]
    steps = np.arange(0, STEPS + 1, EVERY)
    panels = [
        panel(
            f"{rank} of {count} directions kept",
            axis("direction, largest first", 0.4, count + 0.6),
            axis("singular value", 0, 1.08 * values[0]),
            *shown,
        ),
        panel(
            f"Rank {rank}: error {best:.0%} at best",
            axis("rank r", 1, count, log=True, ticks=ranks, names=list(map(str, ranks))),
            share,
            line([1, count], best, "blue", dash="5 4", width=1.4),
            line(directions, floor[1:], "ink", "best error"),
            dots(rank, best, "blue", 6.5),
        ),
        panel(
            f"α = {alpha}: the way there",
            axis("gradient step", 0, STEPS),
            share,
            line([0, STEPS], best, "blue", dash="5 4", width=1.4),
            line(steps, path, "red" if diverges else "green", "error", width=2.8),
        ),
    ]
    ending = _describe_descent(errors, float(best), diverges)
    start = f"Rank {rank} misses at least {best:.0%} of the change, whatever α is. "
    return panels, [start, f"With α = {alpha} (γ = {alpha / rank:g}) ", ending]


def low_rank_explorer(change: Float[np.ndarray, "d_out d_in"]) -> Dial:
    """Makes a dial for rank and α: the best error of a rank, and a descent towards it.

    The descent takes 200 steps at learning rate 0.3, with the scale α / rank.

    Args: change: what training in full did to a layer.
    The floor is `reachable_error`, the way `descent_errors`.
    """

    change = np.asarray(change, dtype=float)
    check(change.ndim == 2, "change", change.shape, "a matrix (d_out, d_in)")
    ranks = [rank for rank in RANKS if rank <= min(change.shape)]
    return Dial(
        "01/low_rank_explorer",
        partial(_low_rank_scene, change),
        presets={
            "rank 1": {"rank": 1, "alpha": 2},
            "high rank, small α: slow": {"rank": ranks[-1], "alpha": 1},
            "small rank, large α: diverges": {"rank": ranks[min(1, len(ranks) - 1)], "alpha": 32},
        },
        start={"rank": min(4, ranks[-1]), "alpha": 8},
        rank=ranks,
        alpha=(1, 2, 4, 8, 16, 32),
    )


def _describe_descent(errors: Float[np.ndarray, " steps"], best: float, diverges: bool) -> str:
    """Says whether a descent arrives at the best error of its rank, and if not, why."""
    if diverges:
        return "this learning rate is too large: the descent diverges. Lower α, or raise the rank."
    near = np.flatnonzero(errors <= best + 0.01)
    if len(near):
        return f"the descent is within 1 point of that after {near[0]} steps."
    overshoots = (np.diff(errors) > 1e-3).any()
    cause = "but steps this large overshoot: lower α." if overshoots else "the small scale is slow."
    return f"{STEPS} steps end at {errors[-1]:.0%}: the rank would allow more, {cause}"
