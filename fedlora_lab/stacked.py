"""Linear maps with a weight of their own for every example of the batch: what stands in the place of PEFT's factors."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ABSENT = torch.empty(0)
"""In the place of a core or a residual that a run does not have."""


class Stacked(nn.Module):
    """A linear map that may have its own weight (and bias) for every example of the batch.

    ``rows`` is (out, in), one weight for all, or (N, out, in), one for each of N examples. With N weights the first
    dimension of the input is a multiple of N, example by example (tokens, windows and heads may follow each other).
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.in_features, self.out_features = linear.weight, linear.in_features, linear.out_features
        self.rows: Tensor = linear.weight.detach()
        self.bias_rows: Tensor | None = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        return mapped(x, self.rows, self.bias_rows)


def mapped(x: Float[Tensor, "... d_in"], rows: Tensor, bias: Tensor | None = None) -> Float[Tensor, "... d_out"]:
    """The linear map of one weight for all, or of one for each of N examples."""
    if rows.dim() == 2:
        return nn.functional.linear(x, rows, bias)
    n = rows.shape[0]
    if x.shape[0] % n:
        raise ValueError(f"first dimension={x.shape[0]}: expected a multiple of the {n} examples (batch first)")
    y = _Rows.apply(x.reshape(n, -1, x.shape[-1]), rows)
    if bias is not None:
        y = y + bias.unsqueeze(1)
    return y.reshape(*x.shape[:-1], -1)


class _Rows(torch.autograd.Function):
    """(N, tokens, in) by (N, out, in) -> (N, tokens, out). The weights' gradient lies in memory as the weights do.

    Left to itself, autograd hands back the transpose of (N, in, out), and every look at an example's gradient (norm,
    clip, sum) strides through it: at rank 16 that was an eighth of a step on `digits`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(x, rows)
        return torch.bmm(x, rows.mT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,), (x, rows) = gradients, ctx.saved_tensors
        of_x = torch.bmm(gradient, rows) if ctx.needs_input_grad[0] else None
        return of_x, torch.bmm(gradient.mT, x) if ctx.needs_input_grad[1] else None


class Cored(Stacked):
    """B, and before it the core R where there is one."""

    core: Tensor = ABSENT

    def forward(self, x: Float[Tensor, "... r"]) -> Float[Tensor, "... d_out"]:
        return super().forward(mapped(x, self.core) if self.core.numel() else x)


class Shifted(nn.Module):
    """The frozen layer, plus a residual W where there is one; what else is asked of it the frozen layer answers."""

    def __init__(self, base: nn.Module, scaling: float) -> None:
        super().__init__()
        self.base = base
        self.scaling, self.rows = scaling, ABSENT

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        y = self.base(x)
        return y + nn.functional.linear(x, self.scaling * self.rows) if self.rows.numel() else y
