"""Right and wrong answers to the exercises of lesson 08."""

import numpy as np

from fedlora_course.exercises import FunctionAnswer


def _least_squares(rng):
    """Factors, and the gradients of |B A x - y|^2 / 2 for eight examples, half of them short.

    Each example has three places, or its gradients would have rank one and one length in all norms.
    """
    x = rng.standard_normal((8, 3, 5)) / 3**0.5
    y = 2 * rng.standard_normal((8, 3, 4)) / 3**0.5
    y[::2] *= 0.05
    x[::2] *= 0.3

    def gradients(B, A):
        h = x @ (B @ A).T - y
        return h.swapaxes(1, 2) @ (x @ A.T), (h @ B).swapaxes(1, 2) @ x

    B = 0.5 * rng.standard_normal((4, 3))
    A = rng.standard_normal((3, 5))
    lr, C = rng.uniform(0.1, 0.2), rng.uniform(0.8, 1.2)
    return B, A, gradients, lr, C, int(rng.integers(4, 8))


def _pair(rng):
    rows, columns, rank = (int(rng.integers(*ends)) for ends in ((7, 12), (10, 15), (2, 5)))
    return rng.standard_normal((rows, rank)), rng.standard_normal((rank, columns))


def _energy(rng):
    n = int(rng.integers(20, 60))
    falling = np.exp(-rng.uniform(1, 3) * np.arange(n) / n)
    return (rng.uniform(1, 20) * rng.chisquare(4, n) * falling,)


CALLS = {
    "08.2": FunctionAnswer("g_B and g_A", draw=_pair),
    "08.4": FunctionAnswer("energy", (np.array([4.0, 0.0, 1.0]),), draw=_energy),
    "08.1": FunctionAnswer("B, A, gradients, lr, C and steps", draw=_least_squares),
}


# ---- 08.2: the filter


def filtered(g_B, g_A):
    def along_rows(g):
        n = g.shape[1]
        padded = np.pad(g, ((0, 0), (2, 2)), mode="symmetric")
        shifted = [w * padded[:, i : i + n] for i, w in enumerate([1, 4, 6, 4, 1])]
        return np.sum(shifted, 0) / 16

    return along_rows(g_B.T).T, along_rows(g_A)


# ---- 08.4: the filter's worth


def worth(energy):
    n = len(energy)
    gain = np.cos(np.pi * np.arange(n) / (2 * n)) ** 4
    along = (gain * energy).sum() / energy.sum()
    return along**2 / np.mean(gain**2)


# ---- 08.1: the local steps


def local_steps(B, A, gradients, lr, C, steps):
    """The local steps of one client in LA-LoRA, without noise and filter.

    Args:
        B, A: the factors, (d_out, r) and (r, d_in).
        gradients: takes B and A; returns the n examples' gradients, (n, d_out, r) and (n, r, d_in).
        lr: learning rate, > 0.
        C: clip norm of an example, > 0.
        steps: how many; B moves in the first.
    Returns: B and A.
    """
    for s in range(steps):
        g_B, g_A = gradients(B, A)
        g = g_A if s % 2 else g_B
        lengths = np.sqrt((g**2).sum((1, 2), keepdims=True))
        step = (g * np.minimum(1, C / lengths)).mean(0)
        if s % 2:
            A = A - lr * step
        else:
            B = B - lr * step
    return B, A
