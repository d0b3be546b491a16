"""One layer with and without an adapter: its three gradients, and the change that training in full would make."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from fedlora_lab import adapters
from fedlora_lab.checks import check, check_number, check_one_of, check_whole
from fedlora_lab.method import Slot
from fedlora_lab.streams import Streams
from fedlora_lab.tasks.task import Examples, Task, examples_to_judge, take, together

if TYPE_CHECKING:
    from fedlora_lab.record import Round


class Gradients(NamedTuple):
    """Gradients of the mean loss: for A (r, d_in), for B (d_out, r), and for the whole weight W (d_out, d_in)."""

    A: Tensor
    B: Tensor
    W: Tensor


class FirstSteps(NamedTuple):
    """One number a draw, (draws,): the move of W along its gradient, and the squared size of the move."""

    along: np.ndarray
    energy: np.ndarray


def gradients(task: Task, record: "Round", layer: str, data: Examples | None = None) -> Gradients:
    """The gradients by autograd of a layer's A, B and of its frozen W, where the record stands.

    Args:
        layer: one of ``record.adapter``.
        data: examples to average over; ``None``: the task's public test examples.

    Raises: ``ValueError`` for a layer that the record does not have; without ``data`` for a private run whose test
        examples are not public.
    Guarantees: test_measures_more.py::test_gradients_of_a_layer.
    """
    check(record.source is not None, "record", "a copy without its task", "a record as run() yields it")
    check_one_of("layer", layer, tuple(record.adapter))
    _, lora, state = record.source  # type: ignore[misc]
    adapted = adapters.adapt(task.model, task.targets, task.head, lora)
    a, b = (state.tensors[Slot(side, layer)].detach().clone().requires_grad_() for side in "AB")
    for slot in adapted.places:
        adapted.put(slot, {Slot("A", layer): a, Slot("B", layer): b}.get(slot, state.tensors[slot]))
    name = f"base_model.model.{layer}.base.weight"
    weight = adapted.model.get_parameter(name).detach().clone().requires_grad_()
    x, y = examples_to_judge(task, record.ledger is not None) if data is None else data

    def model(*args: Any, **kwargs: Any) -> Any:
        return functional_call(adapted.model, {name: weight}, args, kwargs)

    with torch.enable_grad():
        loss = task.loss(task.forward(model, x), y).mean()  # type: ignore[arg-type]  # all that is asked is a call
        return Gradients(*torch.autograd.grad(loss, (a, b, weight)))


def full_updates(
    task: Task, steps: int = 60, lr: float = 0.1, batch: int = 128, seed: int = 0
) -> dict[str, Float[Tensor, "d_out d_in"]]:
    """What training in full does to the layers that would get adapters: layer -> W after minus W before.

    Plain SGD on all clients' examples together, without privacy: a yardstick, not a method.

    Args:
        steps: >= 1.
        lr: >= 0.
        batch: examples a step, >= 1.
        seed: of the batches.

    Guarantees: the loss falls, the task's model is left alone (test_measures_more.py::test_full_updates).
    """
    check_whole("steps", steps, 1)
    check_whole("batch", batch, 1)
    check_number("lr", lr, 0)
    names = [name for name, module in task.model.named_modules() if _is_target(name, task.targets)]
    check(bool(names), "targets", task.targets, "names of layers of the model")
    start = {name: task.model.get_parameter(f"{name}.weight").detach() for name in names}
    weights = {name: weight.clone().requires_grad_() for name, weight in start.items()}
    x, y = together(task.clients)
    random = Streams(seed).numpy("full updates")

    def model(*args: Any, **kwargs: Any) -> Any:
        return functional_call(task.model, {f"{n}.weight": w for n, w in weights.items()}, args, kwargs)

    for _ in range(steps):
        index = torch.from_numpy(random.integers(len(y), size=min(batch, len(y))))
        with torch.enable_grad():
            loss = task.loss(task.forward(model, take(x, index)), y[index]).mean()  # type: ignore[arg-type]
            found = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for weight, gradient in zip(weights.values(), found, strict=True):
                weight -= lr * gradient
    return {name: (weight.detach() - start[name]) for name, weight in weights.items()}


def first_steps(gradient: Float[Tensor, "d_out d_in"], rank: int, draws: int = 100, seed: int = 0) -> FirstSteps:
    """How W would move in the first step of an adapter, W's gradient given, over many random starts of A.

    The move is -lr s^2 G A^T A; measured here at s = 1, lr = 1, relative to the gradient.

    Args:
        rank: r >= 1.
        draws: of a Kaiming A, >= 1.

    Guarantees: the mean is that of `theory.first_step` (test_lesson_01.py::test_first_steps).
    """
    check_whole("rank", rank, 1)
    check_whole("draws", draws, 1)
    G = gradient.double()
    start = Streams(seed).uniform((draws, rank, G.shape[1]), "first steps", rank) * 2 - 1
    A = start / G.shape[1] ** 0.5
    left = G @ A.mT
    size = G.square().sum()
    # <G A^T A, G> = ||G A^T||^2 and ||G A^T A||^2 = <(G A^T)^T (G A^T), A A^T>: no (d_out, d_in) move is formed.
    along, energy = left.square().sum((1, 2)) / size, ((left.mT @ left) * (A @ A.mT)).sum((1, 2)) / size
    return FirstSteps(along.numpy(), energy.numpy())


def _is_target(name: str, targets: tuple[str, ...]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)
