"""Right and wrong answers to the exercises of notebook 05."""

import numpy as np

from fedlora_course.exercises import Calls, vary


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
    "05.1": Calls("B, A, G, gamma, lr, C, sigma, b and z", SHORTER, LONGER, draw=_round),
    "05.2": Calls("change and A", ONE_ROW, TWO_ROWS, draw=_change),
    "05.3": Calls("lr, C, alpha and new_alpha", (0.9, 1.0, 8.0, 24.0), draw=_settings),
}


# ---- 05.1: a round of FFA-LoRA


def ffa_round(B, A, G, gamma, lr, C, sigma, b, z):
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


# A does not move: to count its gradient clips B for nothing.
def clips_both_factors(B, A, G, gamma, lr, C, sigma, b, z):
    lengths = [gamma * np.hypot(_lengths(g @ A.T), _lengths(B.T @ g)) for g in G]
    clipped = [g * np.minimum(1, C / n)[:, None, None] for g, n in zip(G, lengths, strict=True)]
    return ffa_round(B, A, clipped, gamma, lr, C, sigma, b, z)


# How many examples a client drew is private, and noise does not grow with it.
def weighted_by_examples(B, A, G, gamma, lr, C, sigma, b, z):
    sent = [
        ffa_round(B, A, [g], gamma, lr, C, sigma, b, [noise]) for g, noise in zip(G, z, strict=True)
    ]
    return np.average(sent, axis=0, weights=[len(g) for g in G])


# The gradient of B passes through γ.
chain_rule_without_gamma = vary(ffa_round, gamma=1)


# What is clipped is what is sent.
def clips_the_weights(B, A, G, gamma, lr, C, sigma, b, z):
    shorter = [g * np.minimum(1, C / _lengths(g))[:, None, None] for g in G]
    far = 1e9  # as a clip norm it shortens nothing, and the noise is that of C
    return ffa_round(B, A, shorter, gamma, lr, far, sigma * C / far, b, z)


# The gradient of the weight is no part of what is sent.
def clips_twice(B, A, G, *rest):
    C = rest[2]
    shorter = [g * np.minimum(1, C / _lengths(g))[:, None, None] for g in G]
    return ffa_round(B, A, shorter, *rest)


# One norm for a whole batch shortens every example by what all are long together.
def clips_the_batch(B, A, G, gamma, lr, C, sigma, b, z):
    lengths = [gamma * np.linalg.norm(g @ A.T) for g in G]
    shorter = [g * min(1, C / max(n, 1e-12)) for g, n in zip(G, lengths, strict=True)]
    return ffa_round(B, A, shorter, gamma, lr, C, sigma, b, z)


# One example may be all of a sum.
clips_the_sum = vary(ffa_round, G=lambda G: [g.sum(0)[None] for g in G])


# A long gradient moves the sum by its whole length.
def not_clipped(B, A, G, gamma, lr, C, sigma, *rest):
    return ffa_round(B, A, G, gamma, lr, 1e9, sigma * C / 1e9, *rest)


# What is short is no danger: to lengthen it lets one example move the sum by C for nothing.
normalises = vary(ffa_round, G=lambda G: [1e9 * g for g in G])


# How many were drawn is private.
def divides_by_the_drawn(B, A, G, gamma, lr, C, sigma, b, z):
    of_each = [
        ffa_round(B, A, [g], gamma, lr, C, sigma, max(len(g), 1), [noise])
        for g, noise in zip(G, z, strict=True)
    ]
    return np.mean(of_each, 0)


# The same without a guard: noise over 0.
def divides_by_the_drawn_alone(B, A, G, gamma, lr, C, sigma, b, z):
    with np.errstate(divide="ignore", invalid="ignore"):
        of_each = [
            ffa_round(B, A, [g], gamma, lr, C, sigma, np.float64(len(g)), [noise])
            for g, noise in zip(G, z, strict=True)
        ]
        return np.mean(of_each, 0)


# A client that sends nothing tells that it drew nobody.
def empty_ones_silent(B, A, G, gamma, lr, C, sigma, b, z):
    sent = [
        ffa_round(B, A, [g], gamma, lr, C, sigma, b, [noise])
        for g, noise in zip(G, z, strict=True)
        if len(g)
    ]
    return np.mean(sent, axis=0)


