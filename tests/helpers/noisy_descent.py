"""Least squares of two factors under descent with noise, as lessons 06 and 07 speak of it."""

from collections.abc import Iterable, Iterator

import numpy as np

SHAPES = (20, 3), (3, 30)


def minimum(rng):
    """Two factors whose columns and rows are orthonormal; their product is the goal."""
    B, A = (np.linalg.qr(rng.standard_normal((max(shape), 3)))[0] for shape in SHAPES)
    return B, A.T


def noisy_descent(
    B: np.ndarray, A: np.ndarray, goal: np.ndarray, tau: float, rng, words: Iterable[str]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both factors after every round; what a word of the schedule names moves, and is noised."""
    for word in words:
        error = B @ A - goal
        new_B = B - 0.05 * error @ A.T + tau * rng.standard_normal(B.shape)
        new_A = A - 0.05 * B.T @ error + tau * rng.standard_normal(A.shape)
        B, A = (new_B if "B" in word else B, new_A if "A" in word else A)
        yield B, A


def miss(B, A, goal):
    """The squared error of the product."""
    return np.square(B @ A - goal).sum()
