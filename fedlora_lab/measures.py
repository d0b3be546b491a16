"""What a round did, measured by low-rank algebra: no (d_out, d_in) matrix is formed."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab.method import Global, Slot

if TYPE_CHECKING:
    import pandas as pd


def product_norm(left: Float[Tensor, "d_out r"], right: Float[Tensor, "r d_in"]) -> float:
    """Frobenius norm of ``left @ right`` from two (r, r) Gram matrices, in float64."""
    left, right = left.double(), right.double()
    return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())


class Deviation(NamedTuple):
    """Frobenius norms: of server's product minus mean of the clients' products, and of that mean."""

    norm: float
    mean: float

    @property
    def relative(self) -> float:
        """norm / mean, 0 where both vanish."""
        return self.norm / self.mean if self.mean else (0.0 if not self.norm else float("inf"))


def deviation(
    before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], clients: tuple[Tensor, Tensor], weights: Tensor
) -> Deviation:
    """How far the server's new product is from the mean of the clients' products.

    The mean is (1 - sum w) B A + sum_k w_k B_k A_k: with absent clients the old product keeps their weight.

    Args:
        before, after: the server's (A, B), A (r, d_in), B (d_out, r).
        clients: the clients' (A_k, B_k), (clients, r, d_in) and (clients, d_out, r); a leading 1 where all agree.
        weights: (clients,).

    Guarantees: zero for one client and for equal clients; equals the direct matrices (tests/test_measures.py).
    Source: arXiv:2403.12313, discordance of averaging factors.
    """
    count, weights = len(weights), weights.double()
    a, b = (tensor.double().expand(count, *tensor.shape[1:]) for tensor in clients)
    rest = 1 - weights.sum()
    left = torch.cat([rest * before[1].double(), *(weights.view(-1, 1, 1) * b)], dim=1)
    right = torch.cat([before[0].double(), *a])
    mean = product_norm(left, right)
    norm = product_norm(torch.cat([after[1].double(), -left], dim=1), torch.cat([after[0].double(), right]))
    # The Gram form resolves a difference only down to the square root of the working precision.
    if norm < 1e-5 * mean:
        norm = _small_difference(after, left, right)
    return Deviation(norm, mean)


def _small_difference(after: tuple[Tensor, Tensor], left: Tensor, right: Tensor) -> float:
    """Norm of ``after_B after_A - left right`` without cancellation in squares: triangular factors first."""
    tall = torch.cat([after[1].double(), -left], dim=1)
    wide = torch.cat([after[0].double(), right])
    return float(torch.linalg.matrix_norm(torch.linalg.qr(tall).R @ torch.linalg.qr(wide.T).R.T))


def noise_energies(
    a: Float[Tensor, "r d_in"], b: Float[Tensor, "d_out r"], noise_a: Tensor, noise_b: Tensor, scaling: float
) -> dict[str, float]:
    """Energies of the three noise terms in the product: ``noise_B``, ``noise_A``, ``noise_BA``, squared norms.

    s xi_B A, s B xi_A and s xi_B xi_A, where (A, B) carry no part of this noise.
    Source: arXiv:2403.12313, noise of both factors multiplied out.
    """
    terms = {"noise_B": (noise_b, a), "noise_A": (b, noise_a), "noise_BA": (noise_b, noise_a)}
    return {name: (scaling * product_norm(left, right)) ** 2 for name, (left, right) in terms.items()}


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
    total = Deviation(squares[0] ** 0.5, squares[1] ** 0.5).relative if clients is not None else float("nan")
    return rows, total


def frame_of(rows: list[tuple[str, str, float]]) -> "pd.DataFrame":
    """Rows (layer, measure, value) as a frame."""
    import pandas as pd

    return pd.DataFrame(rows, columns=["layer", "measure", "value"])
