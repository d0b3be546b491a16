"""One local step in several ways: this library's, two without privacy, and Opacus by client."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from peft import LoraConfig, get_peft_model
from torch import nn

import fedlora_lab as fl
from fedlora_lab.federated import local_training
from fedlora_lab.federated.config import Config
from fedlora_lab.federated.prepared import Prepared
from fedlora_lab.lora import adapters
from fedlora_lab.lora.per_example import split_batch
from fedlora_lab.methods.state import ServerState
from fedlora_lab.tasks.modules import head_names
from fedlora_lab.tasks.task import Task, concatenate, forward, map_inputs, take

RATE = 0.1
Step = Callable[[], None]
Batch = tuple[Any, torch.Tensor]


@dataclass(frozen=True)
class How:
    """What all peers have in common besides task, batch and rank.

    Args:
        device: where the model is.
        bfloat16: whether its frozen linear maps multiply in half precision.
        chunk: at most so many examples at once, where all clients' go together.
    """

    device: str = "cpu"
    bfloat16: bool = False
    chunk: int | None = None


USUAL = How()


class BFloat16Linear(nn.Module):
    """A frozen linear map whose product is taken in bfloat16, from and to the input's own type."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # A copy: an adapted model shares its parameters with the task's.
        self.linear = copy.deepcopy(linear).bfloat16()
        self.weight = self.linear.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.bfloat16()).to(x.dtype)


def multiply_in_bfloat16(model: nn.Module) -> None:
    """Puts every frozen linear map of a model in half precision, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and not child.weight.requires_grad:
                setattr(parent, name, BFloat16Linear(child))


def examples(task: Task, batch: int) -> list[Batch]:
    """``batch`` examples of each client, the same for every peer."""
    index = torch.arange(batch)
    return [(take(x, index % len(y)), y[index % len(y)]) for x, y in task.clients]


def stacked(task: Task, batch: int, rank: int, how: How = USUAL, seed: int | None = 0) -> Step:
    """This library's private step: per-example clip, noise and descent for all clients at once.

    Args: task, batch, rank, how: of the step. seed: ``None``: numbers of the operating system.
    """
    small = replace(task, clients=tuple(examples(task, batch)))
    plan = fl.Plan(batch=None, lr=RATE)
    lora = fl.Lora(rank, 2.0 * rank)
    adapted = adapters.adapt(small, lora, how.device)
    if how.bfloat16:
        multiply_in_bfloat16(adapted.model)
    privacy = fl.Privacy(clip_norm=1.0, noise_multiplier=1.0).resolve(small, plan)
    config = Config(small, fl.methods.FedLoRA, privacy, plan, lora, seed)
    prepared = Prepared(config, adapted, small.clients, chunk=how.chunk)
    start = ServerState(adapters.initial_values(adapted, config.streams))
    received = {key: tensor[None] for key, tensor in start.tensors.items()}
    everyone = tuple(range(len(small.clients)))
    clients = local_training.ClientBatch(everyone, dict(received), received)
    # From the second step on the clients differ: that is the state to time.
    local_training.local_step(prepared, clients, 0, 0)
    return lambda: local_training.local_step(prepared, clients, 0, 1)


def peft_model(task: Task, rank: int, how: How) -> nn.Module:
    """PEFT's model, whose frozen maps multiply as the private step's do.

    Only what moves is in training mode: Opacus' hooks look at no other layer, and dropout stays off
    as for the other peers.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        modules_to_save=list(head_names(task.head)) or None,
        target_modules=list(task.targets),
    )
    model: nn.Module = get_peft_model(copy.deepcopy(task.model), config)
    # Else the ratios would tell of the precision too.
    if how.bfloat16:
        multiply_in_bfloat16(model)
    for module in model.modules():
        module.train(any(p.requires_grad for p in module.parameters(recurse=False)))
    return model.to(how.device)


def moving(model: nn.Module) -> list[Any]:
    """The parameters that are trained."""
    return [p for p in model.parameters() if p.requires_grad]


def on_device(data: Batch, device: str) -> Batch:
    """Inputs and targets on a device."""
    x, y = data
    return map_inputs(lambda value: value.to(device), x), y.to(device)


def plain(task: Task, batch: int, rank: int, how: How = USUAL) -> Step:
    """The limit: an ordinary PEFT step on the same examples, without privacy and clients.

    Texts of like length go through the model together, as in the private step.
    """
    model = peft_model(task, rank, how)
    batches, count = grouped_examples(task, batch, how)
    optimizer = torch.optim.SGD(moving(model), lr=RATE)
    return plain_step(task, model, batches, count, optimizer)


def grouped_examples(task: Task, batch: int, how: How) -> tuple[list[Batch], int]:
    """All clients' examples on the device, in groups that go through the model together; their
    number.
    """
    x, y = concatenate(examples(task, batch))
    cpu = torch.device("cpu")
    groups = split_batch(x, torch.arange(len(y)), torch.device(how.device), how.chunk)
    batches = [
        (map_inputs(lambda column: column.to(cpu), take(x, part)), y[part]) for part in groups
    ]
    return [on_device(data, how.device) for data in batches], len(y)


def plain_step(
    task: Task,
    model: nn.Module,
    batches: list[Batch],
    count: int,
    optimizer: torch.optim.Optimizer,
) -> Step:
    """A step on the mean loss of all examples.

    Args: task, model, optimizer: of the step. batches, count: see `grouped_examples`.
    """

    def step() -> None:
        optimizer.zero_grad()
        for inputs, targets in batches:
            losses = task.loss(forward(model, inputs), targets)
            # The gradient of the mean over all examples, added up group by group.
            (losses.sum() / count).backward()
        optimizer.step()

    return step


def opacus(task: Task, batch: int, rank: int, how: How = USUAL, ghost: bool = False) -> Step:
    """The ordinary private way: client after client, clip, noise and step by Opacus' optimiser.

    Args: task, batch, rank, how: of the step. ghost: norms first, then a second backward pass.
    """
    base = peft_model(task, rank, how)
    hooks = GradSampleModuleFastGradientClipping if ghost else GradSampleModule
    optimiser = DPOptimizerFastGradientClipping if ghost else DPOptimizer
    # "Strict" refuses buffers, which here are constants such as a decoder's frequencies.
    options: dict[str, Any] = {"loss_reduction": "sum", "strict": False}
    options |= {"max_grad_norm": 1.0} if ghost else {}
    # Clients share the frozen weights and own their factors.
    frozen = {id(p): p for p in base.parameters() if not p.requires_grad}
    clients = []
    for data in examples(task, batch):
        model: Any = hooks(copy.deepcopy(base, dict(frozen)), **options)
        optimizer: Any = optimiser(
            torch.optim.SGD(moving(model), lr=RATE / batch),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            expected_batch_size=batch,
            loss_reduction="sum",
        )
        clients.append((model, optimizer, *on_device(data, how.device)))

    def step() -> None:
        for model, optimizer, x, y in clients:
            optimizer.zero_grad()
            losses = task.loss(forward(model, x), y)
            if ghost:
                DPTensorFastGradientClipping(model, optimizer, losses, "sum").backward()
            else:
                losses.sum().backward()
            optimizer.step()

    return step


PEERS: dict[str, Callable[..., Step]] = {
    "private": stacked,
    "plain": plain,
    "opacus": opacus,
    "ghost": partial(opacus, ghost=True),
}
