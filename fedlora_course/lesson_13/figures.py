"""Figures of notebook 13: who sees what, ε by observer, and masks."""

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.patches import Circle

from fedlora_course import drawing
from fedlora_course.lesson_13.dials import TRUSTS, epsilon_by_observer
from fedlora_lab._utils.rounding import round_up
from fedlora_lab._utils.trust import TRUST
from fedlora_lab.plots import style

Numbers = Float[np.ndarray, " d"]
KEPT, EXCEEDED = "#CFEBDF", "#F6DFA4"
"""Grounds of an ε within the promise, and of one above it."""

SEEN = {
    "local": ("u + noise", "every upload, noised", "σC each"),
    "secagg": ("u + noise + masks", "the sum, noised", "σC / √K each"),
    "central": ("u", "every update, clear", "σC, by the server"),
}
"""Trust -> what a client uploads, what the server sees, how much noise is added."""


@style.paper()
def who_sees_what() -> style.Picture:
    """Draws what clients upload, what the server sees and what is published, by kind of trust."""
    figure, axes = style.subplots(10.2, 3.3, columns=3)
    for ax, (trust, (upload, server, noise)) in zip(axes, SEEN.items(), strict=True):
        colour = style.WRONG if TRUST[trust].server_adds_noise else style.RIGHT
        for y in (0.2, 0.5, 0.8):
            ax.add_patch(Circle((0.1, y), 0.06, fc=style.CARD, ec=style.INK, lw=1.4))
            ax.text(0.1, y, "u", ha="center", va="center", fontsize=9)
            drawing.arrow(ax, (0.18, y), (0.52, 0.5 + 0.25 * (y - 0.5)))
        ax.text(0.02, 0.98, f"sends {upload}", fontsize=9, va="top")
        ax.text(0.02, 0.02, f"noise: {noise}", fontsize=9, color=style.GREY)
        look = {"fc": style.CARD, "ec": colour, "lw": 2.2, "color": style.INK}
        drawing.box(ax, 0.53, 0.36, 0.2, 0.28, "server", **look)
        ax.text(0.66, 0.73, f"sees {server}", ha="center", fontsize=9, color=colour, weight="bold")
        drawing.arrow(ax, (0.75, 0.5), (0.98, 0.5))
        ax.text(0.99, 0.44, "noised\nmodel", ha="right", va="top", fontsize=9)
        ax.set(
            xlim=(0, 1), ylim=(0, 1), xticks=(), yticks=(), title=f"{trust}: trusts {TRUSTS[trust]}"
        )
        drawing.clear(ax)
    style.headline(figure, "Only a trusted server sees a client's own numbers")
    return figure


def epsilon_table(sigma: float, clients: int, colluders: int) -> pd.DataFrame:
    """Tabulates `epsilon_by_observer` for every kind of trust; infinite where there is no noise.

    Args: sigma, clients, colluders: see `epsilon_by_observer`.
    """
    rows = {trust: epsilon_by_observer(trust, sigma, clients, colluders) for trust in TRUSTS}
    observers = {
        "public": "who sees the model",
        "server": "the server",
        "together": f"the server and {colluders} of {clients}",
    }
    return pd.DataFrame(rows).T.rename(columns=observers)


@style.paper()
def observers_map(faced: pd.DataFrame, promised: float) -> style.Picture:
    """Draws which ε each observer faces: green as promised, yellow above it, red without a limit.

    Args: faced: of `epsilon_table`; promised: the ε of the promise.
    """
    figure, (ax,) = style.subplots(8.2, 3.0)
    for (y, x), epsilon in np.ndenumerate(faced.to_numpy()):
        limited = np.isfinite(epsilon)
        ground = (KEPT if epsilon <= promised else EXCEEDED) if limited else style.WRONG
        words = f"ε = {round_up(epsilon, '.2f')}" if limited else "ε = ∞: sees all"
        ink = style.INK if limited else "white"
        drawing.cell(ax, x, y, words, ground, color=ink, weight="bold", fontsize=10)
    ax.xaxis.tick_top()
    ax.set(xlim=(-0.5, len(faced.columns) - 0.5), ylim=(len(faced) - 0.5, -0.5))
    ax.set_xticks(range(len(faced.columns)), list(faced.columns))
    trusted = [f"{trust}:\ntrusts {TRUSTS[str(trust)]}" for trust in faced.index]
    ax.set_yticks(range(len(faced)), trusted)
    drawing.clear(ax)
    style.headline(figure, "Nothing limits a trusted server; colluders weaken masks")
    words = f"green: at most the ε = {promised:g} that was promised; yellow: more; red: no limit"
    style.footer(figure, words)
    return figure


@style.paper()
def masked_upload(update: Numbers, upload: Numbers) -> style.Picture:
    """Draws what the server receives of a client's numbers.

    The client's numbers stand in the order of their size, so that all columns hold alike many.

    Args: update: noised; upload: masked, as a fraction of the modulus.
    """
    figure, (ax,) = style.subplots(6.6, 3.4)
    place = np.argsort(np.argsort(update))
    style.draw_dots(ax, place, upload, style.SERIES[1], 2.4, mew=0, alpha=0.5)
    ax.set(ylim=(-0.02, 1.02), xlabel="one client's numbers, from the smallest to the largest")
    ax.set(ylabel="received, as a fraction of M", title="A masked upload tells nothing")
    return figure
