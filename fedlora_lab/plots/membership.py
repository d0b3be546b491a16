"""What an attacker finds of the members against how many others it accuses, and what a promise leaves possible."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedlora_lab import theory
from fedlora_lab.checks import check
from fedlora_lab.plots.clipping import log_axis
from fedlora_lab.plots.curves import footer
from fedlora_lab.plots.style import FACTOR, GREY, INK, RIGHT, SOFT, WRONG, Picture, paper, picture

HUES = (WRONG, FACTOR["A"], FACTOR["B"], RIGHT, INK)
LOW = 0.004


def membership(attacks: Mapping[str, Any], epsilon: float, delta: float) -> Picture:
    """Members found against others accused, both axes logarithmic; what (epsilon, delta) forbids is shaded.

    Args: attacks: words -> `attacks.Membership`.
    Raises: ``ValueError`` without an attack.
    Guarantees: test_lesson_11.py::test_the_membership_figure.
    """
    check(len(attacks) > 0, "attacks", attacks, "at least one")
    grid = np.geomspace(LOW, 1, 200)
    bound = theory.membership_bound(grid, epsilon, delta)
    with paper():
        figure = picture(7.4, 4.8)
        ax = figure.add_axes((0.1, 0.16, 0.87, 0.76))
        ax.set(xscale="log", yscale="log", xlim=(LOW, 1), ylim=(LOW, 1))
        ax.fill_between(grid, bound, 1, color=WRONG, alpha=0.09, lw=0)
        ax.plot(grid, bound, color=WRONG, lw=1.4, ls=(0, (4, 2)))
        ax.plot(grid, grid, color=GREY, lw=1.2, ls=(0, (1, 2)))
        ax.text(LOW * 1.15, 0.93, f"impossible at ε = {epsilon:.2g}", color=WRONG, fontsize=9, weight="bold", va="top")
        ax.text(0.012, 0.0105, "guessing", color=SOFT, fontsize=8.5, rotation=33, ha="center", va="center")
        for i, (hue, (words, one)) in enumerate(zip(HUES * len(attacks), attacks.items(), strict=False)):
            accused, found = one.curve()
            ax.plot(np.maximum(accused, LOW), np.maximum(found, LOW), color=hue, lw=2, drawstyle="steps-post")
            place = {"transform": ax.transAxes, "ha": "right", "weight": "bold", "fontsize": 9}
            ax.text(0.985, 0.03 + 0.055 * (len(attacks) - 1 - i), f"{words}: AUC {one.auc:.2f}", color=hue, **place)
        ax.set_xlabel("share of others accused (false positive rate)")
        ax.set_ylabel("share of members found")
        ax.set_title("Who was in the training data?")
        for axis in (ax.xaxis, ax.yaxis):
            log_axis(axis, (0.01, 0.1, 1))
        footer(figure, f"dashed red: min(e^ε FPR + δ, …) at ε = {epsilon:.2g}, δ = {delta:g}; AUC 0.5 is guessing")
    return figure
