"""The frozen prefix: computed once for each example, and the run is the run."""

import gc
import weakref
from typing import Any

import hubs
import pytest
import torch
from small import gap, play
from torch import nn

import fedlora_lab as fl
from fedlora_lab import engine, passes
from fedlora_lab.compute import prefix as room
from fedlora_lab.loop import Federation
from fedlora_lab.tasks import Task
from fedlora_lab.tasks.task import together

pytestmark = pytest.mark.filterwarnings(hubs.NO_PAD)
LORA = fl.Lora(rank=2, alpha=3.0)
PLAN = fl.Plan(rounds=2, local_steps=2, batch=4, lr=0.2)
PRIVATE = fl.Privacy(noise_multiplier=1.0, clip_norm=0.5, delta=1e-3, accountant="rdp")
UPPER = {  # adapters in the second block only
    "bert": ("layer.1.attention.self.query", "layer.1.attention.self.value"),
    "roberta": ("layer.1.attention.self.value",),
    "distilbert": ("layer.1.attention.v_lin",),
    "gpt2": ("h.1.attn.c_attn",),
    "decoder": ("h.1.attn.c_attn",),
    "vit": ("layers.1.attention.v_proj", "layer.1.attention.attention.value"),
    "swin": ("layers.1.blocks.0.attention.self.value", "layers.1.blocks.0.attention.v_proj"),
}


def upper(kind: str) -> Task:
    """The toy model with adapters above its first block, under the names that this Transformers has."""
    base = hubs.decoder() if kind == "decoder" else hubs.task(kind)
    names = [name for name, _ in base.model.named_modules()]
    targets = [target for target in UPPER[kind] if any(name.endswith(f".{target}") for name in names)]
    assert targets, names
    if kind == "decoder":
        options: dict[str, Any] = {"text": "text", "clients": 3, "targets": targets, "public_test": True}
        return fl.tasks.hub(hubs.folder("gpt2"), hubs.texts(), **options)
    return hubs.fresh(kind, targets=targets)


@pytest.mark.parametrize("kind", list(UPPER))
def test_outputs_and_gradients_are_the_same(kind):
    """Two private rounds with and without; blocks below the adapters are not called for examples seen before."""
    task = upper(kind)
    plain = play(task, "fedlora", PRIVATE, PLAN, lora=LORA)
    kept = play(task, "fedlora", PRIVATE, PLAN, lora=LORA, frozen_prefix=True)
    for one, other in zip(plain, kept, strict=True):
        assert gap(one, other) < 1e-5
        assert abs(one.metrics["loss"] - other.metrics["loss"]) < 1e-5
    run = Federation.open(task, "fedlora", PRIVATE, PLAN, lora=LORA, frozen_prefix=True)
    assert run.setting.prefix is not None
    calls = []
    for block in run.setting.prefix.blocks:
        block.block.register_forward_hook(lambda *_: calls.append(1))
    again = [event for event in run.events() if isinstance(event, type(plain[0]))]
    assert not calls, "the second run finds everything there"
    assert gap(again[-1], kept[-1]) == 0


def test_per_example_gradients_with_a_prefix_are_exact():
    """To 1e-6 of their size, whatever batch the kept rows were computed in."""
    task = upper("bert")
    setting = Federation.open(task, "fedlora", PRIVATE, PLAN, lora=LORA, frozen_prefix=True).setting
    bank = {slot: 0.2 * torch.randn(1, *shape) for slot, shape in setting.adapted.shapes.items()}
    x, y = together(task.clients)
    for index in (torch.tensor([3, 0, 3]), torch.tensor([0, 1, 2, 3, 4])):
        data, owner = (engine.take(x, index), y[index]), torch.zeros(len(index), dtype=torch.int64)
        whole = passes.per_example_gradients(task, setting.adapted, bank, tuple(bank), data, owner)
        with setting.kept("clients", index, data[0]):
            kept = passes.per_example_gradients(task, setting.adapted, bank, tuple(bank), data, owner)
        for slot in bank:
            assert float((kept[slot] - whole[slot]).norm()) <= 1e-6 * float(whole[slot].norm())


def test_texts_take_the_room_of_their_own_tokens():
    task = upper("bert")
    play(task, "fedlora", None, PLAN.replace(rounds=1, batch=None, local_steps=1), lora=LORA, frozen_prefix=True)
    store = next(store for name, store in room._KEPT[task].items() if name[0] == "clients")
    tokens = sum(int(x["attention_mask"].sum()) for x, _ in task.clients)
    assert bool(store.filled.all()) and store.rows[0].shape == (tokens, 16)
    padded = sum(x["attention_mask"].numel() for x, _ in task.clients)
    assert tokens < padded


def test_what_is_kept_goes_with_the_task():
    task = upper("vit")
    play(task, "fedlora", None, PLAN, lora=LORA, frozen_prefix=True)
    assert task in room._KEPT
    alive = weakref.ref(task)
    del task
    gc.collect()
    assert alive() is None


class Peeking(nn.Module):
    """Its last layer looks at what the first block makes, past the second."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.blocks[0](x)
        return self.head(self.blocks[2](self.blocks[1](first)) + first).mean(1)


def test_a_model_that_needs_the_blocks_below_is_refused():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pairs = [(torch.randn(6, 5, 4), torch.arange(6) % 3) for _ in range(3)]
        task = fl.tasks.classification(Peeking(), pairs[:2], test=pairs[2], targets=["blocks.2"])
    with pytest.raises(ValueError, match=r"frozen_prefix='losses .* apart': expected a model that needs nothing else"):
        fl.run(task, "fedlora", None, PLAN, frozen_prefix=True)
    one = fl.tasks.classification(Peeking(), pairs[:2], test=pairs[2], targets=["blocks.1"])
    kept, plain = (play(one, "fedlora", None, PLAN, frozen_prefix=on)[-1] for on in (True, False))
    assert gap(kept, plain) < 1e-5, "of the first block alone it is exact"


def test_memory_is_asked_for_first(monkeypatch):
    monkeypatch.setattr(room, "free_memory", lambda device: 100)
    task = upper("bert")
    with pytest.raises(ValueError, match="GiB to keep': expected at most half of the free"):
        play(task, "fedlora", None, PLAN, lora=LORA, frozen_prefix=True)
