"""Right and wrong answers to the exercises of notebook 05."""

import numpy as np

from fedlora_course.exercises import FunctionAnswer


def _change(rng):
    """A change of a weight, and an A whose rows are neither of length 1 nor orthogonal."""
    d_out, d_in = (int(x) for x in rng.permutation(np.arange(6, 12))[:2])
    rank = int(rng.integers(2, 5))
    return rng.standard_normal((d_out, d_in)), rng.uniform(0, 1, (rank, d_in)) + 0.2


def _settings(rng):
    alpha = rng.uniform(2, 40)
    new_alpha = alpha * rng.uniform(1.5, 6) ** rng.choice([-1, 1])
    return rng.uniform(0.02, 2), rng.uniform(0.1, 4), alpha, new_alpha


def _round(rng):
    """Some clients, one with an empty batch; of an example's gradient for B some exceed C.

    The gradient for B is longer than that of the weight, or shorter.
    """
    C = float(rng.uniform(0.4, 3))
    d_out, r, d_in = (int(x) for x in rng.permutation(np.arange(2, 7))[:3])
    B = rng.standard_normal((d_out, r))
    A = rng.uniform(0.2, 1, (r, d_in))
    gamma = float(rng.choice([0.3, 3.0]) * rng.uniform(0.8, 1.25) / np.linalg.norm(A, 2))
    counts = rng.permutation([0, 2, 3, *rng.integers(2, 7, rng.integers(1, 4))])
    G = [rng.standard_normal((n, d_out, d_in)) + 0.5 for n in counts]
    for g in G:
        is_short = rng.permutation(np.arange(len(g)) % 2)
        wanted = C * np.where(is_short, rng.uniform(0.3, 0.9), rng.uniform(2, 5))
        g *= (wanted / _lengths(gamma * g @ A.T))[:, None, None]
    z = rng.standard_normal((len(G), d_out, r))
    return B, A, G, gamma, rng.uniform(0.3, 1), C, rng.uniform(0.5, 1.5), 4.5, z


# So small that what comes out can be followed by hand; an example's gradient for B is shorter than
# that for the weight, and longer.
SHORTER, LONGER = (
    (
        *(np.array([[x]]) for x in (1.0, 0.5)),
        [np.array(G)[:, None, None], np.zeros((0, 1, 1))],
        *(gamma, 0.5, 1.0, 0.5, 2.0),
        np.array([[[1.0]], [[-0.5]]]),
    )
    for gamma, G in ((0.5, [8.0]), (6.0, [1.0, 0.1]))
)
# One row along which A has length two: what is kept is 9 of 25.
ONE_ROW = np.array([[3.0, 4.0]]), np.array([[2.0, 0.0]])
# Two rows that are not orthogonal span the plane, so all is kept.
TWO_ROWS = np.array([[0.0, 5.0]]), np.array([[1.0, 0.0], [1.0, 1.0]])
CALLS = {
    "05.1": FunctionAnswer("B, A, G, gamma, lr, C, sigma, b and z", SHORTER, LONGER, draw=_round),
    "05.2": FunctionAnswer("change and A", ONE_ROW, TWO_ROWS, draw=_change),
    "05.3": FunctionAnswer("lr, C, alpha and new_alpha", (0.9, 1.0, 8.0, 24.0), draw=_settings),
}


# ---- 05.1: a round of FFA-LoRA


def ffa_round(B, A, G, gamma, lr, C, sigma, b, z):
    """One private round of FFA-LoRA.

    Args:
        B, A: the factors, (d_out, r) and (r, d_in); A is frozen.
        G: for each client the gradients of its n examples in the weight, (n, d_out, d_in); n may be
            0.
        gamma: scale of the product in the weight, > 0.
        lr: learning rate, > 0.
        C: clip norm, > 0.
        sigma: noise multiplier, >= 0.
        b: expected batch of a client, > 0.
        z: for each client standard normal numbers in the shape of B.
    Returns: the new B.
    """
    sent = []
    for g, noise in zip(G, z, strict=True):
        g_B = gamma * g @ A.T
        norms = np.sqrt((g_B**2).sum(axis=(1, 2)))
        scale = np.minimum(1, C / np.maximum(norms, 1e-12))[:, None, None]
        total = (g_B * scale).sum(axis=0) + sigma * C * noise
        sent.append(B - lr * total / b)
    return np.mean(sent, axis=0)


def _lengths(rows):
    return np.sqrt((rows**2).sum((1, 2)))


# ---- 05.2: what a frozen A keeps of a change


def kept_share(change, A):
    inside = change @ A.T @ np.linalg.inv(A @ A.T) @ A
    return (inside**2).sum() / (change**2).sum()


# ---- 05.3: the same run at another alpha


def same_run(lr, C, alpha, new_alpha):
    """The settings with which FFA-LoRA makes the same run at another alpha.

    Args:
        lr: learning rate at the old alpha, > 0.
        C: clip norm at the old alpha, > 0.
        alpha, new_alpha: the old and the new one, > 0.
    Returns: learning rate and clip norm at the new alpha.
    """
    c = new_alpha / alpha
    return lr / c**2, C * c
