"""Measures of a layer whose server keeps a residual W (d_out, d_in) beside the product: here matrices are formed."""

import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab.measures.products import Deviation


def shifted_norm(left: Float[Tensor, "d_out r"], right: Float[Tensor, "r d_in"], residual: Tensor) -> float:
    """Frobenius norm of ``residual + left @ right``."""
    return float(torch.linalg.matrix_norm(residual.double() + left.double() @ right.double()))


def shifted_deviation(
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
    clients: tuple[Tensor, Tensor],
    weights: Tensor,
    added: Float[Tensor, "d_out d_in"],
) -> Deviation:
    """As `deviation`, for a server whose new product is ``added`` + B A.

    Args:
        before, after, clients, weights: as of `deviation`.
        added: how far the residual moved in the round.

    Guarantees: equals `deviation` where nothing is added (tests/test_measures_more.py::test_shifted_deviation).
    """
    w = weights.double()
    a, b = (x.double().expand(len(w), *x.shape[1:]) for x in clients)
    old = (1 - w.sum()) * before[1].double() @ before[0].double()
    mean = old + (w.view(-1, 1, 1) * b).permute(1, 0, 2).flatten(1) @ a.flatten(0, 1)
    gap = after[1].double() @ after[0].double() + added.double() - mean
    return Deviation(float(torch.linalg.matrix_norm(gap)), float(torch.linalg.matrix_norm(mean)))
