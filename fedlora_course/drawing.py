"""What several lessons draw, and colours that are seen on a light and on a dark page."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle
from scipy.stats import norm

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
    look.setdefault("lw", 1)
    ax.add_patch(Rectangle((x, y), width, height, **look))
    middle = (x + width / 2, y + height / 2)
    ax.text(*middle, words, color=colour, ha="center", va="center", fontsize=9)


def arrow(ax: Axes, start: Point, end: Point) -> None:
    """Draws an arrow from one point to another, in data units."""
    ax.annotate("", end, start, arrowprops=ARROW)


def cell(ax: Axes, x: float, y: float, words: str, ground: str = "none", **look: Any) -> None:
    """Draws a cell of a table, of size one, with words in its middle.

    Args: x, y: its middle; words; ground: its colour; look: see ``Axes.text``.
    """
    ax.add_patch(Rectangle((x - 0.46, y - 0.43), 0.92, 0.86, fc=ground, lw=0))
    placed: Any = {"ha": "center", "va": "center", "fontsize": 9, **look}
    ax.text(x, y, words, **placed)


def clear(ax: Axes) -> None:
    """Leaves only words of axes: no grid, no ticks, no frame."""
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def two_worlds(ax: Axes, x: np.ndarray, mean: float, you: str = "\nyou") -> None:
    """Draws the densities of an output without an example, around 0, and with it.

    Args: x: places, (n,), in units of the noise; mean: with the example; you: words for it.
    """
    height = float(0.8 * norm.pdf(0))
    worlds = (
        (0.0, style.WITHOUT, f"without{you} ", "right"),
        (mean, style.WITH, f"with{you}", "left"),
    )
    for centre, colour, words, side in worlds:
        ax.plot(x, norm.pdf(x, centre), color=colour)
        place = centre + (1.0 if side == "left" else -1.75)
        ax.text(place, height, words, color=colour, ha=side, va="center", weight="bold")


def contrast(one: str, other: str) -> float:
    """Returns the contrast of two colours as WCAG 2.1 defines it, from 1 to 21."""
    low, high = sorted([_luminance(one), _luminance(other)])
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], parts))


def on_screen(colour: str) -> tuple[str, str]:
    """Returns a colour for lines and words on white, and for those on a dark page.

    It is darkened or lightened just enough: a contrast of 4.6 on white, and of 7.3 on #111111,
    which leaves 4.5 on the lightest dark ground of the usual notebooks.
    """
    return _with_contrast(colour, "#FFFFFF", 4.6), _with_contrast(colour, "#111111", 7.3)


def _with_contrast(colour: str, ground: str, least: float) -> str:
    end = np.array(to_rgb("#FFFFFF" if _luminance(ground) < 0.5 else "#000000"))
    mixes = (to_hex((1 - s) * np.array(to_rgb(colour)) + s * end) for s in np.linspace(0, 1, 101))
    return next(mixed.upper() for mixed in mixes if contrast(mixed, ground) >= least)
