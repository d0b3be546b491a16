"""Right and wrong answers to the exercises of notebook 07."""

from functools import partial
from typing import Any

import numpy as np
import torch

from fedlora_lab import theory
from fedlora_lab.course.exercises import Calls, vary
from fedlora_lab.methods.filters import binomial


def _least_squares(rng):
    """Factors, and the gradients of |B A x - y|^2 / 2 for eight examples, half of them short."""
    d_out, r, d_in = 4, 2, 5
    x, y = rng.standard_normal((8, d_in)), 2 * rng.standard_normal((8, d_out))
    y[::2] *= 0.05
    x[::2] *= 0.3

    def gradients(B, A):
        h = x @ (B @ A).T - y
        return h[:, :, None] * (x @ A.T)[:, None], (h @ B)[:, :, None] * x[:, None]

    B, A = 0.5 * rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in))
    rates = rng.uniform(0.2, 0.3), rng.uniform(0.05, 0.1)
    return B, A, gradients, *rates, float(rng.uniform(0.8, 1.2)), int(rng.integers(4, 8))


def _pair(rng):
    return rng.standard_normal((9, 4)), rng.standard_normal((4, 12))


def _energy(rng):
    n = int(rng.integers(20, 60))
    return (
        rng.uniform(1, 20) * rng.chisquare(4, n) * np.exp(-rng.uniform(1, 3) * np.arange(n) / n),
    )


CALLS = {
    "07.1": Calls("B, A, gradients, lr_B, lr_A, C and steps", draw=_least_squares),
    "07.2": Calls("g_B and g_A", draw=_pair),
    "07.4": Calls("energy", draw=_energy),
}


# ---- 07.1


def local_steps(B, A, gradients, lr_B, lr_A, C, steps):
    for s in range(steps):
        g_B, g_A = gradients(B, A)
        g = g_A if s % 2 else g_B
        lengths = np.sqrt((g**2).sum((1, 2), keepdims=True))
        step = (g * np.minimum(1, C / lengths)).mean(0)
        if s % 2:
            A = A - lr_A * step
        else:
            B = B - lr_B * step
    return B, A


def _clipped(g, C):
    return np.mean([one * min(1, C / np.linalg.norm(one)) for one in g], 0)


def _steps(*given, turn=lambda s: "BA"[s % 2], clip=_clipped):
    B, A, gradients, lr_B, lr_A, C, steps = given
    for s in range(steps):
        g_B, g_A = gradients(B, A)
        new_B, new_A = B - lr_B * clip(g_B, C), A - lr_A * clip(g_A, C)
        B, A = new_B if "B" in turn(s) else B, new_A if "A" in turn(s) else A
    return B, A


def stale(B, A, gradients, *rest):
    seen = []

    def late(*factors):
        seen.append(gradients(*factors))
        return seen[-1] if len(seen) % 2 else seen[-2]

    return _steps(B, A, late, *rest)


def rates_swapped(B, A, gradients, lr_B, lr_A, *rest):
    return local_steps(B, A, gradients, lr_A, lr_B, *rest)


def one_rate(B, A, gradients, lr_B, lr_A, *rest):
    return local_steps(B, A, gradients, lr_B, lr_B, *rest)


def clips_both(B, A, gradients, lr_B, lr_A, C, steps):
    def shortened(*factors):
        g_B, g_A = gradients(*factors)
        lengths = np.sqrt((g_B**2).sum((1, 2)) + (g_A**2).sum((1, 2)))[:, None, None]
        return [g * np.minimum(1, C / lengths) for g in (g_B, g_A)]

    return _steps(B, A, shortened, lr_B, lr_A, C, steps)


one_by_one = _steps
at_once = partial(_steps, turn=lambda s: "BA")
a_first = partial(_steps, turn=lambda s: "AB"[s % 2])
by_halves = lambda *given: _steps(*given, turn=lambda s: "BA"[2 * s >= given[-1]])
only_b = partial(_steps, turn=lambda s: "B")
clips_the_mean = partial(_steps, clip=lambda g, C: _clipped(g.mean(0)[None], C))
clips_nothing = partial(_steps, clip=lambda g, C: g.mean(0))
adds_up = partial(_steps, clip=lambda g, C: len(g) * _clipped(g, C))
uphill = vary(local_steps, lr_B=np.negative, lr_A=np.negative)


# ---- 07.2


def filtered(g_B, g_A):
    def along_rows(g):
        n = g.shape[1]
        padded = np.pad(g, ((0, 0), (2, 2)), mode="symmetric")
        shifted = [w * padded[:, i : i + n] for i, w in enumerate([1, 4, 6, 4, 1])]
        return np.sum(shifted, 0) / 16

    return along_rows(g_B.T).T, along_rows(g_A)


def by_library(g_B, g_A):
    return binomial(5)(torch.from_numpy(g_B), "B"), binomial(5)(torch.from_numpy(g_A), "A")


def _rows(g, weights=(1, 4, 6, 4, 1), mode: Any = "symmetric", total=16):
    half, n = len(weights) // 2, g.shape[1]
    padded = np.pad(g, ((0, 0), (half, half)), mode=mode) if mode else g
    size = n if mode else n - 2 * half
    return np.sum([w * padded[:, i : i + size] for i, w in enumerate(weights)], 0) / total


def _both(g_B, g_A, **how):
    return _rows(g_B.T, **how).T, _rows(g_A, **how)


zeros = partial(_both, mode="constant")
without_the_edge = partial(_both, mode="reflect")
in_a_ring = partial(_both, mode="wrap")
shorter = partial(_both, mode=None)
along_the_rank = lambda g_B, g_A: (_rows(g_B), _rows(g_A.T).T)
rows_of_both = lambda g_B, g_A: (_rows(g_B), _rows(g_A))
three_taps = partial(_both, weights=(1, 2, 1), total=4)
plain_mean = partial(_both, weights=(1, 1, 1, 1, 1), total=5)
not_divided = partial(_both, total=1)
a_alone = lambda g_B, g_A: (g_B, _rows(g_A))
twice = vary(filtered, then=lambda parts: filtered(*parts))


# ---- 07.4


def worth(energy):
    n = len(energy)
    gain = np.cos(np.pi * np.arange(n) / (2 * n)) ** 4
    along = (gain * energy).sum() / energy.sum()
    return along**2 / np.mean(gain**2)


def _worth(energy, gain_power=4, along_power=1, root=1, noise=None):
    gain = np.cos(np.pi * np.arange(len(energy)) / (2 * len(energy))) ** gain_power
    along = (gain**along_power * energy).sum() / energy.sum()
    return along ** (2 / root) / (np.mean(gain**2) if noise is None else noise(gain))


by_theory = lambda energy: theory.filter_worth(energy, 5)
cos_8 = partial(_worth, gain_power=8)
cos_2 = partial(_worth, gain_power=2)
energies_compared = partial(_worth, along_power=2, root=2)
energy_along = partial(_worth, along_power=2)
not_squared = partial(_worth, root=2)
mean_squared = partial(_worth, noise=lambda gain: np.mean(gain) ** 2)
noise_summed = partial(_worth, noise=lambda gain: np.sum(gain**2))
noise_left_out = partial(_worth, noise=lambda gain: 1.0)
flat = vary(worth, energy=np.ones_like)
