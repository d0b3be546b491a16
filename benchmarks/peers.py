"""One local step, several ways: all clients in one stacked private batch, plain and non-private,
Opacus by client with per-example gradients or ghost clipping.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from peft import LoraConfig, get_peft_model
from torch import nn

import fedlora_lab as fl
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.federated import local_training
from fedlora_lab.federated.spec import Prepared, RunSpec
from fedlora_lab.lora import peft
from fedlora_lab.lora.peft import BFloat16Linear
from fedlora_lab.lora.per_example import prepare_inputs, split_batch
from fedlora_lab.methods.state import ServerState
from fedlora_lab.tasks.task import head_names, map_inputs, take

RATE = 0.1
OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


@dataclass(frozen=True)
class How:
    """What all peers have in common besides task, batch and rank.

    Args:
        optimizer: of `OPTIMIZERS`.
        device, products: where the model is, and the precision of its frozen linear maps.
        chunk: at most so many examples at once, where all clients' go together.
    """

    optimizer: str = "sgd"
    device: str = "cpu"
    products: str = "float32"
    chunk: int | None = None


USUAL = How()


def examples(task: fl.tasks.Task, batch: int) -> list[tuple]:
    """``batch`` examples of each client, the same for every peer."""
    index = torch.arange(batch)
    return [(take(x, index % len(y)), y[index % len(y)]) for x, y in task.clients]


def together(parts: list[tuple]) -> tuple:
    """All clients' examples in one batch."""
    xs, ys = zip(*parts, strict=True)
    x = (
        {k: torch.cat([x[k] for x in xs]) for k in xs[0]}
        if isinstance(xs[0], dict)
        else torch.cat(xs)
    )
    return x, torch.cat(ys)


def to_device(data: tuple, device: str) -> tuple:
    """Inputs and targets on a device."""
    x, y = data
    return map_inputs(lambda value: value.to(device), x), y.to(device)


def grouped(
    task: fl.tasks.Task, x: Any, y: torch.Tensor, group: bool, chunk: int | None = None
) -> list[tuple]:
    """The batches in which examples go through a model: texts of like length together, as the
    private step takes them; or all at once, padded to the longest of them.

    Args: task, x, y: the examples. group: see above. chunk: at most so many at once.
    """
    if not group:
        return [(x, y)]
    cpu = torch.device("cpu")
    parts = split_batch(x, torch.arange(len(y)), cpu, chunk)
    return [(prepare_inputs(task, take(x, part), cpu), y[part]) for part in parts]


def stacked(task: fl.tasks.Task, batch: int, rank: int, how: How = USUAL) -> Callable[[], None]:
    """This library's private step: per-example clip, noise and descent for all clients at once.

    Args: how: see `How`.
    """
    small = replace(task, clients=tuple(examples(task, batch)))
    plan = fl.Plan(batch=None, lr=RATE, optimizer=how.optimizer)
    lora = fl.Lora(rank, 2.0 * rank)
    where = how.device, how.products
    adapted = peft.adapt(small.model, small.targets, small.head, lora, *where)
    streams, count = Streams(0), len(small.clients)
    privacy = fl.Privacy(clip_norm=1.0, noise_multiplier=1.0)
    spec = RunSpec(small, fl.methods.FedLoRA, privacy, plan, lora, streams)
    prepared = Prepared(spec, adapted, small.clients, products=how.products, chunk=how.chunk)
    start = ServerState(peft.initial_values(adapted, streams))
    received = {key: tensor[None] for key, tensor in start.tensors.items()}
    # From the second step on the clients differ: that is the state to time.
    clients = local_training.ClientBatch(tuple(range(count)), dict(received), received)
    local_training.local_step(prepared, clients, 0, 0)
    return lambda: local_training.local_step(prepared, clients, 0, 1)


