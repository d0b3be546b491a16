"""Closed form of lesson 07: how well noise that the peer has shaped hides a change."""

import numpy as np
from jaxtyping import Float

from fedlora_lab._utils.validation import check, check_symbols


def regulated_multiplier(peer: Float[np.ndarray, "r d_in"], noise_multiplier: float) -> float:
    """Computes the noise multiplier of a clipped change of B under xi_W A^+: sigma / |A|_2.

    Weaker than nominal when that norm exceeds 1; clipping |dB A| instead gives sigma exactly.

    Guarantees: no shift of norm C stands out more (test_regulated_multiplier).
    Source: derived: a shift of B is |shift A| / std deviations of noise xi_W A^+, that of
        arXiv:2410.12926.
    """
    check_symbols(noise_multiplier=noise_multiplier)
    size = float(np.linalg.norm(peer, 2))
    check(size > 0, "peer", size, "a matrix other than zero")
    return noise_multiplier / size
