"""Frozen linear maps, multiplied by oneDNN where torch is built with it: twice as quick as MKL on some processors."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16)
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether this build of torch can; elsewhere a frozen map is an ordinary one."""
LEAST = 2**20
"""Multiplications, below which calling oneDNN takes longer than it saves."""


class Frozen(nn.Linear):
    """A linear map whose weight does not move: the values of `torch.nn.Linear` but for rounding.

    Guarantees: outputs, gradients and second derivatives are those of `torch.nn.functional.linear`; a weight that asks
        for a gradient gets one (tests/test_frozen.py). Decision 0018 has the measurement.
    """

    def forward(self, input: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        weight, bias = self.weight, self.bias
        moves = weight.requires_grad or (bias is not None and bias.requires_grad)
        here = input.device.type == "cpu" and input.dtype == weight.dtype in DTYPES
        large = input.numel() * self.out_features >= LEAST
        if ONEDNN and here and large and not moves:
            return _product(input, weight, bias)
        return super().forward(input)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A product by oneDNN; where nobody asks for a gradient, without the node that would give it."""
    if x.requires_grad and torch.is_grad_enabled():
        return _Product.apply(x, weight, bias)  # type: ignore[return-value]
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _product(gradients[0], ctx.weight.T, None), None, None


def freeze(model: nn.Module) -> None:
    """Let every linear map of the model whose weight does not move multiply as `Frozen`; the modules are changed."""
    for module in model.modules():
        if type(module) is nn.Linear and not module.weight.requires_grad:
            module.__class__ = Frozen
