"""Closed forms of lesson 11: what a layer's noised gradient still tells of its input."""

import math

from fedlora_lab._utils.validation import check_symbols, check_whole


def gradient_overlap(noise_multiplier: float, rank: int, d_in: int) -> float:
    """|cosine| of a layer's input and the direction read from A's gradient, for one input.

    The gradient is C u x^T with unit vectors u and x, each entry has noise of std sigma C, and the
    direction is the first right singular vector. With theta = 1 / (sqrt(d_in) sigma) and c = r /
    d_in the squared cosine is 1 - (c + theta^2) / (theta^2 (theta^2 + 1)) for a large layer, and 0
    where theta^4 <= c. The mean of N releases of one gradient has 1 / sqrt(N) of the noise.

    Args:
        noise_multiplier: sigma >= 0; the clip cuts, and nothing but this gradient is sent.
        rank, d_in: r in [1, d_in].

    Guarantees: notebook 11 compares it with drawn gradients of layers of three widths.
    Source: arXiv:1103.2221 (singular vectors of a low-rank matrix in noise; its Gaussian example).
    """
    check_symbols(noise_multiplier=noise_multiplier, rank=rank)
    check_whole("d_in", d_in, rank)
    if not noise_multiplier:
        return 1.0
    square = 1 / d_in / noise_multiplier**2
    shape = rank / d_in
    # Below this signal the largest singular vector of the noise wins.
    if square**2 <= shape:
        return 0.0
    return math.sqrt(max(0.0, 1 - (shape + square) / (square * (square + 1))))


def vanishing_noise(rank: int, d_in: int) -> float:
    """The noise multiplier at which `gradient_overlap` reaches 0: 1 / (r d_in)^(1/4).

    Args: as `gradient_overlap`.
    Guarantees: notebook 11 compares it with drawn gradients of layers of three widths.
    Source: arXiv:1103.2221, the threshold of the largest singular value.
    """
    check_symbols(rank=rank)
    check_whole("d_in", d_in, rank)
    return 1 / (rank * d_in) ** 0.25
