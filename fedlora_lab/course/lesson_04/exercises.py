"""Right and wrong answers to the exercises of notebook 04."""

from functools import partial

import numpy as np

from fedlora_lab import theory
from fedlora_lab.course.exercises import Calls, vary


def _factors(rng):
    d_out, r, d_in = (int(x) for x in rng.permutation(np.arange(2, 9))[:3])
    return rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in)), rng.uniform(0.2, 0.9)


def _plan(rng):
    lr, sigma, C = rng.uniform(0.05, 0.8), rng.uniform(0.5, 4), rng.uniform(0.3, 3)
    counts = (int(rng.integers(*ends)) for ends in ((4, 65), (2, 40), (5, 400), (32, 4096)))
    return lr, sigma, C, *counts


def _round(rng):
    """Four clients with gradients shorter and longer than C, one with an empty batch."""
    clients, d_out, r, d_in = 4, 3, 2, 5
    counts = rng.permutation([0, 2, 3, 5])
    C = float(rng.uniform(0.5, 2))
    g_A = [rng.standard_normal((n, r, d_in)) + 0.5 for n in counts]
    g_B = [rng.standard_normal((n, d_out, r)) + 0.5 for n in counts]
    for a, b in zip(g_A, g_B, strict=True):
        lengths = np.sqrt((a**2).sum((1, 2)) + (b**2).sum((1, 2)))
        wanted = C * np.where(np.arange(len(a)) % 2, rng.uniform(0.3, 0.9), rng.uniform(2, 5))
        a *= (wanted / lengths)[:, None, None]
        b *= (wanted / lengths)[:, None, None]
    noise = rng.standard_normal((clients, d_out, r)), rng.standard_normal((clients, r, d_in))
    factors = rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in))
    return *factors, g_B, g_A, float(rng.uniform(0.3, 1)), C, rng.uniform(0.5, 1.5), 4.5, *noise


CALLS = {
    "04.1": Calls("B, A and tau", draw=_factors),
    "04.2": Calls("lr, sigma, C, b, K, N and d_in", draw=_plan),
    "04.4": Calls("B, A, g_B, g_A, lr, C, sigma, b, xi_B and xi_A", draw=_round),
}


# ---- 04.1


def energy(B, A, tau):
    (d_out, r), d_in = B.shape, A.shape[1]
    noise_on_B = tau**2 * d_out * (A**2).sum()
    noise_on_A = tau**2 * d_in * (B**2).sum()
    return noise_on_B + noise_on_A + tau**4 * d_out * d_in * r


def swapped(B, A, tau):
    terms = tau**2 * (A.shape[1] * np.sum(A**2) + len(B) * np.sum(B**2))
    return terms + quadratic(B, A, tau)


def norms(B, A, tau):
    terms = len(B) * np.linalg.norm(A) + A.shape[1] * np.linalg.norm(B)
    return tau**2 * terms + quadratic(B, A, tau)


by_theory = lambda B, A, tau: theory.noise_terms(B, A, tau, tau).total
linear = lambda B, A, tau: tau**2 * (len(B) * np.sum(A**2) + A.shape[1] * np.sum(B**2))
quadratic = lambda B, A, tau: tau**4 * B.size * A.shape[1]
squared_once = lambda B, A, tau: linear(B, A, tau) + quadratic(B, A, tau) / tau**2
without_rank = lambda B, A, tau: linear(B, A, tau) + quadratic(B, A, tau) / len(A)
root = vary(energy, then=np.sqrt)


# ---- 04.2


def rho_of(lr, sigma, C, b, K, N, d_in):
    tau = lr * sigma * C / (b * np.sqrt(K))
    return 3 * d_in * N * tau**2


def rho_of_the_library(lr, sigma, C, b, K, N, d_in):
    return theory.amplification(lr * sigma * C / b / K**0.5, N, d_in)


of_one_client = vary(rho_of, K=1)
divided_by_K = vary(rho_of, K=np.square)
without_the_batch = vary(rho_of, b=1)
lengths_added = vary(rho_of, N=np.square)
one_release = vary(rho_of, N=1)
without_the_three = vary(rho_of, then=lambda rho: rho / 3)
without_the_rate = vary(rho_of, lr=1)
tau_once = lambda lr, sigma, C, b, K, N, d_in: 3 * d_in * N * lr * sigma * C / (b * K**0.5)


# ---- 04.4


def private_round(B, A, g_B, g_A, lr, C, sigma, b, xi_B, xi_A):
    new_A, new_B = [], []
    for k in range(len(g_A)):
        norms = np.sqrt((g_A[k] ** 2).sum(axis=(1, 2)) + (g_B[k] ** 2).sum(axis=(1, 2)))
        scale = np.minimum(1, C / np.maximum(norms, 1e-12))[:, None, None]
        sum_A = (g_A[k] * scale).sum(axis=0) + sigma * C * xi_A[k]
        sum_B = (g_B[k] * scale).sum(axis=0) + sigma * C * xi_B[k]
        new_A.append(A - lr * sum_A / b)
        new_B.append(B - lr * sum_B / b)
    return np.mean(new_B, axis=0) @ np.mean(new_A, axis=0)


