"""Figures of notebook 07: turns inside a round, and what a low-pass filter keeps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.fft import idct
from scipy.stats import chi2
from torch import Tensor

from fedlora_lab import theory
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.measures.gradients import spectrum
from fedlora_lab.methods.filters import binomial
from fedlora_lab.plots import style

CHANNELS = 64
TURNS = style.look("la-lora").colour


@style.paper()
def coupling(
    lr: float = 0.8, start: tuple[float, float] = (0.0, 1.5), steps: int = 12
) -> style.Picture:
    """Draws two numbers b and a on the loss (b a - 1)^2 / 2: both move at once, or in turns.

    Args: lr: learning rate; start: of b and a; steps: of the descent.
    Guarantees: test_lesson_07.py::test_in_turns_each_step_shrinks_the_error.
    """
    figure, (plane, right) = style.row(9.6, 4.0, (0.14, 0.76), (0.06, 0.40), (0.56, 0.30))
    b, a = np.meshgrid(np.linspace(-0.3, 2.3, 160), np.linspace(-0.3, 2.3, 160))
    levels = (0.25, 0.5, 0.75, 1.5, 2.5)
    plane.contour(b, a, np.abs(b * a - 1), levels=levels, colors=style.FAINT, linewidths=1)
    curve = np.linspace(0.43, 2.3, 100)
    plane.plot(curve, 1 / curve, color=style.RIGHT, lw=3, alpha=0.55)
    style.note(plane, 0.99, 0.31, "b·a = 1", style.RIGHT, 9, weight="bold", ha="right")
    labels = []
    for words, turns, colour, marker in (
        ("both at once", False, style.INK, "o"),
        ("in turns", True, TURNS, "v"),
    ):
        line: Any = {"marker": marker, "ms": 5, "mec": style.CARD}
        path = theory.two_number_descent(start, lr, steps, turns)
        plane.plot(*path.T, mew=0.6, lw=1.6, color=colour, **line)
        error = np.maximum(np.abs(path.prod(1) - 1), 1e-6)
        end = style.named_line(right, np.arange(steps + 1), error, words, colour, **line)
        labels.append(end._replace(y=float(np.clip(np.nan_to_num(end.y, nan=9), 1e-6, 9))))
    plane.plot(*start, "o", ms=10, mfc="none", mec=style.INK, mew=1.6)
    plane.text(start[0] + 0.1, start[1] + 0.08, "start", fontsize=9)
    plane.set(xlim=(-0.3, 2.3), ylim=(-0.3, 2.3), xlabel="b", ylabel="a")
    plane.set_title("Where b and a go")
    right.set(yscale="log", xlim=(0, steps), ylim=(1e-6, 10), xlabel="step", ylabel="|b·a − 1|")
    right.set_title(f"How far b·a is off, learning rate {lr:g}")
    style.draw_labels(right, labels, together=False)
    return figure


def _signal(smoothness: float, shuffle: bool) -> np.ndarray:
    """A made gradient over 64 channels, mean square 1: white at smoothness 0, slow at 1;
    ``shuffle`` mixes channels.
    """
    check_number("smoothness", smoothness, 0, 1)
    rng = np.random.default_rng(5)
    waves = rng.standard_normal(CHANNELS) * np.exp(-9 * smoothness * np.arange(CHANNELS) / CHANNELS)
    row = idct(waves, norm="ortho")
    row = row / np.sqrt(np.mean(row**2))
    return row[rng.permutation(CHANNELS)] if shuffle else row


@style.paper()
def low_pass(
    taps: int = 5, smoothness: float = 0.6, noise: float = 1.0, shuffle: bool = False
) -> tuple[style.Picture, str]:
    """Draws a gradient, its noised release and the filtered release, and their spectra.

    Args:
        taps: odd; noise: std on every channel, >= 0.
        smoothness: of the gradient along its channels, 0 to 1; shuffle: mix them.

    Returns: the figure, and what it shows in words.
    Guarantees: axes stand still; the words state `theory.filtered_energy`
        (test_lesson_07.py::test_the_filter_explorer_says_what_the_filter_does).
    """
    check_number("noise", noise, 0)
    true, floor = _signal(smoothness, shuffle), 1e-3
    noised = true + noise * np.random.default_rng(11).standard_normal(CHANNELS)
    filtered = binomial(taps)(torch.from_numpy(noised), "A").numpy()
    energy, gain = spectrum(true, "A"), theory.filter_response(taps, CHANNELS) ** 2
    kept, left = theory.filtered_energy(energy, taps), float(gain.mean())
    figure, (ax, right) = style.row(8.4, 3.6, (0.15, 0.74), (0.065, 0.46), (0.615, 0.37))
    place = np.arange(CHANNELS)
    style.dots(ax, place, noised, style.GREY, 3.6, mew=0.4)
    ax.plot(place, true, color=style.INK, lw=1.3)
    ax.plot(place, filtered, color=TURNS, lw=2.2)
    ax.set(xlim=(0, CHANNELS - 1), ylim=(-5, 5), xlabel="channel", ylabel="gradient")
    words = (0, "wanted", style.INK), (0.18, "● noised", style.GREY), (0.37, "filtered", TURNS)
    for x, text, colour in words:
        style.note(ax, x, 1.04, text, colour, 9.5, weight="bold")
    edges = np.arange(CHANNELS + 1) / CHANNELS
    for heights, colour in ((energy, style.FAINT), (energy * gain, style.INK)):
        # One shape each: quicker to draw than 64 bars.
        bars: Any = {"baseline": floor, "fill": True, "color": colour, "lw": 0}
        right.stairs(np.maximum(heights, floor), edges, **bars)
    right.axhline(max(noise**2, floor), color=style.GREY, lw=1.6)
    right.plot(place / CHANNELS, np.maximum(noise**2 * gain, floor), color=TURNS, lw=2)
    right.set(yscale="log", xlim=(0, 1), ylim=(floor, 100), ylabel="energy")
    right.set_xlabel("frequency (1: every other channel)")
    style.log_axis(right.yaxis, (0.001, 0.01, 0.1, 1, 10, 100))
    text = "bars: signal before (pale), after (dark)\nlines: noise before (grey), after (pink)"
    style.note(right, 0.99, 0.97, text, ha="right", va="top")
    title, colour = f"kept: signal {kept:.0%}, noise {left:.0%}", style.INK
    verdict = "Signal and noise look alike to the filter: this is little more than a shorter step."
    if kept > 2 * left:
        verdict, colour = "The filter tells them apart.", style.RIGHT
    elif taps == 1:
        verdict = "One tap is no filter."
    right.set_title(title, color=colour)
    return figure, (
        f"{taps} taps keep {kept:.0%} of the signal's energy and {left:.0%} of the noise's: "
        f"{kept / left:.1f} times as much signal to noise as before. {verdict}"
    )


@style.paper()
def response_check(
    taps: Sequence[int] = (3, 5, 9), size: int = 64, rank: int = 4, seeds: int = 100
) -> tuple[style.Picture, pd.DataFrame]:
    """Draws the share of white noise that the library's filter leaves at each frequency over its
    closed form.

    Args: taps: filters; size: channels; rank: rows of noise a seed; seeds: each dot is their mean.
    Returns: the figure; and a table taps, frequency, measured, expected, low, high, inside (the
        exact 95 % band of such a mean, from the chi-square law).
    """
    check_whole("seeds", seeds, 2)
    check(len(taps) > 0, "taps", taps, "at least one odd number")
    tables, count = [], seeds * rank
    low, high = (float(chi2.ppf(q, count)) / count for q in (0.025, 0.975))
    figure, (left, right) = style.row(9.6, 3.8, (0.16, 0.73), (0.065, 0.43), (0.58, 0.405))
    for i, n in enumerate(sorted(taps)):
        white = np.random.default_rng(n).standard_normal((seeds, rank, size))
        measured = spectrum(binomial(n)(torch.from_numpy(white), "A"), "A") / count
        x, expected = np.arange(size) / size, theory.filter_response(n, size) ** 2
        part = pd.DataFrame({"taps": n, "frequency": x, "measured": measured, "expected": expected})
        part = part.assign(low=low * expected, high=high * expected)
        tables.append(part.assign(inside=part["measured"].between(part["low"], part["high"])))
        colour, words = style.SERIES[i % 3], f"{n} taps keep {theory.filter_gain(n):.0%} in all"
        left.fill_between(x, low * expected, high * expected, color=colour, alpha=0.25, lw=0)
        left.plot(x, expected, color=colour, lw=1.5)
        style.dots(left, x, measured, colour, 3.6, mew=0.4)
        left.text(0.98, 1.13 - 0.1 * i, words, color=colour, size=9, weight="bold", ha="right")
        for inside, ink in ((True, colour), (False, style.WRONG)):
            some = tables[-1]["inside"] == inside
            style.dots(right, x[some], (measured / expected)[some], ink, 3.8)
    table = pd.concat(tables, ignore_index=True)
    right.axhspan(low, high, color=style.INK, alpha=0.1, lw=0)
    right.axhline(1, color=style.INK, lw=1)
    for ax in (left, right):
        ax.set(xlim=(0, 1), xlabel="frequency along the channels (1: every other one)")
    left.set(ylim=(0, 1.25), ylabel="share of the noise's variance left")
    left.set_title("Lines: closed form. Dots: measured")
    right.set(ylim=(0.6, 1.4), ylabel="measured / closed form")
    right.set_title(f"{table['inside'].mean():.0%} of {len(table)} dots inside the 95 % band")
    mean = f"mean over {seeds} seeds of {rank} rows of white noise"
    style.footer(figure, f"each dot: {mean}; band: chi-square law (red: misses)")
    return figure, table


@style.paper()
def gradient_spectra(frame: pd.DataFrame, taps: int = 5) -> style.Picture:
    """Draws the clipped gradient's energy over the frequencies, and what the filter lets through.

    Args: frame: as `measures.gradient_spectra`; its layers are added up.
    Guarantees: the titles state `theory.filtered_energy`
        (test_lesson_07.py::test_gradient_spectra_are_those_of_the_mean_gradient).
    """
    figure, axes = style.row(9.6, 3.6, (0.16, 0.72), (0.065, 0.42), (0.565, 0.42))
    gain = theory.filter_gain(taps)
    for ax, side in zip(axes, "BA", strict=True):
        part: Any = frame[frame["side"] == side]
        energy, colour = part.groupby("frequency")["energy"].sum().to_numpy(), style.FACTOR[side]
        groups = energy.reshape(-1, max(1, len(energy) // 16)).sum(1)
        heights, edges = groups / groups.mean(), np.arange(len(groups)) / len(groups)
        bars: Any = {"align": "edge", "color": colour, "ec": style.CARD, "alpha": 0.75}
        ax.bar(edges, heights, 1 / len(groups), **bars)
        ax.axhline(1, color=style.INK, lw=1.3, ls=style.DASHED)
        ax.plot(np.linspace(0, 1, 100), theory.filter_response(taps, 100) ** 2, color=TURNS, lw=2.2)
        words = ("bars: the gradient", "dashes: noise, flat", "curve: what passes")
        for i, (text, ink) in enumerate(zip(words, (colour, style.INK, TURNS), strict=True)):
            put: Any = {"ha": "right", "va": "top", "weight": "bold"}
            style.note(ax, 0.99, 0.96 - 0.085 * i, text, ink, 8.5, **put)
        ax.set(xlim=(0, 1), ylim=(0, max(3.2, float(heights.max()) * 1.08)))
        ax.set(xlabel="frequency along the channels", ylabel="gradient energy, 1 = flat")
        kept = theory.filtered_energy(energy, taps)
        ax.set_title(f"{side}: {kept:.0%} of the gradient passes, {gain:.0%} of noise")
    return figure


@dataclass(frozen=True)
class ShuffledFilter:
    """Applies ``rule`` along a random order of the channels: shuffled, smoothed, put back.

    A filter that profits from neighbouring channels being alike loses that under shuffling; one
    that only shrinks the step does not notice. The order depends on seed, side and number of
    channels alone, so all steps share it.

    Guarantees: noise keeps the same share of its variance
        (test_shuffling_changes_neighbours_and_nothing_else).
    """

    rule: Callable[[Tensor, str], Tensor]
    seed: int = 0

    def __post_init__(self) -> None:
        check(callable(self.rule), "rule", self.rule, "a function of (tensor, side)")

    def __call__(self, tensor: Tensor, side: str) -> Tensor:
        axis = -1 if side == "A" else -2
        size = tensor.shape[axis]
        order = Streams(self.seed).numpy(f"channels {side}", size).permutation(size)
        order = torch.from_numpy(order).to(tensor.device)
        mixed = self.rule(tensor.index_select(axis, order), side)
        return mixed.index_select(axis, torch.argsort(order))
