"""Right and wrong answers to the exercises of notebook 03."""

import math

import numpy as np

from fedlora_course.exercises import FunctionAnswer
from fedlora_lab import theory


def _batch(rng: np.random.Generator) -> tuple:
    """Rows longer and shorter than C, and an expected batch that is not their number."""
    n, d = (int(x) for x in rng.permutation(np.arange(2, 8))[:2])
    clip = float(rng.uniform(0.4, 3))
    g = abs(rng.standard_normal((n, d)))  # so that the sum is long as well
    is_short = rng.permutation(np.arange(n) % 2)
    size = np.where(is_short, rng.uniform(0.2, 0.8, n), rng.uniform(1.5, 4, n)) * clip
    g *= (size / np.linalg.norm(g, axis=1))[:, None]
    return g, clip, float(rng.uniform(0.5, 3)), n + 1.5, rng.standard_normal(d)


def _rates(rng: np.random.Generator) -> tuple:
    return rng.uniform(0.003, 0.1), rng.uniform(1.5, 3), int(rng.integers(2, 10))


def _history(rng: np.random.Generator) -> tuple:
    releases = int(rng.integers(5, 300))
    return math.sqrt(releases) * float(rng.uniform(1, 3)), releases, 10 ** -rng.uniform(4, 7)


# An empty batch must release noise too: it is asked at every check.
EMPTY = np.zeros((0, 4)), 2.0, 1.5, 8.0, np.array([1.0, -0.5, 0.25, 2.0])
# So small that what comes out can be followed by hand.
FEW = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 2.0]]), 1.0, 0.5, 4.0, np.array([1.0, -1.0])
# The best order is the first of all, and the last.
MUCH_SPENT = 0.3, 4, 1e-5
LITTLE_SPENT = 200.0, 1, 1e-5
CALLS = {
    "03.1": FunctionAnswer("g, C, sigma, b and z", FEW, EMPTY, draw=_batch),
    "03.2": FunctionAnswer(
        "epsilon and mu", draw=lambda rng: (rng.uniform(0.2, 3), rng.uniform(0.5, 3))
    ),
    "03.3": FunctionAnswer("fpr, sigma and releases", draw=_rates),
    "03.4": FunctionAnswer("sigma, releases and delta", MUCH_SPENT, LITTLE_SPENT, draw=_history),
}


# ---- 03.1: one private release


def release(g, C, sigma, b, z):
    """One step of DP-SGD.

    Args:
        g: the gradient of one example in each row, (n, d); n may be 0.
        C: clip norm, > 0.
        sigma: noise multiplier, >= 0.
        b: expected size of a batch, > 0.
        z: standard normal numbers, (d,).
    Returns: what is released, (d,).
    """
    lengths = np.linalg.norm(g, axis=1, keepdims=True)
    clipped = g * np.minimum(1, C / np.maximum(lengths, 1e-12))
    return (clipped.sum(axis=0) + sigma * C * z) / b


# ---- 03.2: δ of a Gaussian release


def delta(epsilon, mu):
    from scipy.stats import norm

    inside = norm.cdf(mu / 2 - epsilon / mu)
    outside = norm.cdf(-mu / 2 - epsilon / mu)
    return inside - np.exp(epsilon) * outside


# ---- 03.3: the best attack


def tpr(fpr, sigma, releases):
    from scipy.stats import norm

    mu = np.sqrt(releases) / sigma
    return norm.cdf(norm.ppf(fpr) + mu)


# ---- 03.4: ε by Rényi divergences


def epsilon(sigma, releases, delta):
    bounds = []
    for order in range(2, 65):
        divergence = releases * order / (2 * sigma**2)
        bounds.append(divergence + np.log(1 / delta) / (order - 1))
    return min(bounds)


# Tight for Gaussian noise, and another way.
def exact_epsilon(sigma, releases, delta):
    return theory.gdp_epsilon(theory.gaussian_mu(sigma, releases), delta)


# A tighter conversion than the one that was derived.
def newer_conversion(sigma, releases, delta):
    orders = np.arange(2, 65)
    rdp = theory.sampled_gaussian_rdp(orders, 1.0, sigma, releases)
    return theory.rdp_to_epsilon(orders, rdp, delta)[0]