def on_one_vector(B, A, g_B, g_A, lr, C, sigma, b, xi_B, xi_A):
    """Flattens A and B of an example into one vector, and averages the changes."""
    change = np.zeros(A.size + B.size)
    for a, g, noise_A, noise_B in zip(g_A, g_B, xi_A, xi_B, strict=True):
        rows = np.concatenate([a.reshape(len(a), A.size), g.reshape(len(g), B.size)], axis=1)
        for row in rows:
            change += row / max(1.0, np.linalg.norm(row) / C)
        change += sigma * C * np.concatenate([noise_A.ravel(), noise_B.ravel()])
    change *= lr / b / len(g_A)
    return (B - change[A.size :].reshape(B.shape)) @ (A - change[: A.size].reshape(A.shape))


def _sizes(*parts):
    return np.sqrt(sum((part**2).sum((1, 2)) for part in parts))


def _scale(lengths, C):
    return np.minimum(1, C / np.maximum(lengths, 1e-12))[:, None, None]


def _means(made):
    return [np.mean(part, 0) for part in zip(*made, strict=True)]


def _round_of(
    *given,
    clip=lambda a, g, C: (_scale(_sizes(a, g), C),) * 2,
    noise=lambda n, sigma, C, b: sigma * C / b,
    divisor=lambda n, b: b,
    keep=lambda n: True,
    joined=lambda made: np.matmul(*_means(made)),
):
    """A round with one of its parts done otherwise."""
    B, A, g_B, g_A, lr, C, sigma, b, xi_B, xi_A = given
    made = []
    for a, g, noise_A, noise_B in zip(g_A, g_B, xi_A, xi_B, strict=True):
        if not keep(n := len(a)):
            continue
        by, level, (scale_A, scale_B) = divisor(n, b), noise(n, sigma, C, b), clip(a, g, C)
        new_A = A - lr * ((a * scale_A).sum(0) / by + level * noise_A)
        new_B = B - lr * ((g * scale_B).sum(0) / by + level * noise_B)
        made.append((new_B, new_A))
    return joined(made)


def _noise_of_the_drawn(n, sigma, C, b):
    return sigma * C / max(n, 1)


def clips_the_sum(*given):
    def clip(a, g, C):
        length = np.sqrt((a.sum(0) ** 2).sum() + (g.sum(0) ** 2).sum())
        return (min(1.0, C / max(length, 1e-12)),) * 2

    return _round_of(*given, clip=clip)


def stretches(*given):
    def clip(a, g, C):
        return ((C / np.maximum(_sizes(a, g), 1e-12))[:, None, None],) * 2

    return _round_of(*given, clip=clip)


def clips_after_averaging(B, A, g_B, g_A, lr, C, sigma, b, xi_B, xi_A):
    clients = len(g_A)
    a, g = (sum(x.sum(0) for x in parts) / (b * clients) for parts in (g_A, g_B))
    scale = min(1.0, C / b / np.sqrt((a**2).sum() + (g**2).sum()))
    a, g = (x * scale + sigma * C / b * xi.mean(0) for x, xi in ((a, xi_A), (g, xi_B)))
    return (B - lr * g) @ (A - lr * a)


def weighs_by_the_drawn(*given):
    drawn = [len(g) for g in given[2]]

    def joined(made):
        return np.matmul(*(np.average(part, 0, drawn) for part in zip(*made, strict=True)))

    return _round_of(*given, joined=joined)


def adds_up_clients(*given):
    def add(made):
        both = zip(_means(made), given, strict=False)  # B and A come first
        return np.matmul(*(start + len(made) * (mean - start) for mean, start in both))

    return _round_of(*given, joined=add)


clips_each_tensor = partial(_round_of, clip=lambda a, g, C: [_scale(_sizes(x), C) for x in (a, g)])
clips_nothing = partial(_round_of, clip=lambda a, g, C: (1.0, 1.0))
noise_on_the_mean = partial(_round_of, noise=lambda n, sigma, C, b: sigma * C)
noise_of_the_drawn = partial(_round_of, noise=_noise_of_the_drawn)
divides_by_the_drawn = partial(_round_of, noise=_noise_of_the_drawn, divisor=lambda n, b: max(n, 1))
silent_when_empty = partial(_round_of, noise=lambda n, sigma, C, b: sigma * C / b if n else 0.0)
leaves_the_empty_out = partial(_round_of, keep=bool)
noise_without_C = partial(_round_of, noise=lambda n, sigma, C, b: sigma / b)
averages_products = partial(_round_of, joined=lambda made: np.mean([b @ a for b, a in made], 0))
returns_the_change = lambda *given: private_round(*given) - given[0] @ given[1]
steps_uphill = vary(private_round, lr=np.negative)
without_noise = vary(private_round, sigma=0)
