"""Batches that go through an adapted model: the gradient of each example alone, and metrics.

Every example carries its own copy of the moving tensors, (N, ...), so the gradient of the summed
loss with respect to those copies is that of each example alone: no hooks, no vmap, no loop.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fedlora_lab._utils.validation import check, in_one_line, refuse
from fedlora_lab.lora.adapters import AdaptedModel
from fedlora_lab.methods.directions import ALONG, Basis
from fedlora_lab.methods.state import Keys, TensorDict, Tensors
from fedlora_lab.tasks.metrics import over_all
from fedlora_lab.tasks.ragged import Ragged
from fedlora_lab.tasks.task import Examples, Inputs, Task, forward, mask_of, move_to_model, take

TEXTS_AT_ONCE = 8
"""Texts that go through the model at once on a CPU: of more, the short ones are padded further."""
TOKENS_AT_ONCE = 512
"""Short texts go together up to so many tokens: each pass has a cost of its own."""


class NotPerExample(ValueError):
    """No clip bounds what one example adds: the loss is not one number for each, or the model keeps
    something of them.
    """


def per_example_gradients(
    task: Task,
    adapted: AdaptedModel,
    params: Tensors,
    moving: Keys,
    data: "tuple[Tensor | Mapping[str, Tensor], Tensor]",
    owner: Int[Tensor, " n"],
    weights: Float[Tensor, " n"] | None = None,
) -> TensorDict:
    """The gradient of each example's own loss with respect to its client's moving tensors.

    Args:
        task, adapted: the loss, and the model.
        params: key -> (clients, ...), or (1, ...) where all clients hold the same.
        moving: the keys to differentiate.
        data, owner: N examples with their targets, and (N,), each example's client.
        weights: (N,), factors of the examples' losses; one by default.

    Returns: key -> (N, ...).
    Raises: ``NotPerExample`` unless the loss has one number for each example, and where the pass
        changed the model; ``ValueError`` where it depends on nothing that moves.
    Guarantees: equals a loop over batches of one (tests/lab/lora/test_gradients.py).
    """
    owner = owner.to(adapted.device, non_blocking=True)
    leaves = _set_leaves(adapted, params, moving, owner)
    with torch.enable_grad(), _unchanged(adapted.model):
        loss = _losses(task, adapted, data, len(owner))
        if not loss.requires_grad:
            expected = "linear maps that the model calls; the loss depends on none, and on no head"
            refuse("targets", task.targets, expected)
        # Weights multiply each example's own loss: a division by their sum would mix examples.
        loss = loss if weights is None else loss * weights.to(loss)
        # An example's copies enter its own loss alone, so the sum's gradient in them is its own.
        gradients = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), gradients, strict=True)
    # What the loss does not reach has the gradient 0, and gets noise like everything that moves.
    return {key: torch.zeros_like(leaf) if g is None else g for (key, leaf), g in pairs}


def loss_differences(
    task: Task,
    adapted: AdaptedModel,
    params: Tensors,
    basis: Basis,
    step: float,
    data: "tuple[Tensor | Mapping[str, Tensor], Tensor]",
    owner: Int[Tensor, " n"],
) -> TensorDict:
    """Central differences of each example's own loss along directions of its client's tensors.

    Args:
        task, adapted, params, data, owner: see `per_example_gradients`.
        basis, step: the directions, and how far to go along each.

    Returns: the numbers along the directions, (N, k).
    Raises: ``NotPerExample`` as `per_example_gradients`.
    Guarantees: those of a plain loop
        (test_transcriptions.py::test_methods_with_one_state_for_all_equal_their_loops).
    """
    columns = []
    for direction in basis.each():
        ends = []
        for signed in (step, -step):
            there = {key: params[key] + signed * x for key, x in direction.items()}
            tensors = {**params, **there}
            ends.append(example_losses(task, adapted, tensors, data, owner))
        columns.append((ends[0] - ends[1]) / (2 * step))
    return {ALONG: torch.stack(columns, 1)}


def example_losses(
    task: Task,
    adapted: AdaptedModel,
    params: Tensors,
    data: "tuple[Tensor | Mapping[str, Tensor], Tensor]",
    owner: Int[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """Each example's own loss at its client's tensors, with no gradient.

    Args: see `per_example_gradients`.
    Raises: ``NotPerExample`` as there.
    """
    owner = owner.to(adapted.device, non_blocking=True)
    # Each example's loss at its own client's tensors: no row meets another's.
    _set_leaves(adapted, params, (), owner)
    with torch.no_grad(), _unchanged(adapted.model):
        return _losses(task, adapted, data, len(owner))


def _set_leaves(
    adapted: AdaptedModel, params: Tensors, moving: Keys, owner: Int[Tensor, " n"]
) -> TensorDict:
    """Puts each example's tensors into the model; returns those that move, as leaves (n, ...)."""
    leaves = {}
    for key in adapted.select_keys(params):
        tensor = params[key]
        if key in moving:
            # Each example has a leaf row of its own, so its gradient is never summed with others'.
            leaves[key] = rows = _rows(tensor, owner).detach().requires_grad_()
        else:
            # Frozen tensors need no row of their own: one for the batch saves the memory of N.
            rows = tensor[0] if len(tensor) == 1 else tensor.index_select(0, owner)
        adapted.set_tensor(key, rows)
    return leaves


