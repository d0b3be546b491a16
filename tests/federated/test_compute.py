"""Switches of speed: what each may change, and what none of them may; the frozen prefix."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
import toy_hubs
from peft.utils import ModulesToSaveWrapper
from torch import nn
from toy_tasks import PLAN, anywhere, gap, play, private, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.federated import compute, local_training, uploads
from fedlora_lab.federated.records import Round
from fedlora_lab.federated.simulation import Federation
from fedlora_lab.lora import peft
from fedlora_lab.lora.per_example import per_example_gradients
from fedlora_lab.tasks.task import Task, concatenate, take

pytestmark = pytest.mark.filterwarnings(toy_hubs.NO_PAD)
LORA = fl.Lora(rank=2, alpha=3.0)
SHORT = fl.Plan(rounds=1, local_steps=2, batch=3, lr=0.2)
PRIVATE = fl.Privacy(noise_multiplier=1.0, clip_norm=0.5, delta=1e-3, accountant="rdp")
RUN = "fedlora", PRIVATE, SHORT
KINDS = ("bert", "gpt2", "vit", "swin")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"products": "half"}, "products='half': expected one of 'float32', 'tf32', 'bfloat16'"),
        ({"frozen_prefix": 1}, "frozen_prefix=1: expected True or False"),
        ({"chunk_examples": 0}, "chunk_examples=0: expected a whole number >= 1"),
        ({"chunk_examples": "many"}, "chunk_examples='many': expected a number or 'auto'"),
        ({"device": "abacus"}, "device='abacus': expected a device that torch finds here"),
        ({"recompute": True}, "recompute=True: expected a model whose blocks are in an nn.Module"),
        ({"frozen_prefix": True}, "frozen_prefix=True: expected a model with whole blocks below"),
    ],
)
def test_switches_are_checked(options, line):
    with pytest.raises(ValueError, match=line):
        fl.run(tokens(), "fedlora", None, PLAN, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_recompute_and_automatic_chunks_change_nothing(kind):
    """Computing again, and automatic chunks, change nothing beyond rounding.

    More texts at once would cost padding on a processor; of images the memory decides.
    """
    task = toy_hubs.task(kind)
    plain = play(task, *RUN, lora=LORA)[-1]
    for name, value in (("recompute", True), ("chunk_examples", "auto"), ("products", "tf32")):
        assert gap(plain, play(task, *RUN, lora=LORA, **{name: value})[-1]) < 1e-5
    chunk = Federation.open(task, *RUN, lora=LORA, chunk_examples="auto").context.chunk or 0
    assert chunk == 16 if kind in ("bert", "gpt2") else chunk > 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"recompute": True}, {"products": "bfloat16"}, {"chunk_examples": "auto"}], ids=str
)
def test_epsilon_and_noise_are_the_same_under_every_switch(options):
    """With nothing to learn from, the two runs hold the same noise, bit for bit."""
    silent = replace(PRIVATE, clip_norm=1e-30, noise_multiplier=1e30)
    run = toy_hubs.task("bert"), "fedlora", silent, SHORT
    plain, switched = (play(*run, lora=LORA, **given)[-1] for given in ({}, options))
    assert gap(plain, switched) == 0
    assert plain.ledger is not None and switched.ledger is not None
    assert plain.ledger.to_json() == switched.ledger.to_json()
    assert all(x.dtype == torch.float32 for pair in switched.adapter.values() for x in pair)


@pytest.mark.parametrize("allowed", [False, True])
def test_what_the_process_allows_does_not_count(allowed):
    """Products are float32 unless TF32 is asked for, and the process keeps its own setting."""
    setting = torch.backends.cuda.matmul
    before, setting.allow_tf32 = setting.allow_tf32, allowed
    try:
        for products in compute.PRODUCTS:
            with peft.matmuls(products):
                assert setting.allow_tf32 == (products == "tf32")
        assert setting.allow_tf32 == allowed
    finally:
        setting.allow_tf32 = before


@pytest.mark.parametrize("kind", ["gpt2", "vit"])
def test_half_precision_is_of_the_frozen_base_only(kind):
    """Every frozen linear map is halved, no factor is; the rows stay float32 and near."""
    task = toy_hubs.task(kind)
    exact, adapted = (
        peft.place(peft.adapt(task.model, task.targets, task.head, LORA), None, products)
        for products in ("float32", "bfloat16")
    )
    parts = list(adapted.model.modules())
    heads = [m for p in parts if isinstance(p, ModulesToSaveWrapper) for m in p.modules()]
    assert sum(isinstance(m, peft.BFloat16Linear) for m in parts) > 6
    assert all(m in heads for m in parts if isinstance(m, nn.Linear))
    assert all(p.dtype == torch.float32 for p in task.model.parameters()), "the given model stays"
    params = {key: 0.2 * torch.randn(1, *shape) for key, shape in adapted.shapes.items()}
    (x, y), owner = concatenate(task.clients), torch.zeros(4, dtype=torch.int64)
    rest = params, tuple(params), (take(x, owner), y[:4]), owner
    rows, whole = (per_example_gradients(task, model, *rest) for model in (adapted, exact))
    assert all(row.dtype == torch.float32 for row in rows.values())
    size = torch.stack([w.norm() for w in whole.values()]).norm()
    off = torch.stack([(rows[s] - whole[s]).norm() for s in whole]).norm() / size
    assert 0 < off < 0.05, f"bfloat16 keeps about three digits: {float(off):.1e}"


def test_tied_weights_stay_tied_where_they_are_moved():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    model[1].weight = model[0].weight
    adapted = peft.place(peft.adapt(model, ("2",), None, LORA), "meta", "float32")
    there = adapted.model.get_submodule("base_model.model")
    first, second = (there.get_submodule(name).get_parameter("weight") for name in ("0", "1"))
    assert first is second and first.device.type == "meta"
    assert model[0].weight.device.type == "cpu", "the given model is as it was"


@pytest.mark.slow
@pytest.mark.parametrize("row", list(methods.ALL.values()), ids=lambda row: row.slug)
def test_a_local_step_reads_nothing_from_the_device(row):
    """On the device "meta" there are no values: a step that looked at one would fail."""
    rules = ("sgd:momentum=0.5,weight_decay=0.1", "adamw", "dp-adam")  # shared out over the rows
    rules = rules if row.balance is None else ("sgd:momentum=0.5",) * 3  # others hide its noise
    task, plan = tokens(), PLAN.replace(optimizer=rules[sum(row.slug.encode()) % 3])
    context = Federation.open(task, row, private("example"), plan, lora=LORA).context
    context = replace(context, adapted=peft.place(context.adapted, "meta", "float32"))
    clients = uploads.begin_clients(context, (0, 1, 2), anywhere(task, row), {})
    for step in range(2):
        local_training.local_step(context, clients, 0, step)
    assert any(tensor.device.type == "meta" for tensor in clients.params.values())
    assert clients.clipped.rows > 0


UPPER = {  # adapters in the second block only
    "bert": ("layer.1.attention.self.query", "layer.1.attention.self.value"),
    "distilbert": ("layer.1.attention.v_lin",),
    "gpt2": ("h.1.attn.c_attn",),
    "vit": ("layers.1.attention.v_proj", "layer.1.attention.attention.value"),
    "swin": ("layers.1.blocks.0.attention.self.value", "layers.1.blocks.0.attention.v_proj"),
}


def upper(kind: str) -> Task:
    """The toy model with adapters above its first block, by the names of this Transformers."""
    names = [name for name, _ in toy_hubs.task(kind).model.named_modules()]
    targets = [t for t in UPPER[kind] if any(name.endswith(f".{t}") for name in names)]
    assert targets, names
    return toy_hubs.fresh(kind, targets=targets)


@pytest.mark.slow
@pytest.mark.parametrize("kind", UPPER)
def test_outputs_and_gradients_are_the_same(kind):
    """With a prefix as without; its blocks are not called for examples that were seen before."""
    task, kept = upper(kind), {"lora": LORA, "frozen_prefix": True}
    plain, once = play(task, *RUN, lora=LORA), play(task, *RUN, **kept)
    for one, other in zip(plain, once, strict=True):
        assert gap(one, other) < 1e-5
        assert abs(one.metrics["loss"] - other.metrics["loss"]) < 1e-5
    run = Federation.open(task, *RUN, **kept)
    context, calls = run.context, []
    assert context.prefix is not None
    for block in context.prefix.blocks:
        block.block.register_forward_hook(lambda *_: calls.append(1))
    again = [event for event in run.events() if isinstance(event, Round)]
    assert gap(again[-1], once[-1]) == 0
    assert not calls, "the second run finds everything there"
    params = {key: 0.2 * torch.randn(1, *shape) for key, shape in context.adapted.shapes.items()}
    (x, y), index = concatenate(task.clients), torch.tensor([3, 0, 3])
    data, owner = (take(x, index), y[index]), torch.zeros(3, dtype=torch.int64)
    parts = task, context.adapted, params, tuple(params), data, owner
    whole = per_example_gradients(*parts)
    with context.cached_prefix("clients", index, data[0]):
        rows = per_example_gradients(*parts)
    for key in params:
        assert float((rows[key] - whole[key]).norm()) <= 1e-6 * float(whole[key].norm())


def test_texts_take_the_room_of_their_own_tokens_as_long_as_their_task():
    task = upper("bert")
    masks = [x["attention_mask"] for x, _ in task.clients]
    plan = PLAN.replace(rounds=1, batch=None, local_steps=1)
    play(task, "fedlora", None, plan, lora=LORA, frozen_prefix=True)
    store = next(store for name, store in compute._KEPT[task].items() if name[0] == "clients")
    tokens = sum(int(mask.sum()) for mask in masks)
    assert bool(store.filled.all()) and store.rows[0].shape == (tokens, 16)
    assert tokens < sum(mask.numel() for mask in masks)
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
    """Of the first block alone it is exact."""
    torch.manual_seed(0)
    pairs = [(torch.randn(6, 5, 4), torch.arange(6) % 3) for _ in range(3)]
    above, one = (
        fl.tasks.classification(Peeking(), pairs[:2], test=pairs[2], targets=[target])
        for target in ("blocks.2", "blocks.1")
    )
    with pytest.raises(ValueError, match=r"frozen_prefix='losses .* apart': expected a model that"):
        fl.run(above, "fedlora", None, PLAN, frozen_prefix=True)
    kept, plain = (play(one, "fedlora", None, PLAN, frozen_prefix=on)[-1] for on in (True, False))
    assert gap(kept, plain) < 1e-5


def test_memory_is_asked_for_first(monkeypatch):
    monkeypatch.setattr(compute, "free_memory", lambda device: 100)
    with pytest.raises(ValueError, match="GiB to keep': expected at most half of the free"):
        play(upper("bert"), "fedlora", None, PLAN, lora=LORA, frozen_prefix=True)
