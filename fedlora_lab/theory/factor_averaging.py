"""The mean of products is not the product of means: the deviation D, and when it vanishes.

B is (clients, d_out, r), A (clients, r, d_in); weights are p >= 0 with sum 1, ``None`` is
1 / clients each.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fedlora_lab._utils.validation import check

FactorsB = Float[np.ndarray, "clients d_out r"]
FactorsA = Float[np.ndarray, "clients r d_in"]
Weights = Float[np.ndarray, " clients"] | None
Matrix = Float[np.ndarray, "d_out d_in"]


def _weights(B: np.ndarray, A: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The weights, after a check of all three."""
    fits = B.ndim == A.ndim == 3 and len(B) == len(A) > 0 and B.shape[2] == A.shape[1]
    check(fits, "B, A", (B.shape, A.shape), "shapes (clients, d_out, r) and (clients, r, d_in)")
    p = np.full(len(B), 1 / len(B)) if weights is None else np.asarray(weights, float)
    good = p.shape == (len(B),) and bool(np.all(p >= 0)) and abs(float(p.sum()) - 1) < 1e-9
    check(good, "weights", weights, f"{len(B)} numbers >= 0 that sum to 1")
    return p


def deviation(B: FactorsB, A: FactorsA, weights: Weights = None) -> Matrix:
    """D = (sum p B)(sum p A) - sum p B A: what averaging factors adds to the mean of the products.

    Args: B, A: the clients' factors; weights: p.
    Guarantees: test_deviation.
    Source: arXiv:2403.12313, equations 3-5.
    """
    p = _weights(B, A, weights)
    return np.tensordot(p, B, 1) @ np.tensordot(p, A, 1) - np.einsum("i,ior,irk->ok", p, B, A)


def deviation_covariance(B: FactorsB, A: FactorsA, weights: Weights = None) -> Matrix:
    """The same D as minus a covariance over clients: -sum p (B - mean B)(A - mean A).

    Args: B, A: the clients' factors; weights: p.
    Guarantees: test_deviation_covariance.
    Source: derived; the expansion of `deviation` about the means.
    """
    p = _weights(B, A, weights)
    return -np.einsum("i,ior,irk->ok", p, B - np.tensordot(p, B, 1), A - np.tensordot(p, A, 1))


def sign_pairs() -> tuple[Float[np.ndarray, "4 1 1"], Float[np.ndarray, "4 1 1"]]:
    """Four clients of rank 1 with (b, a) = (+-1, +-1): D = 0 though neither factor is common.

    So "all A equal or all B equal" is sufficient for D = 0 but, for fixed weights, not necessary.

    Guarantees: test_sign_pairs.
    Source: derived; a counterexample to the literal reading of arXiv:2410.12926, theorem 1.
    """
    b, a = np.meshgrid([1.0, -1.0], [1.0, -1.0], indexing="ij")
    return b.reshape(4, 1, 1), a.reshape(4, 1, 1)


def vanishes_for_every_weighting(B: FactorsB, A: FactorsA, tolerance: float = 1e-12) -> bool:
    """Whether D = 0 for every choice of weights: if (B_i - B_j)(A_i - A_j) = 0 for all pairs.

    Args:
        B, A: the clients' factors.
        tolerance: largest entry that counts as zero, relative to the largest product of entries.

    Guarantees: test_vanishes_for_every_weighting.
    Source: derived; the rigorous form of arXiv:2410.12926, theorem 1.
    """
    _weights(B, A)
    gaps = np.einsum("ijor,ijrk->ijok", B[:, None] - B[None], A[:, None] - A[None])
    return bool(np.abs(gaps).max() <= tolerance * max(np.abs(B).max() * np.abs(A).max(), 1e-300))


class DeviationTerms(NamedTuple):
    """Expected squared norms of three uncorrelated parts of D.

    Of the clients' own factors, of noise on one factor against the gaps in the other, and of noise
    against noise.
    """

    data: float
    linear: float
    quadratic: float

    total = property(sum, doc="Of the whole: the parts are uncorrelated.")


def noisy_deviation(
    B: FactorsB,
    A: FactorsA,
    std_B: "float | np.ndarray",
    std_A: "float | np.ndarray",
    weights: Weights = None,
) -> DeviationTerms:
    """Expected ||D||_F^2 when each client's factors get independent Gaussian noise.

    quadratic = d_out d_in r sum_kl (p_k [k = l] - p_k p_l)^2 std_B,k^2 std_A,l^2, which is
    d_out d_in r std^4 (K - 1) / K^2 for equal weights and one std.

    Args:
        B, A: the clients' factors before the noise.
        std_B, std_A: of each entry, >= 0, one for all clients or one each.
        weights: p.

    Guarantees: test_noisy_deviation_is_the_mean_over_draws.
    Source: derived from `deviation_covariance`.
    """
    p = _weights(B, A, weights)
    u, v = (np.broadcast_to(np.asarray(std, float) ** 2, len(B)) for std in (std_B, std_A))
    check(bool(np.all(np.isfinite(u + v))), "std_B, std_A", (std_B, std_A), "numbers >= 0")
    gaps_B, gaps_A = (np.sum((x - np.tensordot(p, x, 1)) ** 2, axis=(1, 2)) for x in (B, A))
    data = np.sum(deviation_covariance(B, A, p) ** 2)
    linear = B.shape[1] * np.sum(p**2 * u * gaps_A) + A.shape[2] * np.sum(p**2 * v * gaps_B)
    spread = (np.diag(p) - np.outer(p, p)) ** 2
    quadratic = B.shape[1] * A.shape[2] * B.shape[2] * float(u @ spread @ v)
    return DeviationTerms(float(data), float(linear), quadratic)
