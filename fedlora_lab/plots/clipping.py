"""Where a clip cuts, and what that costs: the bias of the clipped mean against the noise that the clip calls for."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.collections import PolyCollection
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fedlora_lab import theory
from fedlora_lab.plots import tidy
from fedlora_lab.plots.curves import footer
from fedlora_lab.plots.style import CARD, GREY, INK, SOFT, Picture, paper, picture

BIAS, NOISE, KEPT = "#B0486A", "#0F7F94", "#A9B4C2"
LEVELS = ("#0F7F94", "#7A4FD0", "#8F5A33")
LOW, HIGH = 0.03, 100.0


def log_axis(axis: Any, ticks: "tuple[float, ...]") -> None:
    """Plain numbers at these places of a log axis, no minor ticks."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


class Clip:
    """Gradients with what a clip does to them, worked out once; calling it draws.

    Args: rows: one example's gradient each, (n, p).
    Guarantees: the counts add up to n, the curves are `theory.clip_terms` (test_the_clip_figure_shows_the_terms).
    """

    def __init__(self, rows: Float[np.ndarray, "n p"]) -> None:
        self.count, self.size = rows.shape
        self.norms = np.linalg.norm(rows, axis=1)
        self.mean = float(np.linalg.norm(rows.mean(0)))
        self.thresholds = np.geomspace(LOW, HIGH, 36)
        terms = [theory.clip_terms(rows, float(c), 1.0, 1.0) for c in self.thresholds]
        self.bias, self.unit = np.sqrt([t.bias for t in terms]), np.sqrt([t.noise for t in terms])
        self.edges = np.geomspace(LOW, HIGH, 43)
        self.counts = np.histogram(self.norms, self.edges)[0]

    def __call__(
        self, clip_norm: float = 1.0, noise_multiplier: float = 1.0, batch: float = 1024
    ) -> tuple[Picture, str]:
        """The figure, and what it shows in words."""
        noise = self.unit * noise_multiplier / batch  # both enter the standard deviation as factors
        total = np.hypot(self.bias, noise)
        cut = float((self.norms > clip_norm).mean())
        bias, here = (float(np.interp(clip_norm, self.thresholds, curve)) for curve in (self.bias, noise))
        best = self.thresholds[int(np.argmin(total))]
        with paper():
            figure = picture(7.6, 5.3)
            top = figure.add_axes((0.1, 0.655, 0.87, 0.265))
            low = figure.add_axes((0.1, 0.1, 0.87, 0.43))
            self._histogram(top, clip_norm, cut)
            self._curves(low, clip_norm, noise, total)
        text = (
            f"C = {clip_norm:.3g}: {cut:.0%} of {self.count:,} gradients are cut. The clip shifts the mean gradient "
            f"(length {self.mean:.2f}) by {bias:.2f}, the noise by {here:.2f}; both together are least near "
            f"C = {best:.2g}."
        )
        return figure, text

    def _histogram(self, ax: Any, clip_norm: float, cut: float) -> None:
        """Bars left of the threshold grey, right of it in the colour of the bias."""
        left, right, none = self.edges[:-1], self.edges[1:], np.zeros(len(self.counts))
        corners = np.array([[left, none], [left, self.counts], [right, self.counts], [right, none]])
        colours = [BIAS if over else KEPT for over in left >= clip_norm]
        # One collection instead of a patch for each bar: the dial draws this again at every move.
        ax.add_collection(PolyCollection(list(corners.transpose(2, 0, 1)), facecolors=colours, edgecolors=CARD, lw=0.4))
        ax.set_xscale("log")
        ax.set(xlim=(LOW, HIGH), ylim=(0, 1.3 * self.counts.max()))
        log_axis(ax.xaxis, (0.1, 1, 10, 100))
        ax.set_ylabel("examples")
        ax.set_title("How long each example's gradient is, and where the clip cuts", y=1)
        ax.axvline(clip_norm, color=INK, lw=1.6)
        words = {"transform": ax.transAxes, "fontsize": 9, "va": "top", "weight": "bold"}
        ax.text(0.012, 0.95, f"kept as they are: {1 - cut:.0%}", color=SOFT, **words)
        ax.text(0.988, 0.95, f"cut down to C: {cut:.0%}", color=BIAS, ha="right", **words)

    def _curves(self, ax: Any, clip_norm: float, noise: Any, total: Any) -> None:
        """Bias, noise and both together over the threshold; the same threshold marked."""
        ax.plot(self.thresholds, total, color=INK, lw=3.2, alpha=0.25, solid_capstyle="round")
        ax.plot(self.thresholds, self.bias, color=BIAS)
        ax.plot(self.thresholds, noise, color=NOISE)
        least = int(np.argmin(total))
        ax.plot([self.thresholds[least]], [total[least]], marker="*", color=INK, ms=12, mec=CARD)
        ax.axhline(self.mean, color=GREY, lw=0.9, ls=(0, (1, 2)))
        ax.axvline(clip_norm, color=INK, lw=1.6)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set(xlim=(LOW, HIGH), ylim=(0.01, 100))
        log_axis(ax.xaxis, (0.1, 1, 10, 100))
        log_axis(ax.yaxis, (0.01, 0.1, 1, 10, 100))
        ax.set_xlabel("clip threshold C (Euclidean norm)")
        ax.set_ylabel("shift of the released mean")
        ax.set_title("What the threshold costs: too low is biased, too high is noisy", y=1)
        words = {"transform": ax.transAxes, "fontsize": 9, "weight": "bold", "va": "top"}
        for place, colour, label in ((0.012, BIAS, "bias"), (0.09, NOISE, "noise"), (0.19, GREY, "both, least at ★")):
            ax.text(place, 0.95, label, color=colour, **words)
        ax.text(LOW * 1.1, self.mean * 1.3, "length of the mean gradient", color=SOFT, fontsize=8)


