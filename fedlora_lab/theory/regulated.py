"""Noise shaped by the peer factor (DEeR) and noise smoothed after the fact (LA-LoRA)."""

import math

import numpy as np
from jaxtyping import Float

from fedlora_lab.checks import check, check_number, check_whole


def regulated_mahalanobis(shift: Float[np.ndarray, "d_out r"], peer: Float[np.ndarray, "r d_in"], std: float) -> float:
    """How many standard deviations a shift of B stands out of noise xi_W A^+ with xi_W iid: |shift A| / std.

    The noise has covariance std^2 (A A^T)^-1 on each row, so a shift counts by the product it makes.

    Args:
        shift: (d_out, r), a change of B.
        peer: A (r, d_in), of full row rank.
        std: of the noise in weight space, > 0.

    Guarantees: test_regulated_mahalanobis.
    Source: derived; the noise is that of arXiv:2410.12926.
    """
    check_number("std", std, 0, open_low=True)
    check(shift.shape[1] == peer.shape[0], "shift, peer", (shift.shape, peer.shape), "(d_out, r) and (r, d_in)")
    return float(np.linalg.norm(shift @ peer)) / std


def regulated_multiplier(peer: Float[np.ndarray, "r d_in"], noise_multiplier: float) -> float:
    """Noise multiplier that really protects a change of B clipped to C while the noise is xi_W A^+: sigma / |A|_2.

    Weaker than the nominal sigma when the peer's spectral norm exceeds 1. Clipping |dB A| instead gives sigma exactly.

    Args:
        peer: A (r, d_in), not zero.
        noise_multiplier: nominal sigma >= 0, std of xi_W over C.

    Guarantees: test_regulated_multiplier.
    Source: derived; see `regulated_mahalanobis`.
    """
    check_number("noise_multiplier", noise_multiplier, 0)
    size = float(np.linalg.norm(peer, 2))
    check(size > 0, "peer", size, "a matrix other than zero")
    return noise_multiplier / size


def regulated_energy(d_out: int, rank: int, std: float) -> float:
    """Expected |xi_B A|^2 of regulated noise: std^2 d_out r, whatever A; naive noise makes std^2 d_out |A|^2.

    Guarantees: test_regulated_energy.
    Source: derived; xi_W A^+ A is xi_W projected on r dimensions.
    """
    check_whole("d_out", d_out, 1)
    check_whole("rank", rank, 1)
    check_number("std", std, 0)
    return std**2 * d_out * rank


def whitened(
    B: Float[np.ndarray, "d_out r"], A: Float[np.ndarray, "r d_in"]
) -> tuple[Float[np.ndarray, "d_out r"], Float[np.ndarray, "r d_in"]]:
    """The same product with an orthonormal peer: B (A A^T)^(1/2) and (A A^T)^(-1/2) A.

    In these coordinates regulated noise is isotropic and |B'| = |B A|: clipping there is clipping the product.

    Args:
        B: (d_out, r).
        A: (r, d_in), of full row rank.

    Guarantees: test_whitened.
    Source: derived; polar form of A.
    """
    values, vectors = np.linalg.eigh(A @ A.T)
    check(bool(values[0] > 1e-12 * values[-1]), "A", A.shape, "a matrix of full row rank")
    root = (vectors * np.sqrt(values)) @ vectors.T
    return B @ root, np.linalg.solve(root, A)


def filter_weights(taps: int) -> Float[np.ndarray, " taps"]:
    """Binomial low-pass weights with sum 1: 1 4 6 4 1 over 16 for five taps; taps odd, in [1, 99].

    Guarantees: test_filter_weights.
    Source: arXiv:2602.19926, the low-pass filter.
    """
    check_whole("taps", taps, 1, 99)
    check(taps % 2 == 1, "taps", taps, "an odd number")
    return np.array([math.comb(taps - 1, i) for i in range(taps)], float) / 2.0 ** (taps - 1)


def filter_gain(taps: int) -> float:
    """Share of white noise variance that the binomial filter leaves: binom(2n, n) / 4^n with n = taps - 1; 0.273 for 5.

    Guarantees: test_filter_gain.
    Source: derived; the sum of squared `filter_weights`.
    """
    n = len(filter_weights(taps)) - 1
    return math.comb(2 * n, n) / 4.0**n
