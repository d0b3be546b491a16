"""The adapted model on a device, and the products of its frozen part in half precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedlora_lab.adapters import Adapted
from fedlora_lab.compute.frozen import Frozen


class Halved(nn.Module):
    """A frozen linear map whose product is taken in bfloat16, from and to the input's own type.

    ``weight`` is (out, in), or (in, out) where the map came transposed.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        weight, bias = linear.get_parameter("weight"), linear.bias
        weight = weight.T if isinstance(linear, Conv1D) else weight
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(torch.bfloat16), requires_grad=False)  # type: ignore[union-attr]

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        return nn.functional.linear(x.to(torch.bfloat16), self.weight, self.bias).to(x.dtype)


def halve(model: nn.Module) -> None:
    """Every frozen linear map in half precision, in place; the stacked factors and heads stay as they are."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in (nn.Linear, Frozen, Conv1D):
                setattr(parent, name, Halved(child))


def moved(adapted: Adapted, device: torch.device) -> Adapted:
    """The adapted model on a device. Its modules change in place, the tensors that it shares with the task do not."""
    copies: dict[int, nn.Parameter] = {}
    for module in adapted.model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in copies:  # tied weights stay tied
                copies[id(parameter)] = nn.Parameter(parameter.detach().to(device), requires_grad=False)
            module._parameters[name] = copies[id(parameter)]
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    for module, attribute in adapted.places.values():
        setattr(module, attribute, getattr(module, attribute).to(device))
    return replace(
        adapted,
        given={slot: tensor.to(device) for slot, tensor in adapted.given.items()},
        weights={layer: tensor.to(device) for layer, tensor in adapted.weights.items()},
    )


def place(adapted: Adapted, device: "str | torch.device | None", products: str) -> Adapted:
    """The adapted model where and how a run wants it."""
    if products == "bfloat16":
        halve(adapted.model)
    wanted = adapted.device if device is None else torch.device(device)
    return adapted if wanted == adapted.device else moved(adapted, wanted)


@contextmanager
def matmuls(products: str) -> Iterator[None]:
    """Float32 products of a GPU in TF32 where that is asked for, and as they were afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = products == "tf32" or before
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
