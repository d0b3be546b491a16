"""Optimisers: held against torch.optim, against a few lines by hand, and against their promises."""

from typing import Any

import pytest
import torch
from calls import refused
from toy_tasks import random

from fedlora_lab.methods.optimizers import (
    SGD,
    AdamW,
    apply_updates,
    optimizer_of,
)

CLOSE: Any = {"rtol": 1e-12, "atol": 1e-14}
START = {"A": (3, 2, 5), "B": (3, 4, 2)}


def start():
    return {key: random(*shape, seed=7) for key, shape in START.items()}


def walk(rule, params, grads, lr=0.1):
    """The parameters after all these steps."""
    state: Any = {}
    for one in grads:
        steps, state = rule.update(one, state, params, lr)
        params = apply_updates(params, steps)
    return params


def turns():
    """Gradients of two factors over six steps: both move, then each alone."""
    return [
        {key: random(*START[key], seed=i + 90 * (key == "B")) for key in word}
        for i, word in enumerate(("AB", "B", "A", "AB", "B", "A"))
    ]


@pytest.mark.parametrize(
    ("rule", "torch_rule"),
    [(SGD, torch.optim.SGD), (AdamW, torch.optim.AdamW)],
)
@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_steps_are_those_of_torch(rule, torch_rule, memory):
    """Two tensors of several clients with a rate each, together and by turns, in torch and here."""
    settings: Any = {"momentum": memory}
    if rule is AdamW:
        settings = {"betas": (memory, 0.9), "eps": 1e-6, "weight_decay": 0.1}
    rates = {"A": 0.05, "B": 0.2}
    weights = {key: x.clone().requires_grad_() for key, x in start().items()}
    oracle = torch_rule([{"params": [x], "lr": rates[k]} for k, x in weights.items()], **settings)
    for one in turns():
        oracle.zero_grad(set_to_none=True)
        for key, grad in one.items():
            weights[key].grad = grad.clone()
        oracle.step()
    found = walk(rule(**settings), start(), turns(), rates)
    torch.testing.assert_close(found, {key: x.detach() for key, x in weights.items()}, **CLOSE)


def test_what_is_no_optimizer_is_refused():
    for bad in ("adam", {"name": "sgd"}, SGD):
        with refused("^optimizer=.*: expected one of 'sgd', 'adamw'"):
            optimizer_of(bad)
