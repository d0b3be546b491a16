"""The measures of a round, as rows of the tidy frame."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fedlora_lab.measures.clients import signal_to_noise
from fedlora_lab.measures.products import Deviation, deviation, noise_energies, product_norm
from fedlora_lab.measures.residual import shifted_deviation, shifted_norm
from fedlora_lab.method import Global, Slot

if TYPE_CHECKING:
    import pandas as pd


class Exchange(NamedTuple):
    """What a round did to the server.

    Args:
        before, after: the server's state.
        mean: the state with the plain mean of what was sent, before the server's rule did anything else with it.
        clients: slot -> (1 or clients, ...), the clients' factors at the end; ``None``: nobody may see them.
        weights: (clients,).
        noise: slot -> (...), the noise in the mean of the updates; ``None``: nobody may see it.
    """

    before: Global
    mean: Global
    after: Global
    clients: Mapping[Slot, Tensor] | None
    weights: Tensor
    noise: Mapping[Slot, Tensor] | None


def layer_rows(seen: Exchange, scaling: float) -> tuple[list[tuple[str, str, float]], float]:
    """Rows (layer, measure, value) of a round, and the relative deviation of all layers together."""
    before, mean, after = (state.factored() for state in (seen.before, seen.mean, seen.after))
    clients = None if seen.clients is None else Global(seen.clients).factored().tensors
    noise = None if seen.noise is None else _in_factors(seen.noise, seen.before)
    rows, squares = [], [0.0, 0.0]
    for layer in after.layers:
        a, b, w = (Slot(side, layer) for side in "ABW")
        factors, old = (after.tensors[a], after.tensors[b]), (before.tensors[a], before.tensors[b])
        residual = after.tensors.get(w)
        pair = factors[1], factors[0]
        size = product_norm(*pair) if residual is None else shifted_norm(*pair, residual)
        rows.append((layer, "norm", scaling * size))
        if clients is not None:
            given = old, factors, (clients[a], clients[b]), seen.weights
            added = None if residual is None else residual - before.tensors[w]
            found = deviation(*given) if added is None else shifted_deviation(*given, added)
            rows.append((layer, "deviation", scaling * found.norm))
            rows.append((layer, "deviation_relative", found.relative))
            squares = [squares[0] + found.norm**2, squares[1] + found.mean**2]
        if noise is not None:
            rows += _noise_rows(layer, before, mean, noise, scaling)
    total = Deviation(squares[0] ** 0.5, squares[1] ** 0.5).relative if clients is not None else float("nan")
    return rows, total


def _in_factors(noise: Mapping[Slot, Tensor], before: Global) -> dict[Slot, Tensor]:
    """Noise of a core, seen in B."""
    cores = {slot.layer: xi for slot, xi in noise.items() if slot.side == "R"}
    return {**noise, **{Slot("B", k): before.tensors[Slot("B", k)] @ xi for k, xi in cores.items()}}


def _noise_rows(
    layer: str, before: Global, mean: Global, noise: Mapping[Slot, Tensor], scaling: float
) -> list[tuple[str, str, float]]:
    """The three noise energies in the product of the mean factors, and the signal-to-noise ratio of what was sent."""
    slots = Slot("A", layer), Slot("B", layer)
    xi = [noise.get(slot, torch.zeros_like(mean.tensors[slot])) for slot in slots]
    clean = [mean.tensors[slot] - part for slot, part in zip(slots, xi, strict=True)]
    found = noise_energies(clean[0], clean[1], xi[0], xi[1], scaling)
    rows = [(layer, key, value) for key, value in found.items()]
    if any(bool(part.any()) for part in xi):
        moved = [(mean.tensors[slot] - before.tensors[slot], part) for slot, part in zip(slots, xi, strict=True)]
        rows.append((layer, "snr", signal_to_noise(moved)))
    return rows


def frame_of(rows: list[tuple[str, str, float]]) -> "pd.DataFrame":
    """Rows (layer, measure, value) as a frame."""
    import pandas as pd

    return pd.DataFrame(rows, columns=["layer", "measure", "value"])
