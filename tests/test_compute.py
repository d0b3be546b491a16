"""Switches of speed: what each may change, and what none of them may."""

from dataclasses import replace

import hubs
import pytest
import torch
from peft.utils import ModulesToSaveWrapper
from small import PLAN, anywhere, gap, play, private, tokens
from torch import nn

import fedlora_lab as fl
from fedlora_lab import adapters, engine, local, methods, passes
from fedlora_lab.compute.placing import Halved, place
from fedlora_lab.loop import Federation
from fedlora_lab.tasks.task import take, together

pytestmark = pytest.mark.filterwarnings(hubs.NO_PAD)
LORA = fl.Lora(rank=2, alpha=3.0)
SHORT = fl.Plan(rounds=1, local_steps=2, batch=3, lr=0.2)
PRIVATE = fl.Privacy(noise_multiplier=1.0, clip_norm=0.5, delta=1e-3, accountant="rdp")
KINDS = ("bert", "gpt2", "vit", "swin")


def test_switches_are_checked():
    task = tokens()
    for options, line in (
        ({"products": "float16"}, "products='float16': expected one of 'float32', 'tf32', 'bfloat16'"),
        ({"frozen_prefix": 1}, "frozen_prefix=1: expected True or False"),
        ({"recompute": "yes"}, "recompute='yes': expected True or False"),
        ({"chunk_examples": 0}, "chunk_examples=0: expected a whole number >= 1"),
        ({"chunk_examples": "many"}, "chunk_examples='many': expected a number or 'auto'"),
        ({"device": "abacus"}, "device='abacus': expected a device that torch finds here"),
        ({"recompute": True}, "recompute=True: expected a model whose blocks are in an nn.ModuleList"),
        ({"frozen_prefix": True}, "frozen_prefix=True: expected a model with whole blocks below"),
    ):
        with pytest.raises(ValueError, match=line):
            fl.run(task, "fedlora", None, PLAN, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_switches(kind):
    """Computing again, and automatic chunks, change nothing beyond rounding."""
    task = hubs.task(kind)
    plain = play(task, "fedlora", PRIVATE, SHORT, lora=LORA)[-1]
    for options in ({"recompute": True}, {"chunk_examples": "auto"}, {"device": "cpu"}, {"products": "tf32"}):
        assert gap(plain, play(task, "fedlora", PRIVATE, SHORT, lora=LORA, **options)[-1]) < 1e-5


def test_automatic_chunks_of_texts_are_small_on_a_processor():
    """There more of them at once cost padding and gain nothing; of images as many as the memory holds."""
    for kind, fine in (("bert", lambda size: size == 16), ("vit", lambda size: size > 1000)):
        run = Federation.open(hubs.task(kind), methods.FedLoRA, PRIVATE, SHORT, lora=LORA, chunk_examples="auto")
        assert fine(run.setting.chunk), kind


@pytest.mark.parametrize(
    "options", [{"recompute": True}, {"products": "bfloat16"}, {"chunk_examples": "auto"}], ids=str
)
def test_epsilon_and_noise_are_the_same_under_every_switch(options):
    """The ledger says the same; with nothing to learn from, the two runs hold the same noise, bit for bit."""
    task = hubs.task("bert")
    silent = replace(PRIVATE, clip_norm=1e-30, noise_multiplier=1e30)
    plain, switched = (play(task, "fedlora", silent, SHORT, lora=LORA, **o)[-1] for o in ({}, options))
    assert gap(plain, switched) == 0
    assert plain.ledger is not None and switched.ledger is not None
    assert plain.ledger.to_json() == switched.ledger.to_json()
    assert all(tensor.dtype == torch.float32 for pair in switched.adapter.values() for tensor in pair)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_of_the_frozen_base_only(kind):
    """Every frozen linear map is halved, no factor is, and the clip still bounds what an example adds."""
    task = hubs.task(kind)
    adapted = place(adapters.adapt(task.model, task.targets, task.head, LORA), None, "bfloat16")
    frozen = [m for m in adapted.model.modules() if isinstance(m, Halved)]
    heads = [m for p in adapted.model.modules() if isinstance(p, ModulesToSaveWrapper) for m in p.modules()]
    assert len(frozen) > 6 and all(m in heads for m in adapted.model.modules() if isinstance(m, nn.Linear))
    assert all(p.dtype == torch.float32 for p in task.model.parameters()), "the task's own model is as it was"
    bank = {slot: 0.2 * torch.randn(1, *shape) for slot, shape in adapted.shapes.items()}
    x, y = together(task.clients)
    owner = torch.zeros(4, dtype=torch.int64)
    data = (take(x, owner), y[:4])
    rows = passes.per_example_gradients(task, adapted, bank, tuple(bank), data, owner)
    assert all(row.dtype == torch.float32 for row in rows.values())
    exact = adapters.adapt(task.model, task.targets, task.head, LORA)
    whole = passes.per_example_gradients(task, exact, bank, tuple(bank), data, owner)
    size = torch.stack([w.norm() for w in whole.values()]).norm()
    off = torch.stack([(rows[s] - whole[s]).norm() for s in whole]).norm() / size
    assert 0 < off < 0.05, f"bfloat16 keeps about three digits: {float(off):.1e}"


def test_tied_weights_stay_tied_where_they_are_moved():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    model[1].weight = model[0].weight
    adapted = adapters.adapt(model, ("2",), None, LORA)
    there = place(adapted, "meta", "float32").model.get_submodule("base_model.model")
    first, second = (there.get_submodule(name).get_parameter("weight") for name in ("0", "1"))
    assert first is second and first.device.type == "meta"
    assert model[0].weight.device.type == "cpu", "the given model is as it was"


@pytest.mark.parametrize("row", list(methods.ALL.values()), ids=lambda row: row.slug)
def test_a_local_step_reads_nothing_from_the_device(row):
    """On the device "meta" there are no values: a step that waited for one, or looked at one, would fail."""
    task = tokens()
    run = Federation.open(task, row, private("example"), PLAN, lora=LORA)
    setting = run.setting
    there = place(setting.adapted, "meta", "float32")
    setting = replace(setting, adapted=there)
    clients = local.begin(setting, (0, 1, 2), anywhere(task, row), {})
    for step in range(2):
        engine.local_step(setting, clients, 0, step)
    moved = [tensor for tensor in clients.bank.values() if tensor.device.type == "meta"]
    assert moved and clients.clipped.rows > 0
