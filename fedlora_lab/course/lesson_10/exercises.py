"""Right and wrong answers to exercise 10.3: what a cut of the mean product to rank r leaves out."""

import numpy as np
from numpy.linalg import norm, qr, svd

from fedlora_lab.course.exercise import Calls

_DRAWS = np.random.default_rng(100)
CALLS = {
    "10.3": Calls("B and A", (_DRAWS.standard_normal((5, 9, 2)), _DRAWS.standard_normal((5, 2, 8))))
}


def _cut(product, rank):
    values = svd(product, compute_uv=False)
    return norm(values[rank:]) / norm(values)


def share_lost(B, A):
    return _cut((B @ A).mean(0), A.shape[1])


def from_thin_factors(B, A):
    left, right = np.concatenate(list(B), 1), np.concatenate(list(A))
    return _cut(qr(left)[1] @ qr(right.T)[1].T, A.shape[1])


def of_the_mean_factors(B, A):
    mean = (B @ A).mean(0)
    return norm(B.mean(0) @ A.mean(0) - mean) / norm(mean)


def of_each_product(B, A):
    return np.mean([_cut(product, A.shape[1]) for product in B @ A])


def share_kept(B, A):
    return (1 - share_lost(B, A) ** 2) ** 0.5


def squared(B, A):
    return share_lost(B, A) ** 2


def absolute(B, A):
    return share_lost(B, A) * norm((B @ A).mean(0))


def next_value(B, A):
    values = svd((B @ A).mean(0), compute_uv=False)
    return values[A.shape[1]] / values[0]
