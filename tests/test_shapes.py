"""The shape checker works: it is on, it refuses a wrong shape, and it leaves plain values to the package."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from shapes import FIRST, at_first, has_shape, typechecked
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


@pytest.mark.parametrize("test", ["one", "the next"])
def test_the_first_calls_of_every_test_are_held_and_the_others_are_not(test):
    held, bare = [], []

    def size(x: int) -> int:
        bare.append(x)
        return x

    def checked(x: int) -> int:
        held.append(x)
        return x

    either = at_first(checked, size)
    assert [either(x) for x in range(FIRST + 2)] == list(range(FIRST + 2))
    assert (held, bare) == (list(range(FIRST)), [FIRST, FIRST + 1])


@pytest.mark.parametrize("test", ["one", "the next"])
def test_every_test_begins_to_count_anew(test):
    from fedlora_lab import measures

    with pytest.raises(TypeCheckError, match="product_norm"):
        measures.product_norm(torch.zeros(3, 2), torch.zeros(3, 2))
    for _ in range(FIRST):
        measures.product_norm(torch.zeros(3, 2), torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="size of tensor a"):  # what PyTorch says of it
        measures.product_norm(torch.zeros(3, 2), torch.zeros(3, 2))
