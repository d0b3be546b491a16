"""Right and wrong answers to exercise 11.3: an input's direction, read from a gradient of A."""

import numpy as np
from numpy.linalg import eigh, norm, svd

from fedlora_lab.course.exercise import Calls

_DRAWS = np.random.default_rng(11)
_INPUT = _DRAWS.standard_normal(12)
GRADIENT = np.outer(_DRAWS.standard_normal(5), _INPUT) + 0.15 * _DRAWS.standard_normal((5, 12))


def _direction(found):
    """Size and sign do not matter."""
    found = found.ravel()
    return found * np.sign(found[np.abs(found).argmax()]) / max(norm(found), 1e-300)


CALLS = {"11.3": Calls("the gradient", (GRADIENT,), shape=None, within=1e-6, standard=_direction)}


def read(G):
    return svd(G)[2][0]


def by_eigenvector(G):
    return -3 * eigh(G.T @ G)[1][:, -1]


def first_row(G):
    return G[0]


def mean_row(G):
    return G.mean(0)


def loudest_row(G):
    return G[np.argmax(norm(G, axis=1))]


def least_direction(G):
    return svd(G, full_matrices=False)[2][-1]


def left_vector(G):
    return svd(G)[0][:, 0]


def column_for_row(G):
    return svd(G)[2][:, 0]


def unsigned(G):
    return np.abs(read(G))
