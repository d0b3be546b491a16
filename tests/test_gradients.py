"""Per-example gradients of the federation's one batch against two others: batches of one, and Opacus' hooks."""

import warnings

import models
import pytest
import torch
from opacus import GradSampleModule
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import fedlora_lab as fl
from fedlora_lab import adapters, passes
from fedlora_lab.method import Slot
from fedlora_lab.tasks import Task
from fedlora_lab.tasks.task import take, together

LORA = fl.Lora(rank=2, alpha=3.0)
LIMIT = 1e-5
OWNERS = {
    "ragged": [0, 0, 0, 0, 1, 2, 2],
    "one client has none": [0, 0, 2, 2, 2],
    "mixed order": [2, 0, 1, 2, 0],
    "one example": [1],
}
Bank = dict[Slot, Tensor]

every_model = pytest.mark.parametrize("name", ["digits", *models.MODELS])
with_and_without_head = pytest.mark.parametrize("head", [False, True], ids=["factors", "with head"])


def plain_peft(task: Task, values: Bank) -> tuple[nn.Module, dict[Slot, nn.Parameter]]:
    """The model as PEFT alone makes it, with these values, and the parameter that stands for each slot."""
    heads = [task.head] if task.head else None
    config = LoraConfig(r=LORA.rank, lora_alpha=3, target_modules=list(task.targets), modules_to_save=heads)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = get_peft_model(adapters.structure_copy(task.model), config).eval()  # type: ignore[arg-type]
    named, places = dict(peft.named_parameters()), {}
    for slot in values:
        prefix = f"base_model.model.{slot.layer}"
        name = f"{prefix}.lora_{slot.side}.default.weight"
        if slot.side == "head":
            part, _, kind = slot.layer.rpartition(".")
            name = f"base_model.model.{part.replace(task.head or '', f'{task.head}.modules_to_save.default', 1)}.{kind}"
        places[slot] = named[name]
        places[slot].data.copy_(values[slot])
    return peft, places


def setting(name: str, head: bool, owner: list[int]) -> tuple[Task, adapters.Adapted, Bank, tuple, Tensor]:
    """Task, adapted model, three clients' random values, a batch whose examples belong to ``owner``."""
    task = models.task(name, head)
    adapted = adapters.adapt(task.model, task.targets, task.head, LORA)
    random = torch.Generator().manual_seed(3)
    bank = {slot: 0.3 * torch.randn(3, *shape, generator=random) for slot, shape in adapted.shapes.items()}
    x, y = together(task.clients)
    index = torch.arange(len(owner))
    return task, adapted, bank, (take(x, index), y[index]), torch.tensor(owner)


def agree(found: Bank, expected: Bank) -> None:
    """Assert that each example's gradient, all tensors together, is the same up to ``LIMIT`` of its norm."""
    assert found.keys() == expected.keys()
    for i in range(len(next(iter(found.values())))):
        off = torch.stack([(found[slot][i] - expected[slot][i]).norm() for slot in found]).norm()
        size = torch.stack([expected[slot][i].norm() for slot in found]).norm()
        assert size > 1e-4
        assert off <= LIMIT * size, f"example {i}: {float(off / size):.1e}"


def one_by_one(task: Task, bank: Bank, data: tuple, owner: Tensor) -> Bank:
    """A loop over batches of one on plain PEFT models."""
    rows: dict[Slot, list[Tensor]] = {slot: [] for slot in bank}
    for i, k in enumerate(owner.tolist()):
        peft, places = plain_peft(task, {slot: x[k] for slot, x in bank.items()})
        one = torch.tensor([i])
        loss = task.loss(task.forward(peft, take(data[0], one)), data[1][one]).sum()
        gradients = torch.autograd.grad(loss, list(places.values()), allow_unused=True)
        for (slot, place), gradient in zip(places.items(), gradients, strict=True):
            rows[slot].append(torch.zeros_like(place) if gradient is None else gradient)
    return {slot: torch.stack(parts) for slot, parts in rows.items()}


def by_opacus(task: Task, bank: Bank, data: tuple, owner: Tensor) -> Bank:
    """Opacus' hooks, client by client. A window of an image is a row to it: rows of one example are added up."""
    rows = {slot: x.new_zeros(len(owner), *x.shape[1:]) for slot, x in bank.items()}
    for k in sorted(set(owner.tolist())):
        peft, places = plain_peft(task, {slot: x[k] for slot, x in bank.items()})
        for parameter in peft.parameters():
            parameter.requires_grad_(any(parameter is place for place in places.values()))
        for module in peft.modules():  # Opacus looks at modules in training mode only; dropout stays off
            module.training = any(p is place for p in module.parameters(recurse=False) for place in places.values())
        hooked = GradSampleModule(peft, loss_reduction="sum", strict=False)
        mine = (owner == k).nonzero().squeeze(1)
        task.loss(task.forward(hooked, take(data[0], mine)), data[1][mine]).sum().backward()
        for slot, place in places.items():
            sample = getattr(place, "grad_sample", None)
            if sample is not None:
                rows[slot][mine] = sample.view(len(mine), -1, *place.shape).sum(1)
    return rows


@every_model
@with_and_without_head
@pytest.mark.parametrize("owner", OWNERS.values(), ids=list(OWNERS))
def test_equals_batches_of_one(name, head, owner):
    task, adapted, bank, data, owner = setting(name, head, owner)
    found = passes.per_example_gradients(task, adapted, bank, tuple(bank), data, owner)
    agree(found, one_by_one(task, bank, data, owner))


@every_model
@with_and_without_head
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("owner", [OWNERS["ragged"], OWNERS["one client has none"]], ids=["ragged", "one has none"])
def test_equals_opacus(name, head, owner):
    task, adapted, bank, data, owner = setting(name, head, owner)
    found = passes.per_example_gradients(task, adapted, bank, tuple(bank), data, owner)
    agree(found, by_opacus(task, bank, data, owner))


@every_model
def test_frozen_slots_get_no_gradient_and_change_no_other(name):
    """Asking for B alone gives B's gradients, those that come with A's."""
    task, adapted, bank, data, owner = setting(name, False, OWNERS["ragged"])
    both = passes.per_example_gradients(task, adapted, bank, tuple(bank), data, owner)
    moving = tuple(slot for slot in bank if slot.side == "B")
    alone = passes.per_example_gradients(task, adapted, bank, moving, data, owner)
    assert tuple(alone) == moving
    agree(alone, {slot: both[slot] for slot in moving})


@every_model
def test_common_values_need_no_copies(name):
    """A bank of one row stands for all clients."""
    task, adapted, bank, data, owner = setting(name, True, OWNERS["ragged"])
    common = {slot: x[:1] for slot, x in bank.items()}
    copies = {slot: x[:1].expand(3, *x.shape[1:]).clone() for slot, x in bank.items()}
    one, three = (passes.per_example_gradients(task, adapted, b, tuple(b), data, owner) for b in (common, copies))
    agree(one, three)
