"""Linear maps with weights of their own for every example of the batch: what stands in the place of PEFT's layers."""

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
        if self.rows.dim() == 2:
            return nn.functional.linear(x, self.rows, self.bias_rows)
        y = torch.bmm(by_example(x, len(self.rows)), self.rows.mT)
        if self.bias_rows is not None:
            y = y + self.bias_rows.unsqueeze(1)
        return y.reshape(*x.shape[:-1], -1)


def by_example(x: Float[Tensor, "m ... d"], n: int) -> Float[Tensor, "n rest d"]:
    """What belongs to each of n examples, whatever it is; the first dimension goes through them in order."""
    if x.shape[0] % n:
        raise ValueError(f"first dimension={x.shape[0]}: expected a multiple of the {n} examples (batch first)")
    return x.reshape(n, -1, x.shape[-1])


class Adapter(nn.Module):
    """A frozen layer, and beside it the low-rank map s B R A, without R where there is no core, and s W, a residual.

    A, B and R have one value for all examples or, with a leading N, one for each, as in `Stacked`; W has one for all.
    What else is asked of the module the frozen layer answers.
    """

    def __init__(
        self, base: nn.Module, a: Float[Tensor, "r d_in"], b: Float[Tensor, "d_out r"], scaling: float
    ) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        self.A, self.B, self.R, self.W = a, b, ABSENT, ABSENT

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        y, x = self.base(x), x.to(self.A.dtype)
        whole = y.to(x.dtype)
        if self.W.numel():
            whole = whole + nn.functional.linear(x, self.scaling * self.W)
        b = self.B @ self.R if self.R.numel() else self.B
        return low_rank(whole, x, self.A, b, self.scaling).to(y.dtype)


def low_rank(
    y: Float[Tensor, "... d_out"], x: Float[Tensor, "... d_in"], a: Tensor, b: Tensor, scaling: float
) -> Float[Tensor, "... d_out"]:
    """y + s B A x, in one pass over y. Guarantees: first and second derivatives (tests/test_stacked.py)."""
    if a.dim() == b.dim() == 2:
        inner = nn.functional.linear(x, a).reshape(-1, len(a))
        return torch.addmm(y.reshape(-1, len(b)), inner, b.mT, alpha=scaling).reshape(y.shape)
    n = len(a) if a.dim() == 3 else len(b)
    return _LowRank.apply(by_example(y, n), by_example(x, n), a, b, scaling).reshape(y.shape)  # type: ignore[union-attr]


class _LowRank(torch.autograd.Function):
    """Thin products have the rank first: along its long side a narrow matrix is multiplied up to four times as quickly.

    So an example's gradient of B lies in memory as its transpose. On the way back the thin product A x is taken again:
    what is not kept need not be read, and the formulas stay formulas of what was given, which a second derivative
    needs.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.scaling, inner = scaling, a @ x.mT
        if b.dim() == 3:
            return torch.baddbmm(y, inner.mT, b.mT, alpha=scaling)
        return torch.addmm(y.flatten(0, 1), inner.mT.flatten(0, 1), b.mT, alpha=scaling).view(y.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, a, b) = gradients, ctx.saved_tensors
        of_y, of_x, of_a, of_b, _ = ctx.needs_input_grad
        inner = ctx.scaling * (b.mT @ gradient.mT) if of_x or of_a else None
        return (
            gradient if of_y else None,
            inner.mT @ a if of_x else None,  # type: ignore[union-attr]
            _outer(inner, x, a) if of_a else None,  # type: ignore[arg-type]
            _outer(ctx.scaling * (a @ x.mT), gradient, b).mT if of_b else None,
            None,
        )


def _outer(inner: Float[Tensor, "n r t"], z: Float[Tensor, "n t d"], like: Tensor) -> Tensor:
    """(n, r, d), a sum of outer products for each example; (r, d), of all, where ``like`` has one value for all."""
    return inner @ z if like.dim() == 3 else inner.mT.flatten(0, 1).mT @ z.flatten(0, 1)
