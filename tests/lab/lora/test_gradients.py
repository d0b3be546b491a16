"""Per-example gradients of the federation's one batch against batches of one on plain PEFT."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
import toy_hubs
from peft import LoraConfig, get_peft_model
from torch import Tensor
from toy_tasks import LORA

import fedlora_lab as fl
from fedlora_lab.lora import adapters, per_example
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy.privatizer import row_norms
from fedlora_lab.tasks.modules import head_names, is_within
from fedlora_lab.tasks.task import concatenate, forward, map_inputs, take

RAGGED = [0, 0, 0, 0, 1, 2, 2]
MODELS = ["digits", "bert", "distilbert", "gpt2", "swin", "answers of gpt2", "answers of llama"]
FROZEN = "ignore:model=.*drawn at random and frozen"
pytestmark = [pytest.mark.filterwarnings(x) for x in (toy_hubs.NO_PAD, FROZEN)]


def plain_peft(task, values, lora):
    """The model as PEFT alone makes it, with these values, and the parameter of each key."""
    heads = list(head_names(task.head)) or None
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=3,
        target_modules=list(task.targets),
        modules_to_save=heads,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = get_peft_model(adapters.structure_copy(task.model), config).eval()
    named = dict(peft.named_parameters())
    places = {}
    for key in values:
        prefix = f"base_model.model.{key.layer}"
        name = f"{prefix}.lora_{key.name}.default.weight"
        if key.name == "head":
            part, _, kind = key.layer.rpartition(".")
            head = next(head for head in heads or () if is_within(part, head))
            inside = part.replace(head, f"{head}.modules_to_save.default", 1)
            name = f"base_model.model.{inside}.{kind}"
        places[key] = named[name]
        places[key].data.copy_(values[key])
    return peft, places


def one_by_one(task, params, data, owner, lora):
    """A loop over batches of one on plain PEFT models, one for each client."""
    rows: dict[ParamKey, list[Tensor]] = {key: [] for key in params}
    models = {k: plain_peft(task, {key: x[k] for key, x in params.items()}, lora) for k in {*owner}}
    for i, k in enumerate(owner):
        peft, places = models[k]
        one = torch.tensor([i])
        x = take(data[0], one)  # without padding
        loss = task.loss(forward(peft, x), data[1][one].to("cpu")).sum()
        gradients = torch.autograd.grad(loss, list(places.values()), allow_unused=True)
        for (key, place), gradient in zip(places.items(), gradients, strict=True):
            rows[key].append(torch.zeros_like(place) if gradient is None else gradient)
    return {key: torch.stack(parts) for key, parts in rows.items()}


CASES = [
    *((name, True, RAGGED, LORA) for name in MODELS),
    ("bert", False, [2, 0, 1, 2, 0], LORA),
    ("bert", True, [1], LORA),
]


@pytest.mark.parametrize(("name", "head", "owner", "lora"), CASES)
def test_equals_batches_of_one(name, head, owner, lora):
    assert_equal_gradients(toy_hubs.varied(name, head), owner, lora)


def assert_equal_gradients(task, owner, lora, limit=1e-9):
    """Each example's gradient, all tensors together, is the same up to ``limit`` of its norm."""
    # In float64: how far float32 rounds a gradient apart depends on the processor.
    task = replace(task, model=copy.deepcopy(task.model).double())
    adapted = adapters.adapt(task, lora)
    random = torch.Generator().manual_seed(3)
    shapes = adapted.shapes.items()
    # Random values for three clients, of whom some own examples of the batch.
    bank = {key: 0.3 * torch.randn(3, *shape, generator=random).double() for key, shape in shapes}
    x, y = concatenate(task.clients)
    x = map_inputs(lambda part: part.double() if part.dtype.is_floating_point else part, x)
    data = take(x, torch.arange(len(owner))), y[: len(owner)]
    expected = one_by_one(task, bank, data, owner, lora)
    owners = torch.tensor(owner)
    rows = per_example.per_example_gradients(task, adapted, bank, tuple(bank), data, owners)
    assert rows.keys() == expected.keys()
    off = row_norms({key: rows[key] - expected[key] for key in rows})
    size = row_norms(expected)
    assert bool((size > 1e-4).all()) and bool((off <= limit * size).all()), off / size


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "deberta", "llama", "gemma2"])
def test_usual_models_train_by_the_defaults_of_peft(kind):
    """Padding that a model reads, maps that are named otherwise; a private round passes."""
    task = toy_hubs.fresh(kind, targets=None)
    plan = fl.Plan(rounds=1, local_steps=1)
    *_, last = fl.run(task, "rolora", fl.Privacy(noise_multiplier=1.0), plan, seed=None)
    assert last.epsilon < 10
    # Some, as Gemma 2, take softmaxes in float32 whatever they are asked for.
    assert_equal_gradients(task, RAGGED, LORA, 1e-6)
