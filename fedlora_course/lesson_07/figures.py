"""Figures of lesson 07: a ball in bowls of one loss, and turns at the minimum of a product."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from fedlora_lab.plots import style

Distances = Float[np.ndarray, " rounds"]
Factor = Float[np.ndarray, "d_out r"]


@style.paper()
def bowls(paths: Mapping[str, tuple[float, Distances]], unit: float, title: str) -> style.Picture:
    """Draws where a ball was in each bowl, and what it lost on average.

    Args:
        paths: words above a bowl -> (curvature, distances from the bottom).
        unit: of the loss, the price of a direction under plain noise.
        title: the finding.
    """
    figure, axes = style.subplots(3.2 * len(paths), 3.6, columns=len(paths), sharey=True)
    reach = 1.05 * max(np.abs(path[::667]).max() for _, path in paths.values())
    walls = np.linspace(-reach, reach, 201)
    top = 1.6 * max(curvature * np.mean(path**2) / 2 for curvature, path in paths.values()) / unit
    for ax, (heading, (curvature, path)) in zip(axes, paths.items(), strict=True):
        some = path[::667]
        mean = float(curvature * np.mean(path**2) / 2 / unit)
        ax.plot(walls, curvature * walls**2 / 2 / unit, color=style.INK, lw=1.6)
        heights = curvature * some**2 / 2 / unit
        ax.plot(some, heights, "o", ms=6, color=style.FACTOR["B"], alpha=0.3, mew=0)
        ax.axhline(mean, color=style.FACTOR["A"], lw=2)
        above = mean + 0.03 * float(max(top, 8))
        words = f"mean loss {mean:.2f}"
        box = {"facecolor": style.CARD, "alpha": 0.8, "lw": 0, "pad": 1}
        ax.text(0.98 * reach, above, words, color=style.FACTOR["A"], ha="right", bbox=box)
        ax.set(xlim=(-reach, reach), ylim=(-0.05 * max(top, 8), max(top, 8)))
        ax.set_xlabel("distance u from the bottom")
        ax.set_title(heading)
    axes[0].set_ylabel("loss, in units of τ²/4η")
    style.headline(figure, title)
    return figure


def loss_at_the_minimum(frozen_A: bool, eta: float, tau: float) -> float:
    """Lets one client's B and A jitter where ||B A - goal||^2 / 2 is least, and means the loss.

    Each of 2,000 rounds is a gradient step of one factor of rank 3, (20, 3) or (3, 30), and noise
    on it. The mean leaves out the first quarter.

    Args: frozen_A: B moves in every round, not in every other; eta: rate; tau: of a release.
    """
    rng = np.random.default_rng(0)
    B = np.linalg.qr(rng.standard_normal((20, 3)))[0]
    A = np.linalg.qr(rng.standard_normal((30, 3)))[0].T
    goal = B @ A
    losses = []
    for t in range(2000):
        error = B @ A - goal
        if frozen_A or t % 2 == 0:
            B = B - eta * error @ A.T + tau * rng.standard_normal(B.shape)
        else:
            A = A - eta * B.T @ error + tau * rng.standard_normal(A.shape)
        losses.append(np.square(B @ A - goal).sum() / 2)
    return float(np.mean(losses[500:]))


def noise_over_rounds(
    rule: Callable[[Factor, Factor], Factor], rng: np.random.Generator
) -> list[float]:
    """Lets B and A of a layer take turns for 60 rounds, in which a rule adds noise alone.

    Args: rule: (a change of nothing (64, 4), the frozen factor (4, 64)) -> what the server adds.
    Returns: the energy of B A after each round.
    """
    nothing = 1e-9 * np.ones((64, 4))
    B, A = np.zeros((64, 4)), rng.uniform(-1, 1, (4, 64)) / 64**0.5
    energies = []
    for t in range(60):
        if t % 2 == 0:
            B = B + rule(nothing, A)
        else:
            A = A + rule(nothing, B.T).T
        energies.append(float(np.square(B @ A).sum()))
    return energies
