"""Closed forms of lesson 01: what a rank reaches, and where the first step goes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fedlora_lab._utils.validation import check, check_symbols


def reachable_error(singular_values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """Smallest ||s B A - D||_F / ||D||_F of adapters of rank 0 ... n, from D's singular values.

    The scale s is not in it, since B can absorb it: alpha changes what is cheap to reach, never
    what can be reached.

    Guarantees: that of the best approximation
        (test_reachable_error_is_that_of_the_best_approximation).
    Source: Eckart & Young, The approximation of one matrix by another of lower rank (1936).
    """
    energy = np.sort(np.asarray(singular_values, float))[::-1] ** 2
    some = energy.ndim == 1 and bool(energy.sum() > 0)
    check(some, "singular_values", singular_values, "some of them > 0")
    # Summed from the small end, so that the last errors are not lost in rounding.
    left = np.append(np.cumsum(energy[::-1])[::-1], 0.0)
    return np.sqrt(left / left[0])


class FirstStep(NamedTuple):
    """Expected <G A^T A, G> / ||G||^2 and ||G A^T A||^2 / ||G||^2 of a first step, G = dL/dW."""

    along: float
    energy: float

    @property
    def cosine(self) -> float:
        """Cosine between the change of W and the full gradient: about sqrt(r / (d_in + r))."""
        return self.along / self.energy**0.5


def first_step(rank: int, d_in: int) -> FirstStep:
    """Size and direction of the first move of W: at B = 0 only B moves, and W by -lr s^2 G A^T A.

    A has independent entries, uniform in [-1, 1] / sqrt(k) with k = d_in: along = r / (3k),
    energy = r (k + r - 1/5) / (9k^2).

    Guarantees: the mean over drawn starts (test_the_first_step_has_the_closed_form).
    Source: derived; fourth moments of the uniform law.
    """
    check_symbols(rank=rank, d_in=d_in)
    return FirstStep(rank / (3 * d_in), rank * (d_in + rank - 0.2) / (9 * d_in**2))
