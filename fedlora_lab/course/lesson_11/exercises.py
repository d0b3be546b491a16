"""Right and wrong answers to the exercises of notebook 11: what gradients give away."""

import numpy as np
from numpy.linalg import norm, svd

from fedlora_lab.course.exercises import Calls, vary


def _direction(answer):
    """Brings a vector to length 1 and its largest entry above zero: size and sign do not count."""
    largest = answer.flat[np.abs(answer).argmax()]
    return answer * np.sign(largest) / max(norm(answer), 1e-300)


def _noised(rng):
    signal = np.outer(rng.standard_normal(5), rng.standard_normal(12))
    return (signal + 0.15 * rng.standard_normal((5, 12)),)


def _batch(rng):
    n = int(rng.integers(2, 5))
    candidates = rng.standard_normal((9, 16)) * rng.uniform(0.5, 3)
    mixed = rng.standard_normal((8, n)) @ candidates[rng.permutation(9)[:n]]
    return mixed + 1e-9 * rng.standard_normal((8, 16)), candidates, n


def _head(rng):
    error = rng.dirichlet(np.ones(10))
    error[rng.integers(10)] -= 1
    return (np.outer(error, rng.uniform(0, 1, 24)),)


CALLS = {
    "11.1": Calls("the gradient G", draw=_noised, standard=_direction),
    "11.2": Calls("G, candidates and n", draw=_batch),
    "11.4": Calls("the gradient G", draw=_head, times=8),
}


# ---- 11.1: the direction of one input


def read(G):
    return np.linalg.svd(G)[2][0]


# A row is the input only without noise and where its error is not zero.
def first_row(G):
    return G[0]


# The weights of the rows have both signs.
def mean_row(G):
    return G.mean(0)


# The direction of the errors, not of the inputs.
def left_vector(G):
    return svd(G)[0][:, 0]


# The transposed of the wanted vectors.
def column_for_row(G):
    return svd(G)[2][:, 0]


# ---- 11.2: the span attack


def outside(G, candidates, n):
    rows = np.linalg.svd(G, full_matrices=False)[2][:n]
    inside = candidates @ rows.T @ rows
    return np.linalg.norm(candidates - inside, axis=1) / np.linalg.norm(candidates, axis=1)


# All directions span everything: nothing lies outside.
def all_rows(G, candidates, n):
    return outside(G, candidates, len(G))


# Long candidates look further away.
def not_relative(G, candidates, n):
    return outside(G, candidates, n) * norm(candidates, axis=1)


# A share of energies.
energies = vary(outside, then=np.square)
# What lies inside.
inside_share = vary(outside, then=lambda share: (1 - share**2).clip(min=0) ** 0.5)


# ---- 11.4: the label, from the gradient of the last layer


def label(G):
    return G.sum(axis=1).argmin()


# The gradient of the right class is the negative one.
def raised_most(G):
    return G.sum(axis=1).argmax()


# A short row says that the model was sure, not which label was right.
def faintest(G):
    return norm(G, axis=1).argmin()


# Sums over the classes, of which one was asked for.
def of_the_features(G):
    return G.sum(axis=0).argmin()
