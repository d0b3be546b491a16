"""The modules in the place of PEFT's layers: values, derivatives, and layouts that are refused."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from fedlora_lab.stacked import Adapter, Stacked, low_rank

N, T, INTO, OUT, RANK, S = 2, 3, 4, 5, 2, 1.5
OWN = list(itertools.product([False, True], repeat=2))


def tensors(own_a, own_b, generator=None):
    """y, x, A and B in double precision; A and B with a leading N where each example has its own."""
    generator = generator or torch.Generator().manual_seed(0)
    shapes = (N * T, OUT), (N * T, INTO), (RANK, INTO), (OUT, RANK)
    lead = (), (), (N,) if own_a else (), (N,) if own_b else ()
    return [
        torch.randn(*first, *shape, generator=generator, dtype=torch.float64).requires_grad_()
        for first, shape in zip(lead, shapes)
    ]


@pytest.mark.parametrize(("own_a", "own_b"), OWN)
def test_values_are_those_of_the_formula(own_a, own_b):
    y, x, a, b = tensors(own_a, own_b)
    expected = torch.cat([
        y[k * T : (k + 1) * T] + S * x[k * T : (k + 1) * T] @ (a[k] if own_a else a).T @ (b[k] if own_b else b).T
        for k in range(N)
    ])  # fmt: skip
    torch.testing.assert_close(low_rank(y, x, a, b, S), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("own_a", "own_b"), OWN)
def test_first_and_second_derivatives(own_a, own_b):
    """Of every argument, by finite differences."""
    given = tensors(own_a, own_b)
    assert gradcheck(partial(low_rank, scaling=S), given)
    assert gradgradcheck(partial(low_rank, scaling=S), given)


def test_gradients_have_their_long_side_last_in_memory():
    """What looks at them in turn (norm, clip, sum) then reads what lies together."""
    _, _, a, b = given = tensors(True, True)
    of_a, of_b = torch.autograd.grad(low_rank(*given, scaling=S).square().sum(), [a, b])
    assert of_a.is_contiguous() and of_b.mT.is_contiguous()


def test_core_and_residual_beside_the_factors():
    """W0 x + s B R A x + s W x, the frozen layer's own answers, and its dtype."""
    base = nn.Linear(INTO, OUT).requires_grad_(False)
    _, x, a, b = (tensor.detach().float() for tensor in tensors(False, False))
    adapter = Adapter(base, a, b, S)
    adapter.R, adapter.W = torch.randn(RANK, RANK), torch.randn(OUT, INTO)
    weight = base.weight + S * (b @ adapter.R @ a + adapter.W)
    torch.testing.assert_close(adapter(x), nn.functional.linear(x, weight, base.bias))
    assert adapter.out_features == OUT and adapter.weight is base.weight
    half = Adapter(base.bfloat16(), a, b, S)
    assert half(x.bfloat16()).dtype == torch.bfloat16


def test_stacked_maps_are_one_map_for_each_example():
    """One weight for all or one for each; windows of one example follow each other; other layouts are refused."""
    random = torch.Generator().manual_seed(0)
    linear = nn.Linear(4, 3)
    stacked = Stacked(linear)
    x = torch.randn(2 * 3, 5, 4, generator=random)
    torch.testing.assert_close(stacked(x), linear(x))
    stacked.rows = torch.randn(2, 3, 4, generator=random)
    stacked.bias_rows = torch.randn(2, 3, generator=random)
    expected = torch.cat(
        [x[:3] @ stacked.rows[0].T + stacked.bias_rows[0], x[3:] @ stacked.rows[1].T + stacked.bias_rows[1]]
    )
    torch.testing.assert_close(stacked(x), expected)
    for call in (lambda: stacked(x[:5]), lambda: low_rank(x[:5], x[:5], stacked.rows, x[0, 0, :3], S)):
        with pytest.raises(ValueError, match=r"^first dimension=5: expected a multiple of the 2 examples"):
            call()
