"""Right and wrong answers to the exercises of notebook 09."""

import numpy as np

from fedlora_course.exercises import FunctionAnswer


def _uploads(rng):
    """Sizes that have nothing to do with each other; the rank of `SMALL` is another."""
    clients, rank = int(rng.integers(3, 8)), 2
    d_out, d_in = rng.permutation(np.arange(5, 12))[:2]
    return rng.standard_normal((clients, d_out, rank)), rng.standard_normal((clients, rank, d_in))


def _noises(rng):
    return *_uploads(rng), rng.uniform(0.3, 0.6)


# Two clients, rank 1: a difference is shown at these.
SMALL = (
    np.array([[[1.0], [2.0]], [[4.0], [0.0]]]),
    np.array([[[2.0, 1.0, 0.0]], [[1.0, -2.0, 3.0]]]),
)
CALLS = {
    "09.1": FunctionAnswer("B and A", SMALL, draw=_uploads),
    "09.2": FunctionAnswer("B and A", SMALL, draw=_uploads),
    "09.4": FunctionAnswer("z_B, z_A and tau", (*SMALL, 0.5), draw=_noises),
}


# ---- 09.1: a server with a residual


def serve(B, A):
    mean_B = B.mean(axis=0)
    mean_A = A.mean(axis=0)
    residual = (B @ A).mean(axis=0) - mean_B @ mean_A
    return mean_B, mean_A, residual


# ---- 09.2: what a truncation loses


def share_lost(B, A):
    values = np.linalg.svd((B @ A).mean(axis=0), compute_uv=False)
    rank = A.shape[1]
    return np.linalg.norm(values[rank:]) / np.linalg.norm(values)


# ---- 09.4: the noise that two servers keep


def noise_kept(z_B, z_A, tau):
    std = tau * len(z_B) ** 0.5
    noise_B = std * z_B
    noise_A = std * z_A
    of_factors = noise_B.mean(axis=0) @ noise_A.mean(axis=0)
    of_products = (noise_B @ noise_A).mean(axis=0)
    return (of_factors**2).sum(), (of_products**2).sum()
