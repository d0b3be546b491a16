"""The layers in the place of PEFT's: values, derivatives, and layouts that are refused."""

import copy
import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from toy_tasks import LORA, tokens

from fedlora_lab.lora import peft

N, T, INTO, OUT, RANK, S = 2, 3, 4, 5, 2, 1.5
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
    torch.testing.assert_close(peft.low_rank(y, x, a, b, S), expected, rtol=1e-12, atol=1e-12)
    assert gradcheck(partial(peft.low_rank, scaling=S), given)
    assert gradgradcheck(partial(peft.low_rank, scaling=S), given)
    if own_a and own_b:
        # What looks at them in turn (norm, clip, sum) then reads what lies together in memory.
        loss = peft.low_rank(y, x, a, b, S).square().sum()
        of_a, of_b = torch.autograd.grad(loss, [a, b])
        assert of_a.is_contiguous() and of_b.mT.is_contiguous()


def test_core_and_residual_beside_the_factors():
    """W0 x + s B R A x + s W x, the frozen layer's own answers, and its dtype."""
    base = nn.Linear(INTO, OUT).requires_grad_(False)
    _, x, a, b = (tensor.detach().float() for tensor in tensors(False, False))
    adapter = peft.Adapter(base, a, b, S)
    adapter.R, adapter.W = torch.randn(RANK, RANK), torch.randn(OUT, INTO)
    weight = base.weight + S * (b @ adapter.R @ a + adapter.W)
    torch.testing.assert_close(adapter(x), nn.functional.linear(x, weight, base.bias))
    assert adapter.out_features == OUT and adapter.weight is base.weight
    half = peft.Adapter(base.bfloat16(), a, b, S)
    assert half(x.bfloat16()).dtype == torch.bfloat16


def test_a_per_example_map_is_one_map_for_each_example_and_refuses_other_layouts():
    """Windows of one example follow each other."""
    random = torch.Generator().manual_seed(0)
    linear = nn.Linear(4, 3)
    layer = peft.PerExampleLinear(linear)
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
        peft.low_rank(x[:5], x[:5], layer.rows, x[0, 0, :3], S)


def frozen_pair(bias=True, dtype=torch.float32):
    """An ordinary linear map, and the same one frozen."""
    torch.manual_seed(0)
    plain = nn.Linear(8, 6, bias).to(dtype).requires_grad_(False)
    quick = copy.deepcopy(plain)
    peft.freeze(quick)
    assert (type(plain), type(quick)) == (nn.Linear, peft.FrozenLinear)
    return plain, quick


@pytest.mark.parametrize("shape", [(5, 8), (0, 8), (4, 0, 8), (8,), (2, 3, 4, 8)], ids=str)
def test_a_frozen_map_has_the_values_and_gradients_of_a_linear_map(shape, monkeypatch):
    monkeypatch.setattr(peft, "ONEDNN_MIN_SIZE", 0)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x, found = x.transpose(0, -1).contiguous().transpose(0, -1), []
    for layer in (*frozen_pair(), *frozen_pair(bias=False)):
        x = x.clone().requires_grad_()
        y = layer(x)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), y)
        (g,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
        found.append((y, g, torch.autograd.grad(g.square().sum(), x)[0]))
    for plain, quick in (found[:2], found[2:]):
        torch.testing.assert_close(quick, plain, rtol=1e-5, atol=1e-5)


def test_onednn_multiplies_what_is_large_and_of_a_type_it_takes():
    """Where torch is built with it, the graph holds our product, not torch's."""
    plain, quick = frozen_pair()
    x = torch.ones(peft.ONEDNN_MIN_SIZE // (8 * 6) + 1, 8, requires_grad=True)
    assert ("_Product" in type(quick(x).grad_fn).__name__) == peft.ONEDNN
    assert "_Product" not in type(quick(x[:-1]).grad_fn).__name__
    assert "_Product" not in type(plain(x).grad_fn).__name__
    for dtype in (torch.float64, torch.float16):
        plain, quick = frozen_pair(dtype=dtype)
        assert torch.equal(plain(x[:2].to(dtype)), quick(x[:2].to(dtype)))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_weight_that_asks_for_a_gradient_gets_one(name):
    grads = []
    for layer in frozen_pair():
        value = getattr(layer, name).clone().requires_grad_()
        y = torch.func.functional_call(layer, {name: value}, (torch.ones(2, 8),))
        grads += torch.autograd.grad(y.square().sum(), value)
    torch.testing.assert_close(*grads)


def test_only_frozen_linear_maps_of_the_adapted_copy_are_replaced():
    """Not the user's model, a weight that moves, or a map with a forward of its own."""

    class Twice(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    task = tokens()
    before = [type(module) for module in task.model.modules()]
    adapted = peft.adapt(task.model, task.targets, task.head, LORA)
    assert [type(module) for module in task.model.modules()] == before
    kinds = {type(module) for module in adapted.model.modules()}
    assert peft.FrozenLinear in kinds and nn.Linear not in kinds
    model = nn.Sequential(nn.Linear(8, 6), Twice(6, 4).requires_grad_(False))
    peft.freeze(model)
    assert [type(module) for module in model] == [nn.Linear, Twice]
