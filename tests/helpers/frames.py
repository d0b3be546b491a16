"""A tidy frame with values that one can check by hand, and what a figure shows of it."""

import itertools
from typing import Any

import matplotlib.colors
import pandas as pd

from fedlora_lab.measures.runs import COLUMNS

FOUNDING = ("fedlora", "ffa-lora", "rolora", "deer", "la-lora", "fedlpp")


def tidy_frame(methods=FOUNDING) -> Any:
    """Accuracy and deviation of three seeds over four rounds; exact rows do not deviate."""
    rows = []
    for (m, slug), seed, t in itertools.product(enumerate(methods), range(3), range(5)):
        exact = slug in ("ffa-lora", "rolora", "deer")
        deviation = 0.0 if exact or t == 0 else 0.1 * (m + 1) + 0.01 * seed
        where = ("digits", slug, seed, t, "all")
        rows.append((*where, "accuracy", 0.6 + 0.005 * t * (m + 1) + 0.002 * seed))
        rows.append((*where, "deviation", deviation))
    return pd.DataFrame(rows, columns=COLUMNS)


def scores_frame(scores):
    """A tidy frame in which each seed of each method starts at 0.5 and ends at its score."""
    rows = [
        ("digits", slug, seed, t, "all", "accuracy", 0.5 + (value - 0.5) * t / 2)
        for slug, values in scores.items()
        for seed, value in enumerate(values)
        for t in range(3)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def line_of(ax, colour):
    """The drawn line with this colour and most points."""
    hexed = ((matplotlib.colors.to_hex(line.get_color()).upper(), line) for line in ax.lines)
    return max((line for hue, line in hexed if hue == colour), key=lambda x: len(x.get_xdata()))


def marked(ax, marker):
    """The lines drawn with this marker."""
    return [line for line in ax.lines if line.get_marker() == marker]
