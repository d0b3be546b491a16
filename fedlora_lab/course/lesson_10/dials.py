"""The dial of notebook 10: the errors of two servers, and what each sends to a client."""

import numpy as np

from fedlora_lab import theory
from fedlora_lab.course.widgets.dial import Dial
from fedlora_lab.course.widgets.scene import Scene, axis, bars, panel, text

SIDE, RANK = 64, 4
"""Of a layer of the notebook's model."""
STD = 0.4 * 5**0.5 / 16
"""Noise on a client's factor after five local steps, at rate 0.4, C = 1 and batch 16, for σ = 1."""
LENGTH = 0.3
"""Of the mean product."""
WIDTH, WIDE_RANK = 4096, 8


def _server_scene(clients: int, noise: float, missed: float) -> Scene:
    """Draws the squared error of both servers after one round, and the bytes down."""
    # A as it is at the start; B such that the product has the length above.
    A = (
        np.linalg.qr(np.random.default_rng(0).standard_normal((SIDE, RANK)))[0].T
        * (SIDE / 3) ** 0.5
    )
    A /= SIDE**0.5
    B = np.zeros((SIDE, RANK))
    B[:RANK] = np.eye(RANK) * LENGTH / np.linalg.norm(A)
    std = STD * noise
    averaged = theory.factor_average_terms(B, A, std, std, clients)
    exact = theory.product_average_terms(B, A, std, std, clients)
    data = (missed / 100 * LENGTH) ** 2 if clients > 1 else 0.0
    linear = averaged.linear_B + averaged.linear_A
    errors = {"averages factors": (linear, averaged.quadratic, data)}
    errors["exact"] = (linear, exact.quadratic, 0.0)
    totals = [sum(parts) for parts in errors.values()]
    top = max(*totals, 1e-9)
    marks = []
    for row, parts in enumerate(errors.values()):
        ends = np.cumsum([0.0, *parts]) / top
        for colour, left, right in zip(("soft", "purple", "red"), ends, ends[1:]):
            marks.append(bars(left, row - 0.3, right, row + 0.3, colour))
        marks.append(text(ends[-1], row, f" {totals[row]:.2g}", dx=4, dy=4))
    if totals[0] == totals[1]:
        finding, words = "Both servers hold the same", "They are equally far off. "
    else:
        worse = int(totals[1] > totals[0])
        ratio = "" if min(totals) == 0 else f" {max(totals) / min(totals):.2g} times"
        finding = f"{('Averaging', 'The exact server')[worse]} is further off"
        words = f"{finding}{ratio and ',' + ratio + ' in the square'}. "
    factors = 2 * WIDE_RANK * WIDTH
    down = {"FedLoRA": 1.0, "FedEx-LoRA": 1 + min(clients, WIDTH**2 / factors), "FedSVD": 1.0}
    received = [bars(0.5, i - 0.3, value, i + 0.3, "teal") for i, value in enumerate(down.values())]
    labels = [text(value, i, f" {value:g}", dx=4, dy=4) for i, value in enumerate(down.values())]
    panels = [
        panel(
            finding,
            axis("squared distance from the noiseless mean product, over the larger", 0, 1.25),
            axis("", 1.6, -0.9, ticks=[0, 1], names=[*errors]),
            *marks,
            text(0.0, -0.6, "linear in the noise", "soft"),
            text(0.45, -0.6, "noise × noise", "purple"),
            text(0.85, -0.6, "clients' data", "red"),
            wide=True,
        ),
        panel(
            "What a client receives",
            axis("bytes over FedLoRA's, 4096 × 4096", 0.5, 1000, log=True),
            axis("", 2.6, -0.9, ticks=[0, 1, 2], names=[*down]),
            *received,
            *labels,
        ),
    ]
    return panels, [
        f"{clients} clients, σ = {noise:g}; without noise averaging misses {missed:g} %. ",
        words,
        f"The exact server sends {down['FedEx-LoRA']:g} times FedLoRA's bytes down.",
    ]


def server_explorer() -> Dial:
    """Makes a dial for clients, noise and what the clients' data make the factors' average miss.

    It is `theory.factor_average_terms` beside `theory.product_average_terms`, in one layer of the
    notebook's model after one round.
    """
    return Dial(
        "10/server_explorer",
        _server_scene,
        clients=(1, 2, 5, 10, 20, 50, 100),
        noise=(0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2),
        missed=(0, 2, 5, 10, 20, 40),
    )
