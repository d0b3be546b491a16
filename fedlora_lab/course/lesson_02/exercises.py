"""Right and wrong answers to exercise 02.3: the relative deviation of a server's product."""

import numpy as np
from numpy.linalg import norm

from fedlora_lab.course.exercise import Calls

_DRAWS = np.random.default_rng(20)
CALLS = {
    "02.3": Calls("B and A", (_DRAWS.standard_normal((7, 6, 2)), _DRAWS.standard_normal((7, 2, 5))))
}


def relative(B, A):
    mean = np.mean(B @ A, axis=0)
    return norm(B.mean(0) @ A.mean(0) - mean) / norm(mean)


def covariance_form(B, A):
    gaps = np.einsum("ior,irk->ok", B - B.mean(0), A - A.mean(0))
    return norm(gaps) / norm(np.einsum("ior,irk->ok", B, A))


def of_norms(B, A):
    mean = np.mean(norm(B @ A, axis=(1, 2)))
    return abs(norm(B.mean(0) @ A.mean(0)) - mean) / mean


def absolute(B, A):
    return relative(B, A) * norm(np.mean(B @ A, axis=0))


def over_the_servers(B, A):
    return absolute(B, A) / norm(B.mean(0) @ A.mean(0))


def summed(B, A):
    total = np.sum(B @ A, axis=0)
    return norm(B.mean(0) @ A.mean(0) - total) / norm(total)


def squared(B, A):
    return relative(B, A) ** 2
