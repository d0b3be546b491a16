"""The layers in the place of PEFT's: each example passes its own tensors."""

import pytest
import torch
from torch import nn

from fedlora_lab.lora import adapters

N = 2
T = 3
RANK = 2
SCALING = 1.5
LAYOUT = r"^first dimension=5: expected a multiple of the 2 examples \(batch first\)$"


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("own_b", [False, True])
@pytest.mark.parametrize("own_a", [False, True])
def test_each_example_passes_its_own_factors(own_a, own_b):
    """y + s B A x, by a loop over examples."""
    y = numbers(N * T, 5)
    x = numbers(N * T, 4)
    a = numbers(*[N] * own_a, RANK, 4)
    b = numbers(*[N] * own_b, 5, RANK)
    rows = zip(y.split(T), x.split(T), a.expand(N, -1, -1), b.expand(N, -1, -1), strict=True)
    expected = torch.cat([y_k + SCALING * x_k @ a_k.T @ b_k.T for y_k, x_k, a_k, b_k in rows])
    result = adapters.low_rank(y, x, a, b, SCALING)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    if own_a or own_b:
        with pytest.raises(ValueError, match=LAYOUT):
            adapters.low_rank(y[:5], x[:5], a, b, SCALING)


def test_each_example_passes_its_own_row_of_a_head():
    """Windows of one example follow each other."""
    linear = nn.Linear(4, 3).double()
    layer = adapters.PerExampleLinear(linear)
    x = numbers(N * T, 5, 4)
    torch.testing.assert_close(layer(x), linear(x))
    layer.rows = numbers(N, 3, 4)
    layer.bias_rows = numbers(N, 3)
    parts = zip(x.split(T), layer.rows, layer.bias_rows, strict=True)
    torch.testing.assert_close(layer(x), torch.cat([part @ w.T + b for part, w, b in parts]))
    with pytest.raises(ValueError, match=LAYOUT):
        layer(x[:5])
