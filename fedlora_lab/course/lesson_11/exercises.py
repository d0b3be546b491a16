"""Right and wrong functions of notebook 11: what is read from gradients of A and of the head."""

import numpy as np
from numpy.linalg import eigh, norm, pinv, svd

from fedlora_lab.course.exercises import Calls, vary

# ---- 11.1: the direction of one input


def _direction(found):
    """Size and sign do not matter."""
    found = found.ravel()
    return found * np.sign(found[np.abs(found).argmax()]) / max(norm(found), 1e-300)


def _noised(rng):
    signal = np.outer(rng.standard_normal(5), rng.standard_normal(12))
    return (signal + 0.15 * rng.standard_normal((5, 12)),)


def read(G):
    return np.linalg.svd(G)[2][0]


by_eigenvector = lambda G: -3 * eigh(G.T @ G)[1][:, -1]
first_row = lambda G: G[0]
mean_row = lambda G: G.mean(0)
least_direction = lambda G: svd(G, full_matrices=False)[2][-1]
left_vector = lambda G: svd(G)[0][:, 0]
column_for_row = lambda G: svd(G)[2][:, 0]
unsigned = vary(read, then=np.abs)


# ---- 11.2: the span attack


def _batch(rng):
    n, candidates = int(rng.integers(2, 5)), rng.standard_normal((9, 16)) * rng.uniform(0.5, 3)
    mixed = rng.standard_normal((8, n)) @ candidates[rng.permutation(9)[:n]]
    return mixed + 1e-9 * rng.standard_normal((8, 16)), candidates, n


def outside(G, candidates, n):
    rows = np.linalg.svd(G, full_matrices=False)[2][:n]
    inside = candidates @ rows.T @ rows
    return np.linalg.norm(candidates - inside, axis=1) / np.linalg.norm(candidates, axis=1)


def by_least_squares(G, candidates, n):
    rows = svd(G, full_matrices=False)[2][:n]
    rest = candidates - candidates @ pinv(rows) @ rows
    return norm(rest, axis=1) / norm(candidates, axis=1)


def first_rows_of_gradient(G, candidates, n):
    rows = G[:n] / norm(G[:n], axis=1, keepdims=True)
    rest = candidates - candidates @ rows.T @ rows
    return norm(rest, axis=1) / norm(candidates, axis=1)


all_rows = lambda G, candidates, n: outside(G, candidates, len(G))
inside_share = vary(outside, then=lambda share: (1 - share**2).clip(min=0) ** 0.5)
not_relative = lambda G, candidates, n: outside(G, candidates, n) * norm(candidates, axis=1)
squared_share = vary(outside, then=np.square)
one_direction = vary(outside, n=1)


# ---- 11.4: the label, from the gradient of the last layer


def _head(rng):
    raw = np.exp(rng.standard_normal(10))
    error, label = raw / raw.sum(), int(rng.integers(10))
    error[label] -= 1
    return (np.outer(error, rng.uniform(0, 1, 24)),)


def label(G):
    return G.sum(axis=1).argmin()


loudest_class = lambda G: norm(G, axis=1).argmax()
raised_most = lambda G: G.sum(axis=1).argmax()
faintest = lambda G: norm(G, axis=1).argmin()
of_the_features = lambda G: G.sum(axis=0).argmin()

CALLS = {
    "11.1": Calls("the gradient G", draw=_noised, standard=_direction),
    "11.2": Calls("G, candidates and n", draw=_batch),
    "11.4": Calls("the gradient G", draw=_head, times=8),
}
