"""Right and wrong answers to the exercises of notebook 14: a copy, a step, an attack."""

import numpy as np

from fedlora_course.exercises import FunctionAnswer
from fedlora_lab.methods.quantization import normal_levels


def _draw_numbers(rng):
    """Blocks of several sizes, the largest of each below zero, and a short one at the end."""
    block = int(rng.integers(5, 9))
    width = int(rng.integers(2, 4))
    blocks = int(rng.integers(2, 5))
    size = blocks * block - int(rng.integers(1, 4))
    x = rng.uniform(0.1, 0.9, size) * rng.choice([-1, 1], size)
    x[::block] = -1
    scales = np.repeat(rng.permutation([0.5, 1.7, 3.1, 6.0])[:blocks], block)[:size]
    return x * scales, np.array(normal_levels(width)), block


def _draw_step(rng):
    """Weights that sum to less than one: some clients did not answer."""
    clients = int(rng.integers(3, 7))
    size = int(rng.integers(4, 9))
    psi = rng.normal(size=size)
    uploads = rng.normal(size=(clients, size))
    sent = psi + rng.normal(0, 0.3, size)
    weights = rng.uniform(0.4, 0.9, clients) / clients
    return psi, sent, uploads, weights, rng.uniform(0.3, 0.9)


def _draw_copies(rng):
    """More rounds than are kept, and more than two of them, where a median is a mean."""
    shape = int(rng.integers(7, 11)), int(rng.integers(3, 8))
    return rng.normal(size=shape), int(rng.integers(3, 6))


# Calls of few numbers, which a difference is shown at.
FEW_NUMBERS = np.array([-2.0, 0.9, 0.6, 0.15, 3.0]), np.array([-1.0, 0.0, 0.4, 1.0]), 2
TWO_CLIENTS = (
    np.array([1.0, 2.0]),
    np.array([1.5, 1.5]),
    np.array([[2.0, 1.0], [3.0, 4.0]]),
    np.array([0.5, 0.3]),
    0.5,
)
FIVE_ROUNDS = np.array([[3.0, 1.0], [4.0, 1.0], [0.0, 2.0], [1.0, 4.0], [5.0, 9.0]]), 3

CALLS = {
    "14.1": FunctionAnswer("x, levels and block", FEW_NUMBERS, draw=_draw_numbers),
    "14.2": FunctionAnswer("psi, sent, uploads, weights and eta", TWO_CLIENTS, draw=_draw_step),
    "14.3": FunctionAnswer("copies and m", FIVE_ROUNDS, draw=_draw_copies),
}


# ---- 14.1: the copy


def receive(x, levels, block):
    copy = np.empty(len(x))
    for start in range(0, len(x), block):
        part = x[start : start + block]
        scale = np.abs(part).max()
        nearest = np.abs(part[:, None] / scale - levels).argmin(1)
        copy[start : start + block] = levels[nearest] * scale
    return copy


# A block has this many numbers; there are as many blocks as that takes.
def as_many_blocks(x, levels, block):
    parts = np.array_split(x, block)
    return np.concatenate([receive(part, levels, len(part)) for part in parts])


# ---- 14.2: the server's step


def server_step(psi, sent, uploads, weights, eta):
    """FedLPP's server step.

    Args:
        psi: the server's precise numbers.
        sent: their rounded copy, which the clients received.
        uploads: one row for each client that answered.
        weights: their planned weights, which sum to 1 at most.
        eta: rate of the server, > 0.
    Returns: as psi.
    """
    movement = weights @ (uploads - sent)  # of those that answered, at their planned weights
    return psi + eta * movement


# ---- 14.3: the attack


def attack(copies, m):
    return copies[-m:].mean(0)
