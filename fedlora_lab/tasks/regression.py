"""Linear regression with a known solution, and any task with its signal taken away."""

import math
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.torch_state import with_default_modes
from fedlora_lab._utils.validation import check_whole
from fedlora_lab.tasks.metrics import squared_error
from fedlora_lab.tasks.task import Examples, HeldOut, Layers, Task, concatenate

NOISE = 0.1
"""Standard deviation of the noise on y."""


@with_default_modes
def regression(
    clients: int = 10,
    examples: int = 128,
    d_in: int = 32,
    d_out: int = 16,
    rank: int = 4,
    seed: int = 0,
    *,
    test: int = 64,
) -> Task:
    """Builds a linear regression in which client k sees y = x (W0 + B_k A_k)^T + noise.

    The base W0 is public, the teacher B_k A_k is the client's own, the inputs are standard
    Gaussian, and the noise has standard deviation 0.1. Half of a teacher's variance is shared by
    all clients. Before training the expected loss is about 1, whatever the sizes.

    Args:
        clients, examples, d_in, d_out: numbers of clients, examples of each, inputs, outputs.
        rank: of every teacher, in [1, min(d_in, d_out)].
        seed: a whole number >= 0.
        test: examples of each client in the test and in the validation set, >= 1.
    Guarantees: test_tasks.py::test_a_teacher_explains_its_client.

    >>> regression(clients=3, examples=20).sizes
    (20, 20, 20)
    """
    check_whole("examples", examples, 1)
    check_whole("test", test, 1)
    base, factors = teachers(clients, d_in, d_out, rank, seed)
    maps = [base + b @ a for b, a in factors]

    def draw(kind: str, count: int) -> list[Examples]:
        streams = [Streams(seed).numpy(f"regression {kind}", k) for k in range(clients)]
        pairs = zip(streams, maps, strict=True)
        return [_draw_examples(rng, weight, count) for rng, weight in pairs]

    return Task(
        name="regression",
        model=_linear_model(base),
        layers=Layers(("map",)),
        clients=draw("private", examples),
        held_out=HeldOut(concatenate(draw("test", test)), concatenate(draw("validation", test))),
        loss=squared_error,
        metrics={"loss": squared_error},
    )


def _draw_examples(stream: np.random.Generator, weight: np.ndarray, count: int) -> Examples:
    """Inputs (count, d_in) and targets (count, d_out) of a linear map (d_out, d_in)."""
    d_out, d_in = weight.shape
    x = stream.standard_normal((count, d_in))
    y = x @ weight.T + NOISE * stream.standard_normal((count, d_out))
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()


def _linear_model(weight: np.ndarray) -> nn.Module:
    """One frozen linear map, called ``map``."""
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced below
        linear = nn.Linear(*weight.shape[::-1], bias=False).requires_grad_(False)
    linear.weight.copy_(torch.from_numpy(weight))
    return nn.Sequential(OrderedDict[str, nn.Module](map=linear)).eval()


def teachers(
    clients: int, d_in: int, d_out: int, rank: int, seed: int
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Draws the base W0 (d_out, d_in) and every client's (B_k, A_k), in float64.

    The factors (d_out, rank) and (rank, d_in) are sqrt(1 / 2) of a shared draw plus sqrt(1 / 2) of
    the client's own.

    Args: those of `regression`.
    Raises: ValueError for a value out of range.
    """
    for label, value in {"clients": clients, "d_in": d_in, "d_out": d_out}.items():
        check_whole(label, value, 1)
    check_whole("rank", rank, 1, min(d_in, d_out))
    check_whole("seed", seed)

    def draw(purpose: str, *client: int) -> tuple[np.ndarray, np.ndarray]:
        rng = Streams(seed).numpy(purpose, *client)
        b = rng.standard_normal((d_out, rank))
        a = rng.standard_normal((rank, d_in))
        return b / math.sqrt(rank), a / math.sqrt(d_in)

    base = Streams(seed).numpy("regression base").standard_normal((d_out, d_in)) / math.sqrt(d_in)
    shared = draw("regression shared teacher")
    personal = [draw("regression own teacher", k) for k in range(clients)]
    half = math.sqrt(0.5)
    return base, [(half * shared[0] + half * b, half * shared[1] + half * a) for b, a in personal]


def zero_signal(task: Task) -> Task:
    """Replaces a task's loss by zero, so that only the noise moves the factors; metrics stay.

    From B = 0, the norm of the product is then the norm of the noise accumulated in W.

    >>> task = zero_signal(regression(clients=2, examples=8))
    >>> x, y = task.test
    >>> float(task.loss(task.model(x), y).sum())
    0.0
    """
    return replace(task, loss=lambda outputs, y: 0.0 * task.loss(outputs, y))
