"""The dial of notebook 09: the squared errors of two servers after one round."""

import numpy as np

from fedlora_course.lesson_09.theory import factor_average_terms, product_average_terms
from fedlora_course.widgets.dial import Dial
from fedlora_course.widgets.scene import Scene, axis, bars, panel, text

STD = 0.4 * 5**0.5 / 16
"""Noise on a client's factor after five local steps, at rate 0.4, C = 1 and batch 16, for σ = 1."""
A = np.full((4, 64), 192**-0.5)
"""As long as A is at the start, in a layer of 64 inputs at rank 4."""
B = np.full((64, 4), 0.016)
PARTS = {"linear in the noise": "soft", "noise × noise": "purple", "clients' data": "red"}


def _server_scene(clients: int, noise: float, missed: float) -> Scene:
    """Draws what each server misses of the noiseless mean product, squared, in three parts.

    The clients' factors point the same way and differ in length. With a mean product P of
    1 / (1 - missed) times that of the mean factors, the mean of their squared norms is as much
    more than the squared norm of their mean, and so is the exact server's linear part.
    """
    std = STD * noise
    averaged = factor_average_terms(B, A, std, std, clients)
    exact = product_average_terms(B, A, std, std, clients)
    linear = averaged.linear_B + averaged.linear_A
    longer = 1 / (1 - missed / 100)
    data = (missed / 100 * longer * np.linalg.norm(B @ A)) ** 2
    parts = [[0, linear, averaged.quadratic, data], [0, longer * linear, exact.quadratic, 0]]
    ends = np.cumsum(np.array(parts, dtype=float), axis=1)
    marks = []
    for i, (words, colour) in enumerate(PARTS.items()):
        left, right = ends[:, i : i + 2].T / max(ends.max(), 1e-9)
        marks.append(bars(left, [-0.3, 0.7], right, [0.3, 1.3], colour))
        marks.append(text(0.02 + 0.43 * i, -0.6, words, colour))
    ratio = (ends[1, -1] + 1e-12) / (ends[0, -1] + 1e-12)
    finding = "Both servers are equally far off"
    if abs(ratio - 1) > 0.005:
        finding = "The exact server is further off" if ratio > 1 else "Averaging is further off"
    drawn = panel(
        finding,
        axis("squared distance from the noiseless mean product, over the larger error", 0, 1.3),
        axis("", 1.6, -0.9, ticks=[0, 1], names=["averages factors", "exact"]),
        *marks,
        wide=True,
    )
    times = f"{ratio:.3g}" if 0.01 < ratio < 100 else "many" if ratio > 1 else "next to no"
    return [drawn], [
        f"{clients} clients, σ = {noise:g}; without noise averaging misses {missed:g} % of P. ",
        f"The exact server's squared error is {times} times that of averaged factors. ",
        f"At width 4096 and rank 8 it sends {1 + min(clients, 256)} times FedLoRA's bytes down. ",
    ]


def server_explorer() -> Dial:
    """Makes a dial for clients, noise and what the clients' data make the factors' average miss.

    It is `factor_average_terms` beside `product_average_terms`.
    """
    return Dial(
        "09/server_explorer",
        _server_scene,
        clients=(2, 5, 10, 20, 50, 100),
        noise=(0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2),
        missed=(0, 2, 5, 10, 20, 30, 40),
    )
