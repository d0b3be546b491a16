"""The figures of notebook 02: clients as points, and the deviation over work and data."""

from typing import Any

import numpy as np
from jaxtyping import Float, Num

from fedlora_lab import theory
from fedlora_lab.course.widgets.dial import Dial
from fedlora_lab.plots import style

SHOWN = (-1.5, 3.5)


def _number(value: float) -> str:
    """Formats a number with two digits, a true minus sign, and 0 where all digits are zero."""
    return f"{value:.2f}".replace("-", "−") if abs(value) >= 5e-3 else "0"


def _finding(B: np.ndarray, A: np.ndarray, D: float) -> str:
    """Describes a cloud of clients in a few words."""
    if not (np.ptp(B) and np.ptp(A)):
        return "One factor is common: nothing is missed"
    if abs(D) < 5e-3:
        return "Both factors differ, yet nothing is missed"
    size = "too little" if D < 0 else "too much"
    return f"B and A go {'together' if D < 0 else 'apart'}: the server holds {size}"


@style.paper()
def client_cloud(
    B: Num[np.ndarray, " clients"],
    A: Num[np.ndarray, " clients"],
    weights: Float[np.ndarray, " clients"] | None = None,
) -> style.Picture:
    """Draws clients as points (B, A), and what each of them adds to the deviation.

    Args: B, A: one number a client; weights: p >= 0 with sum 1, ``None``: alike.
    Guarantees: axes do not depend on the points (test_explorers.py::test_axes_stand_still); the
        bars add up to the deviation (test_the_bars_of_a_cloud_add_up_to_the_deviation).
    """
    B, A = np.asarray(B, float), np.asarray(A, float)
    D = float(theory.deviation_matrix(B.reshape(-1, 1, 1), A.reshape(-1, 1, 1), weights)[0, 0])
    p = np.full(len(B), 1 / len(B)) if weights is None else np.asarray(weights)
    mean_B, mean_A, wanted = (float(np.sum(p * x)) for x in (B, A, B * A))
    figure, (ax, right) = style.row(7.8, 3.7, (0.14, 0.77), (0.07, 0.42), (0.60, 0.385))
    grid = np.linspace(0.02, SHOWN[1], 200)
    ax.axhline(0, color=style.FAINT, lw=1)
    ax.axvline(0, color=style.FAINT, lw=1)
    box = {"facecolor": style.CARD, "edgecolor": "none", "pad": 1.5}
    put: Any = {"ha": "right", "va": "top", "weight": "bold", "bbox": box, "zorder": 6}
    for height, words, product, ink, dashes in (
        (0.90, "mean of the products", wanted, style.RIGHT, style.DASHED),
        (0.98, "product of the means", mean_B * mean_A, style.INK, "-"),
    ):
        # A hyperbola holds all pairs with one product.
        ax.plot(grid, product / grid, color=ink, lw=1.8, ls=dashes, zorder=2)
        style.note(ax, 0.98, height, f"{words}: {_number(product)}", ink, 9, **put)
    style.dots(ax, B, A, style.FACTOR["B"], 7, mew=0.8, alpha=0.85, zorder=3)
    for number, place in enumerate(zip(B, A, strict=True), 1):
        offset: Any = {"xytext": (5, 4), "textcoords": "offset points", "fontsize": 8}
        ax.annotate(str(number), place, color=style.FACTOR["B"], **offset)
    ax.plot([mean_B], [mean_A], "X", ms=11, color=style.INK, mec=style.CARD, mew=1, zorder=5)
    ax.set(xlim=SHOWN, ylim=SHOWN, xlabel="a client's B", ylabel="a client's A")
    ax.set_title(_finding(B, A, D))
    words = "✕: the server's means; a line: all pairs with one product"
    style.note(ax, 0.99, 0.01, words, ha="right", va="bottom", size=7.5)
    place = np.arange(1, len(B) + 1) / (len(B) + 1)
    right.axhline(0, color=style.GREY, lw=1)
    parts = -p * (B - mean_B) * (A - mean_A)
    right.bar(place, parts, width=0.7 / len(B), color=style.FACTOR["B"], alpha=0.6)
    right.bar([1.2], [D], width=0.18, color=style.WRONG)
    right.set(xlim=(0, 1.35), ylim=(-0.85, 0.85))
    right.set_xticks([*place, 1.2], [*map(str, range(1, len(B) + 1)), "D"])
    right.set_xlabel("client, and the sum over the clients")
    right.set_ylabel("−p (B − B̄)(A − Ā)", color=style.SOFT)
    right.set_title(f"D = {_number(mean_B * mean_A)} − {_number(wanted)} = {_number(D)}")
    return figure


START = [[1.83, 1.77], [1.24, 1.44], [0.41, 0.67], [0.17, 0.24], [0.76, 0.56], [1.59, 1.32]]


def deviation_explorer() -> Dial:
    """Makes a dial with clients to drag as points (B, A): D, and each client's part of it.

    Guarantees: the numbers are `theory.deviation_matrix`
        (tests/browser/test_dials.py::test_formulas).
    """
    about = "Clients as points to drag: what averaging their factors misses of their products."
    return Dial(2, "deviation_explorer", about, points=START, weight=1 / 6)
