"""A figure of notebook 06: what noise costs along a direction."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from fedlora_lab.plots import style

SHOWN = 300
"""Of a ball's places, as many as stay apart in the picture."""


@style.paper()
def bowls(places: Mapping[float, Float[np.ndarray, " rounds"]], price: float) -> style.Picture:
    """Draws balls that jitter in bowls of different width, and the loss that each has on average.

    Args:
        places: curvature h of a bowl h x²/2 -> where its ball was in each round.
        price: the mean loss that is predicted for all of them, the unit of the picture.
    """
    figure, axes = style.subplots(9.4, 3.9, columns=len(places), sharex=True, sharey=True)
    edge = 4 * max(path.std() for path in places.values())
    x = np.linspace(-edge, edge, 300)
    for ax, (h, path) in zip(axes, places.items(), strict=True):
        some = path[:: -(-len(path) // SHOWN)]
        mean = h * np.mean(path**2) / 2 / price
        ax.plot(x, h * x**2 / 2 / price, color=style.INK, lw=1.4)
        ball = {"ms": 6, "color": style.FACTOR["B"], "alpha": 0.3, "mew": 0}
        ax.plot(some, h * some**2 / 2 / price, "o", **ball)
        ax.axhline(mean, color=style.FACTOR["A"], lw=2)
        words = {"ha": "right", "transform": ax.transData}
        style.note(ax, edge, mean + 0.2, f"mean loss {mean:.2f}", style.FACTOR["A"], 10, **words)
        ax.set(ylim=(-0.4, 8), xlim=(-edge, edge), xlabel="distance x from the minimum")
        ax.set_title(f"curvature {h:g}: strays by {path.std():.3f}")
    axes[0].set_ylabel("loss, in units of τ²/4η")
    style.headline(figure, "Wide or narrow, the noise costs the same")
    return figure
