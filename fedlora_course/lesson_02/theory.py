"""Closed forms of lesson 02: the mean of products is not the product of means."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fedlora_lab._utils.validation import check

FactorsB = Float[np.ndarray, "clients d_out r"]
FactorsA = Float[np.ndarray, "clients r d_in"]
Weights = Float[np.ndarray, " clients"] | None
Matrix = Float[np.ndarray, "d_out d_in"]


def _weights(B: np.ndarray, A: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns the weights, after a check of all three."""
    fits = B.ndim == A.ndim == 3 and len(B) == len(A) > 0 and B.shape[2] == A.shape[1]
    check(fits, "B, A", (B.shape, A.shape), "shapes (clients, d_out, r) and (clients, r, d_in)")
    p = np.full(len(B), 1 / len(B)) if weights is None else np.asarray(weights, float)
    good = p.shape == (len(B),) and bool(np.all(p >= 0)) and abs(float(p.sum()) - 1) < 1e-9
    check(good, "weights", weights, f"{len(B)} numbers >= 0 that sum to 1")
    return p


def deviation_matrix(B: FactorsB, A: FactorsA, weights: Weights = None) -> Matrix:
    """D = (sum p B)(sum p A) - sum p B A: what averaging factors adds to the mean of the products.

    Args: B, A: the clients' factors; weights: p.
    Guarantees: taken away it leaves the mean of products
        (test_mistakes.py::test_the_line_lies_between_broken_and_sound); with weights its squared
        norm is the closed form's (test_noisy_deviation_is_the_mean_over_draws).
    Source: arXiv:2403.12313, equations 3-5.
    """
    p = _weights(B, A, weights)
    return np.tensordot(p, B, 1) @ np.tensordot(p, A, 1) - np.einsum("i,ior,irk->ok", p, B, A)


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

    Guarantees: the mean over draws (test_noisy_deviation_is_the_mean_over_draws).
    Source: derived; D is minus the covariance of B and A over clients.
    """
    p = _weights(B, A, weights)
    var_B = np.broadcast_to(np.asarray(std_B, float) ** 2, len(B))
    var_A = np.broadcast_to(np.asarray(std_A, float) ** 2, len(B))
    finite = bool(np.all(np.isfinite(var_B + var_A))) and min(np.min(std_B), np.min(std_A)) >= 0
    check(finite, "std_B, std_A", (std_B, std_A), "numbers >= 0")
    gaps_B = np.sum((B - np.tensordot(p, B, 1)) ** 2, axis=(1, 2))
    gaps_A = np.sum((A - np.tensordot(p, A, 1)) ** 2, axis=(1, 2))
    data = np.sum(deviation_matrix(B, A, p) ** 2)
    _, d_out, r = B.shape
    d_in = A.shape[2]
    linear = d_out * np.sum(p**2 * var_B * gaps_A) + d_in * np.sum(p**2 * var_A * gaps_B)
    # Squared weights of xi_B,k xi_A,l in D: a client's own product is also in the mean of products.
    spread = (np.diag(p) - np.outer(p, p)) ** 2
    quadratic = d_out * d_in * r * float(var_B @ spread @ var_A)
    return DeviationTerms(float(data), float(linear), quadratic)
