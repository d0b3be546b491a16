"""What noise on the factors does to the weight matrix they make."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fedlora_lab.checks import check, check_number, check_one_of, check_whole


class NoiseTerms(NamedTuple):
    """Expected squared norms of the three parts of scaling ((B + xi_B)(A + xi_A) - B A).

    Args:
        linear_B: of scaling xi_B A.
        linear_A: of scaling B xi_A.
        quadratic: of scaling xi_B xi_A, whose entries are sums of r products and not Gaussian.
    """

    linear_B: float
    linear_A: float
    quadratic: float

    @property
    def total(self) -> float:
        """Expected squared norm of the whole; the parts are uncorrelated."""
        return self.linear_B + self.linear_A + self.quadratic


class CycleTerms(NamedTuple):
    """Expected squared norms of what the two releases of a cycle do to W, each linear in its own fresh noise."""

    first: float
    second: float

    @property
    def total(self) -> float:
        """Expected squared norm of the whole; the two are uncorrelated."""
        return self.first + self.second


def _check(B: np.ndarray, A: np.ndarray, **numbers: float) -> None:
    fits = B.ndim == A.ndim == 2 and B.shape[1] == A.shape[0]
    check(fits, "B, A", (B.shape, A.shape), "shapes (d_out, r) and (r, d_in)")
    for name, number in numbers.items():
        check_number(name, number, 0)


def noise_terms(
    B: Float[np.ndarray, "d_out r"],
    A: Float[np.ndarray, "r d_in"],
    std_B: float,
    std_A: float,
    scaling: float = 1.0,
) -> NoiseTerms:
    """Energy that independent Gaussian noise on both factors puts into scaling B A.

    Args:
        B: (d_out, r).
        A: (r, d_in).
        std_B: standard deviation of the noise on each entry of B, >= 0; 0 for a factor without noise.
        std_A: the same for A.
        scaling: alpha / r, >= 0.

    Returns: ``NoiseTerms``, squared Frobenius norms over (d_out, d_in).

    Guarantees: test_noise_terms.
    Source: derived; the expansion stands in arXiv:2403.12313, section 3, the quadratic term in arXiv:2507.09990.
    """
    _check(B, A, std_B=std_B, std_A=std_A, scaling=scaling)
    (d_out, r), d_in, s2 = B.shape, A.shape[1], float(scaling) ** 2
    return NoiseTerms(
        linear_B=s2 * std_B**2 * d_out * float(np.sum(A * A)),
        linear_A=s2 * std_A**2 * d_in * float(np.sum(B * B)),
        quadratic=s2 * (std_B * std_A) ** 2 * d_out * d_in * r,
    )


def quadratic_share(std: float, d_in: int) -> float:
    """Quadratic over linear energy at the start of training: 3 std^2 d_in, for B = 0 and Kaiming A (|A|^2 = r / 3).

    Args:
        std: standard deviation on both factors, >= 0.
        d_in: k, >= 1.

    Guarantees: test_quadratic_share.
    Source: derived from `noise_terms`.
    """
    check_number("std", std, 0)
    check_whole("d_in", d_in, 1)
    return 3 * std**2 * d_in


def crossover(d_in: int) -> float:
    """The noise std at which the quadratic term overtakes the linear one at the start of training: 1 / sqrt(3 d_in).

    Guarantees: test_crossover.
    Source: derived from `quadratic_share`.
    """
    check_whole("d_in", d_in, 1)
    return 1 / math.sqrt(3 * d_in)


def linear_noise_norm(
    rank: int, alpha: float, std: float, d_out: int, start: str = "orthonormal", rank_stabilised: bool = False
) -> float:
    """Root mean square norm of scaling xi_B A at the start: alpha std sqrt(d_out / r); without the r when stabilised.

    Args:
        rank: r >= 1.
        alpha: > 0; scaling is alpha / r, or alpha / sqrt(r) when ``rank_stabilised``.
        std: noise on each entry of B, >= 0.
        d_out: >= 1.
        start: rows of A "orthonormal" (|A|^2 = r) or "kaiming" (|A|^2 = r / 3 in expectation).
        rank_stabilised: rsLoRA's scaling.

    Guarantees: test_linear_noise_norm.
    Source: derived; the stabilised scaling is arXiv:2312.03732.
    """
    check_whole("rank", rank, 1)
    check_whole("d_out", d_out, 1)
    check_number("alpha", alpha, 0, open_low=True)
    check_number("std", std, 0)
    check_one_of("start", start, ("orthonormal", "kaiming"))
    scaling = alpha / (math.sqrt(rank) if rank_stabilised else rank)
    return scaling * std * math.sqrt(d_out * rank / (3 if start == "kaiming" else 1))


def release_snr(
    d_out: int, d_in: int, rank: int, participants: int, noise_multiplier: float, train: str = "B"
) -> float:
    """Largest signal-to-noise ratio of one released mean of clipped updates: participants / (sigma sqrt(numbers)).

    The signal is a mean update of norm at most C when all clients agree; the noise on the mean has std sigma C / m on
    each released number. Rank costs sqrt(r); one factor against full fine-tuning gains sqrt(d_in / r).

    Args:
        d_out, d_in, rank: shape of the layer, >= 1.
        participants: m >= 1, with noise for the sum (central trust or secure aggregation).
        noise_multiplier: sigma > 0.
        train: "B", "A", "AB" or "full" (the whole matrix).

    Guarantees: test_release_snr.
    Source: derived.
    """
    for name, value in (("d_out", d_out), ("d_in", d_in), ("rank", rank), ("participants", participants)):
        check_whole(name, value, 1)
    check_number("noise_multiplier", noise_multiplier, 0, open_low=True)
    check_one_of("train", train, ("B", "A", "AB", "full"))
    numbers = {"B": d_out * rank, "A": rank * d_in, "AB": rank * (d_out + d_in), "full": d_out * d_in}[train]
    return participants / (noise_multiplier * math.sqrt(numbers))


def alternation_total(
    B: Float[np.ndarray, "d_out r"],
    A: Float[np.ndarray, "r d_in"],
    std_B: float,
    std_A: float,
    scaling: float = 1.0,
) -> CycleTerms:
    """Energy of a cycle in which B is released, then A, at updates held fixed.

    Each release is linear in its fresh noise, but the second multiplies a B that already holds the first's. The total
    equals that of `noise_terms`, quadratic term included: taking turns does not remove it. Arguments as there.

    Guarantees: test_alternation_total.
    Source: derived.
    """
    _check(B, A, std_B=std_B, std_A=std_A, scaling=scaling)
    (d_out, r), d_in, s2 = B.shape, A.shape[1], float(scaling) ** 2
    noised_B = float(np.sum(B * B)) + std_B**2 * d_out * r
    return CycleTerms(first=s2 * std_B**2 * d_out * float(np.sum(A * A)), second=s2 * std_A**2 * d_in * noised_B)


def accumulated_std(std: float, releases: int, lr: float = 1.0) -> float:
    """Standard deviation on a factor after so many releases of fresh noise: lr std sqrt(releases).

    Args:
        std: of one release, >= 0.
        releases: T >= 0.
        lr: step with which each release is added, >= 0.

    Guarantees: test_accumulated_std.
    Source: derived; variances of independent noise add.
    """
    check_number("std", std, 0)
    check_whole("releases", releases, 0)
    check_number("lr", lr, 0)
    return lr * std * math.sqrt(releases)


def factor_average_terms(
    B: Float[np.ndarray, "d_out r"],
    A: Float[np.ndarray, "r d_in"],
    std_B: float,
    std_A: float,
    clients: int,
    scaling: float = 1.0,
) -> NoiseTerms:
    """Energy when K clients noise the same factors, each with its own std, and the server averages the FACTORS.

    Args: as `noise_terms`; the stds are those of one client; clients: K >= 1.

    Guarantees: test_factor_average_terms.
    Source: derived; `noise_terms` at std / sqrt(K), so the quadratic term falls with K^2.
    """
    check_whole("clients", clients, 1)
    return noise_terms(B, A, std_B / math.sqrt(clients), std_A / math.sqrt(clients), scaling)


def product_average_terms(
    B: Float[np.ndarray, "d_out r"],
    A: Float[np.ndarray, "r d_in"],
    std_B: float,
    std_A: float,
    clients: int,
    scaling: float = 1.0,
) -> NoiseTerms:
    """Energy when the server averages the PRODUCTS instead (exact aggregation): the quadratic term falls only with K.

    Args: as `factor_average_terms`.

    Guarantees: test_product_average_terms.
    Source: derived; exact aggregation of factors noised by their clients costs K times the quadratic term.
    """
    check_whole("clients", clients, 1)
    one = noise_terms(B, A, std_B, std_A, scaling)
    return NoiseTerms(*(term / clients for term in one))