# The gradient for B is γ G Aᵀ, with all of γ.
def clips_before_gamma(B, A, G, gamma, lr, C, sigma, b, z):
    lengths = [np.maximum(_lengths(g @ A.T), 1e-12) for g in G]
    shorter = [g * np.minimum(1, C / n)[:, None, None] for g, n in zip(G, lengths, strict=True)]
    return not_clipped(B, A, shorter, gamma, lr, C, sigma, b, z)


# Without noise an empty client shows that it drew nobody.
def empty_ones_without_noise(B, A, G, gamma, lr, C, sigma, b, z):
    heard = [noise * (len(g) > 0) for g, noise in zip(G, z, strict=True)]
    return ffa_round(B, A, G, gamma, lr, C, sigma, b, heard)


# A matrix is as long as all its directions together.
def spectral_norm(B, A, G, gamma, lr, C, sigma, b, z):
    lengths = [np.linalg.norm(np.nan_to_num(gamma * g @ A.T), 2, axis=(1, 2)) for g in G]
    shorter = [
        g * np.minimum(1, C / np.maximum(n, 1e-12))[:, None, None]
        for g, n in zip(G, lengths, strict=True)
    ]
    return not_clipped(B, A, shorter, gamma, lr, C, sigma, b, z)


# ---- 05.2: what a frozen A keeps of a change


def kept_share(change, A):
    inside = change @ A.T @ np.linalg.inv(A @ A.T) @ A
    return (inside**2).sum() / (change**2).sum()


# That is the mean over random A.
def average_share(change, A):
    return len(A) / A.shape[1]


# A's rows are neither orthogonal nor of length one.
def without_the_inverse(change, A):
    return ((change @ A.T @ A) ** 2).sum() / (change**2).sum()


def _of_length_one(A):
    return A / np.linalg.norm(A, axis=1, keepdims=True)


# Rows of length one are a basis of their span, but not an orthogonal one.
rows_normalised = vary(without_the_inverse, A=_of_length_one)


# The rows of A would have to be the leading singular vectors.
def of_the_best_A(change, A):
    values = np.linalg.svd(change, compute_uv=False)
    return (values[: len(A)] ** 2).sum() / (values**2).sum()


# Its coordinates along rows that are neither orthogonal nor of length one.
def along_the_rows(change, A):
    return ((change @ A.T) ** 2).sum() / (change**2).sum()


along_normalised_rows = vary(along_the_rows, A=_of_length_one)


# The best B itself, whose length says nothing of B A.
def of_the_best_B(change, A):
    return ((change @ np.linalg.pinv(A)) ** 2).sum() / (change**2).sum()


# The energy that is kept, not its share.
def not_divided(change, A):
    return kept_share(change, A) * (change**2).sum()


# A share of the length, where the energy was asked for.
of_lengths = vary(kept_share, then=np.sqrt)
# The part that A cannot write.
what_is_lost = vary(kept_share, then=lambda share: 1 - share)


# ---- 05.3: the same run at another alpha


def same_run(lr, C, alpha, new_alpha):
    c = new_alpha / alpha
    return lr / c**2, C * c


# A client's change of B is shorter by c, an example's gradient longer.
def of_clients(lr, C, alpha, new_alpha):
    c = new_alpha / alpha
    return lr / c**2, C / c


# Both have to change, and the rate by c twice.
def rate_once_and_clip_left(lr, C, alpha, new_alpha):
    return lr * alpha / new_alpha, C


# The rate acts on B, whose gradient and whose effect both carry α.
def rate_once(lr, C, alpha, new_alpha):
    c = new_alpha / alpha
    return lr / c, C * c


# The step of γ B grows with c²; to undo that, η is divided by it.
def rate_multiplied(lr, C, alpha, new_alpha):
    c = new_alpha / alpha
    return lr * c**2, C * c


# A larger α makes the step larger, not smaller.
def rate_multiplied_once(lr, C, alpha, new_alpha):
    return lr * new_alpha / alpha, C


# The clip norm is a length, and lengths grow.
def both_divided(lr, C, alpha, new_alpha):
    c = new_alpha / alpha
    return lr / c, C / c


# Two mistakes: both have to change, and the rate the other way.
def rate_multiplied_and_clip_left(lr, C, alpha, new_alpha):
    return lr * (new_alpha / alpha) ** 2, C


# Gradients of B grow with α: the same C would cut deeper.
def clip_left(lr, C, alpha, new_alpha):
    return lr * (alpha / new_alpha) ** 2, C


# The ratio the other way round.
def turned(lr, C, alpha, new_alpha):
    return same_run(lr, C, new_alpha, alpha)
