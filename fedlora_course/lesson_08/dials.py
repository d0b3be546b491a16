"""The dial of lesson 08: what a low-pass filter is worth for a gradient under noise."""

import numpy as np
import torch
from jaxtyping import Float
from scipy.fft import idct

from fedlora_course.lesson_08.figures import spectrum
from fedlora_course.lesson_08.theory import filter_response, filter_worth
from fedlora_course.widgets.dial import Dial
from fedlora_course.widgets.scene import Scene, axis, bars, dots, line, panel, text
from fedlora_lab.methods.filters import binomial

CHANNELS = 64
FLOOR = 1e-3


def _signal(smoothness: float, shuffle: bool) -> Float[np.ndarray, " channels"]:
    """Makes a gradient of 64 channels, mean square 1: white at smoothness 0, slow at 1."""
    rng = np.random.default_rng(5)
    waves = rng.standard_normal(CHANNELS) * np.exp(-9 * smoothness * np.arange(CHANNELS) / CHANNELS)
    row = idct(waves, norm="ortho")
    row = row / np.sqrt(np.mean(row**2))
    return row[rng.permutation(CHANNELS)] if shuffle else row


def _filter_scene(taps: int, smoothness: float, noise: float, shuffle: bool) -> Scene:
    """Draws a gradient, its noised and filtered release, and their energies by frequency."""

    channels = np.arange(CHANNELS)
    frequency = channels / CHANNELS
    draws = np.random.default_rng(11).standard_normal(CHANNELS)
    gradient = _signal(smoothness, shuffle)
    noised = gradient + noise * draws
    filtered = binomial(taps)(torch.from_numpy(noised), "A").numpy()
    energy = spectrum(gradient, "A")
    response = filter_response(taps, CHANNELS)
    gain = response**2
    along = float(response @ energy / energy.sum())
    left = float(gain.mean())
    worth = filter_worth(energy, taps)
    if taps == 1:
        verdict = "One tap is no filter"
    elif 0.95 < worth < 1.05:
        verdict = "The filter makes no difference"
    else:
        verdict = "The filter pays" if worth > 1 else "The filter costs"
    edges = {"left": frequency, "right": (channels + 0.85) / CHANNELS}
    panels = [
        panel(
            "The gradient, with noise, and filtered",
            axis("channel", 0, CHANNELS - 1),
            axis("gradient", -5, 5),
            dots(channels, noised.round(2), "grey", 2.8),
            line(channels, gradient, "ink", "gradient", labelled=True, width=1.5),
            line(channels, filtered.round(2), "pink", "filtered", labelled=True, width=2.6),
            wide=True,
        ),
        panel(
            f"{verdict}: f²/w = {worth:.2g}",
            axis("frequency (1: every other channel)", 0, 1),
            axis("energy", FLOOR, 100, log=True),
            bars(**edges, bottom=FLOOR, top=np.maximum(energy, FLOOR), colour="pale"),
            bars(**edges, bottom=FLOOR, top=np.maximum(energy * gain, FLOOR), colour="ink"),
            line([0, 1], noise**2, "grey", "noise before"),
            line(frequency, np.maximum(noise**2 * gain, 1e-9), "pink", "noise after", width=2.6),
            text(1, 50, "bars: signal before (pale), after", "soft", anchor="end", bold=False),
            text(1, 20, "lines: noise before (grey), after", "soft", anchor="end", bold=False),
            wide=True,
        ),
    ]
    return panels, [
        f"{taps} taps: f = {along:.2f} of the step along the gradient and w = {left:.2f} of the "
        "noise's energy are left",
        f", so at its best rate a step is worth f²/w = {worth:.2g} times an unfiltered one. "
        f"{verdict}.",
    ]


def filter_explorer() -> Dial:
    """Makes a dial for filter, smoothness, noise and channel order: a gradient, its spectrum."""
    return Dial(
        "08/filter_explorer",
        _filter_scene,
        taps=(1, 3, 5, 15),
        smoothness=(0, 0.3, 0.6, 1),
        noise=(0, 0.5, 1, 2),
        shuffle={False: "as they are", True: "shuffled"},
    )
