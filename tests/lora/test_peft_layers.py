"""The layers in the place of PEFT's: values, derivatives, and layouts that are refused."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from fedlora_lab.lora import adapters

N = 2
T = 3
INTO = 4
OUT = 5
RANK = 2
S = 1.5
OWN = list(itertools.product([False, True], repeat=2))


def tensors(own_a, own_b):
    """y, x, A and B in double precision; with a leading N where each example has its own."""
    generator = torch.Generator().manual_seed(0)
    shapes = (N * T, OUT), (N * T, INTO), (RANK, INTO), (OUT, RANK)
    lead = (), (), (N,) if own_a else (), (N,) if own_b else ()
    return [
        torch.randn(*first, *shape, generator=generator, dtype=torch.float64).requires_grad_()
        for first, shape in zip(lead, shapes)
    ]


@pytest.mark.parametrize(("own_a", "own_b"), OWN)
def test_low_rank_values_and_both_derivatives(own_a, own_b):
    """y + s B A x; derivatives of every argument by finite differences."""
    y, x, a, b = given = tensors(own_a, own_b)
    factors = zip(a if own_a else [a] * N, b if own_b else [b] * N)
    rows = zip(y.split(T), x.split(T), factors)
    expected = torch.cat([y_k + S * x_k @ a_k.T @ b_k.T for y_k, x_k, (a_k, b_k) in rows])
    torch.testing.assert_close(adapters.low_rank(y, x, a, b, S), expected, rtol=1e-12, atol=1e-12)
    assert gradcheck(partial(adapters.low_rank, scaling=S), given)
    assert gradgradcheck(partial(adapters.low_rank, scaling=S), given)


def test_a_per_example_map_is_one_map_for_each_example_and_refuses_other_layouts():
    """Windows of one example follow each other."""
    random = torch.Generator().manual_seed(0)
    linear = nn.Linear(4, 3)
    layer = adapters.PerExampleLinear(linear)
    x = torch.randn(2 * 3, 5, 4, generator=random)
    torch.testing.assert_close(layer(x), linear(x))
    layer.rows = torch.randn(2, 3, 4, generator=random)
    layer.bias_rows = torch.randn(2, 3, generator=random)
    parts = zip(x.split(3), layer.rows, layer.bias_rows)
    torch.testing.assert_close(layer(x), torch.cat([part @ w.T + b for part, w, b in parts]))
    message = r"^first dimension=5: expected a multiple of the 2 examples \(batch first\)$"
    with pytest.raises(ValueError, match=message):
        layer(x[:5])
    with pytest.raises(ValueError, match=message):
        adapters.low_rank(x[:5], x[:5], layer.rows, x[0, 0, :3], S)
