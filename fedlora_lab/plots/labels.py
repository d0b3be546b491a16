"""Names written beside the lines they belong to, kept apart from each other."""

import math
import textwrap
from typing import Any, NamedTuple

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.patheffects import withStroke

from fedlora_lab.plots.style import CARD, GREY, INK, darker

SHRINK = 2.0, 3.0
"""Points that a line keeps from its label and from its place."""
LOW, HIGH = -0.14, 1.06
"""Between which shares of the axes' height labels are written."""


class Label(NamedTuple):
    """A text for the point (x, y) in data units."""

    x: float
    y: float
    text: str
    colour: str


def spread(values: list[float], sizes: list[float], low: float = 0.0, high: float = 1.0) -> list[float]:
    """Centres as near to ``values`` as may be, in their order, that keep boxes of these sizes from overlapping.

    They stay inside [low, high] where they fit. Guarantees: test_labels_keep_apart.
    """
    groups: list[list[int]] = []

    def start(group: list[int]) -> float:
        """Lower edge of a stack of boxes whose centres are, on average, where they should be."""
        size, offset, shift = sum(sizes[i] for i in group), 0.0, 0.0
        for i in group:
            shift += values[i] - (offset + sizes[i] / 2)
            offset += sizes[i]
        return max(low, min(shift / len(group), high - size))

    for index in sorted(range(len(values)), key=lambda i: values[i]):
        groups.append([index])
        while len(groups) > 1 and start(groups[-1]) < start(groups[-2]) + sum(sizes[i] for i in groups[-2]) - 1e-12:
            groups[-2:] = [groups[-2] + groups[-1]]
    places = [0.0] * len(values)
    for group in groups:
        edge = start(group)
        for index in group:
            places[index] = edge + sizes[index] / 2
            edge += sizes[index]
    return places


def merge(labels: list[Label], ax: Any, same: float = 0.006) -> list[Label]:
    """Labels of lines that end at the same height become one, in ink."""
    heights = [float(ax.transAxes.inverted().transform(ax.transData.transform((x.x, x.y)))[1]) for x in labels]
    groups: dict[int, list[int]] = {}
    for i, height in enumerate(heights):
        first = next((g for g in groups if abs(heights[g] - height) < same), i)
        groups.setdefault(first, []).append(i)
    merged = []
    for members in groups.values():
        first = labels[members[0]]
        if len(members) == 1:
            merged.append(first)
        else:
            merged.append(Label(first.x, first.y, ",\n".join(labels[i].text for i in members), INK))
    return merged


def _folded(line: str, wide: int) -> str:
    """A long name in lines of this many letters."""
    return textwrap.fill(line, wide, break_long_words=False, break_on_hyphens=False)


def beside(
    ax: Any,
    labels: list[Label],
    *,
    size: float = 8.5,
    together: bool = True,
    inside: bool = False,
    above: bool = False,
    wide: int = 14,
    low: float = LOW,
) -> None:
    """Write the labels right of the axes, or ``inside`` right of their points, in lines of ``wide`` letters.

    Call it with final limits. They stay above ``low``, a share of the axes' height; where ``above``, those inside also
    stay above the curves that pass there (x must rise): test_names_inside_lie_above_the_curves_that_pass.
    """
    labels = merge(labels, ax) if together else labels
    labels = [x._replace(text="\n".join(_folded(line, wide) for line in x.text.split("\n"))) for x in labels]
    back = ax.transAxes.inverted()
    points = [tuple(map(float, back.transform(ax.transData.transform((label.x, label.y))))) for label in labels]
    width, height = 72 * ax.figure.get_size_inches() * ax.get_position().size
    columns: dict[float, list[int]] = {}
    for i, (x, _) in enumerate(points):
        near = next((c for c in columns if abs(c - x) < 0.15), x) if inside else 1.0
        columns.setdefault(near, []).append(i)
    lines = []
    for members in columns.values():
        sizes = [1.2 * size * (labels[i].text.count("\n") + 1) / height for i in members]
        left = max(points[i][0] for i in members) + 0.03
        long = max(len(line) for i in members for line in labels[i].text.split("\n"))
        floor = max(low, _passing(ax, left, 0.75 * size * long / width)) if above else low
        places = spread([points[i][1] for i in members], sizes, min(floor, max(LOW, HIGH - sum(sizes))), HIGH)
        for i, place in zip(members, places, strict=True):
            style: dict[str, Any] = {"fontsize": size, "weight": "bold", "color": darker(labels[i].colour)}
            note = ax.text(left, place, labels[i].text, va="center", transform=ax.transAxes, **style)
            note.set_path_effects([withStroke(linewidth=2.5, foreground=CARD)])
            lines.append(((left, place), points[i]))
    _leaders(ax, lines)


def _passing(ax: Any, left: float, wide: float) -> float:
    """A little more than the greatest height of a curve between ``left`` and ``left + wide``; LOW where none is."""
    heights, back = [LOW], ax.transAxes.inverted()
    for line in ax.get_lines():
        x, y = back.transform(ax.transData.transform(line.get_xydata())).T
        if len(x) > 1 and x[-1] > left:
            heights += list(np.interp(np.linspace(left, min(left + wide, x[-1]), 9), x, y) + 0.03)
    return max(heights)


def _leaders(ax: Any, lines: list[Any]) -> None:
    """Thin lines from labels to their points, in shares of the axes, a little shorter at both ends.

    One collection: arrows, which are cut at the boxes of their labels, took a sixth of drawing a figure with seven.
    """
    wide, high = 72 * ax.figure.get_size_inches() * ax.get_position().size
    cut = []
    for (x, y), (u, v) in lines:
        long = math.hypot((u - x) * wide, (v - y) * high)
        if long > SHRINK[0] + SHRINK[1]:
            near, far = SHRINK[0] / long, 1 - SHRINK[1] / long
            cut.append([(x + t * (u - x), y + t * (v - y)) for t in (near, far)])
    ax.add_collection(LineCollection(cut, colors=GREY, linewidths=0.6, clip_on=False, transform=ax.transAxes), False)
