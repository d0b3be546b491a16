"""Right and wrong answers to the exercises of lesson 07."""

import numpy as np
from numpy.linalg import norm

from fedlora_course.exercises import FunctionAnswer


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
    "07.1": FunctionAnswer("tau, eta and kappa", (0.02, 0.05, 4.0), draw=_bowl),
    "07.2": FunctionAnswer("dB, A, C, sigma and Z_W", TWO_CLIENTS, draw=_updates),
}


# ---- 07.2: clip and noise in the space of the product


def release(dB, A, C, sigma, Z_W):
    """What the server adds to B in a round of the sound DEeR.

    Args:
        dB: the clients' changes of B, (K, d_out, r).
        A: frozen, (r, d_in).
        C: clip norm of a client's change of the product, > 0.
        sigma: noise multiplier, >= 0.
        Z_W: standard normal numbers, (d_out, d_in).
    Returns: (d_out, r).
    """
    total = np.zeros_like(Z_W)
    for change in dB @ A:
        total += change * min(1, C / np.linalg.norm(change))
    return (total + sigma * C * Z_W) @ np.linalg.pinv(A) / len(dB)


# ---- 07.1: what a direction costs


def price(tau, eta, kappa):
    mean_square = tau**2 / (1 - (1 - eta * kappa) ** 2)
    return kappa / 2 * mean_square
