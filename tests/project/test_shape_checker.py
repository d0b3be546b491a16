"""The shape checker is on, refuses a wrong shape, and leaves plain values to the package."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from shapes import FIRST, typechecked
from torch import Tensor

import fedlora_lab as fl
from fedlora_lab import measures


@jaxtyped(typechecker=typechecked)
def product(
    left: Float[Tensor, "d_out r"], right: Float[Tensor, "r d_in"], scale: float
) -> Float[Tensor, "d_out d_in"]:
    return scale * (left @ right) if scale else left


def test_wrong_shapes_are_refused_going_in_and_coming_out():
    assert product(torch.ones(3, 2), torch.ones(2, 4), True).shape == (3, 4)
    with pytest.raises(TypeCheckError):
        product(torch.ones(3, 2), torch.ones(3, 4), 1.0)
    with pytest.raises(TypeCheckError):
        product(torch.ones(3, 2), torch.ones(2, 4), 0.0)
    with pytest.raises(ValueError, match="rank='x': expected a whole number >= 1"):
        fl.Lora(rank="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("test", ["one", "the next"])
def test_the_first_calls_of_every_test_are_held_and_the_others_are_not(test):
    with pytest.raises(TypeCheckError, match="product_norm"):
        measures.product_norm(torch.zeros(3, 2), torch.zeros(3, 2))
    for _ in range(FIRST):
        measures.product_norm(torch.zeros(3, 2), torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="size of tensor a"):  # what PyTorch says of it
        measures.product_norm(torch.zeros(3, 2), torch.zeros(3, 2))
