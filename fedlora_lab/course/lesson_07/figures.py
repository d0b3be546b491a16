"""Figures of notebook 07: turns inside a round, and what a low-pass filter keeps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import MaxNLocator
from scipy.fft import idct
from torch import nn

from fedlora_lab import theory
from fedlora_lab._utils.validation import check_number
from fedlora_lab.course.widgets.dial import Dial
from fedlora_lab.measures.gradients import spectrum
from fedlora_lab.methods.filters import binomial
from fedlora_lab.plots import style
from fedlora_lab.plots.tidy import bands, confidence_interval
from fedlora_lab.tasks.metrics import select_metrics, squared_error
from fedlora_lab.tasks.task import Task

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
    plane.set_title(f"Two numbers, learning rate {lr:g}")
    right.set(yscale="log", xlim=(0, steps), ylim=(1e-6, 10), xlabel="step", ylabel="|b·a − 1|")
    nearer = min(labels, key=lambda label: label.y).text
    right.set_title(f"{nearer.capitalize()} the error ends smaller")
    style.draw_labels(right, labels, together=False)
    return figure


def _signal(smoothness: float, shuffle: bool) -> np.ndarray:
    """Makes a gradient of 64 channels, mean square 1: white at smoothness 0, slow at 1."""
    check_number("smoothness", smoothness, 0, 1)
    rng = np.random.default_rng(5)
    waves = rng.standard_normal(CHANNELS) * np.exp(-9 * smoothness * np.arange(CHANNELS) / CHANNELS)
    row = idct(waves, norm="ortho")
    row = row / np.sqrt(np.mean(row**2))
    return row[rng.permutation(CHANNELS)] if shuffle else row


@style.paper()
def low_pass(
    taps: int = 5, smoothness: float = 0.6, noise: float = 1.0, shuffle: bool = False
) -> style.Picture:
    """Draws a gradient, its noised release and the filtered release, and their spectra.

    Args:
        taps: odd; noise: std on every channel, >= 0.
        smoothness: of the gradient along its channels, 0 to 1; shuffle: mix them.

    Guarantees: axes stand still; the title states `theory.filtered_energy`
        (test_lesson_07.py::test_the_filter_figure_states_what_is_kept).
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
    colour = style.RIGHT if kept > 2 * left else style.INK
    right.set_title(f"kept: signal {kept:.0%}, noise {left:.0%}", color=colour)
    return figure


