"""The shape checker is on, refuses a wrong shape, and leaves plain values to the package."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from shapes import typechecked
from torch import Tensor

import fedlora_lab as fl


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
