"""The shape checker is on, refuses a wrong shape, and leaves plain values to the package."""

import pytest
import shapes
import torch
from calls import refused
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

import fedlora_lab as fl


@jaxtyped(typechecker=shapes.typechecked)
def scaled(
    left: Float[Tensor, "d r"], right: Float[Tensor, "r k"], by: float
) -> Float[Tensor, "d k"]:
    return by * (left @ right) if by else left


def test_wrong_shapes_are_refused_going_in_and_coming_out():
    left = torch.ones(3, 2)
    assert scaled(left, torch.ones(2, 4), True).shape == (3, 4)
    for wrong, by in ((torch.ones(3, 4), 1.0), (torch.ones(2, 4), 0.0)):
        shapes.calls.clear()  # only the first call of a test is checked
        with pytest.raises(TypeCheckError):
            scaled(left, wrong, by)
    with refused("rank='x': expected a whole number >= 1"):
        fl.Lora(rank="x")  # type: ignore[arg-type]
