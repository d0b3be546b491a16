"""Right and wrong answers to the built exercises of notebook 05."""

from functools import partial

import numpy as np

from fedlora_lab.course.exercises import Calls, vary


def _change(rng):
    """A square change of a weight, and an A whose rows are neither of length 1 nor orthogonal."""
    width, rank = int(rng.integers(6, 12)), int(rng.integers(2, 5))
    return rng.standard_normal((width, width)), rng.uniform(0, 1, (rank, width)) + 0.2


def _settings(rng):
    alpha = rng.uniform(2, 40)
    new_alpha = alpha * rng.uniform(1.5, 6) ** rng.choice([-1, 1])
    return rng.uniform(0.02, 2), rng.uniform(0.1, 4), alpha, new_alpha


def _round(rng):
    """Four clients, one with an empty batch; of an example's gradient for B some exceed C."""
    d_out, r, d_in, gamma = 3, 2, 5, float(rng.uniform(1.5, 4))
    counts = rng.permutation([0, 2, 3, 5])
    C = float(rng.uniform(0.5, 2))
    B, A = rng.standard_normal((d_out, r)), rng.uniform(0.2, 1, (r, d_in))
    G = [rng.standard_normal((n, d_out, d_in)) + 0.5 for n in counts]
    for g in G:
        wanted = C * np.where(np.arange(len(g)) % 2, rng.uniform(0.3, 0.9), rng.uniform(2, 5))
        g *= (wanted / _lengths(gamma * g @ A.T))[:, None, None]
    xi = rng.standard_normal((len(G), d_out, r))
    return B, A, G, gamma, float(rng.uniform(0.3, 1)), C, float(rng.uniform(0.5, 1.5)), 4.5, xi


CALLS = {
    "05.1": Calls("change and A", draw=_change),
    "05.2": Calls("lr, C, alpha and new_alpha", draw=_settings),
    "05.3": Calls("B, A, G, gamma, lr, C, sigma, b and xi", draw=_round),
}


# ---- 05.1: what a frozen A keeps of a change


def kept_share(change, A):
    kept = change @ A.T @ np.linalg.inv(A @ A.T) @ A
    return (kept**2).sum() / (change**2).sum()


def by_orthonormal_rows(change, A):
    Q = np.linalg.qr(A.T)[0]
    return np.linalg.norm(change @ Q) ** 2 / np.linalg.norm(change) ** 2


def with_both_free(change, A):
    energy = np.linalg.svd(change, compute_uv=False) ** 2
    return energy[: len(A)].sum() / energy.sum()


without_the_inverse = lambda change, A: ((change @ A.T @ A) ** 2).sum() / (change**2).sum()
unit_rows = vary(without_the_inverse, A=lambda A: A / np.linalg.norm(A, axis=1, keepdims=True))
of_lengths = vary(kept_share, then=np.sqrt)
what_is_lost = vary(kept_share, then=lambda share: 1 - share)
on_average = lambda change, A: len(A) / A.shape[1]
from_the_left = vary(kept_share, change=np.transpose)


# ---- 05.2: the same run at another alpha


def same_run(lr, C, alpha, new_alpha):
    c = new_alpha / alpha
    return lr / c**2, C * c


def by_what_stays(lr, C, alpha, new_alpha):
    return lr * alpha**2 / new_alpha**2, C / alpha * new_alpha


def _moved(lr, C, alpha, new_alpha, *, rate=-2, clip=1):
    c = new_alpha / alpha
    return lr * c**rate, C * c**clip


rate_once = partial(_moved, rate=-1)
clip_left = partial(_moved, clip=0)
turned = partial(_moved, rate=2, clip=-1)
clip_falls = partial(_moved, clip=-1)
clip_squared = partial(_moved, clip=2)
nothing_moved = partial(_moved, rate=0, clip=0)


# ---- 05.3: a round of FFA-LoRA


def ffa_round(B, A, G, gamma, lr, C, sigma, b, xi):
    sent = []
    for g, noise in zip(G, xi, strict=True):
        g_B = gamma * g @ A.T
        norms = np.sqrt((g_B**2).sum(axis=(1, 2)))
        scale = np.minimum(1, C / np.maximum(norms, 1e-12))[:, None, None]
        total = (g_B * scale).sum(axis=0) + sigma * C * noise
        sent.append(B - lr * total / b)
    return gamma * np.mean(sent, axis=0) @ A


def averages_products(B, A, G, gamma, lr, C, sigma, b, xi):
    """The mean of the products, example by example: with one A it is the product of the means."""
    products = []
    for g, noise in zip(G, xi, strict=True):
        total = sigma * C * noise
        for row in gamma * g @ A.T:
            total = total + row / max(1.0, np.linalg.norm(row) / C)
        products.append(gamma * (B - lr * total / b) @ A)
    return np.mean(products, axis=0)


def _lengths(rows):
    return np.sqrt((rows**2).sum((1, 2)))


def _round_of(
    *given, length=None, chain=None, noise=lambda n, b: 1 / b, divisor=None, keep=None, end=None
):
    """A round with one of its parts done otherwise."""
    B, A, G, gamma, lr, C, sigma, b, xi = given
    sent = []
    for g, drawn in zip(G, xi, strict=True):
        if keep is not None and not keep(len(g)):
            continue
        g_B = (gamma if chain is None else chain) * g @ A.T
        norms = _lengths(g_B) if length is None else length(g, g_B, B, gamma)
        scale = np.minimum(1, C / np.maximum(norms, 1e-12))[:, None, None]
        by = b if divisor is None else divisor(len(g))
        step = (g_B * scale).sum(0) / by + sigma * C * noise(len(g), b) * drawn
        sent.append(B - lr * step)
    mean = np.mean(sent, 0)
    return gamma * mean @ A if end is None else end(mean)


def clips_both_factors(*given):
    def length(g, g_B, B, gamma):
        return np.sqrt(_lengths(g_B) ** 2 + _lengths(gamma * B.T @ g) ** 2)

    return _round_of(*given, length=length)


def moves_A_too(*given):
    B, A, G, gamma, lr, C, _, b, _ = given
    steps = [
        (gamma * B.T @ g * np.minimum(1, C / _lengths(gamma * g @ A.T))[:, None, None]).sum(0)
        for g in G
    ]
    moved = A - lr * np.mean(steps, 0) / b
    return _round_of(*given, end=lambda mean: gamma * mean @ moved)


def returns_the_change(*given):
    B, A, gamma = given[0], given[1], given[3]
    return ffa_round(*given) - gamma * B @ A


def steps_uphill(*given):
    B, A, gamma = given[0], given[1], given[3]
    return 2 * gamma * B @ A - ffa_round(*given)


clips_the_weights_gradient = partial(_round_of, length=lambda g, g_B, B, gamma: _lengths(g))
clips_nothing = partial(_round_of, length=lambda g, g_B, B, gamma: np.zeros(len(g)))
chain_rule_without_gamma = partial(_round_of, chain=1)
product_without_gamma = lambda *given: ffa_round(*given) / given[3]
noise_on_the_mean = partial(_round_of, noise=lambda n, b: 1)
noise_without_C = lambda *given: _round_of(*given, noise=lambda n, b: 1 / b / given[5])
divides_by_the_drawn = partial(
    _round_of, noise=lambda n, b: 1 / max(n, 1), divisor=lambda n: max(n, 1)
)
leaves_the_empty_out = partial(_round_of, keep=bool)
