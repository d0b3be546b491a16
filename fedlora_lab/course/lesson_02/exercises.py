"""Right and wrong answers to the built exercises of notebook 02."""

from functools import partial
from itertools import combinations

import numpy as np
from numpy.linalg import norm

from fedlora_lab import theory
from fedlora_lab.course.exercises import Calls, vary


def _factors(rng, clients=5):
    return rng.standard_normal((clients, 6, 2)), rng.standard_normal((clients, 2, 4))


CALLS = {
    "02.1": Calls("B, A and n", draw=lambda rng: (*_factors(rng), rng.integers(10, 200, 5))),
    "02.3": Calls("B and A", draw=_factors),
}


# ---- 02.1: a round of federated averaging


def fedavg_round(B, A, n):
    p = n / n.sum()
    mean_B = np.einsum("k,kor->or", p, B)
    mean_A = np.einsum("k,kri->ri", p, A)
    mean_product = np.einsum("k,kor,kri->oi", p, B, A)
    return mean_B, mean_A, mean_B @ mean_A - mean_product


def with_the_library(B, A, n):
    p = n / n.sum()
    return np.tensordot(p, B, 1), np.tensordot(p, A, 1), theory.deviation_matrix(B, A, p)


def not_divided(B, A, n):
    mean_B, mean_A, _ = fedavg_round(B, A, n)
    mean_B, mean_A = n.sum() * mean_B, n.sum() * mean_A
    return mean_B, mean_A, mean_B @ mean_A - np.einsum("k,kor,kri->oi", n, B, A)


def weighted_twice(B, A, n):
    p = n / n.sum()
    mean_B, mean_A, _ = fedavg_round(B, A, n)
    products = [p[k] * B[k] @ (p[k] * A[k]) for k in range(len(n))]
    return mean_B, mean_A, mean_B @ mean_A - sum(products)


equal_weights = vary(fedavg_round, n=np.ones_like)
turned_round = vary(fedavg_round, then=lambda parts: (*parts[:2], -parts[2]))
swapped = vary(fedavg_round, then=lambda parts: (parts[1], parts[0], parts[2]))


# ---- 02.3: weights under which D does not vanish


def witness(B, A):
    worst, p = 0.0, None
    for i in range(len(B)):
        for j in range(i):
            size = np.linalg.norm((B[i] - B[j]) @ (A[i] - A[j]))
            if size > worst:
                worst, p = size, np.zeros(len(B))
                p[i] = p[j] = 0.5
    return p


def witness_at_once(B, A):
    gaps = np.einsum("ijor,ijrk->ijok", B[:, None] - B[None], A[:, None] - A[None])
    pair = np.unravel_index(norm(gaps, axis=(2, 3)).argmax(), (len(B), len(B)))
    p = np.zeros(len(B))
    p[list(pair)] = 0.5
    return p


def _pair(B, A, score=lambda b, a: norm(b @ a), weight=0.5):
    pairs = list(combinations(range(len(B)), 2))
    pair = pairs[np.argmax([score(B[i] - B[j], A[i] - A[j]) for i, j in pairs])]
    p = np.zeros(len(B))
    p[list(pair)] = weight
    return p


def one_client(B, A):
    p = np.zeros(len(B))
    p[np.argmax(norm(B @ A, axis=(1, 2)))] = 1.0
    return p


smallest_gap = partial(_pair, score=lambda b, a: -norm(b @ a))
not_normalised = partial(_pair, weight=1.0)
equal = lambda B, A: np.full(len(B), 1 / len(B))