@style.paper()
def response(taps: int = 5, rows: int = 400) -> style.Picture:
    """Draws the filter's measured gain in amplitude and noise energy over the closed forms.

    Args: taps: odd; rows: of white noise.
    Guarantees: the dots lie on the lines (test_the_response_is_drawn_as_it_is).
    """
    figure, (ax,) = style.panels(6.6, 3.4, (0.09, 0.17, 0.88, 0.70))
    x, gain = np.arange(CHANNELS) / CHANNELS, theory.filter_response(taps, CHANNELS)
    waves = torch.from_numpy(idct(np.eye(CHANNELS), norm="ortho"))
    passed = (binomial(taps)(waves, "A") * waves).sum(1).numpy()
    white = np.random.default_rng(0).standard_normal((rows, CHANNELS))
    left = spectrum(binomial(taps)(torch.from_numpy(white), "A"), "A") / spectrum(white, "A")
    powers = str(taps - 1), str(2 * taps - 2)
    high = [power.translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")) for power in powers]
    share = f"{gain @ gain / CHANNELS:.0%} of white noise is left"
    for drawn, curve, colour, place, words in (
        (passed, gain, style.INK, (0.39, 0.62), f"amplitude: cos{high[0]}(θ/2)"),
        (left, gain**2, TURNS, (0.03, 0.09), f"energy: cos{high[1]}(θ/2)\n{share}"),
    ):
        style.dots(ax, x[::2], drawn[::2], colour, 4, mew=0.4)
        ax.plot(x, curve, color=colour, lw=1.6)
        style.note(ax, *place, words, colour, 9, weight="bold")
    ax.set(xlim=(0, 1), ylim=(-0.03, 1.03), ylabel="share left")
    ax.set_xlabel("frequency θ/π along the channels (1: every other channel)")
    ax.set_title("A wave keeps more of its amplitude than of its energy")
    return figure


@style.paper()
def spectra(energies: Mapping[str, np.ndarray], taps: int = 5) -> style.Picture:
    """Draws gradients' energies over the frequencies, and the filter's worth for each.

    Args: energies: name -> energy at each frequency.
    Guarantees: the titles state `theory.filter_worth` (test_the_spectra_state_the_worth).
    """
    figure, axes = style.row(9.6, 3.5, (0.16, 0.70), (0.065, 0.42), (0.565, 0.42))
    for ax, (name, energy) in zip(axes, energies.items(), strict=True):
        groups = energy.reshape(-1, max(1, len(energy) // 16)).sum(1)
        heights, edges = groups / groups.mean(), np.arange(len(groups)) / len(groups)
        bars: Any = {"align": "edge", "color": style.GREY, "ec": style.CARD}
        ax.bar(edges, heights, 1 / len(groups), **bars)
        ax.axhline(1, color=style.INK, lw=1.3, ls=style.DASHED)
        top = max(3.2, float(heights.max()) * 1.08)
        gain = theory.filter_response(taps, 100)
        ax.plot(np.arange(100) / 100, gain * top / 1.05, color=TURNS, lw=2.2)
        words = ("bars: the gradient", "dashes: noise, flat", "curve: the gain (any scale)")
        for i, (text, ink) in enumerate(zip(words, (style.SOFT, style.INK, TURNS), strict=True)):
            put: Any = {"ha": "right", "va": "top", "weight": "bold"}
            style.note(ax, 0.99, 0.96 - 0.085 * i, text, ink, 8.5, **put)
        ax.set(xlim=(0, 1), ylim=(0, top))
        ax.set(xlabel="frequency along the channels", ylabel="energy, 1 = flat")
        ax.set_title(f"{name}: the filter is worth {theory.filter_worth(energy, taps):.2f}")
    return figure


@style.paper()
def forest(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    title: str,
    unit: str,
) -> style.Picture:
    """Draws mean paired differences with 95 % intervals, a panel for each comparison.

    Args: panels: comparison -> row's name -> one difference a seed; title: the finding; unit: of
        the axis.
    Guarantees: test_lesson_07.py::test_the_differences_are_drawn.
    """
    count, tall = len(panels), 1.55 + 0.3 * max(map(len, panels.values()))
    left = 0.04 + 0.0105 * max(len(name) for rows in panels.values() for name in rows)
    wide = (0.97 - left) / count
    places = [(left + i * wide, 0.72 / tall, wide - 0.05, 1 - 1.4 / tall) for i in range(count)]
    figure, axes = style.panels(9.0, tall, *places)
    for ax, (words, rows) in zip(axes, panels.items(), strict=True):
        for y, values in enumerate(rows.values()):
            mean, (low, high) = float(np.mean(values)), confidence_interval(values)
            sure = style.INK if low <= 0 <= high else style.RIGHT if mean > 0 else style.WRONG
            ax.errorbar(mean, y, xerr=[[mean - low], [high - mean]], fmt="o", ms=6, color=sure)
        ax.axvline(0, color=style.INK, lw=1)
        ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=unit)
        ax.set_yticks(range(len(rows)), list(rows) if ax is axes[0] else [""] * len(rows))
        ax.grid(visible=False, axis="y")
        ax.set_title(words, fontsize=9.5)
        ax.xaxis.set_major_locator(MaxNLocator(3 if count > 3 else 5))
    figure.text(0.012, 1 - 0.28 / tall, title, fontsize=10.5, weight="bold")
    seeds = sorted({len(values) for rows in panels.values() for values in rows.values()})
    counted = " to ".join(dict.fromkeys(str(n) for n in (seeds[0], seeds[-1])))
    style.footer(figure, f"paired over {counted} seeds; bars: 95 % interval of the mean")
    return figure


@style.paper()
def lines(
    panels: Mapping[str, pd.DataFrame], title: str, knob: str, log: bool = False
) -> style.Picture:
    """Draws means over seeds with 95 % bands over one knob, a line each, in one or more panels.

    Args:
        panels: what is drawn -> table of name, x, seed, value.
        title: the finding; knob: the horizontal axis; log: both axes.
    Guarantees: test_lesson_07.py::test_lines_are_means_over_seeds.
    """
    count = len(panels)
    wide, left, room = (4.9, 0.075, 0.28) if count > 1 else (7.0, 0.1, 0.62)
    places = [(left + i / count, 0.2, room, 0.66) for i in range(count)]
    figure, axes = style.panels(wide * count, 3.4, *places)
    for ax, (what, table) in zip(axes, panels.items(), strict=True):
        ends, ticks = [], sorted(table["x"].unique())
        ax.set(xlabel=knob, ylabel=what)
        if log:
            ax.set(xscale="log", yscale="log")
            style.log_axis(ax.xaxis, tuple(ticks))
            style.log_axis(ax.yaxis, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1))
        for i, (name, part) in enumerate(table.groupby("name", sort=False)):
            x, mean, *band = bands(part, "x")
            known = name in style.LOOKS
            colour = style.look(str(name)).colour if known else style.SERIES[i]
            words = style.name(str(name)) if known else str(name)
            line: Any = {"lw": 1.8, "marker": "o", "ms": 4}
            ends.append(style.named_line(ax, x, mean, words, colour, *band, **line))
        ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
        style.draw_labels(ax, ends, wide=18)
    axes[0].set_title(title)
    seeds = next(iter(panels.values()))["seed"].nunique()
    band = f"mean of {seeds} seeds; band: its 95 % interval" if seeds > 1 else "one seed"
    style.footer(figure, band)
    return figure


def sensors(shuffle: bool = False, clients: int = 10, examples: int = 128, seed: int = 0) -> Task:
    """Builds a regression task on 64 sensors in a row, whose neighbours read alike.

    Readings are sums of the eight slowest waves, so neighbours are alike, and so is the truth: the
    frozen layer (the identity) plus a map of rank 4 between slow waves. Before training the loss is
    1 plus the variance of the measurement, 0.01.

    Args:
        shuffle: renumber the places at random, inputs and outputs alike. The task is the same.
        clients, examples: of each; seed: of the data.
    Guarantees: test_lesson_07.py::test_renumbered_sensors_are_the_same_task.
    """
    rng = np.random.default_rng(seed)
    waves = idct(np.eye(CHANNELS), norm="ortho")[:8]
    core = rng.standard_normal((8, 4)) @ rng.standard_normal((4, 8))
    change = waves.T @ (core * np.sqrt(8 / np.sum(core**2))) @ waves
    order = np.random.default_rng(seed + 1).permutation(CHANNELS)
    order = order if shuffle else np.arange(CHANNELS)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = rng.standard_normal((count, 8)) @ waves * np.sqrt(CHANNELS / 8)
        y = x + x @ change.T + 0.1 * rng.standard_normal(x.shape)
        inputs, outputs = (torch.from_numpy(z[:, order]).float() for z in (x, y))
        return inputs, outputs

    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(CHANNELS, CHANNELS, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.eye(CHANNELS))
    model = nn.Sequential()
    model.add_module("map", layer)
    data = tuple(draw(examples) for _ in range(clients))
    return Task(
        name="sensors",
        model=model.eval(),
        targets=("map",),
        clients=data,
        test=draw(256),
        loss=squared_error,
        metrics=select_metrics((), "regression"),
    )


def filter_explorer() -> Dial:
    """Makes a dial for filter, smoothness, noise and channel order: a gradient, its spectrum.

    Guarantees: shares are `theory.filtered_energy` (tests/browser/test_dials.py::test_formulas).
    """
    about = "A low-pass filter along the channels: what it keeps of a gradient, and of the noise."
    values = {"taps": 5, "smoothness": 0.6, "noise": 1.0, "shuffle": False}
    return Dial(7, "filter_explorer", about, **values)
