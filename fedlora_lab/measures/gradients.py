"""Gradients of an adapted layer, of its weight in full training, and of single examples."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check_one_of, check_whole
from fedlora_lab.lora import adapters, per_example
from fedlora_lab.lora.source import Source, adapted_for
from fedlora_lab.methods.state import ParamKey, Tensors
from fedlora_lab.tasks.modules import matching_modules
from fedlora_lab.tasks.task import (
    Examples,
    Task,
    concatenate,
    examples_to_judge,
    forward,
    move_to_model,
    take,
)


class Gradients(NamedTuple):
    """Gradients of the mean loss at one layer.

    Args:
        A, B: of the factors, (r, d_in) and (d_out, r).
        W: of the layer's weight, (d_out, d_in), as in full training.
    """

    A: Tensor
    B: Tensor
    W: Tensor


def _mean_loss(task: Task, model: Any, weights: dict[str, Tensor], data: Examples) -> Tensor:
    """Computes the mean loss of a model in which some weights are others."""

    def changed(*args: Any, **kwargs: Any) -> Any:
        return functional_call(model, weights, args, kwargs)

    x, y = move_to_model(data[0], model), move_to_model(data[1], model)
    return task.loss(forward(changed, x), y).mean()  # type: ignore[arg-type]


def gradients(task: Task, record: Any, layer: str) -> Gradients:
    """Computes the gradients of a layer's A, B and of its frozen W, where the record stands.

    They are those of the mean loss of the task's public test examples.

    Args:
        task, record: of the run.
        layer: one of ``record.adapter``.

    Raises: ``ValueError`` for a layer that the record does not have, and for a private run whose
        test examples are not public.
    Guarantees: A and B have the gradients that the chain rule makes of W's
        (test_measures.py::test_gradients_of_a_layer_obey_the_chain_rule).
    """
    adapted, tensors = adapted_for(task, record)
    check_one_of("layer", layer, tuple(record.adapter))
    keys = [ParamKey(factor, layer) for factor in "AB"]
    moving = {key: tensors[key].detach().clone().requires_grad_() for key in keys}
    for key in adapted.select_keys(tensors):
        adapted.set_tensor(key, moving.get(key, tensors[key]))
    adapter, _ = adapted.places[keys[0]]
    # The frozen weight is no parameter that moves: it is given to the model from outside.
    name = f"{layer}.base.weight"
    weight = adapted.model.get_parameter(name).detach().clone().requires_grad_()
    data = examples_to_judge(task, record.ledger is not None)
    with torch.enable_grad():
        loss = _mean_loss(task, adapted.model, {name: weight}, data)
        a, b, slope = torch.autograd.grad(loss, (*moving.values(), weight))
    return Gradients(a, b, slope if isinstance(adapter.base, torch.nn.Linear) else slope.T)


FULL_RATE = 0.1
"""Learning rate of `full_updates`."""


def full_updates(
    task: Task, steps: int = 60, batch: int = 128
) -> dict[str, Float[Tensor, "d_out d_in"]]:
    """Trains in full the layers that would get adapters; returns layer -> W after minus W before.

    Plain SGD on all clients' examples together, without privacy: a yardstick.

    Args:
        task: left alone.
        steps: of SGD, >= 1.
        batch: examples of a step, >= 1.

    Guarantees: the loss falls, the task's model is left alone
        (test_measures.py::test_full_updates_lower_the_loss_and_leave_the_model).
    """
    check_whole("steps", steps, 1)
    check_whole("batch", batch, 1)
    layers = matching_modules(task.model, task.targets)
    names = {name: f"{name}.weight" for name in layers}
    start = {name: task.model.get_parameter(weight).detach() for name, weight in names.items()}
    weights = {names[name]: weight.clone().requires_grad_() for name, weight in start.items()}
    x, y = concatenate(task.clients)
    random = Streams(0).numpy("full updates")
    for _ in range(steps):
        index = torch.from_numpy(random.integers(len(y), size=min(batch, len(y))))
        with torch.enable_grad():
            loss = _mean_loss(task, task.model, weights, (take(x, index), y[index]))
            slopes = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for weight, gradient in zip(weights.values(), slopes, strict=True):
                weight -= FULL_RATE * gradient
    moves = {name: weights[names[name]].detach() - start[name] for name in names}
    # Transformers' Conv1D stores the transpose.
    return {n: x if isinstance(layers[n], torch.nn.Linear) else x.T for n, x in moves.items()}


def private_gradients(origin: Source, factors: str = "AB") -> Iterator[Tensors]:
    """Computes every private example's gradient of some factors, before any clip, in parts.

    It reads private values and adds no noise: for the laboratory, never for a release.

    Args: origin: as `require_source` returns it; factors: those that move, "A", "B" or "AB".
    Returns: key -> (examples of the part, ...), clients one after the other.
    """
    task, lora, state = origin
    adapted = adapters.adapt(task, lora)
    moving = tuple(key for key in adapted.places if key.name in factors)
    x, y = concatenate(task.clients)
    # In parts: all gradients at once would not fit into memory.
    for index in torch.arange(len(y)).split(256):
        rows = per_example.gradients_at(
            task, adapted, state.tensors, moving, (take(x, index), y[index])
        )
        yield {key: row.cpu() for key, row in rows.items()}
