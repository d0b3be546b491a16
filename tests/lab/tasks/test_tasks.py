"""Tasks: what they hold, what they promise, what they refuse."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import peft
import pytest
import torch
from calls import Options, refused
from sklearn.datasets import load_digits
from torch import nn

import fedlora_lab as fl
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.tasks import classification, regression
from fedlora_lab.tasks.metrics import cross_entropy
from fedlora_lab.tasks.regression import teachers
from fedlora_lab.tasks.task import HeldOut, Layers, Task, forward

digits = cache(fl.tasks.digits)


def numbers(*shape):
    return Streams(0).normal(shape, "test data", *shape)


def pair(count):
    return numbers(count, 4), torch.arange(count) % 3


def net():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))


def small(**changes):
    given: Options = {"clients": [pair(5), pair(7)], "test": pair(6), "targets": ["0"]}
    return classification(changes.pop("model", None) or net(), **given | changes)


# ---- digits


def test_an_infinite_concentration_splits_at_random():
    split = [digits(clients=4, dirichlet=alpha, seed=3).fingerprint for alpha in (math.inf, None)]
    assert split[0] == split[1]


def test_digits_use_every_scan_once():
    task = digits()
    parts: Any = [*task.clients, task.test, task.validation]
    rows = torch.cat([torch.cat([x.flatten(1) * 16, y[:, None]], 1) for x, y in parts])
    data: Any = load_digits()
    truth = np.concatenate([data.data, data.target[:, None]], 1)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, truth.tolist()))


def test_digits_streams_differ():
    """Who is in the test set depends on the seed, and not on the clients."""
    base = digits()
    assert torch.equal(digits(clients=3).test[0], base.test[0])
    assert not torch.equal(digits(seed=1).test[0], base.test[0])


# ---- regression


def test_a_teacher_explains_its_client():
    """At its teacher the loss is that of the noise, and half of a teacher is everybody's."""
    task = regression(4, 2000, d_in=12)
    base, factors = teachers(4, 12, 16, 4, 0)
    assert np.array_equal(task.model.get_parameter("map.weight"), base.astype(np.float32))
    for (x, y), (b, a) in zip(task.clients, factors, strict=True):
        missed = y - x @ torch.from_numpy(base + b @ a).float().T
        assert float(missed.square().mean()) == pytest.approx(0.01, rel=0.1)
    (b, a), (other_b, other_a) = factors[:2]
    shared = (b * other_b).sum() / (b * b).sum(), (a * other_a).sum() / (a * a).sum()
    assert all(0.2 < share < 0.8 for share in shared), "half of the variance"


# ---- any module and tensors


def test_fused_transformer_layers_do_not_bypass_adapters():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(8, 3))
    x = numbers(5, 2, 4)
    task = classification(model, [(x, pair(5)[1])], test=(x, pair(5)[1]), targets=["linear1"])
    before = forward(task.model, x)
    config: Any = peft.LoraConfig(target_modules=["linear1"], init_lora_weights=False)
    adapted: Any = peft.get_peft_model(task.model, config)
    with torch.no_grad():
        assert not torch.allclose(adapted.eval()(x), before, atol=1e-4)


def test_a_task_freezes_a_copy_of_its_model():
    """A loss of one's own needs no more than this class; what is frozen already is taken as it is.

    Fault: an unfrozen model was refused, and nothing said how to build a task of it.
    """
    model = net()
    task = Task("mine", model, Layers(["0"]), [pair(5)], HeldOut(pair(6)), loss=cross_entropy)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert not task.model.training and not any(p.requires_grad for p in task.model.parameters())
    assert replace(task, name="again").model is task.model
    assert task.persons is None


def test_fingerprint_sees_data_persons_and_weights():
    base = small().fingerprint
    assert small().fingerprint == base
    nudged, y = pair(5)
    nudged[2, 1] = torch.nextafter(nudged[2, 1], torch.tensor(9.0))
    model = net()
    with torch.no_grad():
        model[2].get_parameter("bias")[2] += 1e-6
    changes: list[dict] = [{"clients": [(nudged, y), pair(7)]}, {"clients": [pair(7), pair(5)]}]
    # The same rows, but others stand where a step draws them.
    changes += [{"clients": [tuple(x.flip(0) for x in pair(5)), pair(7)]}]
    changes += [{"test": pair(5)}, {"validation": pair(5)}, {"model": model}]
    changes += [{"persons": [[0] * 5, [2] * 7]}]
    changes += [{"persons": [[0, 0, 0, 0, 1], [2] * 7]}]
    assert len({base, *(small(**change).fingerprint for change in changes)}) == 9


# ---- what is refused


X, Y = pair(5)
NORM = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
TIED = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
TIED[1].weight = TIED[0].weight
SPOILT = net()
SPOILT.get_parameter("2.weight").data[0, 0] = float("nan")
HOOKED = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
HOOKED[1].register_forward_hook(lambda module, given, output: 2 * output)
COMPILED = net()
COMPILED[0] = nn.Sequential()
COMPILED[0].add_module("_orig_mod", nn.Linear(4, 4))  # as torch.compile names it
WITHOUT_VALUES = nn.Sequential(nn.Linear(4, 3, device="meta"))
NESTED = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"1": nn.Linear(4, 3)}))
REFUSED: dict[str, Options] = {
    "model.1='BatchNorm1d': expected evaluation mode": {"model": NORM},
    "model.2.weight='NaN or infinity': expected finite": {"model": SPOILT},
    "model.0._orig_mod.weight='compiled': expected layers that are not": {"model": COMPILED},
    "model.0.weight='on the device meta': expected weights with val": {"model": WITHOUT_VALUES},
    "targets='0': expected a map that shares no weight": {"model": TIED},
    "targets='1': expected nn.Linear": {"targets": ["1"]},
    "targets='v_proj': expected": {"targets": ["0", "v_proj"]},
    "head='no_such': expected": {"head": "no_such"},
    "targets='2': expected a module outside the head": {"targets": ["2"], "head": "2"},
    "head='1': expected modules of nn.Linear alone": {"targets": ["0"], "head": "1"},
    "head='1': expected .* sharing no weight": {"model": TIED, "targets": ["0"], "head": "1"},
    "head='1': expected .* without hooks": {"model": HOOKED, "targets": ["0"], "head": "1"},
    "head='1': expected .* no list": {"model": NESTED, "targets": ["0"], "head": "1"},
    r"rows of clients\[0\]={'x': 5, 'y': 4}: expected as many": {"clients": [(X, Y[:4])]},
    r"clients\[1\]=.*float64.*: expected what": {"clients": [(X, Y), (X.double(), Y)]},
    "test x='NaN or infinity': expected finite": {"test": (X / 0, Y)},
    r"clients\[0\] y=\[3\]: expected labels in \[0, 2\]": {"clients": [(X, Y + 1)]},
    r"clients\[0\] y='torch.float32 \(5,\)': expected whole": {
        "clients": [(X, Y.float())],
        "test": (X, Y.float()),
    },
    "model='Sequential': expected to accept the test inputs": {
        "clients": [(X[:, :3], Y)],
        "test": (X[:, :3], Y),
    },
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_trained_exactly_is_refused_in_one_line(line):
    with refused(line):
        small(**REFUSED[line])
