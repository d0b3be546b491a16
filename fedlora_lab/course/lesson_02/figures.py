"""The figure of notebook 02: clients as points, one number B and one number A each."""

from typing import Any

import numpy as np
from matplotlib.ticker import MultipleLocator

from fedlora_lab import theory
from fedlora_lab._utils.validation import check_number, check_one_of
from fedlora_lab.plots import style

CLIENTS, PATTERNS = 12, ("cloud", "four sign pairs")


def _cloud(spread_B: float, spread_A: float, correlation: float, pattern: str) -> Any:
    """B and A of clients around (1, 1) with exactly these spreads (standard deviations) and this
    correlation; "four sign pairs" are (1 ± spread_B, 1 ± spread_A), whatever the correlation.
    """
    check_number("spread_B", spread_B, 0)
    check_number("spread_A", spread_A, 0)
    check_number("correlation", correlation, -1, 1)
    check_one_of("pattern", pattern, PATTERNS)
    if pattern == "cloud":
        draws = np.random.default_rng(3).standard_normal((CLIENTS, 2))
        axes = np.linalg.qr(np.column_stack([np.ones(CLIENTS), draws]))[0][:, 1:] * CLIENTS**0.5
        u, v = axes[:, 0], correlation * axes[:, 0] + np.sqrt(1 - correlation**2) * axes[:, 1]
    else:
        u, v = (part.reshape(4) for part in theory.sign_pairs())
    return 1 + spread_B * u, 1 + spread_A * v


@style.paper()
def client_cloud(
    spread_B: float = 0.7, spread_A: float = 0.7, correlation: float = 0.8, pattern: str = "cloud"
) -> tuple[style.Picture, str]:
    """Draws clients in the plane of their two factors, and D against how the factors go together.

    Args: spread_B, spread_A: standard deviations over the clients, >= 0; correlation:
        of B and A over them, in [-1, 1]; pattern: "cloud", or "four sign pairs" around (1, 1).
    Returns: the figure, and what it shows in words.
    Guarantees: axes do not depend on the arguments (test_explorers.py::test_axes_stand_still); the
        red bar is the deviation (test_a_cloud_has_the_spread_and_correlation_asked_for).
    """
    b, a = _cloud(spread_B, spread_A, correlation, pattern)
    server, wanted = float(b.mean() * a.mean()), float((b * a).mean())
    D = float(theory.deviation(b.reshape(-1, 1, 1), a.reshape(-1, 1, 1))[0, 0])
    figure, (ax, right) = style.row(7.8, 3.7, (0.14, 0.77), (0.07, 0.42), (0.60, 0.385))
    grid = np.linspace(0.05, 4, 200)
    ax.axhline(0, color=style.FAINT, lw=1)
    ax.axvline(0, color=style.FAINT, lw=1)
    for height, words, product, ink, dashes in (
        (0.90, "mean of products", wanted, style.RIGHT, style.DASHED),
        (0.97, "server", server, style.INK, "-"),
    ):
        # A hyperbola holds all pairs with one product; for a product near zero it is the axes.
        ax.plot(grid, product / grid, color=ink, lw=1.8, ls=dashes, zorder=2)
        box = {"facecolor": style.CARD, "edgecolor": "none", "pad": 1.5}
        put: Any = {"ha": "right", "va": "top", "weight": "bold", "bbox": box, "zorder": 6}
        style.note(ax, 0.98, height, f"{words}: {product:.2f}", ink, 9, **put)
    style.dots(ax, b, a, style.FACTOR["B"], 7, mew=0.8, alpha=0.85, zorder=3)
    ax.plot([b.mean()], [a.mean()], "X", ms=11, color=style.INK, mec=style.CARD, mew=1, zorder=5)
    ax.set(xlim=(-1.6, 3.6), ylim=(-1.6, 3.6), xlabel="a client's B", ylabel="a client's A")
    ax.set_title("One dot a client, ✕ their averages")
    style.note(ax, 0.99, 0.01, "line: all pairs of one product", ha="right", va="bottom")
    steady, product = np.std(b) * np.std(a), spread_B * spread_A
    rho = float(np.cov(b, a, ddof=0)[0, 1] / steady) if steady > 1e-12 else 0.0
    right.plot([-1, 1], [product, -product], color=style.GREY, lw=1.6)
    right.axhline(0, color=style.RIGHT, lw=1.2, ls=style.DASHED)
    right.plot([rho, rho], [0, D], color=style.WRONG, lw=3, solid_capstyle="butt")
    style.dots(right, [rho], [D], style.WRONG, 10, zorder=5, clip_on=False)
    style.note(right, 0.02, 0.0333, "grey: −spread · spread · correlation")
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_locator(MultipleLocator(0.5))
    right.set(xlim=(-1, 1), ylim=(-1.05, 1.05), xlabel="correlation of B and A over clients")
    right.set_ylabel("D = server's − mean product", color=style.SOFT)
    title = f"D = {D:+.2f}".replace("-", "−").replace("+0.00", "0").replace("−0.00", "0")
    right.set_title(title)
    text = "nothing is lost, though both factors differ: B and A do not go together here."
    if abs(D) > 5e-3:
        way = "too little" if D < 0 else "too much"
        text = f"{abs(D):.2f} {way}, minus the covariance of B and A over the clients."
    elif spread_B == 0 or spread_A == 0:
        same = f"all clients hold the same {'B' if spread_B == 0 else 'A'}"
        text = f"{same}, so nothing is lost, wherever the other factor goes."
    start = f"The server holds {server:.2f} where the clients' products average"
    return figure, f"{start} {wanted:.2f}: {text}"
