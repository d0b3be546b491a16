"""Right and wrong answers to the exercises of lesson 08."""

from functools import partial
from typing import Any

import numpy as np

from fedlora_course.exercises import Calls


def _least_squares(rng):
    """Factors, and the gradients of |B A x - y|^2 / 2 for eight examples, half of them short.

    Each example has three places, or its gradients would have rank one and one length in all norms.
    """
    x = rng.standard_normal((8, 3, 5)) / 3**0.5
    y = 2 * rng.standard_normal((8, 3, 4)) / 3**0.5
    y[::2] *= 0.05
    x[::2] *= 0.3

    def gradients(B, A):
        h = x @ (B @ A).T - y
        return h.swapaxes(1, 2) @ (x @ A.T), (h @ B).swapaxes(1, 2) @ x

    B = 0.5 * rng.standard_normal((4, 3))
    A = rng.standard_normal((3, 5))
    rates = rng.uniform(0.2, 0.3), rng.uniform(0.05, 0.1)
    return B, A, gradients, *rates, rng.uniform(0.8, 1.2), int(rng.integers(4, 8))


def _pair(rng):
    rows, columns, rank = (int(rng.integers(*ends)) for ends in ((7, 12), (10, 15), (2, 5)))
    return rng.standard_normal((rows, rank)), rng.standard_normal((rank, columns))


def _energy(rng):
    n = int(rng.integers(20, 60))
    falling = np.exp(-rng.uniform(1, 3) * np.arange(n) / n)
    return (rng.uniform(1, 20) * rng.chisquare(4, n) * falling,)


CALLS = {
    "08.1": Calls("g_B and g_A", draw=_pair),
    "08.3": Calls("energy", (np.array([4.0, 0.0, 1.0]),), draw=_energy),
    "08.4": Calls("B, A, gradients, lr_B, lr_A, C and steps", draw=_least_squares),
}


# ---- 08.1: the filter


def filtered(g_B, g_A):
    def along_rows(g):
        n = g.shape[1]
        padded = np.pad(g, ((0, 0), (2, 2)), mode="symmetric")
        shifted = [w * padded[:, i : i + n] for i, w in enumerate([1, 4, 6, 4, 1])]
        return np.sum(shifted, 0) / 16

    return along_rows(g_B.T).T, along_rows(g_A)


