"""How far a single draw of the noise energies strays from its expectation."""

import math

import numpy as np
from jaxtyping import Float

from fedlora_lab.theory.noise import NoiseTerms, _check


def noise_spread(
    B: Float[np.ndarray, "d_out r"],
    A: Float[np.ndarray, "r d_in"],
    std_B: float,
    std_A: float,
    scaling: float = 1.0,
) -> NoiseTerms:
    """Standard deviations of the three energies whose expectations `noise_terms` gives. Arguments as there.

    Variances: 2 s^4 std_B^4 d_out |A A^T|^2, 2 s^4 std_A^4 d_in |B^T B|^2 and, for the product of two noises,
    2 s^4 (std_B std_A)^4 d_out r d_in (d_out + d_in + r + 1).

    Guarantees: test_noise_spread.
    Source: derived from the second moments of a Wishart matrix.
    """
    _check(B, A, std_B=std_B, std_A=std_A, scaling=scaling)
    (d_out, r), d_in, s2 = B.shape, A.shape[1], float(scaling) ** 2
    return NoiseTerms(
        linear_B=s2 * std_B**2 * math.sqrt(2 * d_out) * float(np.linalg.norm(A @ A.T)),
        linear_A=s2 * std_A**2 * math.sqrt(2 * d_in) * float(np.linalg.norm(B.T @ B)),
        quadratic=s2 * (std_B * std_A) ** 2 * math.sqrt(2 * d_out * r * d_in * (d_out + d_in + r + 1)),
    )