def _losses(
    task: Task,
    adapted: AdaptedModel,
    data: "tuple[Tensor | Mapping[str, Tensor], Tensor]",
    count: int,
) -> Float[Tensor, " n"]:
    """The loss of each example, checked to be one number for each."""
    x, y = data
    outputs = forward(adapted.model, move_to_model(x, adapted.model))
    loss = task.loss(outputs, y.to(adapted.device, non_blocking=True))
    _check_per_example(loss, count)
    return loss


def gradients_at(
    task: Task, adapted: AdaptedModel, values: Tensors, moving: Keys, examples: Examples
) -> TensorDict:
    """The gradient of each example's loss where all have one value of each tensor, key -> (n, ...).

    Args:
        task, adapted, moving: see `per_example_gradients`.
        values: one of each tensor. examples: n of them.
    """
    params = {key: tensor[None] for key, tensor in adapted.on_device(values).items()}
    owner = torch.zeros(len(examples[1]), dtype=torch.int64, device=adapted.device)
    return per_example_gradients(task, adapted, params, moving, examples, owner)


def _check_per_example(value: Any, count: int) -> None:
    """Refuses anything but (N,): other shapes would add the examples up before the clip."""
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if shape != (count,) or not value.is_floating_point():
        what = "one number for each example: reduce over all but the first dimension"
        raise NotPerExample(f"loss={shape!r}: expected ({count},), {what}")


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Refuses a pass that writes other values into a parameter or buffer, or puts others there.

    What a pass leaves there of its examples would enter the gradients of those that come later.
    PyTorch counts what is written; values are read only where something was, as by a rotary
    embedding that picks its table anew in every pass. Writes through ``.data`` are not counted.
    """
    before = _versions(model)
    # Of the buffers, such as tables of positions: what is written in place is gone afterwards.
    copies = [None if isinstance(x, nn.Parameter) else x.clone() for x, _ in before]
    try:
        yield
    finally:
        # Also after a pass that raised: what it left there stays.
        after = _versions(model)
        triples = zip(before, after, copies, strict=False)
        same = len(before) == len(after) and all(
            (x is y and i == j) or (copy is not None and _is_copy(y, copy))
            for (x, i), (y, j), copy in triples
        )
        if not same:
            expected = "passes that change no parameter or buffer of the model"
            raise NotPerExample(f"model={type(model).__name__!r}: expected {expected}")


def _is_copy(x: Tensor, other: Tensor) -> bool:
    """Whether a buffer has the values of another one; of a parameter every write is too many."""
    return not isinstance(x, nn.Parameter) and x.dtype == other.dtype and torch.equal(x, other)


def _versions(model: nn.Module) -> list[tuple[Tensor, int]]:
    """Each parameter and buffer, and how often it was written to."""
    # One walk over the modules: in a small model two walks took a hundredth of a step.
    tables = [table for m in model.modules() for table in (m._parameters, m._buffers)]
    tensors = [x for table in tables for x in table.values() if x is not None]
    # An inference tensor, which a module may make while it is evaluated, has no such number.
    return [(x, 0 if x.is_inference() else x._version) for x in tensors]


def _rows(tensor: Tensor, owner: Tensor) -> Tensor:
    if len(tensor) == 1:
        return tensor.expand(len(owner), *tensor.shape[1:])
    return tensor.index_select(0, owner)


def split_batch(
    x: Inputs,
    index: Int[Tensor, " n"],
    device: torch.device,
    chunk: int | None = None,
    otherwise: int | None = None,
) -> Sequence[Int[Tensor, " part"]]:
    """Splits a batch into parts that go through the model together: places in ``index``.

    Texts, known by their ``attention_mask``, go with others of like length, and on a CPU
    `texts_at_once`: there padding is computed like words, and costs more than a second call.

    Args:
        x, index: all examples, and those that go through the model.
        device: of the model.
        chunk: at most so many at once; ``None``: only the other limits hold.
        otherwise: the limit of what is no text or lies on another device; ``None``: all at once.
    """
    mask = mask_of(x)
    most = otherwise or max(len(index), 1)
    if mask is None:
        return torch.arange(len(index)).split(chunk or most)
    mask = mask[index]
    places = _text_lengths(mask).argsort(descending=True, stable=True)
    if device.type == "cpu":
        most = texts_at_once(mask)
    return places.split(min(chunk or most, most))


def _text_lengths(mask: "Tensor | Ragged") -> Tensor:
    """How many tokens each text has."""
    return mask.lengths if isinstance(mask, Ragged) else mask.flatten(1).sum(1)


def texts_at_once(mask: "Tensor | Ragged") -> int:
    """How many texts with such an attention mask go through the model at once on a CPU."""
    # A mask that is not finite is an example's own: no run may stop because of it.
    longest = _text_lengths(mask).nan_to_num(0.0, 0.0, 0.0).max().clamp(min=1)
    return max(TEXTS_AT_ONCE, TOKENS_AT_ONCE // int(longest))


# ---- outputs and metrics


def evaluate(
    task: Task,
    adapted: AdaptedModel,
    values: Tensors,
    data: "tuple[Tensor | Mapping[str, Tensor], Tensor]",
    chunk: int | None = None,
) -> dict[str, float]:
    """Each metric of the task over some examples, with one value for each key.

    A loss that is not a number, of a model that diverged, is infinite: NaN stands for what was not
    measured.

    Args:
        task, adapted, values, data: the metrics, the model, its tensors, the examples.
        chunk: at most so many examples at once; never more than 128, of small ones 512.
    """
    x, y = data
    metrics = {name: over_all(metric) for name, metric in task.metrics.items()}
    scored: dict[str, list[Tensor]] = {name: [] for name in metrics}
    # A call costs the same for few, and many small examples need little memory.
    small = isinstance(x, Tensor) and x.is_floating_point() and len(x)
    most = max(128, min(512, 2**15 // max(1, x[0].numel()))) if small else 128  # type: ignore[union-attr]
    everyone = torch.arange(len(y))
    chunks = split_batch(x, everyone, adapted.device, chunk and min(chunk, most), most)
    for places in chunks:
        outputs = model_outputs(task, adapted, values, take(x, places))
        for name, metric in metrics.items():
            kept = metric.keep(outputs, y[places].to(outputs.device))
            shape = tuple(getattr(kept, "shape", ()))
            expected = f"({len(places)}, ...), a row for each example"
            check(shape[:1] == places.shape, f"metrics, {name}", shape, expected)
            scored[name].append(kept.cpu())
    # In the order of the examples: how they were split must not change the bits of a mean.
    order = torch.cat(list(chunks)).argsort()
    # Copies: a metric of the user's may write into what it is given.
    scores = {}
    for name, metric in metrics.items():
        with in_one_line(f"metrics, {name}: expected a number from reduce(kept, y), but"):
            kept = torch.cat(scored[name])[order]
            scores[name] = float(metric.reduce(kept, y.to("cpu", copy=True)))
    if math.isnan(scores.get("loss", 0.0)):
        scores["loss"] = math.inf
    return {name: scores[name] for name in task.metrics}


def model_outputs(
    task: Task,
    adapted: AdaptedModel,
    values: Tensors,
    x: "Tensor | Mapping[str, Tensor]",
) -> Float[Tensor, "n ..."]:
    """Gives the model's outputs.

    Args:
        task, adapted, x: the task, its adapted model and the inputs.
        values: one tensor for each key.
    """
    adapted.place(values)
    with torch.inference_mode():
        return forward(adapted.model, move_to_model(x, adapted.model))
