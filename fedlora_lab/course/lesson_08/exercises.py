"""Right and wrong answers to exercise 08.1: one block of numbers on the levels of a code."""

import numpy as np
import torch

from fedlora_lab.course.exercise import Calls
from fedlora_lab.methods.quantization import normal_float, normal_levels

BLOCK = np.array([0.10, -0.62, 0.30, 0.05, -1.6, 0.90])
CALLS = {
    "08.1": Calls("x and levels", (BLOCK, np.array(normal_levels(2))), shape=(6,), within=1e-9)
}


def _nearest(x, levels):
    return np.abs(x[:, None] - levels[None]).argmin(1)


def quantise(x, levels):
    scale = np.abs(x).max()
    return levels[_nearest(x / scale, levels)] * scale


def by_library(x, levels):
    return normal_float(2, len(x))(torch.from_numpy(x))


def unscaled(x, levels):
    return levels[_nearest(x, levels)]


def not_scaled_back(x, levels):
    return quantise(x, levels) / np.abs(x).max()


def largest_signed(x, levels):
    return levels[_nearest(x / x.max(), levels)] * x.max()


def rounds_down(x, levels):
    scale = np.abs(x).max()
    return levels[np.searchsorted(levels, x / scale, side="right") - 1] * scale


def codes(x, levels):
    return _nearest(x / np.abs(x).max(), levels)


def even_levels(x, levels):
    return quantise(x, np.linspace(-1, 1, len(levels)))
