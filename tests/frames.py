"""A tidy frame with the schema of a run and values one can check by hand, and what a figure shows of it."""

import itertools
from typing import Any

import matplotlib.colors
import pandas as pd

from fedlora_lab.plots import tidy

FOUNDING = ("fedlora", "ffa-lora", "rolora", "deer", "la-lora", "fedlpp")
FRAME_PLOTS = ("curves", "deviation", "epsilon", "noise", "overview", "traffic")


def tidy_frame(methods=FOUNDING, seeds=3, rounds=4, layers=("query", "value")) -> Any:
    """A frame with the schema of a run, its values simple functions of method, seed and round."""
    table = []
    for (m, method), seed, t in itertools.product(enumerate(methods), range(seeds), range(rounds + 1)):
        exact = method in ("ffa-lora", "rolora", "deer")
        whole = {
            "accuracy": 0.6 + 0.01 * t * (m + 1) / 2 + 0.002 * seed,
            "loss": 1.2 - 0.1 * t,
            "epsilon": 2.0 * t,
            "deviation": 0.0 if exact or t == 0 else 0.1 * (m + 1) + 0.01 * seed,
            "bytes_up": 0 if t == 0 else 1000 * (1 if exact else 2),
            "bytes_down": 0 if t == 0 else 500,
        }
        per_layer = {
            "deviation": whole["deviation"],
            "noise_B": 0.0 if t == 0 else 2.0,
            "noise_A": 0.0 if t == 0 or method == "ffa-lora" else 0.5,
            "noise_BA": 0.0 if t == 0 or exact else 0.01,
        }
        table += [("digits", method, seed, t, "all", k, v) for k, v in whole.items()]
        table += [("digits", method, seed, t, layer, k, v) for layer in layers for k, v in per_layer.items()]
    return pd.DataFrame(table, columns=list(tidy.COLUMNS))


def line_of(ax, colour):
    """The drawn line with this colour and most points."""
    found = [line for line in ax.lines if matplotlib.colors.to_hex(line.get_color()).upper() == colour]
    return max(found, key=lambda line: len(line.get_xdata()))


def words(figure):
    return " ".join(text.get_text() for ax in figure.axes for text in ax.texts) + " ".join(
        text.get_text() for text in figure.texts
    )
