"""Passes through an adapted model: the gradient of each example alone, outputs and metrics.

Every example of a step carries its own copy of the moving tensors, (N, ...), so the gradient of the summed loss with
respect to those copies is the gradient of each example alone: no hooks, no vmap, no loop over clients or examples.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedlora_lab.adapters import Adapted
from fedlora_lab.checks import check
from fedlora_lab.method import Method, Slot
from fedlora_lab.tasks.task import Task, mask_of, take

TEXTS = 16


class NotPerExample(ValueError):
    """A loss or a penalty that is not one number for each example: no clip bounds what one of them adds."""


def per_example_gradients(
    task: Task,
    adapted: Adapted,
    bank: Mapping[Slot, Tensor],
    moving: tuple[Slot, ...],
    data: "tuple[Tensor | Mapping[str, Tensor], Tensor]",
    owner: Int[Tensor, " n"],
    method: Method | None = None,
    start: Mapping[Slot, Tensor] | None = None,
    weights: Float[Tensor, " n"] | None = None,
) -> dict[Slot, Tensor]:
    """The gradient of each example's own loss with respect to its client's moving tensors.

    Args:
        bank: slot -> (clients, ...), or (1, ...) where all clients hold the same.
        moving: the slots to differentiate.
        data: N examples and their targets.
        owner: (N,), each example's client in the bank.
        method, start: a row with a penalty, and what the clients received, for that penalty.
        weights: (N,), factors of the examples' losses; one by default.

    Returns: slot -> (N, ...).

    Raises: ``NotPerExample`` unless loss and penalty have one number for each example: the sum of anything else has no
        gradients of single examples, and no clip bounds it.
    Guarantees: equals a loop over batches of one and Opacus' GradSampleModule (tests/test_gradients.py).
    """
    owner = owner.to(adapted.device, non_blocking=True)
    leaves = {}
    for slot in adapted.used(bank):
        tensor = bank[slot]
        if slot in moving:
            leaves[slot] = rows = _rows(tensor, owner).detach().requires_grad_()
        else:
            rows = tensor[0] if len(tensor) == 1 else tensor.index_select(0, owner)
        adapted.put(slot, rows)
    x, y = data
    with torch.enable_grad():
        outputs = task.forward(adapted.model, ready(task, x, adapted.device))
        loss = task.loss(outputs, y.to(adapted.device, non_blocking=True))
        _one_each("loss", loss, len(owner))
        if method is not None and method.penalty is not None and start is not None:
            begin = {slot: _rows(start[slot], owner) for slot in moving}
            penalty = method.penalty(leaves, begin)
            _one_each("penalty", penalty, len(owner))
            loss = loss + penalty
        if weights is not None:
            loss = loss * weights.to(loss)
        gradients = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
    return {
        slot: torch.zeros_like(leaf) if gradient is None else gradient
        for (slot, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }


def _one_each(name: str, value: Any, count: int) -> None:
    """Refuse anything but (N,): a scalar, or a shape that broadcasts, would add the examples up before the clip."""
    found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    ok = isinstance(value, Tensor) and value.is_floating_point() and value.shape == (count,)
    try:
        check(ok, name, found, f"({count},), one number for each example: reduce over all but the first dimension")
    except ValueError as error:
        raise NotPerExample(str(error)) from None


def _rows(tensor: Tensor, owner: Tensor) -> Tensor:
    return tensor.expand(len(owner), *tensor.shape[1:]) if len(tensor) == 1 else tensor.index_select(0, owner)


def ready(task: Task, x: "Tensor | Mapping[str, Tensor]", device: torch.device) -> "Tensor | Mapping[str, Tensor]":
    """A batch of inputs as the task wants it before the model sees it, on the model's device."""
    x = x if task.prepare is None else task.prepare(x)
    if isinstance(x, Tensor):
        return x.to(device, non_blocking=True)
    return {key: value.to(device, non_blocking=True) for key, value in x.items()}


def portions(
    x: Any, index: Int[Tensor, " n"], device: torch.device, chunk: int | None = None, otherwise: int | None = None
) -> Sequence[Int[Tensor, " part"]]:
    """Places in ``index`` of the examples that go through the model together.

    Texts, known by their ``attention_mask``, go with others of like length, and on a processor sixteen at once: there
    padding is computed like words, and costs more than a second call.

    Args:
        x: all examples, of which ``index`` names some.
        chunk: at most so many at once, whatever they are.
        otherwise: at most so many where ``chunk`` says nothing and they are no texts, or are on another device.
    """
    whole = otherwise or max(len(index), 1)
    mask = mask_of(x)
    if mask is None:
        return torch.arange(len(index)).split(chunk or whole)
    places = mask[index].flatten(1).sum(1).argsort(descending=True, stable=True)
    return places.split(chunk or (TEXTS if device.type == "cpu" else whole))


def evaluate(
    task: Task,
    adapted: Adapted,
    values: Mapping[Slot, Tensor],
    data: "tuple[Tensor | Mapping[str, Tensor], Tensor]",
    kept: "Callable[[Tensor, Any], AbstractContextManager[None]]" = lambda index, x: nullcontext(),
    chunk: int | None = None,
) -> dict[str, float]:
    """Mean of each metric of the task over some examples, with one value for each slot.

    A loss that is not a number, of a model that diverged, is infinite: NaN stands for what was not measured.

    Args:
        kept: (places of a chunk's examples, their inputs) -> within what the model is called.
        chunk: at most so many examples at once, and in no case more than 128, of small ones 512; default: that many,
            texts as :func:`portions` has them.
    """
    y = data[1]
    totals = dict.fromkeys(task.metrics, 0.0)
    most = _at_once(data[0])
    for part in portions(data[0], torch.arange(len(y)), adapted.device, chunk and min(chunk, most), most):
        x = take(data[0], part)
        with kept(part, x):
            outputs = predict(task, adapted, values, x)
        for name, metric in task.metrics.items():
            totals[name] += float(metric(outputs, y[part].to(outputs.device)).double().sum())
    if math.isnan(totals.get("loss", 0.0)):
        totals["loss"] = math.inf
    return {name: total / len(y) for name, total in totals.items()}


def _at_once(x: Any) -> int:
    """Examples judged at once: a call costs the same for few as for many, and of small ones many need little memory."""
    small = isinstance(x, Tensor) and x.is_floating_point() and len(x)
    return max(128, min(512, 2**15 // max(1, x[0].numel()))) if small else 128


def predict(
    task: Task, adapted: Adapted, values: Mapping[Slot, Tensor], x: "Tensor | Mapping[str, Tensor]"
) -> Float[Tensor, "n ..."]:
    """The model's outputs with one value for each slot."""
    for slot in adapted.used(values):
        adapted.put(slot, values[slot].to(adapted.device))
    with torch.inference_mode():
        return task.forward(adapted.model, ready(task, x, adapted.device))
