"""How much of an input an attacker sees in a noised gradient of A: one direction among noise."""

import math

from fedlora_lab.checks import check_number, check_whole


def _strength(noise_multiplier: float, rank: int, d_in: int, releases: int) -> tuple[float, float]:
    """The direction's size over that of the noise in a row, and the shape r / d_in."""
    check_number("noise_multiplier", noise_multiplier, 0)
    check_whole("rank", rank, 1)
    check_whole("d_in", d_in, rank)
    check_whole("releases", releases, 1)
    theta = math.sqrt(releases / d_in) / noise_multiplier if noise_multiplier else math.inf
    return theta, rank / d_in


def overlap(noise_multiplier: float, rank: int, d_in: int, releases: int = 1) -> float:
    """|cosine| of the layer's input and the direction read from the gradient of A, for one input and a large layer.

    The gradient is C u x^T with unit vectors u and x, each entry carries noise of std sigma C, and the direction read
    is the first right singular vector of the mean of the releases. With theta = sqrt(T / d_in) / sigma and c = r / d_in
    the squared cosine is 1 - (c + theta^2) / (theta^2 (theta^2 + 1)), and 0 where theta^4 <= c.

    Args:
        noise_multiplier: sigma >= 0; the clip cuts, and nothing but this gradient is sent.
        rank: r in [1, d_in].
        releases: T >= 1 of one and the same gradient, each with noise of its own.

    Guarantees: test_overlap.
    Source: arXiv:1103.2221 (singular vectors of a low-rank matrix in noise; its Gaussian example).
    """
    theta, shape = _strength(noise_multiplier, rank, d_in, releases)
    if theta == math.inf:
        return 1.0
    square = theta**2
    return math.sqrt(max(0.0, 1 - (shape + square) / (square * (square + 1)))) if square**2 > shape else 0.0


def vanishing_noise(rank: int, d_in: int, releases: int = 1) -> float:
    """The noise multiplier at which `overlap` reaches 0: sqrt(T) / (r d_in)^(1/4).

    Guarantees: test_vanishing_noise.
    Source: arXiv:1103.2221, the threshold of the largest singular value.
    """
    _strength(1.0, rank, d_in, releases)
    return math.sqrt(releases) / (rank * d_in) ** 0.25
