"""Taking turns inside a round, and the low-pass filter: paths on a loss of two numbers, spectra, what is kept."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.fft import idct
from scipy.stats import chi2

from fedlora_lab import theory
from fedlora_lab.checks import check, check_number, check_whole
from fedlora_lab.measures.spectra import spectrum
from fedlora_lab.plots.clipping import log_axis
from fedlora_lab.plots.curves import footer
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import CARD, FACTOR, FAINT, GREY, INK, RIGHT, SOFT, WRONG, Picture, look, paper, picture
from fedlora_lab.rules import binomial

CHANNELS = 64
TURNS = look("la-lora").colour
HUES = ("#0F7F94", "#7A4FD0", "#8F5A33")


def coupling(lr: float = 0.8, start: tuple[float, float] = (0.0, 1.5), steps: int = 12) -> Picture:
    """Two numbers b and a on the loss (b a - 1)^2 / 2: both move at once, or in turns.

    Guarantees: test_lesson_07.py::test_the_coupling_figure_draws_the_descent.
    """
    ways = {"both at once": (False, INK, "o"), "in turns": (True, TURNS, "v")}
    with paper():
        figure = picture(9.6, 4.0)
        plane, right = figure.add_axes((0.06, 0.14, 0.40, 0.76)), figure.add_axes((0.56, 0.14, 0.30, 0.76))
        b, a = np.meshgrid(np.linspace(-0.3, 2.3, 160), np.linspace(-0.3, 2.3, 160))
        plane.contour(b, a, np.abs(b * a - 1), levels=(0.25, 0.5, 0.75, 1.5, 2.5), colors=FAINT, linewidths=1)
        curve = np.linspace(0.43, 2.3, 100)
        plane.plot(curve, 1 / curve, color=RIGHT, lw=3, alpha=0.55)
        plane.text(2.28, 0.5, "b·a = 1", color=RIGHT, fontsize=9, weight="bold", ha="right", va="bottom")
        labels = []
        for words, (turns, colour, marker) in ways.items():
            path = theory.two_number_descent(start, lr, steps, turns)
            plane.plot(*path.T, color=colour, marker=marker, ms=5, mec=CARD, mew=0.6, lw=1.6)
            error = np.abs(path.prod(1) - 1)
            right.plot(np.arange(steps + 1), np.maximum(error, 1e-6), color=colour, marker=marker, ms=5, mec=CARD)
            labels.append(Label(steps, float(np.clip(np.nan_to_num(error[-1], nan=9), 1e-6, 9)), words, colour))
        plane.plot(*start, "o", ms=10, mfc="none", mec=INK, mew=1.6)
        plane.text(start[0] + 0.1, start[1] + 0.08, "start", fontsize=9)
        plane.set(xlim=(-0.3, 2.3), ylim=(-0.3, 2.3), xlabel="b", ylabel="a")
        plane.set_title("Where b and a go", color=INK)
        right.set(yscale="log", xlim=(0, steps), ylim=(1e-6, 10), xlabel="step", ylabel="|b·a − 1|")
        right.set_title(f"How far b·a is off, learning rate {lr:g}")
        beside(right, labels, together=False)
    return figure


def signal(smoothness: float, shuffle: bool, seed: int = 5) -> np.ndarray:
    """A made gradient over 64 channels, mean square 1: white at smoothness 0, slow at 1; ``shuffle`` mixes channels."""
    check_number("smoothness", smoothness, 0, 1)
    rng = np.random.default_rng(seed)
    waves = rng.standard_normal(CHANNELS) * np.exp(-9 * smoothness * np.arange(CHANNELS) / CHANNELS)
    row = idct(waves, norm="ortho")
    row = row / np.sqrt(np.mean(row**2))
    return row[rng.permutation(CHANNELS)] if shuffle else row


def filter_explorer(
    taps: int = 5, smoothness: float = 0.6, noise: float = 1.0, shuffle: bool = False
) -> tuple[Picture, str]:
    """A gradient, its noised release and the filtered release; their spectra; and the same in words.

    Args: taps: odd. smoothness: 0 to 1, of the gradient along its channels. noise: std on every channel, >= 0.
    Guarantees: axes stand still; the words state `theory.kept_energy` (test_lesson_07.py::test_the_explorer).
    """
    check_number("noise", noise, 0)
    true = signal(smoothness, shuffle)
    noised = true + noise * np.random.default_rng(11).standard_normal(CHANNELS)
    filtered = binomial(taps)(torch.from_numpy(noised), "A").numpy()
    energy, gain = spectrum(true, "A"), theory.filter_response(taps, CHANNELS) ** 2
    kept, left = theory.kept_energy(energy, taps), float(gain.mean())
    with paper():
        figure = picture(8.4, 3.6)
        ax, right = figure.add_axes((0.065, 0.15, 0.46, 0.74)), figure.add_axes((0.615, 0.15, 0.37, 0.74))
        place = np.arange(CHANNELS)
        ax.plot(place, noised, "o", ms=3.6, color=GREY, mec=CARD, mew=0.4)
        ax.plot(place, true, color=INK, lw=1.3)
        ax.plot(place, filtered, color=TURNS, lw=2.2)
        ax.set(xlim=(0, CHANNELS - 1), ylim=(-5, 5), xlabel="channel", ylabel="gradient")
        for x, words, colour in ((0.0, "wanted", INK), (0.18, "● noised", GREY), (0.37, "filtered", TURNS)):
            ax.text(x, 1.04, words, transform=ax.transAxes, color=colour, fontsize=9.5, weight="bold")
        _spectra(right, energy, noise, gain)
        right.set_title(f"kept: signal {kept:.0%}, noise {left:.0%}", color=RIGHT if kept > 2 * left else INK)
    gainful = f"{kept / left:.1f} times as much signal to noise"
    text = (
        f"{taps} taps keep {kept:.0%} of the signal's energy and {left:.0%} of the noise's: {gainful} as before. "
        + ("The filter tells them apart." if kept > 2 * left else "Signal and noise look alike to the filter: this is "
           "little more than a shorter step." if taps > 1 else "One tap is no filter.")
    )  # fmt: skip
    return figure, text


def _spectra(ax: Any, energy: np.ndarray, noise: float, gain: np.ndarray) -> None:
    """Energy at each frequency: signal as bars (before pale, after dark), noise as lines."""
    place, edges = np.arange(CHANNELS) / CHANNELS, np.arange(CHANNELS + 1) / CHANNELS
    floor = 1e-3
    for heights, colour in ((energy, FAINT), (energy * gain, INK)):  # one shape each: quicker to draw than 64 bars
        ax.stairs(np.maximum(heights, floor), edges, baseline=floor, fill=True, color=colour, lw=0)
    ax.axhline(max(noise**2, floor), color=GREY, lw=1.6)
    ax.plot(place, np.maximum(noise**2 * gain, floor), color=TURNS, lw=2)
    ax.set(yscale="log", xlim=(0, 1), ylim=(floor, 100), xlabel="frequency (1: every other channel)")
    ax.set_ylabel("energy")
    log_axis(ax.yaxis, (0.001, 0.01, 0.1, 1, 10, 100))
    ax.text(0.99, 0.97, "bars: signal before (pale), after (dark)\nlines: noise before (grey), after (pink)",
            transform=ax.transAxes, fontsize=8, color=SOFT, ha="right", va="top")  # fmt: skip


def response_check(
    taps: Sequence[int] = (3, 5, 9), size: int = 64, rank: int = 4, seeds: int = 100
) -> tuple[Picture, pd.DataFrame]:
    """Share of white noise that the library's filter leaves at each frequency, measured and closed form.

    Args: size: channels. rank: rows of noise a seed, as a factor has. seeds: each dot is a mean over them.
    Returns: the figure; and a table taps, frequency, measured, expected, low, high, inside (the exact 95 % band of such
        a mean, from the chi-square law).
    """
    check_whole("seeds", seeds, 2)
    check(len(taps) > 0, "taps", taps, "at least one odd number")
    tables, count = [], seeds * rank
    low, high = (float(chi2.ppf(q, count)) / count for q in (0.025, 0.975))
    for n in taps:
        white = np.random.default_rng(n).standard_normal((seeds, rank, size))
        measured = spectrum(binomial(n)(torch.from_numpy(white), "A"), "A") / count
        expected = theory.filter_response(n, size) ** 2
        columns = {"taps": n, "frequency": np.arange(size) / size, "measured": measured, "expected": expected}
        tables.append(pd.DataFrame(columns))
    table = pd.concat(tables, ignore_index=True)
    table = table.assign(low=low * table["expected"], high=high * table["expected"])
    table["inside"] = (table["low"] <= table["measured"]) & (table["measured"] <= table["high"])
    with paper():
        figure = picture(9.6, 3.8)
        left, right = figure.add_axes((0.065, 0.16, 0.43, 0.73)), figure.add_axes((0.58, 0.16, 0.405, 0.73))
        for place, (colour, (n, part)) in enumerate(zip(HUES * len(taps), table.groupby("taps"), strict=False)):
            left.fill_between(part["frequency"], part["low"], part["high"], color=colour, alpha=0.25, lw=0)
            left.plot(part["frequency"], part["expected"], color=colour, lw=1.5)
            left.plot(part["frequency"], part["measured"], "o", ms=3.6, color=colour, mec=CARD, mew=0.4)
            words = f"{n} taps keep {theory.filter_gain(int(n)):.0%} in all"  # type: ignore[arg-type]
            left.text(0.98, 1.13 - 0.1 * place, words, color=colour, fontsize=9, weight="bold", ha="right")
            for held, ink in ((True, colour), (False, WRONG)):
                dots = part[part["inside"] == held]
                right.plot(dots["frequency"], dots["measured"] / dots["expected"], "o", ms=3.8, color=ink, mec=CARD)
        right.axhspan(low, high, color=INK, alpha=0.1, lw=0)
        right.axhline(1, color=INK, lw=1)
        for ax in (left, right):
            ax.set(xlim=(0, 1), xlabel="frequency along the channels (1: every other one)")
        left.set(ylim=(0, 1.25), ylabel="share of the noise's variance left")
        left.set_title("Lines: closed form. Dots: measured")
        right.set(ylim=(0.6, 1.4), ylabel="measured / closed form")
        right.set_title(f"{table['inside'].mean():.0%} of {len(table)} dots inside the 95 % band")
        footer(
            figure,
            f"each dot: mean over {seeds} seeds of {rank} rows of white noise; band: chi-square law (red: misses)",
        )
    return figure, table


def gradient_spectra(frame: pd.DataFrame, taps: int = 5) -> Picture:
    """Where along the frequencies the clipped gradient lies, beside flat noise and what the filter lets through.

    Args: frame: as `measures.gradient_spectra`. Layers are added up; bars are relative to a flat spectrum.
    Guarantees: the titles state `theory.kept_energy` (test_lesson_07.py::test_the_spectra_figure).
    """
    with paper():
        figure = picture(9.6, 3.6)
        for left, side in ((0.065, "B"), (0.565, "A")):
            ax = figure.add_axes((left, 0.16, 0.42, 0.72))
            part: Any = frame[frame["side"] == side]
            energy = part.groupby("frequency")["energy"].sum()
            groups = energy.to_numpy().reshape(-1, max(1, len(energy) // 16)).sum(1)
            place, width = np.arange(len(groups)) / len(groups), 1 / len(groups)
            ax.bar(place, groups / groups.mean(), width, align="edge", color=FACTOR[side], ec=CARD, alpha=0.75)
            fine = np.linspace(0, 1, 100)
            ax.axhline(1, color=INK, lw=1.3, ls=(0, (4, 2)))
            ax.plot(fine, theory.filter_response(taps, 100) ** 2, color=TURNS, lw=2.2)
            words = (("bars: the gradient", FACTOR[side]), ("dashes: noise, flat", INK), ("curve: what passes", TURNS))
            for line, (text, colour) in enumerate(words):
                ax.text(0.99, 0.96 - 0.085 * line, text, transform=ax.transAxes, fontsize=8.5, color=colour, ha="right",
                        va="top", weight="bold")  # fmt: skip
            top = max(3.2, float((groups / groups.mean()).max()) * 1.08)
            ax.set(xlim=(0, 1), ylim=(0, top), xlabel="frequency along the channels")
            ax.set_ylabel("gradient energy, 1 = flat")
            kept = theory.kept_energy(energy.to_numpy(), taps)
            ax.set_title(f"{side}: {kept:.0%} of the gradient passes, {theory.filter_gain(taps):.0%} of noise")
    return figure
