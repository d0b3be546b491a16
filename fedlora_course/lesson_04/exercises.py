"""Right and wrong answers to the exercises of notebook 04."""

from functools import partial

import numpy as np

from fedlora_course.exercises import Calls, vary


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
    "04.1": Calls("B, A and tau", SMALL_FACTORS, draw=_factors),
    "04.2": Calls("lr, sigma, C, b, K, N and d_in", draw=_plan),
    "04.4": Calls("B, A, g_B, g_A, lr, C, sigma, b, xi_B and xi_A", TWO_CLIENTS, draw=_round),
}


# ---- 04.1: the energy of the noise in a product


def energy(B, A, tau):
    (d_out, r) = B.shape
    d_in = A.shape[1]
    noise_on_B = tau**2 * d_out * (A**2).sum()
    noise_on_A = tau**2 * d_in * (B**2).sum()
    return noise_on_B + noise_on_A + tau**4 * d_out * d_in * r


# Noise × noise alone.
def quadratic(B, A, tau):
    return tau**4 * B.size * A.shape[1]


# Leaves out noise × noise, which overtakes both others.
def linear(B, A, tau):
    return energy(B, A, tau) - quadratic(B, A, tau)


# An entry of noise × noise is a sum of r products.
def one_product(B, A, tau):
    return linear(B, A, tau) + tau**4 * len(B) * A.shape[1]


# Both numbers of a product are noise, so its variance is τ⁴.
def squared_once(B, A, tau):
    return linear(B, A, tau) + quadratic(B, A, tau) / tau**2


# Noise falls on all rows of E_B A and on all columns of B E_A.
def of_one_row(B, A, tau):
    return tau**2 * ((A**2).sum() + (B**2).sum()) + quadratic(B, A, tau)


# A sum over the r ranks, which is in the variance of an entry.
def rank_squared(B, A, tau):
    return linear(B, A, tau) + len(A) * quadratic(B, A, tau)


# Energies are squared lengths.
def lengths(B, A, tau):
    terms = len(B) * np.sqrt(np.sum(A**2)) + A.shape[1] * np.sqrt(np.sum(B**2))
    return tau**2 * terms + quadratic(B, A, tau)


# ‖A‖² is a sum over the r rows already.
def rank_twice(B, A, tau):
    return len(A) * linear(B, A, tau) + quadratic(B, A, tau)


# Noise on B is spread over d_out rows, noise on A over d_in columns.
def swapped(B, A, tau):
    terms = A.shape[1] * np.sum(A**2) + len(B) * np.sum(B**2)
    return tau**2 * terms + quadratic(B, A, tau)


# ---- 04.2: the amplification number


def rho_of(lr, sigma, C, b, K, N, d_in):
    tau = lr * sigma * C / (b * np.sqrt(K))
    return 3 * d_in * N * tau**2


# The mean of K clients has the noise of one over √K.
of_one_client = vary(rho_of, K=1)
# Variances, not lengths, are divided by K.
divided_by_K = vary(rho_of, K=np.square)


# The noise of the client unit, where no rate enters.
def of_the_client_unit(lr, sigma, C, b, K, N, d_in):
    return 3 * d_in * N * (sigma * C / K) ** 2


# An energy has τ².
def tau_not_squared(lr, sigma, C, b, K, N, d_in):
    return 3 * d_in * N * lr * sigma * C / (b * np.sqrt(K))


# The share of one energy in two, where their ratio was asked for.
def share_of_both(*given):
    rho = rho_of(*given)
    return rho / (1 + rho)


# Independent noise adds up in squares.
lengths_added = vary(rho_of, N=np.square)


# ---- 04.4: a private round


def private_round(B, A, g_B, g_A, lr, C, sigma, b, xi_B, xi_A):
    new_A = []
    new_B = []
    for k in range(len(g_A)):
        norms = np.sqrt((g_A[k] ** 2).sum(axis=(1, 2)) + (g_B[k] ** 2).sum(axis=(1, 2)))
        scale = np.minimum(1, C / np.maximum(norms, 1e-12))[:, None, None]
        sum_A = (g_A[k] * scale).sum(axis=0) + sigma * C * xi_A[k]
        sum_B = (g_B[k] * scale).sum(axis=0) + sigma * C * xi_B[k]
        new_A.append(A - lr * sum_A / b)
        new_B.append(B - lr * sum_B / b)
    return np.mean(new_B, axis=0), np.mean(new_A, axis=0)


# b times the noise that the clip asks for.
def noise_on_the_mean(B, A, g_B, g_A, lr, C, sigma, b, xi_B, xi_A):
    return private_round(B, A, g_B, g_A, lr, C, sigma * b, b, xi_B, xi_A)


# Two norms of C each: an example moves the pair by √2 C.
def clips_each_tensor(B, A, g_B, g_A, *rest):
    # Beside zeros each factor is clipped as if it were alone.
    new_B, _ = private_round(B, A, g_B, [0 * g for g in g_A], *rest)
    _, new_A = private_round(B, A, [0 * g for g in g_B], g_A, *rest)
    return new_B, new_A


