"""Per-example gradients of the federation's one batch against batches of one on plain PEFT."""

import warnings
from typing import Any

import pytest
import torch
import toy_hubs
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import fedlora_lab as fl
from fedlora_lab.lora import adapters, per_example
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy.privatizer import row_norms
from fedlora_lab.tasks.task import Task, concatenate, head_names, is_within, take

LORA = fl.Lora(rank=2, alpha=3.0)
LIMIT = 1e-5
ClientParams = dict[ParamKey, Tensor]
RAGGED = [0, 0, 0, 0, 1, 2, 2]
MODELS = ["digits", "bert", "distilbert", "gpt2", "swin", "answers of gpt2", "answers of llama"]
pytestmark = pytest.mark.filterwarnings(toy_hubs.NO_PAD)


def plain_peft(
    task: Task, values: ClientParams, lora: fl.Lora = LORA
) -> tuple[nn.Module, dict[ParamKey, nn.Parameter]]:
    """The model as PEFT alone makes it, with these values, and the parameter of each key."""
    heads = list(lora.head or head_names(task.head)) or None
    targets: Any = lora.targets or task.targets
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=3,
        use_rslora=lora.rslora,
        target_modules=targets if isinstance(targets, str) else list(targets),
        modules_to_save=heads,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = get_peft_model(adapters.structure_copy(task.model), config).eval()
    named = dict(peft.named_parameters())
    places = {}
    for key in values:
        prefix = f"base_model.model.{key.layer}"
        name = f"{prefix}.lora_{key.side}.default.weight"
        if key.side == "head":
            part, _, kind = key.layer.rpartition(".")
            head = next(head for head in heads or () if is_within(part, head))
            inside = part.replace(head, f"{head}.modules_to_save.default", 1)
            name = f"base_model.model.{inside}.{kind}"
        places[key] = named[name]
        places[key].data.copy_(values[key])
    return peft, places


def setting(name: str, head: bool, owner: list[int], lora: fl.Lora = LORA) -> tuple[Any, ...]:
    """Task, adapted model, three clients' random values, a batch of examples of ``owner``."""
    task = toy_hubs.varied(name, head)
    adapted = adapters.adapt(task.model, task.targets, task.head, lora)
    random = torch.Generator().manual_seed(3)
    index = torch.arange(len(owner))
    shapes = adapted.shapes.items()
    bank = {key: 0.3 * torch.randn(3, *shape, generator=random) for key, shape in shapes}
    x, y = concatenate(task.clients)
    return task, adapted, bank, (take(x, index), y[index]), torch.tensor(owner)


def agree(found: ClientParams, expected: ClientParams) -> None:
    """Assert that each example's gradient, all tensors together, is the same up to ``LIMIT`` of its
    norm.
    """
    assert found.keys() == expected.keys()
    off = row_norms({key: found[key] - expected[key] for key in found})
    size = row_norms(expected)
    assert bool((size > 1e-4).all()) and bool((off <= LIMIT * size).all()), off / size


def one_by_one(
    task: Task, params: ClientParams, data: tuple, owner: Tensor, lora: fl.Lora = LORA
) -> ClientParams:
    """A loop over batches of one on plain PEFT models."""
    rows: dict[ParamKey, list[Tensor]] = {key: [] for key in params}
    for i, k in enumerate(owner.tolist()):
        peft, places = plain_peft(task, {key: x[k] for key, x in params.items()}, lora)
        one = torch.tensor([i])
        loss = task.loss(task.forward(peft, take(data[0], one)), data[1][one]).sum()
        gradients = torch.autograd.grad(loss, list(places.values()), allow_unused=True)
        for (key, place), gradient in zip(places.items(), gradients, strict=True):
            rows[key].append(torch.zeros_like(place) if gradient is None else gradient)
    return {key: torch.stack(parts) for key, parts in rows.items()}


@pytest.mark.parametrize(
    ("name", "head", "owner"),
    [
        *((name, True, RAGGED) for name in MODELS),
        ("bert", False, [2, 0, 1, 2, 0]),
        ("bert", True, [1]),
    ],
)
def test_equals_batches_of_one(name, head, owner):
    task, adapted, bank, data, owner = setting(name, head, owner)
    found = per_example.per_example_gradients(task, adapted, bank, tuple(bank), data, owner)
    agree(found, one_by_one(task, bank, data, owner))


OPTIONS = {
    "all-linear": fl.Lora(2, 3.0, targets="all-linear", rslora=True),
    "a regular expression": fl.Lora(2, 3.0, targets=r".*\.0\..*(query|q_proj|dense|fc1|c_fc).*"),
}


@pytest.mark.parametrize("lora", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_targets_of_the_adapter_are_those_of_peft(name, lora):
    """The same layers and the same gradients as PEFT's own reading of the options."""
    task, adapted, bank, data, owner = setting(name, True, RAGGED, lora)
    found = per_example.per_example_gradients(task, adapted, bank, tuple(bank), data, owner)
    agree(found, one_by_one(task, bank, data, owner, lora))
