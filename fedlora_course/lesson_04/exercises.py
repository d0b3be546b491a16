"""Right and wrong answers to the exercises of notebook 04."""

import numpy as np

from fedlora_course.exercises import FunctionAnswer


def _factors(rng):
    d_out, r, d_in = (int(x) for x in rng.permutation(np.arange(2, 9))[:3])
    return rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in)), rng.uniform(0.2, 0.9)


def _plan(rng):
    lr, sigma, C = rng.uniform((0.05, 0.5, 0.3), (0.8, 4, 3))
    batch, clients, releases, d_in = rng.integers((4, 2, 5, 32), (65, 40, 400, 4096))
    return lr, sigma, C, batch, clients, releases, d_in


def _round(rng):
    """Some clients with gradients shorter and longer than C, one with an empty batch."""
    C = float(rng.uniform(0.4, 3))
    d_out, r, d_in = (int(x) for x in rng.permutation(np.arange(2, 7))[:3])
    counts = rng.permutation([0, 2, 3, *rng.integers(2, 7, rng.integers(1, 4))])
    g_A = [rng.standard_normal((n, r, d_in)) + 0.5 for n in counts]
    g_B = [rng.standard_normal((n, d_out, r)) + 0.5 for n in counts]
    for a, b in zip(g_A, g_B, strict=True):
        lengths = np.sqrt((a**2).sum((1, 2)) + (b**2).sum((1, 2)))
        is_short = rng.permutation(np.arange(len(a)) % 2)
        wanted = C * np.where(is_short, rng.uniform(0.3, 0.9), rng.uniform(2, 5))
        a *= (wanted / lengths)[:, None, None]
        b *= (wanted / lengths)[:, None, None]
    K = len(counts)
    noise = rng.standard_normal((K, d_out, r)), rng.standard_normal((K, r, d_in))
    factors = rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in))
    return *factors, g_B, g_A, rng.uniform(0.3, 1), C, rng.uniform(0.5, 1.5), 4.5, *noise


# So small that what comes out can be followed by hand.
NOBODY = np.zeros((0, 1, 1))
TWO_CLIENTS = (
    *(np.array([[x]]) for x in (1.0, 2.0)),
    *([np.array([[[x]]]), NOBODY] for x in (3.0, 4.0)),
    *(0.5, 1.0, 0.5, 2.0),
    *(np.array([[[x]], [[y]]]) for x, y in ((1.0, -0.5), (0.5, 2.0))),
)
SMALL_FACTORS = (
    np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
    np.array([[2.0], [1.0]]),
    0.5,
)
CALLS = {
    "04.1": FunctionAnswer("B, A and tau", SMALL_FACTORS, draw=_factors),
    "04.2": FunctionAnswer("lr, sigma, C, b, K, N and d_in", draw=_plan),
    "04.4": FunctionAnswer(
        "B, A, g_B, g_A, lr, C, sigma, b, z_B and z_A", TWO_CLIENTS, draw=_round
    ),
}


# ---- 04.1: the energy of the noise in a product


def energy(B, A, tau):
    (d_out, r) = B.shape
    d_in = A.shape[1]
    noise_on_B = tau**2 * d_out * (A**2).sum()
    noise_on_A = tau**2 * d_in * (B**2).sum()
    return noise_on_B + noise_on_A + tau**4 * d_out * d_in * r


# ---- 04.2: the amplification number


def rho_of(lr, sigma, C, b, K, N, d_in):
    """The amplification number of private FedLoRA.

    Args:
        lr: learning rate, > 0.
        sigma: noise multiplier of every client, >= 0.
        C: clip norm, > 0.
        b: expected batch of a client, > 0.
        K: number of clients.
        N: how often each factor is released.
        d_in: width of the layer's input.
    """
    tau = lr * sigma * C / (b * np.sqrt(K))
    return 3 * d_in * N * tau**2


# ---- 04.4: a private round


def private_round(B, A, g_B, g_A, lr, C, sigma, b, z_B, z_A):
    """One round of private FedLoRA with one local step.

    Args:
        B, A: the factors, (d_out, r) and (r, d_in).
        g_B, g_A: for each client the gradients of its n examples, (n, d_out, r) and (n, r, d_in);
            n may be 0.
        lr: learning rate, > 0.
        C: clip norm of an example's two gradients together, > 0.
        sigma: noise multiplier, >= 0.
        b: expected batch of a client, > 0.
        z_B, z_A: for each client standard normal numbers in the shapes of B and A.
    Returns: the means of B and of A.
    """
    new_A = []
    new_B = []
    for k in range(len(g_A)):
        norms = np.sqrt((g_A[k] ** 2).sum(axis=(1, 2)) + (g_B[k] ** 2).sum(axis=(1, 2)))
        scale = np.minimum(1, C / np.maximum(norms, 1e-12))[:, None, None]
        sum_A = (g_A[k] * scale).sum(axis=0) + sigma * C * z_A[k]
        sum_B = (g_B[k] * scale).sum(axis=0) + sigma * C * z_B[k]
        new_A.append(A - lr * sum_A / b)
        new_B.append(B - lr * sum_B / b)
    return np.mean(new_B, axis=0), np.mean(new_A, axis=0)
