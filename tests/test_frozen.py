"""Frozen linear maps: another library multiplies, the numbers stay."""

import copy

import pytest
import torch
from small import LORA, tokens
from torch import nn

from fedlora_lab import adapters
from fedlora_lab.compute import frozen

SHAPES = ((5, 8), (2, 3, 8), (0, 8), (4, 0, 8), (8,), (2, 3, 4, 8))


def pair(bias=True, dtype=torch.float32):
    """An ordinary linear map, and the same one frozen."""
    torch.manual_seed(0)
    plain = nn.Linear(8, 6, bias).to(dtype).requires_grad_(False)
    quick = copy.deepcopy(plain)
    frozen.freeze(quick)
    assert type(plain) is nn.Linear
    assert type(quick) is frozen.Frozen
    return plain, quick


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients(shape, bias, monkeypatch):
    monkeypatch.setattr(frozen, "LEAST", 0)
    given = (
        torch.randn(shape, generator=torch.Generator().manual_seed(1)).transpose(0, -1).contiguous().transpose(0, -1)
    )
    found = []
    for layer in pair(bias):
        x = given.clone().requires_grad_()
        y = layer(x)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), y)
        (g,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
        second = torch.autograd.grad(g.square().sum(), x)[0]
        found.append((y, g, second))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_it_multiplies_by_onednn():
    """Where torch is built with it, and from a size on: the graph holds our product, not torch's."""
    plain, quick = pair()
    x = torch.ones(frozen.LEAST // (8 * 6) + 1, 8, requires_grad=True)
    assert ("_Product" in type(quick(x).grad_fn).__name__) == frozen.ONEDNN
    assert "_Product" not in type(quick(x[:-1]).grad_fn).__name__
    assert "_Product" not in type(plain(x).grad_fn).__name__


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_what_onednn_does_not_take_goes_the_ordinary_way(dtype):
    plain, quick = pair(dtype=dtype)
    x = torch.ones(2, 8, dtype=dtype, requires_grad=True)
    assert torch.equal(plain(x), quick(x))


def test_a_weight_that_asks_for_a_gradient_gets_one():
    plain, quick = pair()
    x = torch.ones(2, 8)
    for name in ("weight", "bias"):
        grads = []
        for layer in (plain, quick):
            value = getattr(layer, name).clone().requires_grad_()
            torch.func.functional_call(layer, {name: value}, (x,)).square().sum().backward()
            grads.append(value.grad)
        torch.testing.assert_close(*grads)


def test_only_the_adapted_copy_is_frozen():
    """The user's model keeps its modules; every frozen linear map of the adapted one is quick."""
    task = tokens()
    before = [type(module) for module in task.model.modules()]
    adapted = adapters.adapt(task.model, task.targets, task.head, LORA)
    assert [type(module) for module in task.model.modules()] == before
    kinds = {type(module) for module in adapted.model.modules()}
    assert frozen.Frozen in kinds
    assert nn.Linear not in kinds


def test_other_maps_stay_what_they_are():
    """A weight that moves, and a map with a forward of its own: neither is frozen."""

    class Twice(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 6, bias=False), Twice(6, 4).requires_grad_(False))
    before = [type(module) for module in model]
    frozen.freeze(model)
    assert [type(module) for module in model] == before
