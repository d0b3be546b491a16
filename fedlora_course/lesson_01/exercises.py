"""Right and wrong answers to the exercises of lesson 01."""

import numpy as np

from fedlora_course.exercises import Calls, vary


def _sizes(rng):
    """Numbers of examples, outputs, rank and inputs: no two are equal, and each varies."""
    return (int(x) for x in rng.permutation(np.arange(2, 9))[:4])


def _layer(rng):
    n, d_out, r, d_in = _sizes(rng)
    shapes = (n, d_in), (d_out, d_in), (d_out, r), (r, d_in)
    return *map(rng.standard_normal, shapes), rng.uniform(2, 5)


def _upstream(rng):
    n, d_out, r, d_in = _sizes(rng)
    return *map(rng.standard_normal, ((n, d_in), (n, d_out), (d_out, r), (r, d_in))), rng.uniform(
        2, 5
    )


def _start(rng):
    _, d_out, r, d_in = _sizes(rng)
    return *map(rng.standard_normal, ((d_out, d_in), (r, d_in))), *rng.uniform((2, 0.2), (5, 0.8))


# So small that what comes out can be followed by hand.
X, B, A = np.array([[1.0, 2.0]]), np.array([[2.0]]), np.array([[0.5, 1.0]])
CALLS = {
    "01.1": Calls("x, W0, B, A and gamma", (X, np.array([[1.0, 0.0]]), B, A, 3.0), draw=_layer),
    "01.2": Calls("x, h, B, A and gamma", (X, np.array([[3.0]]), B, A, 3.0), draw=_upstream),
    "01.3": Calls("G, A, gamma and lr", (X, A, 3.0, 0.5), draw=_start),
}


# ---- 01.1: the forward pass


def lora_linear(x, W0, B, A, gamma):
    return x @ W0.T + gamma * (x @ A.T) @ B.T


# γ belongs to the adapter only: the frozen layer would change with α.
def base_scaled_too(x, W0, B, A, gamma):
    return gamma * lora_linear(x, W0, B, A, 1)


# Without γ another rank would be another step size.
without_scale = vary(lora_linear, gamma=1)
# An adapter adds to the layer, it does not replace it.
without_the_base = vary(lora_linear, W0=np.zeros_like)


# ---- 01.2: the gradients of every example


def per_example(x, h, B, A, gamma):
    grad_B = gamma * np.einsum("no,nr->nor", h, x @ A.T)
    grad_A = gamma * np.einsum("nr,ni->nri", h @ B, x)
    return grad_B, grad_A


# The sum over examples is what a framework gives, and cannot be clipped by example.
summed = vary(per_example, then=lambda parts: [part.sum(0) for part in parts])
# The chain rule passes through γ, too.
gradients_without_scale = vary(per_example, gamma=1)
# Divided by the batch, every gradient looks shorter to the clip than it is.
averaged = vary(per_example, then=lambda parts: [part / len(part) for part in parts])


# ---- 01.3: the first step of the weight


def first_move(G, A, gamma, lr):
    B = -lr * gamma * G @ A.T  # B was zero, so A has no gradient yet
    return gamma * B @ A


# Without the random matrix between gradient and step.
def full_training(G, A, gamma, lr):
    return -lr * G


# W₀ is frozen.
def both_kinds(G, A, gamma, lr):
    return full_training(G, A, gamma, lr) + first_move(G, A, gamma, lr)


# Only the mean of AᵀA over random A is a multiple of the identity.
def on_average(G, A, gamma, lr):
    rank, d_in = A.shape
    return -lr * gamma**2 * rank / (3 * d_in) * G


# The move of B; the weight moves by that times A.
def only_B(G, A, gamma, lr):
    return -lr * gamma * G @ A.T


# γ counts twice: in the gradient of B and in the product.
scale_once = vary(first_move, gamma=np.sqrt)
scale_thrice = vary(first_move, gamma=lambda gamma: gamma**1.5)
# Adds the gradient in place of taking it away.
uphill = vary(first_move, lr=np.negative)
