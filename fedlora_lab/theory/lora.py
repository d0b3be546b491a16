"""What a low-rank change W0 + scaling B A can reach, and how its first steps move."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fedlora_lab.checks import check, check_number, check_whole


def reachable_error(singular_values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """Smallest relative error ||s B A - D||_F / ||D||_F of any adapter of rank 0, 1, ... n, from D's singular values.

    The scale is not in it: B can absorb any s > 0, so alpha changes what is cheap to reach, never what can be reached.

    Args:
        singular_values: of D, >= 0, any order, not all zero.

    Returns: (n + 1,), from 1 at rank 0 down to 0.

    Guarantees: test_reachable_error.
    Source: Eckart & Young, The approximation of one matrix by another of lower rank (1936).
    """
    energy = np.sort(np.asarray(singular_values, float))[::-1] ** 2
    check(energy.ndim == 1 and bool(energy.sum() > 0), "singular_values", singular_values, "some of them > 0")
    # Summed from the small end, so that the last errors are not lost in rounding.
    left = np.append(np.cumsum(energy[::-1])[::-1], 0.0)
    return np.sqrt(left / left[0])


class FirstStep(NamedTuple):
    """Expectations over a Kaiming start, for a step of B along its gradient, G = dL/dW, at scaling 1 and rate 1.

    Args:
        along: of <G A^T A, G> / ||G||^2: the change of W along the full gradient.
        energy: of ||G A^T A||^2 / ||G||^2: the squared size of the change of W.
    """

    along: float
    energy: float

    @property
    def cosine(self) -> float:
        """Of the angle between the change and the full gradient, from both expectations: about sqrt(r / (k + r))."""
        return self.along / self.energy**0.5


def first_step(rank: int, d_in: int) -> FirstStep:
    """How the first step of an adapter moves W: at B = 0 only B moves, and W by -lr s^2 G A^T A.

    A has independent entries, uniform in [-1, 1] / sqrt(d_in): along = r / (3k), energy = r (k + r - 1/5) / (9k^2).

    Args:
        rank: r >= 1.
        d_in: k >= 1.

    Guarantees: test_first_step.
    Source: derived; fourth moments of the uniform law.
    """
    check_whole("rank", rank, 1)
    check_whole("d_in", d_in, 1)
    return FirstStep(rank / (3 * d_in), rank * (d_in + rank - 0.2) / (9 * d_in**2))


def approach(
    target: Float[np.ndarray, "d_out d_in"],
    rank: int,
    alpha: float,
    steps: int = 200,
    lr: float = 0.1,
    seed: int = 0,
) -> Float[np.ndarray, " n"]:
    """Relative error of (alpha / rank) B A against ``target`` while both factors descend from the usual start.

    Plain gradient descent on half the squared distance, its gradients written out: s B^T G for A and s G A^T for B.

    Args:
        target: D, not zero.
        rank: r >= 1.
        alpha: > 0.
        steps: >= 0.
        lr: >= 0.
        seed: of the Kaiming start of A; B starts at zero.

    Returns: (steps + 1,); infinite from where the descent has diverged.

    Guarantees: test_approach.
    Source: the loop of arXiv:2106.09685 on a quadratic.
    """
    check_whole("rank", rank, 1)
    check_whole("steps", steps, 0)
    check_number("alpha", alpha, 0, open_low=True)
    check_number("lr", lr, 0)
    size = float(np.linalg.norm(target))
    check(size > 0, "target", target.shape, "a matrix that is not zero")
    s, (d_out, d_in) = alpha / rank, target.shape
    A = np.random.default_rng(seed).uniform(-1, 1, (rank, d_in)) / np.sqrt(d_in)
    B = np.zeros((d_out, rank))
    errors = np.full(steps + 1, np.inf)
    for step in range(steps + 1):
        G = s * B @ A - target
        errors[step] = np.linalg.norm(G) / size
        if not errors[step] < 1e3:
            errors[step] = np.inf
            break
        B, A = B - lr * s * G @ A.T, A - lr * s * B.T @ G
    return errors
