"""Right and wrong answers to the exercises of notebook 03."""

import math
from functools import partial

import numpy as np
from scipy.special import ndtr

from fedlora_lab import theory
from fedlora_lab.course.exercises import Calls, vary


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
    "03.1": Calls("g, C, sigma, b and xi", FEW, EMPTY, draw=_batch),
    "03.2": Calls("epsilon and mu", draw=lambda rng: (rng.uniform(0.2, 3), rng.uniform(0.5, 3))),
    "03.3": Calls("fpr, sigma and releases", draw=_rates),
    "03.4": Calls("sigma, releases and delta", MUCH_SPENT, LITTLE_SPENT, draw=_history),
}


# ---- 03.1: one private release


def release(g, C, sigma, b, xi):
    lengths = np.linalg.norm(g, axis=1, keepdims=True)
    clipped = g * np.minimum(1, C / np.maximum(lengths, 1e-12))
    return (clipped.sum(axis=0) + sigma * C * xi) / b


# One example may still move the sum, or the mean, by its whole length.
clips_the_sum = vary(release, g=lambda g: g.sum(0, keepdims=True))


def clips_the_mean(g, C, sigma, b, xi):
    mean = g.sum(0, keepdims=True) / max(len(g), 1)
    return release(mean, C, sigma / b, 1, xi)


# The mean of the clipped rows, where their sum was to be noised.
def mean_for_the_sum(g, C, sigma, b, xi):
    return release(g, C, sigma * max(len(g), 1), b * max(len(g), 1), xi)


# How many were drawn is private: it differs between neighbours.
def divides_by_the_drawn(g, C, sigma, b, xi):
    return release(g, C, sigma, max(len(g), 1), xi)


# As above, and an empty batch gives 0 / 0.
def divides_by_len(g, C, sigma, b, xi):
    return release(g, C, sigma, 1, xi) / np.float64(len(g))


# A long row moves the sum by its whole length.
def not_clipped(g, C, sigma, b, xi):
    return (g.sum(axis=0) + sigma * C * xi) / b


# Makes every row as long as C, short ones too.
normalises = vary(release, g=lambda g: 1e9 * g)


# A row of d numbers at most C may be as long as √d C.
def clips_each_number(g, C, sigma, b, xi):
    return (np.clip(g, -C, C).sum(axis=0) + sigma * C * xi) / b


# The noise is divided rightly, and the sum by a private number.
def divides_the_sum_by_the_drawn(g, C, sigma, b, xi):
    return release(g, C, 0, max(len(g), 1), xi) + sigma * C * xi / b


# Silence tells that nobody was drawn.
def silent_if_empty(g, C, sigma, b, xi):
    return release(g, C, sigma, b, xi) * (len(g) > 0)


# As often as rows were drawn, so not at all from an empty batch.
def noise_for_each(g, C, sigma, b, xi):
    return release(g, C, sigma * len(g), b, xi)


# Normal numbers are multiplied by their standard deviation.
def variance_for_the_deviation(g, C, sigma, b, xi):
    return release(g, C, sigma**2 * C, b, xi)


# The noise is not divided by b: b times too much.
def noise_on_the_mean(g, C, sigma, b, xi):
    return release(g, C, 0, b, xi) + sigma * C * xi


# ---- 03.2: δ of a Gaussian release


def delta(epsilon, mu):
    from scipy.stats import norm

    inside = norm.cdf(mu / 2 - epsilon / mu)
    outside = norm.cdf(-mu / 2 - epsilon / mu)
    return inside - np.exp(epsilon) * outside


# Leaves out what ε allows.
def first_term(epsilon, mu):
    return ndtr(mu / 2 - epsilon / mu)


# The threshold lies at ε / μ.
def epsilon_not_divided(epsilon, mu):
    return ndtr(mu / 2 - epsilon) - math.exp(epsilon) * ndtr(-mu / 2 - epsilon)


# Accuses from z = ε on.
def accuses_from_epsilon(epsilon, mu):
    return ndtr(mu - epsilon) - math.exp(epsilon) * ndtr(-epsilon)


# Forgets the − μ²/2 of the loss.
def without_half_mu(epsilon, mu):
    return ndtr(mu - epsilon / mu) - math.exp(epsilon) * ndtr(-epsilon / mu)


# Solves μ z − μ²/2 > ε with the wrong sign.
def minus_half_mu(epsilon, mu):
    return ndtr(3 * mu / 2 - epsilon / mu) - math.exp(epsilon) * ndtr(mu / 2 - epsilon / mu)


# The two worlds change places, and the threshold stays.
def worlds_exchanged(epsilon, mu):
    return ndtr(-mu / 2 - epsilon / mu) - math.exp(epsilon) * ndtr(mu / 2 - epsilon / mu)


