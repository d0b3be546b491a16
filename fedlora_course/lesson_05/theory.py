"""Closed form of lesson 05: how much of a change a frozen A lets through."""

import numpy as np
from jaxtyping import Float
from scipy.special import betaincinv

from fedlora_lab._utils.validation import check_whole
from fedlora_lab.theory import Band


def row_space_share(
    rank: int, d_in: int, spectrum: "Float[np.ndarray, ' n'] | None" = None
) -> Band:
    """Share of a wanted change's energy in the row space of a random A: r / d_in, and a 95 % band.

    With A frozen, W can only move within that space, whatever B becomes.

    Args:
        rank, d_in: r in [1, d_in], d_in >= 2.
        spectrum: singular values of the wanted change; ``None``: it has one direction.

    Guarantees: 95 % of drawn spaces lie in the band (test_row_space_share).
    Source: derived; a projection on random directions has a beta law, exact for one direction, by
        two moments for more.
    """
    check_whole("d_in", d_in, 2)
    check_whole("rank", rank, 1, d_in)
    if rank == d_in:
        return Band(1.0, 1.0, 1.0)
    energy = np.square(np.ones(1) if spectrum is None else spectrum)
    concentrated = float(np.sum((energy / np.sum(energy)) ** 2))
    along_one = 2 * rank * (d_in - rank) / (d_in**2 * (d_in + 2))
    variance = along_one * (concentrated - (1 - concentrated) / (d_in - 1))
    mean = rank / d_in
    if variance < 1e-14:  # of a flat spectrum all spaces have the same share
        return Band(mean, mean, mean)
    size = mean * (1 - mean) / variance - 1
    # The beta law with this mean and variance.
    ends = betaincinv(mean * size, (1 - mean) * size, [0.025, 0.975])
    return Band(mean, *ends.tolist())
