"""Noise and reach of an adapter at the start of training: A drawn at random, B zero."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import betaincinv, gammaincinv

from fedlora_lab.checks import check, check_number, check_whole
from fedlora_lab.theory.bands import Band


class Energy(NamedTuple):
    """Mean and standard deviation of a squared Frobenius norm."""

    mean: float
    std: float


def start_energy(rank: int, d_out: int, d_in: int, std_B: float, std_A: float = 0.0, scaling: float = 1.0) -> Energy:
    """|scaling xi_B (A + xi_A)|^2 for a random A: what noise alone makes of an adapter that starts at B = 0.

    The mean is s^2 std_B^2 d_out (r / 3 + std_A^2 r d_in). It is the same whether both noises come at once or in turn.

    Args:
        rank, d_out, d_in: shape of the adapter, >= 1; A is Kaiming-uniform: entries in [-1, 1] / sqrt(d_in).
        std_B, std_A: standard deviations of the noise that has gathered on the factors, >= 0; 0: a frozen factor.
        scaling: alpha / r, >= 0.

    Guarantees: test_start_energy.
    Source: derived; second and fourth moments of uniform and Gaussian matrices.
    """
    for name, value in (("rank", rank), ("d_out", d_out), ("d_in", d_in)):
        check_whole(name, value, 1)
    for name, value in (("std_B", std_B), ("std_A", std_A), ("scaling", scaling)):
        check_number(name, value, 0)
    u, v, s2 = std_B**2, std_A**2, scaling**2
    second, fourth = 1 / (3 * d_in), 1 / (5 * d_in**2)
    size = rank / 3
    # M = A + xi_A: mean and variance of |M|^2, and the mean of |M M^T|^2
    mean = size + v * rank * d_in
    spread = rank * d_in * (fourth - second**2) + 4 * v * size + 2 * v**2 * rank * d_in
    gram = rank * d_in * (fourth + (rank + d_in - 2) * second**2)
    gram += 2 * v * (rank + d_in + 1) * size + v**2 * rank * d_in * (rank + d_in + 1)
    variance = s2**2 * u**2 * (2 * d_out * gram + d_out**2 * spread)
    return Energy(s2 * u * d_out * mean, math.sqrt(variance))


def energy_band(energy: Energy, level: float = 0.95) -> Band:
    """The interval that holds one measured energy with this probability, by the gamma law of equal mean and spread.

    Args: level: in (0, 1).
    Guarantees: test_energy_band.
    Source: the usual two-moment fit to a sum of scaled chi-squares (Satterthwaite 1946).
    """
    check_number("mean", energy.mean, 0)
    check(0 < level < 1, "level", level, "a number in (0, 1)")
    if energy.std == 0:
        return Band(energy.mean, energy.mean, energy.mean)
    shape = (energy.mean / energy.std) ** 2
    low, high = (float(gammaincinv(shape, p)) * energy.mean / shape for p in ((1 - level) / 2, (1 + level) / 2))
    return Band(energy.mean, low, high)


def random_reach(rank: int, d_in: int, spectrum: "Float[np.ndarray, ' n'] | None" = None, level: float = 0.95) -> Band:
    """Share of the energy of a wanted change that lies in the row space of a random A: r / d_in on average.

    With A frozen, W can only move within that space, whatever B becomes.

    Args:
        rank: r, in [1, d_in].
        d_in: >= 2.
        spectrum: singular values of the wanted change, (n,); ``None``: it has one direction.
        level: of the interval, in (0, 1).

    Guarantees: test_random_reach.
    Source: derived; a projection on random directions has a beta law, exact for one direction, by two moments for more.
    """
    check_whole("d_in", d_in, 2)
    check_whole("rank", rank, 1, d_in)
    check(0 < level < 1, "level", level, "a number in (0, 1)")
    if rank == d_in:
        return Band(1.0, 1.0, 1.0)
    share = np.ones(1) if spectrum is None else np.square(spectrum) / np.sum(np.square(spectrum))
    concentrated = float(np.sum(share**2))
    one = 2 * rank * (d_in - rank) / (d_in**2 * (d_in + 2))
    variance = one * (concentrated - (1 - concentrated) / (d_in - 1))
    mean = rank / d_in
    size = mean * (1 - mean) / variance - 1
    low, high = (float(betaincinv(mean * size, (1 - mean) * size, p)) for p in ((1 - level) / 2, (1 + level) / 2))
    return Band(mean, low, high)
