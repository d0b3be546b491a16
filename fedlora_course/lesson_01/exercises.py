"""Right and wrong answers to the exercises of lesson 01."""

import numpy as np

from fedlora_course.exercises import FunctionAnswer


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
    "01.1": FunctionAnswer(
        "x, W0, B, A and gamma", (X, np.array([[1.0, 0.0]]), B, A, 3.0), draw=_layer
    ),
    "01.2": FunctionAnswer(
        "x, h, B, A and gamma", (X, np.array([[3.0]]), B, A, 3.0), draw=_upstream
    ),
    "01.3": FunctionAnswer("G, A, gamma and lr", (X, A, 3.0, 0.5), draw=_start),
}


# ---- 01.1: the forward pass


def lora_linear(x, W0, B, A, gamma):
    """The outputs of a LoRA linear layer.

    Args:
        x: inputs, (n, d_in).
        W0: frozen weight, (d_out, d_in).
        B, A: the factors, (d_out, r) and (r, d_in).
        gamma: scale of the product, > 0.
    Returns: (n, d_out).
    """
    return x @ W0.T + gamma * (x @ A.T) @ B.T


# ---- 01.2: the gradients of every example


def per_example(x, h, B, A, gamma):
    """The gradients of B and A for each example.

    Args:
        x: inputs, (n, d_in).
        h: derivative of each example's loss with respect to its output, (n, d_out).
        B, A: the factors, (d_out, r) and (r, d_in).
        gamma: scale of the product, > 0.
    Returns: the gradients of B, (n, d_out, r), and of A, (n, r, d_in).
    """
    grad_B = gamma * np.einsum("no,nr->nor", h, x @ A.T)
    grad_A = gamma * np.einsum("nr,ni->nri", h @ B, x)
    return grad_B, grad_A


# ---- 01.3: the first step of the weight


def first_move(G, A, gamma, lr):
    """The first move of the weight, while B is zero.

    Args:
        G: gradient of the loss in the whole weight, (d_out, d_in).
        A: (r, d_in).
        gamma: scale of the product, > 0.
        lr: learning rate, > 0.
    Returns: (d_out, d_in).
    """
    B = -lr * gamma * G @ A.T  # B was zero, so A has no gradient yet
    return gamma * B @ A
