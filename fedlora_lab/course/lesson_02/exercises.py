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
    "02.2": Calls("B and A", draw=_factors),
    "02.4": Calls("B and A", draw=_factors),
    "02.5": Calls(
        "B, A, p and gamma",
        draw=lambda rng: (*_factors(rng), rng.dirichlet(np.ones(5)), rng.uniform(2, 8)),
    ),
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


# ---- 02.2: the relative deviation


def relative(B, A):
    mean = (B @ A).mean(0)
    return np.linalg.norm(B.mean(0) @ A.mean(0) - mean) / np.linalg.norm(mean)


def covariance_form(B, A):
    gaps = np.einsum("kor,kri->oi", B - B.mean(0), A - A.mean(0))
    return norm(gaps) / norm(np.einsum("kor,kri->oi", B, A))


def of_norms(B, A):
    mean = np.mean(norm(B @ A, axis=(1, 2)))
    return abs(norm(B.mean(0) @ A.mean(0)) - mean) / mean


def summed(B, A):
    total = np.sum(B @ A, axis=0)
    return norm(B.mean(0) @ A.mean(0) - total) / norm(total)


absolute = lambda B, A: relative(B, A) * norm(np.mean(B @ A, axis=0))
over_the_servers = lambda B, A: absolute(B, A) / norm(B.mean(0) @ A.mean(0))
squared = vary(relative, then=np.square)


# ---- 02.4: weights under which D does not vanish


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


# ---- 02.5: the residual that makes the server exact


def residual(B, A, p, gamma):
    mean_B = np.einsum("k,kor->or", p, B)
    mean_A = np.einsum("k,kri->ri", p, A)
    mean_product = np.einsum("k,kor,kri->oi", p, B, A)
    return gamma * (mean_product - mean_B @ mean_A)


minus_the_deviation = lambda B, A, p, gamma: -gamma * theory.deviation_matrix(B, A, p)
turned = vary(residual, then=np.negative)
without_scale = vary(residual, gamma=1)
whole_product = lambda B, A, p, gamma: gamma * np.einsum("k,kor,kri->oi", p, B, A)
of_equal_clients = vary(residual, p=lambda p: np.full(len(p), 1 / len(p)))
