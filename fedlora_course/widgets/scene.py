"""Scenes: what a dial shows where its controls stand, as data, and the same drawn by Matplotlib.

A scene is a list of panels and a sentence. A panel has two axes and marks; numbers are in units of
the axes. The browser draws it by ``drawing.js``, `draw_scene` as a static figure.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import ArrayLike

from fedlora_lab.plots import style

Scene = tuple[list[dict[str, Any]], "str | list[str]"]
"""Panels, and the sentence below them, whole or in pieces."""

COLOURS = {
    "ink": style.INK,
    "soft": style.SOFT,
    "edge": style.GREY,
    "card": style.CARD,
    "grey": "#6A7180",
    "pale": "#C9CED8",
    "blue": "#0069A6",
    "orange": "#B44600",
    "purple": "#6F45C6",
    "green": "#0B7656",
    "red": "#B3261E",
    "pink": "#A53B63",
    "teal": "#0E6A7C",
}
"""Name of a colour -> what it is in a static figure; ``drawing.js`` has them for both grounds."""


def axis(
    label: str,
    low: float,
    high: float,
    *,
    log: bool = False,
    ticks: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Describes an axis.

    Args:
        label: its words, with the unit; may be empty.
        low, high: its ends; the first may be the larger.
        log: whether it is logarithmic.
        ticks: places that are marked; ``None``: round numbers.
        names: words at the ticks; ``None``: their numbers.
    """
    described: dict[str, Any] = {"label": label, "range": [low, high], "log": log}
    if ticks is not None:
        described["ticks"] = list(ticks)
    if names is not None:
        described["names"] = list(names)
    return described


def panel(
    title: str,
    x: dict[str, Any],
    y: dict[str, Any],
    *marks: dict[str, Any],
    wide: bool = False,
    height: int = 260,
    square: bool = False,
    bare: bool = False,
) -> dict[str, Any]:
    """Describes a panel.

    Args:
        title: its finding.
        x, y: of `axis`.
        marks: what is drawn, in this order.
        wide: whether it takes more of the page than others.
        height: pixels.
        square: whether a unit is as long across as upwards.
        bare: whether it has no axes.
    """
    return {
        "title": title,
        "x": x,
        "y": y,
        "marks": list(marks),
        "wide": wide,
        "height": height,
        "square": square,
        "bare": bare,
    }


def picture(
    title: str, pixels: ArrayLike, colour: str = "", *, row: bool = False
) -> dict[str, Any]:
    """Describes a panel that shows a picture.

    Args:
        title: its finding.
        pixels: rows of values in [0, 1], (h, w): greys from black to white, or with a colour its
            shades, from the page's ground to the colour.
        colour: of `COLOURS`.
        row: whether it begins a row of the page.
    """
    values = np.clip(np.asarray(pixels, float), 0, 1)
    rows, columns = values.shape
    mark: dict[str, Any] = {
        "kind": "image",
        "pixels": (255 * values).round().astype(int).ravel().tolist(),
        "columns": columns,
    }
    if colour:
        mark["colour"] = colour
    shown = panel(title, axis("", 0, columns), axis("", rows, 0), mark, height=200, bare=True)
    if row:
        shown["row"] = True
    return shown


def line(
    x: ArrayLike,
    y: ArrayLike,
    colour: str = "ink",
    name: str = "",
    *,
    dash: str | None = None,
    width: float = 2.2,
) -> dict[str, Any]:
    """Describes a line; its name is shown where the pointer is.

    Args: x, y: (n,), NaN where there is nothing, or one number for all; colour: of `COLOURS`; name:
        its words; dash, width: how it looks.
    """
    x, y = np.broadcast_arrays(x, y)
    return {
        "kind": "line",
        "x": x,
        "y": y,
        "colour": colour,
        "name": name,
        "width": width,
        "dash": dash,
    }


def area(x: ArrayLike, y: ArrayLike, colour: str, opacity: float = 0.18) -> dict[str, Any]:
    """Describes a filled shape.

    Args: x, y: its corners, (n,); colour: of `COLOURS`; opacity: in [0, 1].
    """
    return {"kind": "area", "x": x, "y": y, "colour": colour, "opacity": opacity}


def bars(
    left: ArrayLike, bottom: ArrayLike, right: ArrayLike, top: ArrayLike, colour: str
) -> dict[str, Any]:
    """Describes rectangles.

    Args: left, bottom, right, top: their sides, (n,); colour: of `COLOURS`.
    """
    sides = np.broadcast_arrays(*np.atleast_1d(left, bottom, right, top))
    named = zip(("left", "bottom", "right", "top"), sides, strict=True)
    return {"kind": "bars", "colour": colour, **dict(named)}


def dots(x: ArrayLike, y: ArrayLike, colour: str = "ink", size: float = 5.0) -> dict[str, Any]:
    """Describes dots.

    Args: x, y: (n,), or one dot; colour: of `COLOURS`; size: radius in pixels.
    """
    return {
        "kind": "dots",
        "x": np.atleast_1d(x),
        "y": np.atleast_1d(y),
        "colour": colour,
        "size": size,
    }