# The difference of the two chances, as at ε = 0.
def without_the_factor(epsilon, mu):
    return ndtr(mu / 2 - epsilon / mu) - ndtr(-mu / 2 - epsilon / mu)


# What lies below the threshold.
other_side = vary(delta, mu=np.negative)
# The distance of the two worlds is 1 / σ, not σ.
sigma_for_mu = vary(delta, mu=lambda mu: 1 / mu)


# The two worlds one apart, whatever μ is, and the right threshold.
def one_apart(epsilon, mu):
    threshold = epsilon / mu + mu / 2
    return ndtr(1 - threshold) - math.exp(epsilon) * ndtr(-threshold)


# ---- 03.3: the best attack


def tpr(fpr, sigma, releases):
    from scipy.stats import norm

    mu = np.sqrt(releases) / sigma
    return norm.cdf(norm.ppf(fpr) + mu)


# Forgets that the attacker sees all releases.
of_one_release = vary(tpr, releases=1)


# What the attack finds beyond guessing.
def advantage(fpr, sigma, releases):
    return tpr(fpr, sigma, releases) - fpr


# The curve bends to the other side.
below_guessing = vary(tpr, sigma=np.negative)
# The quantile of the upper tail, and again the upper tail.
not_found = vary(tpr, then=lambda found: 1 - found)


# The distance is the signal over the noise.
def noise_over_signal(fpr, sigma, releases):
    return tpr(fpr, releases / sigma, releases)


# μ grows with the root of the number of releases.
adds_up_mu = vary(tpr, releases=np.square)
# N / σ² is the square of how far the worlds are apart.
square_of_mu = vary(tpr, sigma=np.square, releases=np.square)
# The quantile of the others who are not accused.
upper_tail = vary(tpr, fpr=lambda fpr: 1 - fpr)


# ---- 03.4: ε by Rényi divergences


def epsilon(sigma, releases, delta):
    bounds = []
    for order in range(2, 65):
        divergence = releases * order / (2 * sigma**2)
        bounds.append(divergence + np.log(1 / delta) / (order - 1))
    return min(bounds)


def _best(sigma, releases, delta, *, choose=min, orders=range(2, 65), less=1):
    """The same with something else in one place."""
    return choose(
        releases * order / (2 * sigma**2) + math.log(1 / delta) / (order - less) for order in orders
    )


# Markov's inequality leaves the logarithm of 1/δ.
def delta_for_its_logarithm(sigma, releases, delta):
    return _best(sigma, releases, math.exp(-delta))


def inverse_for_its_logarithm(sigma, releases, delta):
    return min(releases * x / (2 * sigma**2) + 1 / delta / (x - 1) for x in range(2, 65))


# The divergence of two normals that are 1 / σ apart.
sigma_not_squared = vary(epsilon, sigma=np.sqrt)
two_forgotten = vary(epsilon, releases=lambda releases: 2 * releases)


# Any order is valid; which one is best depends on what was spent.
at_order_2, at_order_8, at_order_64 = (partial(_best, orders=[order]) for order in (2, 8, 64))
# A loss above ε comes with λ − 1 in the exponent.
order_not_less_one = partial(_best, less=0)
largest_bound = partial(_best, choose=max)
# `range` ends before its end.
orders_to_63 = partial(_best, orders=range(2, 64))


# The least of all real orders: 1 + the root of 2 σ² log(1/δ) / N.
def best_real_order(sigma, releases, delta):
    spent = releases / (2 * sigma**2)
    return spent + 2 * math.sqrt(spent * math.log(1 / delta))


# The logarithm of a moment is the divergence times λ − 1.
def moment_for_divergence(sigma, releases, delta):
    return min(
        releases * order * (order - 1) / (2 * sigma**2) + math.log(1 / delta) / (order - 1)
        for order in range(2, 65)
    )


# Tight for Gaussian noise, and another way.
def exact_epsilon(sigma, releases, delta):
    return theory.gdp_epsilon(theory.gaussian_mu(sigma, releases), delta)


# A tighter conversion than the one that was derived.
def newer_conversion(sigma, releases, delta):
    orders = np.arange(2, 65)
    rdp = theory.sampled_gaussian_rdp(orders, 1.0, sigma, releases)
    return theory.rdp_to_epsilon(orders, rdp, delta)[0]


# Each term at its own best order.
def terms_apart(sigma, releases, delta):
    return 2 * releases / (2 * sigma**2) + math.log(1 / delta) / 63


# Pays for δ in every release.
def adds_up_epsilons(sigma, releases, delta):
    return releases * epsilon(sigma, 1, delta)


# One release is less than the run.
forgets_the_releases = vary(epsilon, releases=1)