def clip(
    rows: Float[np.ndarray, "n p"], clip_norm: float = 1.0, noise_multiplier: float = 1.0, batch: float = 1024
) -> Any:
    """Histogram of gradient norms with a threshold; below it bias and noise over the threshold.

    Args: rows: (n, p), see `experiments.example_gradients`. batch: examples averaged in one release.
    """
    return Clip(rows)(clip_norm, noise_multiplier, batch)[0]


def clip_check(errors: Any, rows: Float[np.ndarray, "n p"], batch: float) -> tuple[Picture, Any]:
    """Measured error of releases over the closed form of `theory.clip_terms`, with the 95 % band of a mean.

    Args: errors: as `experiments.release_errors` gives them for these rows and this batch.
    Returns: the figure; and a table noise_multiplier, clip_norm, measured, expected, low, high, inside. The band lies
        around the closed form; its half width is that of a mean over the seeds (Student's t).
    """
    found = []
    for (sigma, c), part in errors.groupby(["noise_multiplier", "clip_norm"]):
        expected = theory.clip_terms(rows, c, sigma, batch).total
        low, high = tidy.band(part["value"])
        half, mean = (high - low) / 2, float(part["value"].mean())
        found.append((sigma, c, mean, expected, expected - half, expected + half, abs(mean - expected) <= half))
    names = ["noise_multiplier", "clip_norm", "measured", "expected", "low", "high", "inside"]
    table: Any = pd.DataFrame(found, columns=names)
    seeds = int(errors["seed"].nunique())
    with paper():
        figure = picture(10.2, 3.9)
        left, right = figure.add_axes((0.065, 0.17, 0.45, 0.73)), figure.add_axes((0.6, 0.17, 0.385, 0.73))
        for colour, (sigma, part) in zip(LEVELS, table.groupby("noise_multiplier"), strict=False):
            left.plot(part["clip_norm"], part["expected"], color=colour)
            left.plot(part["clip_norm"], part["measured"], "o", color=colour, mec=CARD, ms=6)
            left.text(part["clip_norm"].iloc[-1] * 1.12, part["expected"].iloc[-1], f"σ = {sigma:g}", color=colour,
                      fontsize=9, va="center", weight="bold")  # fmt: skip
            right.fill_between(part["clip_norm"], part["low"] / part["expected"], part["high"] / part["expected"],
                               color=colour, alpha=0.16, lw=0)  # fmt: skip
            right.plot(part["clip_norm"], part["measured"] / part["expected"], "o", color=colour, mec=CARD, ms=6)
        right.axhline(1, color=INK, lw=1)
        for ax in (left, right):
            ax.set_xscale("log")
            ax.set_xlabel("clip threshold C")
            log_axis(ax.xaxis, (0.1, 0.3, 1, 3, 10, 30))
        left.set_xlim(None, table["clip_norm"].max() * 2.4)
        left.set_yscale("log")
        left.set_ylabel("squared distance from the mean gradient")
        left.set_title("Lines: closed form. Dots: measured")
        right.set_ylabel("measured / closed form")
        right.set_title(f"{table['inside'].mean():.0%} of the dots inside the 95 % band")
        footer(
            figure,
            f"each dot: mean over {seeds} seeds; band: 95 % of such a mean around the closed form, one for each σ",
        )
    return figure, table
