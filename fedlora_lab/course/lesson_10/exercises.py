"""Right and wrong answers to the exercises of notebook 10."""

import numpy as np
from numpy.linalg import norm, qr, svd

from fedlora_lab.course.exercises import Calls, vary


def _uploads(rng):
    clients, rank = rng.integers(4, 7), rng.integers(2, 4)
    return rng.standard_normal((clients, 9, rank)), rng.standard_normal((clients, rank, 8))


CALLS = {
    "10.1": Calls("B and A", draw=_uploads),
    "10.2": Calls("B and A", draw=_uploads),
    "10.4": Calls("z_B, z_A and tau", draw=lambda rng: (*_uploads(rng), rng.uniform(0.3, 0.6))),
}


def serve(B, A):
    mean_B, mean_A = B.mean(axis=0), A.mean(axis=0)
    residual = (B @ A).mean(axis=0) - mean_B @ mean_A
    return mean_B, mean_A, residual


def serve_by_gaps(B, A):
    gaps = (B - B.mean(0)) @ (A - A.mean(0))
    return B.mean(0), A.mean(0), gaps.mean(0)


def summed_gaps(B, A):
    mean_B, mean_A, residual = serve(B, A)
    return mean_B, mean_A, len(B) * residual


def _cut(product, rank):
    values = svd(product, compute_uv=False)
    return norm(values[rank:]) / norm(values)


def share_lost(B, A):
    values = np.linalg.svd((B @ A).mean(axis=0), compute_uv=False)
    rank = A.shape[1]
    return np.linalg.norm(values[rank:]) / np.linalg.norm(values)


def from_thin_factors(B, A):
    left, right = np.concatenate(list(B), 1), np.concatenate(list(A))
    return _cut(qr(left)[1] @ qr(right.T)[1].T, A.shape[1])


def of_the_mean_factors(B, A):
    mean = (B @ A).mean(0)
    return norm(B.mean(0) @ A.mean(0) - mean) / norm(mean)


def next_value(B, A):
    values = svd((B @ A).mean(0), compute_uv=False)
    return values[A.shape[1]] / values[0]


def noise_kept(z_B, z_A, tau):
    own = tau * len(z_B) ** 0.5
    noise_B, noise_A = own * z_B, own * z_A
    of_factors = noise_B.mean(axis=0) @ noise_A.mean(axis=0)
    of_products = (noise_B @ noise_A).mean(axis=0)
    return (of_factors**2).sum(), (of_products**2).sum()


def noise_by_traces(z_B, z_A, tau):
    means = (tau**2 * len(z_B) * x for x in (z_B.mean(0) @ z_A.mean(0), (z_B @ z_A).mean(0)))
    return [np.trace(x @ x.T) for x in means]


def mean_of_energies(z_B, z_A, tau):
    products = tau**2 * len(z_B) * (z_B @ z_A)
    return noise_kept(z_B, z_A, tau)[0], (products**2).sum((1, 2)).mean()


deviation_for_residual = vary(serve, then=lambda parts: (*parts[:2], -parts[2]))
whole_product = lambda B, A: (B.mean(0), A.mean(0), (B @ A).mean(0))
no_residual = vary(serve, then=lambda parts: (*parts[:2], 0 * parts[2]))
factors_alone = vary(serve, then=lambda parts: parts[:2])
of_each_product = lambda B, A: np.mean([_cut(product, A.shape[1]) for product in B @ A])
share_kept = vary(share_lost, then=lambda share: (1 - share**2) ** 0.5)
squared = vary(share_lost, then=np.square)
absolute = lambda B, A: share_lost(B, A) * norm((B @ A).mean(0))
averaged_before_scaling = lambda z_B, z_A, tau: noise_kept(z_B, z_A, tau / len(z_B) ** 0.5)
norms_of_noise = vary(noise_kept, then=np.sqrt)
servers_swapped = vary(noise_kept, then=lambda parts: parts[::-1])
variance_for_std = lambda z_B, z_A, tau: noise_kept(z_B, z_A, tau * len(z_B) ** 0.5)
