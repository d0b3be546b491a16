"""Right and wrong answers to the exercises of notebook 11: what gradients give away."""

import numpy as np
from numpy.linalg import norm, svd

from fedlora_course.exercises import Calls, vary


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


def _head(rng):
    classes = int(rng.integers(5, 13))
    error = rng.dirichlet(np.ones(classes))
    error[rng.integers(classes)] -= 1
    return (np.outer(error, rng.uniform(0, 1, int(rng.integers(6, 25)))),)


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
THREE_CLASSES = np.outer([0.25, 0.25, -0.5], [1.0, 3.0])
# With noise more rows than one are negative, or none is.
TWO_NEGATIVE = np.array([[0.3], [-0.1], [-0.6], [0.2]])
NONE_NEGATIVE = np.array([[0.3], [0.05], [0.4]])
# With noise a single column may be lowest in another row: in the first all but the second column,
# in the other all but the third.
NOISY = np.array([[-0.2, 0.3, -0.2, 0.4], [-0.1, -1.2, -0.1, -0.1], [0.2, 0.5, 0.1, -0.2]])
NOISIER = np.array([[-0.1, -0.1, -1.2, -0.1], [0.2, -0.2, 0.1, 0.4], [-0.2, 0.3, 0.2, -0.2]])
# The lowest number stands in another row than the lowest sum, and so does the lowest largest one.
SCATTERED = np.array([[-1.3, 0.9, 0.5, 0.3], [-0.6, -0.5, -0.2, 0.1], [-0.1, 0.0, 0.05, -0.05]])
# Most numbers are negative in the second row, the first negative row is the first.
COUNTED = np.array([[-0.5, 0.3, 0.0, 0.0], [-0.1, -0.1, -0.1, -0.1], [-1.0, 0.2, 0.1, -0.3]])
CALLS = {
    "11.1": Calls("the gradient g_A", (TWO_ROWS,), draw=_noised, standard=_direction),
    "11.2": Calls("g_A, candidates and n", ONE_INPUT, ALIKE_ROWS, AS_MANY_AS_ROWS, draw=_batch),
    "11.4": Calls(
        "the gradient G",
        (THREE_CLASSES,),
        (TWO_NEGATIVE,),
        (NONE_NEGATIVE,),
        (NOISY,),
        (NOISIER,),
        (SCATTERED,),
        (COUNTED,),
        draw=_head,
        times=8,
    ),
}


# ---- 11.1: the direction of one input


def read(g_A):
    return np.linalg.svd(g_A)[2][0]


# A row is the input only without noise and where its error is not zero.
def first_row(g_A):
    return g_A[0]


# The loudest copy is noised like the others.
def loudest_row(g_A):
    return g_A[norm(g_A, axis=1).argmax()]


# Rows with little of the input are mostly noise, and count as much as the others.
def signed_mean(g_A):
    return (np.sign(g_A @ g_A[0])[:, None] * g_A).mean(0)


# The weights of the rows have both signs.
def mean_row(g_A):
    return g_A.mean(0)


# The direction of the errors, not of the inputs.
def left_vector(g_A):
    return svd(g_A)[0][:, 0]


# The weakest of the r directions: mostly noise.
def weakest_vector(g_A):
    return svd(g_A, full_matrices=False)[2][-1]


# Beyond the r-th, directions in which g_A has nothing at all.
def last_vector(g_A):
    return svd(g_A)[2][-1]


# `eigh` sorts from the smallest eigenvalue to the largest.
def smallest_eigenvector(g_A):
    return np.linalg.eigh(g_A.T @ g_A)[1][:, 0]


# `eigh` gives eigenvectors as columns.
def row_of_eigenvectors(g_A):
    return np.linalg.eigh(g_A.T @ g_A)[1][-1]


# The transposed of the wanted vectors.
def column_for_row(g_A):
    return svd(g_A)[2][:, 0]


# ---- 11.2: the span attack


def outside(g_A, candidates, n):
    rows = np.linalg.svd(g_A, full_matrices=False)[2][:n]
    inside = candidates @ rows.T @ rows
    return np.linalg.norm(candidates - inside, axis=1) / np.linalg.norm(candidates, axis=1)


# All directions span everything: nothing lies outside.
def all_rows(g_A, candidates, n):
    return outside(g_A, candidates, len(g_A))


# The first rows may be one direction, and rounding gives the other.
def first_rows(g_A, candidates, n):
    rows = np.linalg.qr(g_A[:n].T)[0].T
    inside = candidates @ rows.T @ rows
    return norm(candidates - inside, axis=1) / norm(candidates, axis=1)


# Long candidates look further away.
def not_relative(g_A, candidates, n):
    return outside(g_A, candidates, n) * norm(candidates, axis=1)


# NumPy gives the right singular vectors as rows.
def columns_for_rows(g_A, candidates, n):
    columns = svd(g_A)[2][:, :n]
    inside = candidates @ columns @ columns.T
    return norm(candidates - inside, axis=1) / norm(candidates, axis=1)


# A share of energies.
energies = vary(outside, then=np.square)
# Lengths at a right angle add up as squares.
one_minus_inside = vary(outside, then=lambda share: 1 - (1 - share**2).clip(min=0) ** 0.5)
# What lies inside.
inside_share = vary(outside, then=lambda share: (1 - share**2).clip(min=0) ** 0.5)


# ---- 11.4: the label, from the gradient of the last layer


def label(G):
    return G.sum(axis=1).argmin()


# The gradient of the right class is the negative one.
def raised_most(G):
    return G.sum(axis=1).argmax()


# Under noise the loudest row may be another.
def loudest(G):
    return norm(G, axis=1).argmax()


# Under noise more than one may be negative.
def first_negative(G):
    return (G.sum(axis=1) < 0).argmax()


# A short row says that the model was sure, not which label was right.
def faintest(G):
    return norm(G, axis=1).argmin()


# Sums over the classes, of which one was asked for.
def of_the_features(G):
    return G.sum(axis=0).argmin()


# Under noise another row may be lower in one column.
def in_one_column(G):
    return G[:, 0].argmin()


# A single number may be low by noise.
def of_the_lowest_number(G):
    return G.min(axis=1).argmin()


# A row of many small numbers may add up to little.
def counts_the_negative(G):
    return (G < 0).sum(axis=1).argmax()


# Counts through all numbers, row by row.
def place_in_all(G):
    return G.argmin()


# One class's row has one sign.
def in_the_first_row(G):
    return G[0].argmin()
