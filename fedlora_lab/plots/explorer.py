"""Clients as points: one number B and one number A each, so that the aggregation deviation can be seen."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import MultipleLocator

from fedlora_lab import theory
from fedlora_lab.checks import check_number, check_one_of, check_whole
from fedlora_lab.plots.style import CARD, FACTOR, FAINT, GREY, INK, RIGHT, SOFT, WRONG, Picture, paper, picture

PATTERNS = ("cloud", "four sign pairs")


class Cloud(NamedTuple):
    """Clients' factors, (clients,) each, and three numbers: server's product, mean of the products, deviation D."""

    b: np.ndarray
    a: np.ndarray
    server: float
    wanted: float
    deviation: float


def cloud(spread_B: float, spread_A: float, together: float, clients: int = 12, pattern: str = "cloud") -> Cloud:
    """Clients around (1, 1) with exactly these spreads (standard deviations) and this correlation.

    Args:
        spread_B, spread_A: >= 0; 0: all clients hold the same.
        together: correlation of B and A over clients, in [-1, 1].
        clients: >= 3.
        pattern: "cloud", or "four sign pairs": (1 +- spread_B, 1 +- spread_A), whatever the correlation asked for.
    """
    check_number("spread_B", spread_B, 0)
    check_number("spread_A", spread_A, 0)
    check_number("together", together, -1, 1)
    check_whole("clients", clients, 3)
    check_one_of("pattern", pattern, PATTERNS)
    if pattern == "cloud":
        draws = np.random.default_rng(3).standard_normal((clients, 2))
        axes = np.linalg.qr(np.column_stack([np.ones(clients), draws]))[0][:, 1:] * np.sqrt(clients)
        u, v = axes[:, 0], together * axes[:, 0] + np.sqrt(1 - together**2) * axes[:, 1]
    else:
        u, v = (part.reshape(4) for part in theory.sign_pairs())
    b, a = 1 + spread_B * u, 1 + spread_A * v
    D = float(theory.deviation(b.reshape(-1, 1, 1), a.reshape(-1, 1, 1))[0, 0])
    return Cloud(b, a, float(b.mean() * a.mean()), float((b * a).mean()), D)


def explorer(
    spread_B: float = 0.7, spread_A: float = 0.7, together: float = 0.8, clients: int = 12, pattern: str = "cloud"
) -> Picture:
    """Clients in the plane of their two factors, and D against how the factors go together. Arguments as `cloud`.

    Guarantees: axes do not depend on the arguments (test_lesson_02.py::test_axes_stand_still).
    """
    return drawn(cloud(spread_B, spread_A, together, clients, pattern), spread_B, spread_A)


def drawn(seen: Cloud, spread_B: float, spread_A: float) -> Picture:
    """The figure for clients that are there already."""
    with paper():
        figure = picture(7.8, 3.7)
        left, right = figure.add_axes((0.07, 0.14, 0.42, 0.77)), figure.add_axes((0.60, 0.14, 0.385, 0.77))
        _plane(left, seen)
        _line(right, seen, spread_B, spread_A)
    return figure


def _plane(ax: Any, seen: Cloud) -> None:
    grid = np.linspace(0.05, 4, 200)
    ax.axhline(0, color=FAINT, lw=1)
    ax.axvline(0, color=FAINT, lw=1)
    for product, colour, dashes in ((seen.wanted, RIGHT, (0, (4, 2))), (seen.server, INK, "-")):
        # A hyperbola holds all pairs with one product; for a product near zero it is the axes.
        ax.plot(grid, product / grid, color=colour, lw=1.8, ls=dashes, zorder=2)
    ax.plot(seen.b, seen.a, "o", ms=7, color=FACTOR["B"], mec=CARD, mew=0.8, alpha=0.85, zorder=3)
    ax.plot([seen.b.mean()], [seen.a.mean()], "X", ms=11, color=INK, mec=CARD, mew=1, zorder=5)
    ax.set(xlim=(-1.6, 3.6), ylim=(-1.6, 3.6), xlabel="a client's B", ylabel="a client's A")
    ax.set_title("One dot a client, ✕ their averages")
    ax.text(3.55, -1.55, "line: all pairs of one product", fontsize=8, color=SOFT, ha="right", va="bottom")
    words = ((0.97, f"server: {seen.server:.2f}", INK), (0.90, f"mean of products: {seen.wanted:.2f}", RIGHT))
    for height, text, colour in words:
        box = {"facecolor": CARD, "edgecolor": "none", "pad": 1.5}
        place = {"transform": ax.transAxes, "ha": "right", "va": "top", "fontsize": 9, "weight": "bold"}
        ax.text(0.98, height, text, color=colour, bbox=box, zorder=6, **place)


def _line(ax: Any, seen: Cloud, spread_B: float, spread_A: float) -> None:
    steady = np.std(seen.b) * np.std(seen.a)
    rho = float(np.mean((seen.b - seen.b.mean()) * (seen.a - seen.a.mean())) / steady) if steady > 1e-12 else 0.0
    ax.plot([-1, 1], [spread_B * spread_A, -spread_B * spread_A], color=GREY, lw=1.6)
    ax.axhline(0, color=RIGHT, lw=1.2, ls=(0, (4, 2)))
    ax.plot([rho, rho], [0, seen.deviation], color=WRONG, lw=3, solid_capstyle="butt")
    ax.plot([rho], [seen.deviation], "o", ms=10, color=WRONG, mec=CARD, zorder=5, clip_on=False)
    ax.text(-0.96, -0.98, "grey: −spread · spread · correlation", fontsize=8, color=SOFT)
    ax.xaxis.set_major_locator(MultipleLocator(0.5))
    ax.yaxis.set_major_locator(MultipleLocator(0.5))
    ax.set(xlim=(-1, 1), ylim=(-1.05, 1.05), xlabel="correlation of B and A over clients")
    ax.set_ylabel("D = server's − mean product", color=SOFT)
    ax.set_title(f"D = {seen.deviation:+.2f}".replace("-", "−").replace("+0.00", "0").replace("−0.00", "0"))


def says(seen: Cloud, spread_B: float, spread_A: float) -> str:
    """What is seen, in words."""
    text = f"The server holds {seen.server:.2f} where the clients' products average {seen.wanted:.2f}: "
    if abs(seen.deviation) > 5e-3:
        way = "too little" if seen.deviation < 0 else "too much"
        return text + f"{abs(seen.deviation):.2f} {way}, minus the covariance of B and A over the clients."
    if spread_B == 0 or spread_A == 0:
        who = "B" if spread_B == 0 else "A"
        return text + f"all clients hold the same {who}, so nothing is lost, wherever the other factor goes."
    return text + "nothing is lost, though both factors differ: B and A do not go together here."
