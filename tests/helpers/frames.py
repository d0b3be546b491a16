"""A tidy frame with values that one can check by hand, and what a figure shows of it."""

import itertools
from typing import Any

import matplotlib.colors
import pandas as pd

from fedlora_lab.measures.runs import COLUMNS

FOUNDING = ("fedlora", "ffa-lora", "rolora", "deer", "la-lora", "fedlpp")


def tidy_frame(methods=FOUNDING, seeds=3, layers=("query", "value")) -> Any:
    """A frame whose values are simple functions of method, seed and round."""
    rows = []
    for m, seed, t in itertools.product(range(len(methods)), range(seeds), range(5)):
        exact, begun = methods[m] in ("ffa-lora", "rolora", "deer"), t > 0
        deviation = 0.1 * (m + 1) + 0.01 * seed if begun and not exact else 0.0
        whole = {
            "accuracy": 0.6 + 0.01 * t * (m + 1) / 2 + 0.002 * seed,
            "loss": 1.2 - 0.1 * t,
            "epsilon": 2.0 * t,
            "deviation": deviation,
            "bytes_up": begun * 1000 * (1 if exact else 2),
            "bytes_down": begun * 500,
            "seconds": 0.2,
        }
        noise_A = 0.5 if begun and methods[m] != "ffa-lora" else 0.0
        layer = {"deviation": deviation, "noise_B": 2.0 * begun, "noise_A": noise_A}
        layer["noise_BA"] = 0.01 * (begun and not exact)
        where = ("digits", methods[m], seed, t)
        rows += [(*where, "all", *pair) for pair in whole.items()]
        rows += [(*where, k, *pair) for k, pair in itertools.product(layers, layer.items())]
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
