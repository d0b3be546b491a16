"""Boxes and arrows: what the drawings of a layer and of a federated round are made of."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from fedlora_lab.plots import style

ARROW: Any = {"arrowstyle": "-|>", "color": style.SOFT, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
Point = tuple[float, float]


def box(
    ax: Axes, x: float, y: float, width: float, height: float, words: str = "", **look: Any
) -> None:
    """Draws a box with words in its middle.

    Args: x, y: its lower left corner; width, height, words; look: ``color`` of the words, others as
        of Matplotlib's ``Rectangle``.
    """
    colour = look.pop("color", "white")
    look.setdefault("ec", "none")
    ax.add_patch(Rectangle((x, y), width, height, lw=1, **look))
    middle = (x + width / 2, y + height / 2)
    ax.text(*middle, words, color=colour, ha="center", va="center", fontsize=9)


def arrow(ax: Axes, start: Point, end: Point) -> None:
    """Draws an arrow from one point to another, in data units."""
    ax.annotate("", end, start, arrowprops=ARROW)