def _filtered(g_B, g_A, mode: Any = "symmetric", weights=(1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)):
    """`filtered` with other weights, or numbers beyond the ends, as `numpy.pad` names them."""

    def along_rows(g):
        padded = np.pad(g, ((0, 0), (len(weights) // 2,) * 2), mode=mode)
        return np.array([np.convolve(row, weights, "valid") for row in padded])

    return along_rows(g_B.T).T, along_rows(g_A)


# Zeros beyond the ends pull the outer entries down.
zeros = partial(_filtered, mode="constant")
# Only with the edge repeated the mean of a row stays.
reflected = partial(_filtered, mode="reflect")
edge_held = partial(_filtered, mode="edge")
wrapped = partial(_filtered, mode="wrap")
# Weights of a mean add up to one.
not_divided = partial(_filtered, weights=(1, 4, 6, 4, 1))
# LA-LoRA's weights are those of three neighbours, taken twice.
three_neighbours = partial(_filtered, weights=(1 / 4, 1 / 2, 1 / 4))
equal_weights = partial(_filtered, weights=(1 / 5,) * 5)


def filtered_twice(g_B, g_A):
    return filtered(*filtered(g_B, g_A))


def along_the_rank(g_B, g_A):
    # Each factor in the other's place is filtered along its other axis.
    return filtered(g_A, g_B)[::-1]


# The rank has no order along which to smooth.
def both_axes(g_B, g_A):
    return along_the_rank(*filtered(g_B, g_A))


# B is noised like A.
def a_alone(g_B, g_A):
    return g_B, filtered(g_B, g_A)[1]


def b_alone(g_B, g_A):
    return filtered(g_B, g_A)[0], g_A


# Each factor has its own axis of channels.
def a_along_the_rank(g_B, g_A):
    return filtered(g_B, g_A)[0], along_the_rank(g_B, g_A)[1]


def b_along_the_rank(g_B, g_A):
    return along_the_rank(g_B, g_A)[0], filtered(g_B, g_A)[1]


# ---- 08.3: the filter's worth


def worth(energy):
    n = len(energy)
    gain = np.cos(np.pi * np.arange(n) / (2 * n)) ** 4
    along = (gain * energy).sum() / energy.sum()
    return along**2 / np.mean(gain**2)


# The share of the step alone says nothing of the noise, nor of the best rate.
def share_of_the_step(energy):
    gain = np.cos(np.pi * np.arange(len(energy)) / (2 * len(energy))) ** 4
    return (gain * energy).sum() / energy.sum()


def _worth(energy, power=1, outer=2, left=None, angle=0.5):
    """`worth` with another power of the gain or of m, share of the noise, or part of θ."""
    gain = np.cos(angle * np.pi * np.arange(len(energy)) / len(energy)) ** 4
    along = (gain**power * energy).sum() / energy.sum()
    return along**outer / (left or np.mean(gain**2))


# The part along the gradient carries the gain once, not squared.
energy_along = partial(_worth, power=2)
# What is left of energies says nothing of the best rate.
energies_left = partial(_worth, power=2, outer=1)
# The gain falls to 0 at the highest frequency, and not in the middle.
whole_angle = partial(_worth, angle=1)
# Lengths against energies.
not_squared = partial(_worth, outer=1)


# m is a share of the gradient's energy.
def not_a_share(energy):
    return worth(energy) * energy.sum() ** 2


def mean_for_a_share(energy):
    return worth(energy) * energy.mean() ** 2


# w is a share of energy, in which the gain is squared.
def gains_for_w(energy):
    gain = np.cos(np.pi * np.arange(len(energy)) / (2 * len(energy))) ** 4
    return worth(energy) * np.mean(gain**2) / np.mean(gain)


# The mean of squares is more than the square of the mean.
def mean_squared_for_w(energy):
    gain = np.cos(np.pi * np.arange(len(energy)) / (2 * len(energy))) ** 4
    return worth(energy) * np.mean(gain**2) / np.mean(gain) ** 2


# A filter that removes everything would look best.
noise_left_out = partial(_worth, left=1)
# What the filter leaves of white noise in a row without end.
endless_row = partial(_worth, left=70 / 256)


# ---- 08.4: the local steps


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


def _mean_of_clipped(g, C):
    lengths = np.linalg.norm(g, axis=(1, 2), keepdims=True)
    return (g * np.minimum(1, C / lengths)).mean(0)


# Both factors take every step.
def at_once(B, A, gradients, lr_B, lr_A, C, steps):
    for _ in range(steps):
        g_B, g_A = gradients(B, A)
        B = B - lr_B * _mean_of_clipped(g_B, C)
        A = A - lr_A * _mean_of_clipped(g_A, C)
    return B, A


# From B = 0 a first step of A is lost.
def a_first(B, A, gradients, lr_B, lr_A, C, steps):
    for s in range(1, steps + 1):
        step = _mean_of_clipped(gradients(B, A)[s % 2], C)
        B, A = (B, A - lr_A * step) if s % 2 else (B - lr_B * step, A)
    return B, A


# Turns come step by step.
def b_then_a(B, A, gradients, lr_B, lr_A, C, steps):
    for s in range(steps):
        moves_a = s >= steps - steps // 2
        step = _mean_of_clipped(gradients(B, A)[int(moves_a)], C)
        B, A = (B, A - lr_A * step) if moves_a else (B - lr_B * step, A)
    return B, A


# Long gradients stay as they are, and short ones become as long as C.
def lengthens(B, A, gradients, *settings):
    C = settings[2]

    def longer(*factors):
        for g in gradients(*factors):
            yield g * np.maximum(1, C / np.linalg.norm(g, axis=(1, 2), keepdims=True))

    settings = *settings[:2], 1e9, settings[3]
    return local_steps(B, A, lambda *at: [*longer(*at)], *settings)


# What is short is lengthened, and a clip lengthens nothing.
def normalises(B, A, gradients, *settings):
    return local_steps(B, A, lambda *at: [1e9 * g for g in gradients(*at)], *settings)


# The rates are made for a mean.
def sums(B, A, gradients, lr_B, lr_A, C, steps):
    n = len(gradients(B, A)[0])
    return local_steps(B, A, gradients, n * lr_B, n * lr_A, C, steps)


# Against the gradient the loss falls.
def uphill(B, A, gradients, lr_B, lr_A, C, steps):
    return local_steps(B, A, gradients, -lr_B, -lr_A, C, steps)


# One example may be all of the mean.
def mean_clipped(B, A, gradients, *settings):
    return local_steps(B, A, lambda *at: [g.mean(0)[None] for g in gradients(*at)], *settings)


# A's turn does not see what B has just done.
def stale(B, A, gradients, lr_B, lr_A, C, steps):
    for s in range(0, steps, 2):
        g_B, g_A = gradients(B, A)
        B = B - lr_B * _mean_of_clipped(g_B, C)
        if s + 1 < steps:  # A's step takes the gradients from before B's
            A = A - lr_A * _mean_of_clipped(g_A, C)
    return B, A


# Each step moves a factor, and with it both gradients.
def gradients_once(B, A, gradients, *settings):
    at_the_start = gradients(B, A)
    return local_steps(B, A, lambda *at: at_the_start, *settings)


# A matrix may have many directions of length C, and be longer than C.
def spectral_norm(B, A, gradients, *settings):
    C = settings[2]

    def shortened(*factors):
        for g in gradients(*factors):
            yield g * np.minimum(1, C / np.linalg.norm(g, 2, axis=(1, 2), keepdims=True))

    settings = *settings[:2], 1e9, settings[3]
    return local_steps(B, A, lambda *at: [*shortened(*at)], *settings)


# Only one factor is released in a step.
def half_the_bound(B, A, gradients, lr_B, lr_A, C, steps):
    return local_steps(B, A, gradients, lr_B, lr_A, C / 2**0.5, steps)


# The factor that does not move takes its share of the clip norm.
def clips_both(B, A, gradients, lr_B, lr_A, C, steps):
    def shortened(*factors):
        g_B, g_A = gradients(*factors)
        lengths = np.sqrt((g_B**2).sum((1, 2)) + (g_A**2).sum((1, 2)))[:, None, None]
        return [g * np.minimum(1, C / lengths) for g in (g_B, g_A)]

    return local_steps(B, A, shortened, lr_B, lr_A, C, steps)