# One example in a large batch could hide behind the others' lengths.
def clips_the_batch(B, A, g_B, g_A, lr, C, *rest):
    factors = [
        min(1, C / max(np.sqrt((g**2).sum() + (a**2).sum()), 1e-12)) for g, a in zip(g_B, g_A)
    ]
    g_B = [f * g for f, g in zip(factors, g_B)]
    g_A = [f * a for f, a in zip(factors, g_A)]
    return private_round(B, A, g_B, g_A, lr, C, *rest)


def _each(B, A, g_B, g_A, lr, C, sigma, b, xi_B, xi_A):
    """The factors of each client after its step, and how many examples it drew."""
    clients = zip(g_B, g_A, xi_B, xi_A)
    steps = [private_round(B, A, [g], [a], lr, C, sigma, b, [x], [y]) for g, a, x, y in clients]
    return zip(*steps), np.array([len(g) for g in g_B])


def _divided(B, A, g_B, g_A, lr, C, sigma, b, *noise, by):
    """A round in which a client that drew n examples divides by ``by(n, b)``."""
    factors, drawn = _each(B, A, g_B, g_A, lr, C, sigma, 1, *noise)
    shares = 1 / by(drawn, b)[:, None, None]
    return [start + np.mean(shares * (own - start), 0) for start, own in zip((B, A), factors)]


# How many were drawn is private; divided by none, it is 0 / 0.
divides_by_len = partial(_divided, by=lambda n, b: n)
divides_by_the_drawn = partial(_divided, by=lambda n, b: np.maximum(n, 1))
divides_by_the_drawn_or_b = partial(_divided, by=lambda n, b: np.where(n, n, b))


# The noise is divided rightly, and the sum by a private number.
def divides_the_sum_by_the_drawn(B, A, g_B, g_A, lr, C, sigma, b, *noise):
    given = B, A, g_B, g_A, lr, C
    signal = _divided(*given, 0, b, *noise, by=lambda n, b: np.maximum(n, 1))
    with_noise, without = (private_round(*given, x, b, *noise) for x in (sigma, 0))
    return [mean + x - y for mean, x, y in zip(signal, with_noise, without)]


# Weights that follow the draw are private as well.
def weighted_by_the_drawn(*given, most=np.inf):
    factors, drawn = _each(*given)
    return [np.average(own, axis=0, weights=np.minimum(drawn, most)) for own in factors]


# A client that sends nothing tells that it drew nothing.
empty_ones_silent = partial(weighted_by_the_drawn, most=1)


# Without noise an empty client shows that it drew nobody.
def empty_ones_without_noise(B, A, g_B, g_A, lr, C, sigma, b, xi_B, xi_A):
    noise = [[x * (len(g) > 0) for x, g in zip(xi, g_B)] for xi in (xi_B, xi_A)]
    return private_round(B, A, g_B, g_A, lr, C, sigma, b, *noise)


# Each client starts where the one before it ended.
def one_after_another(B, A, g_B, g_A, lr, *rest):
    factors, _ = _each(B, A, g_B, g_A, lr, *rest)
    return [start + np.sum(own - start, 0) for start, own in zip((B, A), factors)]


# Changes, where the server's new factors were asked for.
def changes_alone(B, A, *rest):
    new_B, new_A = private_round(B, A, *rest)
    return new_B - B, new_A - A


def _clipped_by(length, B, A, g_B, g_A, lr, C, sigma, *rest):
    """A round whose clip takes an example's length from the two sums of squares."""
    clipped = []
    for b, a in zip(g_B, g_A):
        lengths = length((b**2).sum((1, 2)), (a**2).sum((1, 2)))
        scale = np.minimum(1, C / np.maximum(lengths, 1e-12))[:, None, None]
        clipped.append((b * scale, a * scale))
    # A clip norm that clips nothing more, with the same noise.
    clipped_B, clipped_A = zip(*clipped)
    return private_round(B, A, clipped_B, clipped_A, lr, 1e9, sigma * C / 1e9, *rest)


# The two lengths are the sides of a right angle.
adds_the_norms = partial(_clipped_by, lambda b, a: np.sqrt(b) + np.sqrt(a))
forgets_the_root = partial(_clipped_by, np.add)


# A long gradient moves the sum by its whole length.
def not_clipped(B, A, g_B, g_A, lr, C, sigma, *rest):
    return private_round(B, A, g_B, g_A, lr, 1e9, sigma * C / 1e9, *rest)


# Makes every example as long as C, short ones too.
def normalises(B, A, g_B, g_A, *rest):
    return private_round(B, A, [1e9 * g for g in g_B], [1e9 * g for g in g_A], *rest)


# One example may still turn the sum wherever it likes.
def clips_the_sum(B, A, g_B, g_A, *rest):
    sums = [[g.sum(axis=0, keepdims=True) for g in of_all] for of_all in (g_B, g_A)]
    return private_round(B, A, *sums, *rest)
