"""Noise and reach of an adapter at the start of training: A drawn at random, B zero."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import betaincinv

from fedlora_lab._utils.validation import check, check_symbols, check_whole


class Band(NamedTuple):
    """A mean with its interval; ``value in band`` says whether the interval covers a value."""

    mean: float
    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return self.low <= float(value) <= self.high  # type: ignore[arg-type]


def mean_band(samples: Float[np.ndarray, " n"], errors: float = 4.0) -> Band:
    """The mean of n >= 2 independent samples, plus and minus ``errors`` standard errors.

    4 is wrong once in 16,000 looks, 1.96 is the usual 95 % band.

    Guarantees: test_mean_band.
    """
    several = samples.ndim == 1 and len(samples) >= 2
    check(several, "samples", samples.shape, "one dimension, at least 2 samples")
    check_symbols(errors=errors)
    mean = float(np.mean(samples))
    half = errors * float(np.std(samples, ddof=1)) / math.sqrt(len(samples))
    return Band(mean, mean - half, mean + half)


def reachable_error(singular_values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """Smallest ||s B A - D||_F / ||D||_F of adapters of rank 0 ... n, from D's singular values.

    The scale s is not in it, since B can absorb it: alpha changes what is cheap to reach, never
    what can be reached.

    Guarantees: test_reachable_error_is_that_of_the_best_approximation.
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

    Guarantees: test_the_first_step_has_the_closed_form.
    Source: derived; fourth moments of the uniform law.
    """
    check_symbols(rank=rank, d_in=d_in)
    return FirstStep(rank / (3 * d_in), rank * (d_in + rank - 0.2) / (9 * d_in**2))


def descent_errors(
    target: Float[np.ndarray, "d_out d_in"],
    rank: int,
    alpha: float,
    steps: int = 200,
    lr: float = 0.1,
    seed: int = 0,
) -> Float[np.ndarray, " n"]:
    """Relative error of (alpha / rank) B A against ``target`` while both factors descend.

    Plain gradient descent on half the squared distance. It starts at B = 0 and a Kaiming A drawn
    from ``seed``, and returns steps + 1 errors, infinite from where it has diverged.

    Args:
        target: D, not zero.
        rank, steps: >= 1 and >= 0.
        alpha, lr: > 0 and >= 0.
        seed: of A.

    Guarantees: test_descent_ends_at_the_reachable_error.
    Source: the loop of arXiv:2106.09685 on a quadratic.
    """
    check_symbols(rank=rank, steps=steps, alpha=alpha, lr=lr)
    size = float(np.linalg.norm(target))
    check(size > 0, "target", target.shape, "a matrix that is not zero")
    gamma, (d_out, d_in) = alpha / rank, target.shape
    A = np.random.default_rng(seed).uniform(-1, 1, (rank, d_in)) / np.sqrt(d_in)
    B = np.zeros((d_out, rank))
    errors = np.full(steps + 1, np.inf)
    for step in range(steps + 1):
        G = gamma * B @ A - target
        error = np.linalg.norm(G) / size
        if not error < 1e3:
            break
        errors[step] = error
        B, A = B - lr * gamma * G @ A.T, A - lr * gamma * B.T @ G
    return errors


def row_space_share(
    rank: int, d_in: int, spectrum: "Float[np.ndarray, ' n'] | None" = None, level: float = 0.95
) -> Band:
    """Share of a wanted change's energy in the row space of a random A: r / d_in on average.

    With A frozen, W can only move within that space, whatever B becomes.

    Args:
        rank, d_in: r in [1, d_in], d_in >= 2.
        spectrum: singular values of the wanted change; ``None``: it has one direction.
        level: of the interval, in (0, 1).

    Guarantees: test_row_space_share.
    Source: derived; a projection on random directions has a beta law, exact for one direction, by
        two moments for more.
    """
    check_whole("d_in", d_in, 2)
    check_whole("rank", rank, 1, d_in)
    check_symbols(level=level)
    if rank == d_in:
        return Band(1.0, 1.0, 1.0)
    share = np.ones(1) if spectrum is None else np.square(spectrum) / np.sum(np.square(spectrum))
    concentrated = float(np.sum(share**2))
    one = 2 * rank * (d_in - rank) / (d_in**2 * (d_in + 2))
    variance = one * (concentrated - (1 - concentrated) / (d_in - 1))
    mean = rank / d_in
    size = mean * (1 - mean) / variance - 1
    ends = ((1 + side * level) / 2 for side in (-1, 1))
    return Band(mean, *(float(betaincinv(mean * size, (1 - mean) * size, p)) for p in ends))
