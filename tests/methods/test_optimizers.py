"""Optimisers: held against torch.optim, against a few lines by hand, and against their promises."""

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch

from fedlora_lab.methods import optimizers
from fedlora_lab.methods.optimizers import (
    SGD,
    Adam,
    AdamW,
    apply,
    optimizer_of,
    server_step,
)

EVERY: tuple[Any, ...] = (
    SGD(),
    SGD(momentum=0.8, weight_decay=0.1),
    AdamW(betas=(0.5, 0.9), eps=1e-4, weight_decay=0.3),
    Adam(),
)
every_rule = pytest.mark.parametrize("rule", EVERY, ids=str)
both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
CLOSE: Any = {"rtol": 1e-12, "atol": 1e-14}
START = {"A": (3, 2, 5), "B": (3, 4, 2)}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def start():
    return {key: draw(*shape, seed=7) for key, shape in START.items()}


def walk(rule, params, grads, lr: Any = 0.1):
    """The parameters after all these steps, and the state."""
    state = rule.init(params)
    for one in grads:
        steps, state = rule.update(one, state, params, lr)
        params = apply(params, steps)
    return params, state


def turns(count=6, seed=0):
    """Gradients of two factors: both move, then each alone."""
    words = ("AB", "B", "A")
    return [
        {key: draw(*START[key], seed=seed + i + 90 * (key == "B")) for key in words[i % 3]}
        for i in range(count)
    ]


def against_torch(rule, torch_rule, **settings):
    """Two tensors of several clients with a rate each, together and by turns, in torch and here."""
    rates = {"A": 0.05, "B": 0.2}
    weights = {key: x.clone().requires_grad_() for key, x in start().items()}
    oracle = torch_rule([{"params": [x], "lr": rates[k]} for k, x in weights.items()], **settings)
    for one in turns():
        oracle.zero_grad(set_to_none=True)
        for key, grad in one.items():
            weights[key].grad = grad.clone()
        oracle.step()
    found, _ = walk(rule, start(), turns(), rates)
    for key, x in weights.items():
        torch.testing.assert_close(found[key], x.detach(), **CLOSE)


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.1), (0.8, 0.0), (0.8, 0.1)])
def test_sgd_is_that_of_torch(momentum, weight_decay):
    settings = {"momentum": momentum, "weight_decay": weight_decay}
    against_torch(SGD(**settings), torch.optim.SGD, **settings)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5)])
def test_adam_is_that_of_torch(betas, weight_decay):
    settings = {"betas": betas, "eps": 1e-6, "weight_decay": weight_decay}
    for rule in (AdamW(**settings), Adam(**settings)):
        against_torch(rule, torch.optim.AdamW, **settings)
    plain = torch.optim.AdamW([torch.zeros(1)]).defaults
    assert all(getattr(AdamW(), name) == plain[name] for name in settings)


@both_precisions
def test_plain_sgd_is_the_bare_step(dtype):
    """The bits of ``p - lr * g``, and no state."""
    p, g = draw(5, 4, 2, dtype=dtype), draw(5, 4, 2, seed=1, dtype=dtype)
    found, state = walk(SGD(), {"B": p}, [{"B": g}], 0.3)
    assert torch.equal(found["B"], p - 0.3 * g) and state == {"B": {}}


@every_rule
@both_precisions
def test_a_client_has_the_bits_it_has_alone(rule, dtype):
    """Odd sizes, so that vector and scalar kernels both meet: stacked, and one by one."""
    params = {"B": draw(1, 7, 3, dtype=dtype)}
    grads = [{"B": draw(5, 7, 3, seed=i, dtype=dtype)} for i in range(4)]
    whole, _ = walk(rule, params, grads)
    assert whole["B"].dtype == dtype
    for k in range(5):
        alone = [{"B": one["B"][k : k + 1]} for one in grads]
        part, _ = walk(rule, params, alone)
        assert torch.equal(part["B"][0], whole["B"][k])


@every_rule
def test_linear_rules_move_the_noise_alone(rule):
    """The noised walk less the bare one is the walk of the noise from zero, or it is said why."""
    zero, noise = {key: torch.zeros_like(x) for key, x in start().items()}, turns(seed=50)
    both = [{k: x + xi[k] for k, x in one.items()} for one, xi in zip(turns(), noise, strict=True)]
    runs = (start(), turns()), (start(), both), (zero, noise)
    bare, noised, alone = (walk(rule, *run)[0] for run in runs)
    gap = max(float((noised[k] - bare[k] - alone[k]).abs().max()) for k in zero)
    assert (gap < 1e-12) == rule.linear == (not rule.nonlinear)


@pytest.mark.parametrize("lr", [1.0, 0.5])
@pytest.mark.parametrize("rule", [SGD(), SGD(momentum=0.9), Adam()], ids=str)
def test_the_server_steps_by_hand(rule, lr):
    """FedAvgM and FedAdam over three rounds, one tensor of which is sent in the first only."""
    held, state, v, m, s = {"A": draw(2, 5), "B": draw(4, 2)}, {}, 0.0, 0.0, 0.0
    plain = held["B"]
    for t in (1, 2, 3):
        mean = {key: draw(*x.shape, seed=t) for key, x in held.items() if key == "B" or t == 1}
        gap = plain - mean["B"]
        if rule.linear:
            v = rule.momentum * v + gap
            plain = plain - lr * v
        else:
            m, s = 0.9 * m + 0.1 * gap, 0.99 * s + 0.01 * gap**2
            plain = plain - lr * (m / (1 - 0.9**t)) / ((s / (1 - 0.99**t)).sqrt() + 1e-3)
        after, state = server_step(rule, state, held, mean, lr)
        assert set(after) == set(mean)
        held = {**held, **after}
    torch.testing.assert_close(held["B"], plain, **CLOSE)


def test_a_plain_server_takes_the_aggregate():
    before, mean = {"B": draw(4, 2), "A": draw(2, 5)}, {"B": draw(4, 2, seed=1)}
    after, state = server_step(optimizer_of("sgd"), {}, before, mean)
    assert after["B"] is mean["B"] and (set(after), state) == ({"B"}, {})


@every_rule
def test_settings_are_read_back(rule):
    table = {**optimizers.OPTIMIZERS, **optimizers.SERVER_OPTIMIZERS}
    stored = json.loads(json.dumps(asdict(rule)))
    for value in (rule, asdict(rule), stored):
        assert optimizer_of(value, table=table) == rule
    assert hash(optimizer_of(stored, table=table)) == hash(rule)


CHOICE = "expected one of 'sgd', 'adamw', or an optimiser such as fl.SGD(momentum=0.9)"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("rmsprop", f"optimizer='rmsprop': {CHOICE}"),
        (Adam(), CHOICE),
        ({"name": "sgd", "betas": 0.9}, "expected settings of sgd among momentum, weight_decay"),
        ({"name": "sgd", "momentum": "0.9"}, "sgd momentum='0.9': expected a number in [0, 1)"),
        ({"name": "adamw", "betas": 0.9}, "adamw betas=0.9: expected two numbers in [0, 1)"),
        ({"name": "adamw", "betas": [0.9, 1]}, "adamw betas[1]=1: expected a number in [0, 1)"),
    ],
)
def test_a_mistake_is_told_in_one_line(value, words):
    with pytest.raises(ValueError) as caught:
        optimizer_of(value)
    assert str(caught.value).endswith(words) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^server_optimizer=.*: expected one of 'sgd', 'adam',"):
        optimizer_of("adamw", "server_optimizer", optimizers.SERVER_OPTIMIZERS)
