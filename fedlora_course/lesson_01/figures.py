"""The figures of lesson 01: a LoRA layer, and its first step beside full training's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from fedlora_course import drawing
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.plots import style

D_IN, D_OUT = r"$d_{\mathrm{in}}$", r"$d_{\mathrm{out}}$"
SIDE = 1.9
"""Height of a vector of d numbers; all sizes are to scale."""
THIN = 0.12
"""Width of a vector."""
BYTES = 4
"""Of a number in single precision."""
DRAWS = 100
"""Starts of A whose first steps are measured."""
STEP_COLOURS = (style.INK, style.SERIES[0], style.SERIES[1])
"""Of the rules for the scale."""
WHOLE = 8.0
"""Length of the bar of all bytes of the weight."""


@style.paper()
def lora_layer(d: int = 64, rank: int = 4, alpha: int = 8) -> style.Picture:
    """Draws a LoRA layer to scale: the frozen weight, and the two factors beside it.

    Args: d: of its inputs and outputs; rank, alpha: of the adapter. Defaults: of the digits' model.
    """
    figure, (ax,) = style.subplots(9.6, 5.2)
    ax.set(xlim=(0, 12), ylim=(0, 6.4), aspect="equal")
    ax.axis("off")
    ax.grid(visible=False)

    def write(x: float, y: float, words: str, **look: Any) -> None:
        drawn: Any = {"fontsize": 9, "color": style.INK, "va": "center", **look}
        ax.text(x, y, words, **drawn)

    thin = SIDE * rank / d
    upper, lower = 5.1, 2.55
    middle: Any = {"ha": "center"}
    bold: Any = {"fontsize": 10, "weight": "bold", **middle}
    line: Any = {"color": style.SOFT, "lw": 1.8}
    for x, name in ((0.3, "x"), (11.3, "y")):
        drawing.box(ax, x, upper - SIDE / 2, THIN, SIDE, fc=style.SOFT)
        write(x + THIN / 2, upper - SIDE / 2 - 0.22, name, **bold)
        write(x + THIN / 2, upper - SIDE / 2 - 0.52, f"{d} numbers", **middle)
    # The frozen weight.
    drawing.arrow(ax, (0.6, upper), (3.05, upper))
    drawing.box(
        ax, 3.15, upper - SIDE / 2, SIDE, SIDE, "W₀\nfrozen", fc=style.FAINT, color=style.INK
    )
    write(5.2, upper + 0.55, f"{d} × {d} = {d * d:,} numbers:\nnever trained, never sent")
    drawing.arrow(ax, (3.15 + SIDE, upper), (10.02, upper))
    # The adapter: down to the rank, and up again.
    ax.plot([1.6, 1.6], [upper, lower], **line)
    drawing.arrow(ax, (1.6, lower), (3.05, lower))
    drawing.box(ax, 3.15, lower - thin / 2, SIDE, thin, fc=style.FACTOR["A"])
    write(4.1, lower + 0.32, "A  down", **bold | {"color": style.darken(style.FACTOR["A"])})
    size = f"= {rank * d} numbers\nstarts at"
    write(4.1, lower - 0.72, f"r × {D_IN} = {rank} × {d}\n{size} random", **middle)
    drawing.arrow(ax, (3.15 + SIDE, lower), (6.05, lower))
    drawing.box(ax, 6.13, lower - thin / 2, THIN, thin, fc=style.SOFT)
    write(6.19, lower + 0.3, f"{rank} numbers", **middle)
    drawing.arrow(ax, (6.33, lower), (7.35, lower))
    drawing.box(ax, 7.43, lower - SIDE / 2, thin, SIDE, fc=style.FACTOR["B"])
    write(7.5, lower + 1.19, "B  up", **bold | {"color": style.darken(style.FACTOR["B"])})
    write(7.7, lower - 0.72, f"{D_OUT} × r = {d} × {rank}\n{size} zero")
    # The two results are added.
    ax.plot([7.43 + thin, 10.2], [lower, lower], **line)
    write(8.05, lower + 0.3, f"× γ = α / r = {alpha} / {rank} = {alpha / rank:g}")
    drawing.arrow(ax, (10.2, lower), (10.2, upper - 0.2))
    write(10.2, upper, "+", fontsize=15, **middle)
    drawing.arrow(ax, (10.4, upper), (11.2, upper))
    # What is sent, beside what the whole weight would be.
    count = 2 * rank * d
    sent = f"trained and sent: A and B, {count} numbers, {BYTES * count:,} bytes"
    whole = f"all of W: {BYTES * d * d:,} bytes"
    half = WHOLE * rank / d
    for place, name in enumerate("AB"):
        drawing.box(ax, 0.3 + place * half, 0.55, half, 0.22, fc=style.FACTOR[name])
    write(0.45 + 2 * half, 0.65, sent, weight="bold")
    drawing.box(ax, 0.3, 0.15, WHOLE, 0.22, fc=style.FAINT)
    write(0.45 + WHOLE, 0.25, whole)
    words = f"A LoRA layer: beside the frozen W₀ runs a path that is {rank} numbers wide"
    style.headline(figure, words)
    figure.set_label(
        f"x goes through the frozen W₀, {d} × {d}, and also down through A, {rank} × {d}, and up "
        f"through B, {d} × {rank}; the second result is multiplied by γ and added; {sent}; {whole}"
    )
    return figure


@style.paper()
def first_steps(G: np.ndarray, moves: Sequence[np.ndarray]) -> style.Picture:
    """Draws first steps of W as arrows beside full training's: along −G, and across it.

    Args: G: gradient of the loss in W; moves: first steps of W at rank 4 and rate 1.
    """
    figure, (ax,) = style.subplots(8.4, 4.6)
    size = np.linalg.norm(G)
    along = np.array([-np.sum(G * move) / size**2 for move in moves])
    whole = np.array([np.linalg.norm(move) / size for move in moves])
    across = np.sqrt(whole**2 - along**2)
    for x, y in zip(along, across, strict=True):
        _step(ax, x, y, style.FACTOR["B"], lw=0.8, alpha=0.35)
    _step(ax, 1, 0, style.INK)
    style.note(ax, 0.62, 0.03, "full training: −ηG", style.INK, 9, transform=ax.transData)
    style.note(ax, 0.17, 0.3, "LoRA, rank 4", style.FACTOR["B"], 9, transform=ax.transData)
    ax.set(xlim=(-0.03, 1.05), ylim=(-0.04, 0.58), aspect="equal")
    ax.set(xlabel="along −G, in units of η‖G‖", ylabel="across −G")
    style.headline(figure, "Most of LoRA's first step goes across −G")
    figure.set_label(
        f"a step at rank 4 goes {along.mean():.2f} along −G and {across.mean():.2f} across it, "
        "where full training goes 1 along"
    )
    return figure


def _step(ax: Axes, x: float, y: float, colour: str, **line: Any) -> None:
    """Draws a step from the origin."""
    look: Any = {"arrowstyle": "-|>", "color": colour, "lw": 2, "shrinkA": 0, "shrinkB": 0, **line}
    ax.annotate("", (x, y), (0, 0), arrowprops=look)


@style.paper()
def step_over_rank(rows: Sequence[tuple]) -> style.Picture:
    """Draws how far the first step goes along −G over the rank, as computed and as measured.

    Args: rows: rule of the scale, rank, mean over starts of A, two ends of its interval, and the
        closed form, in units of η‖G‖.
    """
    figure, (ax,) = style.subplots(7.4, 4.3)
    ax.set(xscale="log", yscale="log", xlabel="rank r", ylabel="step along −G, in units of η‖G‖")
    rules = dict.fromkeys(row[0] for row in rows)
    labels = []
    for rule, colour in zip(rules, STEP_COLOURS, strict=True):
        ranks, means, _, _, closed = zip(*(row[1:] for row in rows if row[0] == rule), strict=True)
        labels.append(style.named_line(ax, ranks, closed, rule, colour))
        style.draw_dots(ax, ranks, means, colour, 6)
    ax.set_xticks(ranks, [str(rank) for rank in ranks])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter("{x:g}")
    style.label_ends(ax, labels)
    ax.set_title("At fixed α a larger rank takes a shorter first step along −G")
    style.footer(figure, f"lines: closed form; dots: means over {DRAWS} random A")
    return figure


def first_steps_along(
    gradient: Float[Tensor, "d_out d_in"], rank: int, seed: int = 0
) -> Float[np.ndarray, " draws"]:
    """Measures how far W moves along -G in an adapter's first step, over random starts of A.

    The move is -lr s^2 G A^T A; measured here at s = 1, lr = 1, relative to the gradient.

    Args: gradient: G; rank: r >= 1; seed: of the draws of a Kaiming A.
    """
    G = gradient.double()
    draws = Streams(seed).uniform((DRAWS, rank, G.shape[1]), "first steps", rank)
    A = (draws * 2 - 1) / G.shape[1] ** 0.5
    # <G A^T A, G> = ||G A^T||^2: no (d_out, d_in) move is formed.
    return ((G @ A.mT).square().sum((1, 2)) / G.square().sum()).numpy()
