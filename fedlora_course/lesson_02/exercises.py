"""Right and wrong answers to the exercises of lesson 02."""

import numpy as np

from fedlora_course.exercises import FunctionAnswer


def _factors(rng, clients):
    return rng.standard_normal((clients, 6, 2)), rng.standard_normal((clients, 2, 4))


def _round(rng):
    clients, d_out, r, d_in = (int(x) for x in rng.permutation(np.arange(2, 9))[:4])
    shapes = (clients, d_out, r), (clients, r, d_in)
    return *map(rng.standard_normal, shapes), rng.integers(10, 200, clients)


def _many(rng):
    """So many pairs that the worst by one measure is seldom the worst by another."""
    return _factors(rng, clients=int(rng.integers(7, 10)))


# So small that what comes out can be followed by hand.
TWO_CLIENTS = np.array([[[1.0]], [[3.0]]]), np.array([[[2.0]], [[0.5]]]), np.array([1, 3])
# Products of gaps are −4, 6 and −3: the worst pair is neither the first nor the last.
THREE_CLIENTS = np.array([[[1.0]], [[0.0]], [[3.0]]]), np.array([[[1.0]], [[5.0]], [[4.0]]])
# The first two clients' product of gaps is the longest by the Frobenius norm, and that of the first
# and the third by the largest singular value.
RANK_2 = tuple(np.array([np.zeros((2, 2)), np.eye(2), np.diag([x, 0.0])]) for x in (1.3, 1.0))
CALLS = {
    "02.1": FunctionAnswer("B, A and n", TWO_CLIENTS, draw=_round),
    "02.3": FunctionAnswer("B and A", THREE_CLIENTS, RANK_2, draw=_many, times=25),
}


# ---- 02.1: a round of federated averaging


def fedavg_round(B, A, n):
    p = n / n.sum()
    mean_B = np.einsum("k,kor->or", p, B)
    mean_A = np.einsum("k,kri->ri", p, A)
    mean_product = np.einsum("k,kor,kri->oi", p, B, A)
    return mean_B, mean_A, mean_B @ mean_A - mean_product


# ---- 02.3: weights under which D does not vanish


def witness(B, A):
    worst = 0.0
    p = None
    for i in range(len(B)):
        for j in range(i):
            size = np.linalg.norm((B[i] - B[j]) @ (A[i] - A[j]))
            if size > worst:
                worst = size
                p = np.zeros(len(B))
                p[i] = p[j] = 0.5
    return p
