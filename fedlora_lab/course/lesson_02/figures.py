"""The figure of notebook 02: clients as points, one number B and one number A each, so that
the aggregation deviation can be seen.
"""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import MultipleLocator

from fedlora_lab import theory
from fedlora_lab._utils.validation import check_number, check_one_of, check_whole
from fedlora_lab.plots import style

PATTERNS = ("cloud", "four sign pairs")


class Cloud(NamedTuple):
    """Clients' factors, (clients,) each, and three numbers: server's product, mean of the products,
    deviation D.
    """

    b: np.ndarray
    a: np.ndarray
    server: float
    wanted: float
    deviation: float


def cloud(
    spread_B: float, spread_A: float, together: float, clients: int = 12, pattern: str = "cloud"
) -> Cloud:
    """Clients around (1, 1) with exactly these spreads (standard deviations) and this correlation.

    Args:
        spread_B, spread_A: >= 0; 0: all clients hold the same.
        together: correlation of B and A over clients, in [-1, 1]; clients: >= 3.
        pattern: "cloud", or "four sign pairs": (1 +- spread_B, 1 +- spread_A), whatever the
            correlation asked for.
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


@style.paper()
def client_cloud(
    spread_B: float = 0.7, spread_A: float = 0.7, together: float = 0.8, pattern: str = "cloud"
) -> tuple[style.Picture, str]:
    """Draws clients in the plane of their two factors, and D against how the factors go together.

    Args: spread_B, spread_A, together, pattern: as of `cloud`.
    Returns: the figure, and what it shows in words.
    Guarantees: axes do not depend on the arguments (test_explorers.py::test_axes_stand_still).
    """
    seen = cloud(spread_B, spread_A, together, pattern=pattern)
    places = (0.07, 0.14, 0.42, 0.77), (0.60, 0.14, 0.385, 0.77)
    figure, (ax, right) = style.panels(7.8, 3.7, *places)
    grid = np.linspace(0.05, 4, 200)
    ax.axhline(0, color=style.FAINT, lw=1)
    ax.axvline(0, color=style.FAINT, lw=1)
    for height, words, product, ink, dashes in (
        (0.90, "mean of products", seen.wanted, style.RIGHT, style.DASHED),
        (0.97, "server", seen.server, style.INK, "-"),
    ):
        # A hyperbola holds all pairs with one product; for a product near zero it is the axes.
        ax.plot(grid, product / grid, color=ink, lw=1.8, ls=dashes, zorder=2)
        box = {"facecolor": style.CARD, "edgecolor": "none", "pad": 1.5}
        put: Any = {"ha": "right", "va": "top", "weight": "bold", "bbox": box, "zorder": 6}
        style.note(ax, 0.98, height, f"{words}: {product:.2f}", ink, 9, **put)
    style.dots(ax, seen.b, seen.a, style.FACTOR["B"], 7, mew=0.8, alpha=0.85, zorder=3)
    means = [seen.b.mean()], [seen.a.mean()]
    ax.plot(*means, "X", ms=11, color=style.INK, mec=style.CARD, mew=1, zorder=5)
    ax.set(xlim=(-1.6, 3.6), ylim=(-1.6, 3.6), xlabel="a client's B", ylabel="a client's A")
    ax.set_title("One dot a client, ✕ their averages")
    small: Any = {"fontsize": 8, "color": style.SOFT}
    ax.text(3.55, -1.55, "line: all pairs of one product", ha="right", va="bottom", **small)
    steady = np.std(seen.b) * np.std(seen.a)
    rho = float(np.cov(seen.b, seen.a, ddof=0)[0, 1] / steady) if steady > 1e-12 else 0.0
    product = spread_B * spread_A
    right.plot([-1, 1], [product, -product], color=style.GREY, lw=1.6)
    right.axhline(0, color=style.RIGHT, lw=1.2, ls=style.DASHED)
    bar: Any = {"color": style.WRONG, "lw": 3, "solid_capstyle": "butt"}
    right.plot([rho, rho], [0, seen.deviation], **bar)
    style.dots(right, [rho], [seen.deviation], style.WRONG, 10, zorder=5, clip_on=False)
    right.text(-0.96, -0.98, "grey: −spread · spread · correlation", **small)
    right.xaxis.set_major_locator(MultipleLocator(0.5))
    right.yaxis.set_major_locator(MultipleLocator(0.5))
    right.set(xlim=(-1, 1), ylim=(-1.05, 1.05), xlabel="correlation of B and A over clients")
    right.set_ylabel("D = server's − mean product", color=style.SOFT)
    D = f"D = {seen.deviation:+.2f}".replace("-", "−").replace("+0.00", "0").replace("−0.00", "0")
    right.set_title(D)
    text = "nothing is lost, though both factors differ: B and A do not go together here."
    if abs(seen.deviation) > 5e-3:
        way = "too little" if seen.deviation < 0 else "too much"
        text = f"{abs(seen.deviation):.2f} {way}, minus the covariance of B and A over the clients."
    elif spread_B == 0 or spread_A == 0:
        same = f"all clients hold the same {'B' if spread_B == 0 else 'A'}"
        text = f"{same}, so nothing is lost, wherever the other factor goes."
    start = f"The server holds {seen.server:.2f} where the clients' products average"
    return figure, f"{start} {seen.wanted:.2f}: {text}"
