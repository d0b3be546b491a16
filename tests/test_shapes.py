"""The shape checker works: it is on, it refuses a wrong shape, and it leaves plain values to the package."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from shapes import has_shape, typechecked
from torch import Tensor


@jaxtyped(typechecker=typechecked)
def product(
    left: Float[Tensor, "d_out r"], right: Float[Tensor, "r d_in"], scale: float
) -> Float[Tensor, "d_out d_in"]:
    return scale * (left @ right) if scale else left


def test_it_is_on_for_the_package():
    from fedlora_lab import measures

    with pytest.raises(TypeCheckError, match="product_norm"):
        measures.product_norm(torch.zeros(3, 2), torch.zeros(3, 2))


def test_wrong_shapes_are_refused_going_in_and_coming_out():
    assert product(torch.ones(3, 2), torch.ones(2, 4), 1.0).shape == (3, 4)
    with pytest.raises(TypeCheckError):
        product(torch.ones(3, 2), torch.ones(3, 4), 1.0)
    with pytest.raises(TypeCheckError):
        product(torch.ones(3, 2), torch.ones(2, 4), 0.0)


def test_plain_values_are_left_to_the_package():
    assert product(torch.ones(3, 2), torch.ones(2, 4), True).shape == (3, 4)
    import fedlora_lab as fl

    with pytest.raises(ValueError, match="rank='x': expected a whole number >= 1"):
        fl.Lora(rank="x")  # type: ignore[arg-type]


def test_shapes_are_found_inside_other_hints():
    assert has_shape(tuple[int, Float[Tensor, " n"]])
    assert has_shape(Float[Tensor, " n"] | None)  # type: ignore[operator]
    assert not has_shape(tuple[int, str] | None)
    assert has_shape("tuple[Float[Tensor, 'n'], ...]") and has_shape("Int64[Tensor, 'n']")
    assert not has_shape("Float") and not has_shape("Iterable[int]")


def test_functions_that_say_nothing_of_shapes_are_left_as_they_are():
    def plain(left: int) -> "list[int]":
        return [left]

    assert jaxtyped(plain, typechecker=typechecked) is plain
