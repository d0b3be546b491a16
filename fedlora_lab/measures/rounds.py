"""The measures of a round, as rows of the tidy frame."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedlora_lab.measures.clients import signal_to_noise
from fedlora_lab.measures.products import Deviation, deviation, noise_energies, product_norm
from fedlora_lab.method import Global, Slot

if TYPE_CHECKING:
    import pandas as pd


def layer_rows(
    before: Global,
    after: Global,
    clients: Mapping[Slot, Tensor] | None,
    weights: Tensor,
    noise: Mapping[Slot, Tensor] | None,
    scaling: float,
) -> tuple[list[tuple[str, str, float]], float]:
    """Rows (layer, measure, value) of a round, and the relative deviation of all layers together.

    Args:
        clients: slot -> (clients, ...), the clients' factors at the end of the round; ``None``: nobody may see them.
        noise: slot -> (...), the noise in the mean of the updates; ``None``: nobody may see it.
    """
    rows, squares = [], [0.0, 0.0]
    for layer in after.layers:
        a, b = Slot("A", layer), Slot("B", layer)
        factors = (after.tensors[a], after.tensors[b])
        rows.append((layer, "norm", scaling * product_norm(factors[1], factors[0])))
        if clients is not None:
            old = (before.tensors[a], before.tensors[b])
            found = deviation(old, factors, (clients[a], clients[b]), weights)
            rows.append((layer, "deviation", scaling * found.norm))
            rows.append((layer, "deviation_relative", found.relative))
            squares = [squares[0] + found.norm**2, squares[1] + found.mean**2]
        if noise is not None:
            xi_a, xi_b = (noise.get(slot, torch.zeros_like(after.tensors[slot])) for slot in (a, b))
            clean = (factors[0] - xi_a, factors[1] - xi_b)
            rows += [(layer, key, value) for key, value in noise_energies(*clean, xi_a, xi_b, scaling).items()]
            moved = [(after.tensors[slot] - before.tensors[slot], xi) for slot, xi in ((a, xi_a), (b, xi_b))]
            if any(bool(xi.any()) for _, xi in moved):
                rows.append((layer, "snr", signal_to_noise(moved)))
    total = Deviation(squares[0] ** 0.5, squares[1] ** 0.5).relative if clients is not None else float("nan")
    return rows, total


def frame_of(rows: list[tuple[str, str, float]]) -> "pd.DataFrame":
    """Rows (layer, measure, value) as a frame."""
    import pandas as pd

    return pd.DataFrame(rows, columns=["layer", "measure", "value"])