def _peft(task: fl.tasks.Task, rank: int, how: How) -> nn.Module:
    """PEFT's model; its frozen maps multiply as the private step's do, so the ratios tell of
    privacy alone.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        modules_to_save=list(head_names(task.head)) or None,
        target_modules=list(task.targets),
    )
    model: nn.Module = get_peft_model(copy.deepcopy(task.model), config)
    for parent in list(model.modules()) if how.products == "bfloat16" else ():
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and not child.weight.requires_grad:
                setattr(parent, name, BFloat16Linear(child))
    _set_modes(model)
    return model.to(how.device)


def _set_modes(model: nn.Module) -> None:
    """Puts what moves in training mode: Opacus' hooks look at no other layer, and dropout stays
    off, as for the other peers.
    """
    for module in model.modules():
        module.train(any(p.requires_grad for p in module.parameters(recurse=False)))


def _moving(model: nn.Module) -> list[Any]:
    return [p for p in model.parameters() if p.requires_grad]


def plain(
    task: fl.tasks.Task, batch: int, rank: int, group: bool = True, how: How = USUAL
) -> Callable[[], None]:
    """The limit: one ordinary PEFT step on the same examples, no privacy, no clients.

    Args: group: see `grouped`. how: see `How`.
    """
    model = _peft(task, rank, how)
    x, y = together(examples(task, batch))
    count = len(y)
    parts = [to_device(part, how.device) for part in grouped(task, x, y, group, how.chunk)]
    optimizer = OPTIMIZERS[how.optimizer](_moving(model), lr=RATE)

    def step() -> None:
        optimizer.zero_grad()
        for x, y in parts:
            (task.loss(task.forward(model, x), y).sum() / count).backward()
        optimizer.step()

    return step


def in_shell(model: nn.Module, ghost: bool) -> Any:
    """The model with Opacus' hooks.

    Args: model: in training mode where it moves. ghost: hooks that find norms, not gradients.
    """
    # "Strict" refuses buffers, which here are constants such as a decoder's frequencies.
    if ghost:
        return GradSampleModuleFastGradientClipping(
            model, loss_reduction="sum", max_grad_norm=1.0, strict=False
        )
    return GradSampleModule(model, loss_reduction="sum", strict=False)


def clip_and_sum(model: Any, losses: torch.Tensor, ghost: bool) -> None:
    """Leaves in ``grad`` the sum of the examples' gradients, each clipped to norm 1, by Opacus.

    Args: model: in one of Opacus' shells. losses: (N,). ghost: the shell is that of ghost clipping.
    """
    losses.sum().backward(retain_graph=ghost)
    moving = _moving(model)
    if ghost:
        scale = model.get_clipping_coef()
        model.zero_grad()
        with _without_hooks(model):
            (scale * losses).sum().backward()
        return
    norms = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in moving]).norm(dim=0)
    scale = (1 / (norms + 1e-6)).clamp(max=1)
    for p in moving:
        p.grad = torch.einsum("n,n...->...", scale, p.grad_sample)
        p.grad_sample = None


def opacus(
    task: fl.tasks.Task, batch: int, rank: int, how: How = USUAL, ghost: bool = False
) -> Callable[[], None]:
    """The ordinary private way: client after client, per-example gradients by Opacus' hooks, flat
    clip, noise, the optimiser's step. The few texts of a client are one group as they are.

    Args: how: see `How`. ghost: norms without gradients first, then a second backward pass.
    """
    parts = [to_device(part, how.device) for part in examples(task, batch)]
    models: list[Any] = []
    base = _peft(task, rank, how)
    for _ in parts:
        # Clients share the frozen weights and own their factors.
        frozen = {id(p): p for p in base.parameters() if not p.requires_grad}
        model = copy.deepcopy(base, frozen)
        models.append(in_shell(model, ghost))
    optimizers = [OPTIMIZERS[how.optimizer](_moving(model), lr=RATE) for model in models]

    def step() -> None:
        for model, optimizer, (x, y) in zip(models, optimizers, parts, strict=True):
            model.zero_grad()
            clip_and_sum(model, task.loss(task.forward(model, x), y), ghost)
            for p in _moving(model):
                p.grad = (p.grad + torch.randn_like(p)) / len(y)
            optimizer.step()

    return step


@contextmanager
def _without_hooks(model: Any) -> Iterator[None]:
    model.disable_hooks()
    try:
        yield
    finally:
        model.enable_hooks()


PEERS: dict[str, Callable[..., Callable[[], None]]] = {
    "stacked": stacked,
    "plain": plain,
    "opacus": opacus,
    "ghost": partial(opacus, ghost=True),
    "plain, padded": partial(plain, group=False),
}
