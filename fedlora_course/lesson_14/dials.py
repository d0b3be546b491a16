"""The dial of notebook 14: what a normal-float code does."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike

from fedlora_course.widgets.dial import Dial
from fedlora_course.widgets.scene import Scene, axis, bars, line, panel
from fedlora_lab.methods.quantization import normal_float, normal_levels

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
BLOCKS = (8, 32, 64, 256)
EDGES = np.linspace(-1, 1, 41)  # of the bins of a histogram
NORMAL = "a normal draw"
OUTLIERS = "outliers"
TRAINED = "a trained factor"
Row = Float[np.ndarray, " n"]


def _numbers(kind: str, trained: ArrayLike) -> Row:
    """Returns numbers to quantise, mean square 1: normal, with outliers, or the given ones."""
    row = np.random.default_rng(2).standard_normal(4096)
    if kind == OUTLIERS:
        row[::256] *= 8
    elif kind == TRAINED:
        row = np.asarray(trained, float).ravel()
    return row / np.sqrt(np.mean(row**2))


def measured_errors(row: Row, block: int) -> list[float]:
    """Computes the relative error of these numbers for each of `WIDTHS`, by the library's code."""
    received = [normal_float(w, block)(torch.from_numpy(row)).numpy() for w in WIDTHS]
    return [float(np.linalg.norm(one - row) / np.linalg.norm(row)) for one in received]


def _code_scene(
    rows: Mapping[str, np.ndarray],
    errors: Mapping[tuple[str, int], list[float]],
    width: int,
    block: int,
    kind: str,
) -> Scene:
    """Draws the numbers with the levels, and what arrives of a number."""

    ends = {"ticks": [-1, 0, 1]}
    levels = np.array(normal_levels(width))
    off = errors[kind, block][WIDTHS.index(width)]
    middles = np.array([-1, *(levels[1:] + levels[:-1]) / 2, 1])
    thin = 0.0015 if width > 5 else 0.006
    bits = width + 32 / block
    panels = [
        panel(
            f"Numbers and {len(levels)} levels",
            axis("number ÷ largest of its block", -1.03, 1.03, **ends),
            axis("", -0.25, 2.2, ticks=[]),
            bars(EDGES[:-1], 0, EDGES[1:], _histogram(rows[kind], block), "pale"),
            bars(levels - thin, -0.2, levels + thin, -0.02, "purple"),
        ),
        panel(
            f"What arrives: {off:.0%} off",
            axis("sent", -1.03, 1.03, **ends),
            axis("received", -1.06, 1.06, **ends),
            line([-1, 1], [-1, 1], "edge", width=1.2),
            line(np.stack([middles[:-1], middles[1:]], 1).ravel(), levels.repeat(2), "purple"),
        ),
    ]
    return panels, [
        f"{width} bits, {len(levels)} levels: ",
        f"with a scale for each block of {block} a number takes {bits:.3g} bits, ",
        f"and it arrives with an error of {off:.0%} of the numbers' size.",
    ]


def quantiser_explorer(trained: ArrayLike) -> Dial:
    """Makes a dial for bits, block and numbers: the levels, and what arrives.

    Args: trained: numbers of a trained factor, offered beside made ones.
    Guarantees: the levels are `normal_levels`, the errors the library's quantiser's
        (test_dials.py::test_a_dial_shows_what_its_scene_draws).
    """
    rows = {kind: _numbers(kind, trained) for kind in (NORMAL, OUTLIERS, TRAINED)}
    errors = {(kind, b): measured_errors(row, b) for kind, row in rows.items() for b in BLOCKS}
    return Dial(
        "14/quantiser_explorer",
        partial(_code_scene, rows, errors),
        width=WIDTHS,
        block=BLOCKS,
        kind={kind: kind for kind in rows},
    )


def _histogram(row: Row, block: int) -> Float[np.ndarray, " bins"]:
    """Computes the density of the numbers over the largest of their block, in [-1, 1]."""
    padded = np.pad(row, (0, -len(row) % block)).reshape(-1, block)
    scale = np.abs(padded).max(1, keepdims=True)
    unit = (padded / np.where(scale > 0, scale, 1)).ravel()[: len(row)]
    return np.histogram(unit, EDGES, density=True)[0]