def text(
    x: float,
    y: float,
    words: str,
    colour: str = "ink",
    *,
    anchor: str = "start",
    bold: bool = True,
    dx: float = 0.0,
    dy: float = 0.0,
) -> dict[str, Any]:
    """Describes words at a place.

    Args: x, y: the place; words, colour: what is written; anchor: "start", "middle" or "end"; bold:
        of the letters; dx, dy: pixels to the right and down.
    """
    return {
        "kind": "text",
        "x": x,
        "y": y,
        "words": words,
        "dx": dx,
        "dy": dy,
        "colour": colour,
        "anchor": anchor,
        "bold": bold,
        "size": 11.5,
    }


# ---- the static figure


@style.paper()
def draw_scene(scene: Scene) -> style.Picture:
    """Draws a scene as a figure, with its sentence below."""
    panels, say = scene
    ratios = [1.5 if shown["wide"] else 1.0 for shown in panels]
    height = max(shown["height"] for shown in panels) / 72
    width = min(11.0, 2.2 + 2.6 * sum(ratios))
    figure, axes = style.subplots(width, height, columns=len(panels), width_ratios=ratios)
    for ax, shown, ratio in zip(axes, panels, ratios, strict=True):
        _draw_panel(ax, shown, letters=int(9.5 * (width - 1) * ratio / sum(ratios)))
    figure.below = Sentence("".join(say))
    return figure


class Sentence(str):
    """Words that a notebook shows as a paragraph."""

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(self)}</p>"


def _draw_panel(ax: Axes, shown: dict[str, Any], letters: int) -> None:
    ax.set_title(textwrap.fill(shown["title"], max(24, letters)), fontsize=9.5)
    for name in ("x", "y"):
        place = shown[name]
        scale = "log" if place["log"] else "linear"
        ax.set(
            **{f"{name}scale": scale, f"{name}lim": place["range"], f"{name}label": place["label"]}
        )
        if "ticks" in place:
            ax.set(**{f"{name}ticks": place["ticks"]})
        if "names" in place:
            ax.set(**{f"{name}ticklabels": place["names"]})
    for mark in shown["marks"]:
        _DRAWN[mark["kind"]](ax, mark, COLOURS[mark.get("colour", "ink")])
    if shown["bare"]:
        ax.axis("off")
    if shown["square"] or shown["bare"]:
        ax.set_aspect("equal")


def _draw_line(ax: Axes, mark: dict[str, Any], colour: str) -> None:
    dashes = "-" if mark["dash"] is None else (0, tuple(map(float, mark["dash"].split())))
    ax.plot(mark["x"], mark["y"], color=colour, lw=0.8 * mark["width"], ls=dashes)


def _draw_area(ax: Axes, mark: dict[str, Any], colour: str) -> None:
    ax.fill(mark["x"], mark["y"], color=colour, alpha=mark["opacity"], lw=0)


def _draw_bars(ax: Axes, mark: dict[str, Any], colour: str) -> None:
    widths = np.subtract(mark["right"], mark["left"])
    ax.bar(
        mark["left"],
        mark["top"] - mark["bottom"],
        widths,
        mark["bottom"],
        color=colour,
        align="edge",
        # An edge in the colour of the card would hide what is hardly wider than it.
        edgecolor=style.CARD if np.max(np.abs(widths), initial=0) > 0.02 else colour,
        linewidth=0.4,
    )


def _draw_dots(ax: Axes, mark: dict[str, Any], colour: str) -> None:
    style.draw_dots(
        ax,
        mark["x"],
        mark["y"],
        colour,
        mew=0.6 if mark["size"] >= 4 else 0,
        ms=1.2 * mark["size"],
        clip_on=True,
    )


def _draw_text(ax: Axes, mark: dict[str, Any], colour: str) -> None:
    aligned = {"start": "left", "middle": "center", "end": "right"}[mark["anchor"]]
    weight = "bold" if mark["bold"] else "normal"
    ax.annotate(
        mark["words"],
        (mark["x"], mark["y"]),
        xytext=(0.75 * mark["dx"], -0.75 * mark["dy"]),
        textcoords="offset points",
        color=colour,
        ha=aligned,
        fontsize=8.5,
        weight=weight,
    )


def shades_of(colour: str) -> LinearSegmentedColormap:
    """Makes the colour map from the page's ground to a colour of `COLOURS`."""
    return LinearSegmentedColormap.from_list(colour, [style.CARD, COLOURS[colour]])


def _draw_image(ax: Axes, mark: dict[str, Any], colour: str) -> None:
    pixels = np.reshape(mark["pixels"], (-1, mark["columns"]))
    rows, columns = pixels.shape
    shades = shades_of(mark["colour"]) if "colour" in mark else "gray"
    ax.imshow(pixels, cmap=shades, vmin=0, vmax=255, extent=(0, columns, rows, 0))


_DRAWN = {
    "line": _draw_line,
    "area": _draw_area,
    "bars": _draw_bars,
    "dots": _draw_dots,
    "text": _draw_text,
    "image": _draw_image,
}
