"""Right and wrong answers to the exercises of notebook 11: what gradients give away."""

import numpy as np
from numpy.linalg import norm

from fedlora_course.exercises import FunctionAnswer


def _direction(answer):
    """Brings a vector to length 1 and its largest entry above zero: size and sign do not count."""
    if not answer.size:
        return answer
    largest = answer.flat[np.abs(answer).argmax()]
    return answer * np.sign(largest) / max(norm(answer), 1e-300)


def _noised(rng):
    shape = int(rng.integers(3, 7)), int(rng.integers(8, 15))
    signal = np.outer(*map(rng.standard_normal, shape))
    return (signal + 0.15 * rng.standard_normal(shape),)


def _batch(rng, full=0.3):
    """In some calls there are as many inputs as rows."""
    r, width, m = int(rng.integers(3, 8)), int(rng.integers(12, 19)), int(rng.integers(8, 12))
    n = r if rng.random() < full else int(rng.integers(2, r))
    candidates = rng.standard_normal((m, width)) * rng.uniform(0.5, 3, (m, 1))
    mixed = rng.standard_normal((r, n)) @ candidates[rng.permutation(m)[:n]]
    return mixed + 1e-9 * rng.standard_normal((r, width)), candidates, n


# Calls of few numbers, which a difference is shown at.
TWO_ROWS = np.array([[1.4, -0.5, 0.9], [-2.1, 1.1, -0.4]])
ONE_INPUT = (
    np.array([[1.0, 2.0, 2.0], [-2.0, -4.0, -4.0 + 1e-9]]),
    np.array([[3.0, 0.0, 4.0], [0.5, 1.0, 1.0], [2.0, 1.0, -2.0]]),
    1,
)
# The first two rows are one direction.
ALIKE_ROWS = (
    np.array([[1.0, 2, 2, 0], [2.0, 4, 4, 0], [1.0, 3, 1, 3 + 1e-9]]),
    np.array([[1.0, 2, 2, 0], [0.0, 1, -1, 3], [1.0, 0, 0, 0]]),
    2,
)
AS_MANY_AS_ROWS = _batch(np.random.default_rng(0), full=1.0)
CALLS = {
    "11.1": FunctionAnswer("the gradient g_A", (TWO_ROWS,), draw=_noised, standard=_direction),
    "11.2": FunctionAnswer(
        "g_A, candidates and n", ONE_INPUT, ALIKE_ROWS, AS_MANY_AS_ROWS, draw=_batch
    ),
}


# ---- 11.1: the direction of one input


def read(g_A):
    return np.linalg.svd(g_A)[2][0]


# ---- 11.2: the span attack


def outside(g_A, candidates, n):
    rows = np.linalg.svd(g_A, full_matrices=False)[2][:n]
    inside = candidates @ rows.T @ rows
    return np.linalg.norm(candidates - inside, axis=1) / np.linalg.norm(candidates, axis=1)
