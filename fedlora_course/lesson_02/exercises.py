"""Right and wrong answers to the exercises of lesson 02."""

from functools import partial

import numpy as np

from fedlora_course.exercises import Calls, vary


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
    "02.1": Calls("B, A and n", TWO_CLIENTS, draw=_round),
    "02.3": Calls("B and A", THREE_CLIENTS, RANK_2, draw=_many, times=25),
}


# ---- 02.1: a round of federated averaging


def fedavg_round(B, A, n):
    p = n / n.sum()
    mean_B = np.einsum("k,kor->or", p, B)
    mean_A = np.einsum("k,kri->ri", p, A)
    mean_product = np.einsum("k,kor,kri->oi", p, B, A)
    return mean_B, mean_A, mean_B @ mean_A - mean_product


# Sums, so that the factors grow with the number of examples.
def not_divided(B, A, n):
    sum_B = np.einsum("k,kor->or", n, B)
    sum_A = np.einsum("k,kri->ri", n, A)
    return sum_B, sum_A, sum_B @ sum_A - np.einsum("k,kor,kri->oi", n, B, A)


# These do not add up to one either.
divided_by_clients = vary(not_divided, n=lambda n: n / len(n))


# Divided twice: the weights add up to one already.
def mean_of_weighted(B, A, n):
    mean_B, mean_A, D = fedavg_round(B, A, n)
    means = mean_B @ mean_A
    return mean_B / len(n), mean_A / len(n), means / len(n) ** 2 - (means - D) / len(n)


# The mean of products is one over clients that count alike; or both of its factors are weighed.
def products_alike(B, A, n, weigh=lambda p: 0 * p + 1 / len(p)):
    mean_B, mean_A, _ = fedavg_round(B, A, n)
    p = weigh(n / n.sum())
    return mean_B, mean_A, mean_B @ mean_A - np.einsum("k,kor,kri->oi", p, B, A)


weighed_twice = partial(products_alike, weigh=np.square)


# One of the two in place of their difference.
mean_product = vary(fedavg_round, then=lambda parts: (*parts[:2], parts[0] @ parts[1] - parts[2]))
of_the_server = vary(fedavg_round, then=lambda parts: (*parts[:2], parts[0] @ parts[1]))
# Every client counts alike, however few examples it holds.
equal_weights = vary(fedavg_round, n=np.ones_like)
# Mean of products less product of means: the opposite sign.
turned_round = vary(fedavg_round, then=lambda parts: (*parts[:2], -parts[2]))


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


# One client alone deviates from nobody.
def one_client(B, A):
    p = np.zeros(len(B))
    p[np.argmax(np.linalg.norm(B @ A, axis=(1, 2)))] = 1.0
    return p


# Deviations of several clients may cancel where all count alike.
def equal(B, A):
    return np.full(len(B), 1 / len(B))


# Long gaps may have a short product.
def longest_gaps(B, A):
    sizes = [
        [np.linalg.norm(b - c) * np.linalg.norm(a - d) for c, d in zip(B, A)] for b, a in zip(B, A)
    ]
    return _worst_pair(sizes)


def _worst_pair(sizes):
    pair = np.unravel_index(np.argmax(sizes), np.shape(sizes))
    return np.isin(np.arange(len(sizes)), pair) / 2


# The products themselves may differ where D vanishes.
def gap_of_products(B, A):
    products = B @ A
    return _worst_pair([[np.linalg.norm(x - y) for y in products] for x in products])


# The largest singular value, where the root of the sum of all squares was asked for.
def spectral(B, A):
    pairs = [[(b - c) @ (a - d) for c, d in zip(B, A)] for b, a in zip(B, A)]
    return _worst_pair([[np.linalg.norm(x, 2) for x in row] for row in pairs])


# Entries of a matrix may cancel in their sum.
def summed_entries(B, A):
    pairs = [[(b - c) @ (a - d) for c, d in zip(B, A)] for b, a in zip(B, A)]
    return _worst_pair([[abs(x.sum()) for x in row] for row in pairs])


# The pair that differs least.
def smallest(B, A):
    sizes = [[np.linalg.norm((b - c) @ (a - d)) for c, d in zip(B, A)] for b, a in zip(B, A)]
    return _worst_pair(-np.array(sizes) - np.diag(np.full(len(B), np.inf)))


# The two clients farthest from the mean need not be the two farthest from each other.
def farthest_from_the_mean(B, A):
    gaps = (B - B.mean(axis=0)) @ (A - A.mean(axis=0))
    pair = np.argsort(np.linalg.norm(gaps, axis=(1, 2)))[-2:]
    return np.isin(np.arange(len(B)), pair) / 2


# One factor alone does not decide.
def gap_of_B(B, A):
    return _worst_pair([[np.linalg.norm(x - y) for y in B] for x in B])


# Weights of a mean add up to one.
not_normalised = vary(witness, then=lambda p: 2 * p)
