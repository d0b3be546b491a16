"""Right and wrong answers to the exercises of notebook 09."""

import numpy as np

from fedlora_course.exercises import Calls, vary


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
    "09.1": Calls("B and A", SMALL, draw=_uploads),
    "09.2": Calls("B and A", SMALL, draw=_uploads),
    "09.4": Calls("z_B, z_A and tau", (*SMALL, 0.5), draw=_noises),
}


# ---- 09.1: a server with a residual


def serve(B, A):
    mean_B = B.mean(axis=0)
    mean_A = A.mean(axis=0)
    residual = (B @ A).mean(axis=0) - mean_B @ mean_A
    return mean_B, mean_A, residual


# The factors' own product is then added twice.
def whole_product(B, A):
    return B.mean(0), A.mean(0), (B @ A).mean(0)


# Both products are of the averages.
residual_of_averages = vary(serve, then=lambda parts: (*parts[:2], 0 * parts[2]))


# The mean is missing: it grows with the clients.
def summed_gaps(B, A):
    mean_B, mean_A, residual = serve(B, A)
    return mean_B, mean_A, len(B) * residual


# What is asked for first comes first.
A_before_B = vary(serve, then=lambda parts: (parts[1], parts[0], parts[2]))


# The means are right, and the mean of the products is not divided.
def summed_products(B, A):
    mean_B, mean_A, _ = serve(B, A)
    return mean_B, mean_A, (B @ A).sum(0) - mean_B @ mean_A


# Adds the gap a second time in place of closing it.
deviation_for_residual = vary(serve, then=lambda parts: (*parts[:2], -parts[2]))


# ---- 09.2: what a truncation loses


def share_lost(B, A):
    values = np.linalg.svd((B @ A).mean(axis=0), compute_uv=False)
    rank = A.shape[1]
    return np.linalg.norm(values[rank:]) / np.linalg.norm(values)


# The deviation of another server.
def of_the_mean_factors(B, A):
    mean = (B @ A).mean(0)
    return np.linalg.norm(B.mean(0) @ A.mean(0) - mean) / np.linalg.norm(mean)


# A length, where a share was asked for.
def not_relative(B, A):
    return share_lost(B, A) * np.linalg.norm((B @ A).mean(0))


# What the truncation leaves.
share_kept = vary(share_lost, then=lambda share: (1 - share**2) ** 0.5)
# The norm of what is left, where that of the mean product was asked for.
over_the_kept = vary(share_lost, then=lambda share: share / (1 - share**2) ** 0.5)


def _share_of(B, A, which):
    """The norm of some singular values of the mean product over that of all."""
    values = np.linalg.svd((B @ A).mean(axis=0), compute_uv=False)
    return np.linalg.norm(values[which]) / np.linalg.norm(values)


# The squares of lengths add up, and not the lengths.
lengths_subtracted = vary(share_lost, then=lambda share: 1 - (1 - share**2) ** 0.5)


# The rank of the notebook's runs, for any rank.
def always_four(B, A):
    return _share_of(B, A, slice(4, None))


def first_dropped_alone(B, A):
    return _share_of(B, A, A.shape[1])


# NumPy counts from 0: the first r values end before values[r].
def one_more_dropped(B, A):
    return _share_of(B, A, slice(A.shape[1] + 1, None))


def one_kept_too_few(B, A):
    return _share_of(B, A, slice(A.shape[1] - 1, None))


def sums_of_values(B, A):
    values = np.linalg.svd((B @ A).mean(axis=0), compute_uv=False)
    return values[A.shape[1] :].sum() / values.sum()


# A product of one client, or of the mean factors, has rank r: nothing of it is cut off.
def nothing_lost(B, A):
    return 0.0


# One value of many.
def largest_alone(B, A):
    values = np.linalg.svd((B @ A).mean(axis=0), compute_uv=False)
    return values[A.shape[1]] / values[0]


# Energies, where lengths were asked for.
squared = vary(share_lost, then=np.square)


# ---- 09.4: the noise that two servers keep


def noise_kept(z_B, z_A, tau):
    std = tau * len(z_B) ** 0.5
    noise_B = std * z_B
    noise_A = std * z_A
    of_factors = noise_B.mean(axis=0) @ noise_A.mean(axis=0)
    of_products = (noise_B @ noise_A).mean(axis=0)
    return (of_factors**2).sum(), (of_products**2).sum()


# Each client's noise has the size that a mean of all would have.
def averaged_before_scaling(z_B, z_A, tau):
    return noise_kept(z_B, z_A, tau / len(z_B) ** 0.5)


# The factor is a root.
def variance_for_std(z_B, z_A, tau):
    return noise_kept(z_B, z_A, tau * len(z_B) ** 0.5)


# The mean of products comes second.
servers_swapped = vary(noise_kept, then=lambda parts: parts[::-1])


# The expected ratio, where that of these numbers was asked for.
def times_the_clients(z_B, z_A, tau):
    averaged = noise_kept(z_B, z_A, tau)[0]
    return averaged, len(z_B) * averaged


# Each product's energy, where that of their mean was asked for.
def mean_of_energies(z_B, z_A, tau):
    products = len(z_B) * tau**2 * z_B @ z_A
    return noise_kept(z_B, z_A, tau)[0], (products**2).sum((1, 2)).mean()
