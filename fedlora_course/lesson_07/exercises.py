"""Right and wrong answers to the exercises of lesson 07."""

import numpy as np
from numpy.linalg import norm

from fedlora_course.exercises import Calls, vary


def _bowl(rng):
    eta = rng.uniform(0.05, 0.5)
    return rng.uniform(0.05, 0.5), eta, rng.uniform(0.2, 0.9) / eta


def _updates(rng):
    """Two clients change the product by more than C, others by less; A is stretched unequally."""
    left, right = (np.linalg.qr(rng.standard_normal((n, 3)))[0] for n in (3, 7))
    A = left @ np.diag([rng.uniform(1.5, 2.5), 1.0, rng.uniform(0.3, 0.6)]) @ right.T
    C = rng.uniform(0.5, 2)
    d_out, clients = int(rng.integers(4, 7)), int(rng.integers(4, 8))
    dB = rng.standard_normal((clients, d_out, 3))
    wanted = [rng.uniform(2, 4), rng.uniform(4, 8), *rng.uniform(0.2, 0.7, clients - 2)]
    dB *= (C * rng.permutation(wanted) / norm(dB @ A, axis=(1, 2)))[:, None, None]
    return dB, A, C, rng.uniform(0.5, 1.5), rng.standard_normal((d_out, 7))


# So small that what comes out can be followed by hand.
TWO_CLIENTS = (
    np.array([[[4.0]], [[0.1]]]),
    np.array([[2.0]]),
    1.0,
    0.5,
    np.array([[1.0]]),
)
CALLS = {
    "07.1": Calls("tau, eta and kappa", (0.02, 0.05, 4.0), draw=_bowl),
    "07.2": Calls("dB, A, C, sigma and xi", TWO_CLIENTS, draw=_updates),
}


# ---- 07.2: clip and noise in the space of the product


def release(dB, A, C, sigma, xi):
    total = np.zeros_like(xi)
    for change in dB @ A:
        total += change * min(1, C / np.linalg.norm(change))
    return (total + sigma * C * xi) @ np.linalg.pinv(A) / len(dB)


# The product may move by ‖A‖ times the clip norm.
def clips_the_factor(dB, A, C, sigma, xi):
    clipped = sum(change * min(1, C / norm(change)) for change in dB)
    return (clipped + sigma * C * xi @ np.linalg.pinv(A)) / len(dB)


# Only the pseudo-inverse gives back noise of one size in the product.
def transposed(dB, A, C, sigma, xi):
    plain = release(dB, A, C, 0, xi)
    return plain + sigma * C * xi @ A.T / len(dB)


# Nor does the transpose undo the product with A.
def transposed_whole(dB, A, C, sigma, xi):
    moved = release(dB, A, C, sigma, xi) @ A  # the clipped sum and the noise, within A's rows
    return moved @ A.T


# The first r columns of the noise have the law of plain noise.
def plain_noise(dB, A, C, sigma, xi):
    return release(dB, A, C, 0, xi) + sigma * C * xi[:, : len(A)] / len(dB)


# Without a clip one client may move the sum by anything.
def not_clipped(dB, A, C, sigma, xi):
    return release(dB, A, 1e9, sigma * C / 1e9, xi)


# A clip shortens, and lengthens nothing.
normalises = vary(release, dB=lambda dB: 1e9 * dB)


# One client may still turn the sum, or the mean, as it likes.
def clips_the_sum(dB, A, C, sigma, xi):
    return release(dB.sum(0, keepdims=True), A, C, sigma, xi) / len(dB)


def clips_the_mean(dB, A, C, sigma, xi):
    return release(dB.mean(0, keepdims=True), A, C, sigma / len(dB), xi)


# As many times too much noise as there are clients.
def noise_on_the_mean(dB, A, C, sigma, xi):
    return release(dB, A, C, sigma * len(dB), xi)


# ---- 07.1: what a direction costs


def price(tau, eta, kappa):
    mean_square = tau**2 / (1 - (1 - eta * kappa) ** 2)
    return kappa / 2 * mean_square


# Of (1 − ηκ)² the square of ηκ was left out.
def price_of_small_steps(tau, eta, kappa):
    return tau**2 / (4 * eta)


# Earlier rounds' noise is still there.
def of_one_round(tau, eta, kappa):
    return kappa * tau**2 / 2


# A deviation falls by 1 − ηκ, a variance by its square.
def variance_falls_once(tau, eta, kappa):
    return tau**2 / (2 * eta)


# Where the ball is, not what it costs.
def mean_square_alone(tau, eta, kappa):
    return 2 * price(tau, eta, kappa) / kappa


# The push has come since.
def before_the_push(tau, eta, kappa):
    return (1 - eta * kappa) ** 2 * price(tau, eta, kappa)
