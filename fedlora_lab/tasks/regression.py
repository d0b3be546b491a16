"""Linear regression with a known solution, and any task with its signal taken away."""

import math
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.tasks.metrics import select_metrics, squared_error
from fedlora_lab.tasks.task import Task, concatenate

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def regression(
    clients: int = 10,
    examples: int = 128,
    d_in: int = 32,
    d_out: int = 16,
    rank: int = 4,
    heterogeneity: float = 0.5,
    noise: float = 0.1,
    seed: int = 0,
    *,
    test: int = 64,
    whitened: bool = False,
    dtype: torch.dtype | str = "float32",
) -> Task:
    """Builds a linear regression in which client k sees y = x (W0 + B_k A_k)^T + noise.

    The base W0 is public, the teacher B_k A_k is the client's own, the inputs are standard
    Gaussian. Before training the expected loss is about 1 + noise^2, whatever the sizes.

    Args:
        clients, examples: number of clients and examples of each, >= 1.
        d_in, d_out: inputs and outputs, >= 1.
        rank: rank of every teacher, in [1, min(d_in, d_out)].
        heterogeneity: in [0, 1]; 0: one teacher for all; 1: independent teachers.
        noise: standard deviation of the noise on y, >= 0.
        seed: a whole number >= 0.
        test: examples of each client in the test and in the validation set, >= 1.
        whitened: makes X^T X / n of every part the identity: the loss of client k is exactly
            ||W - W_k||_F^2 / d_out when noise is 0. Needs examples and test >= d_in.
        dtype: "float32" or "float64".
    Raises: ValueError for a value out of range.
    Guarantees: test_tasks.py::test_regression_loss_is_the_closed_form,
        ::test_heterogeneity_moves_the_teachers.

    >>> regression(clients=3, examples=20).sizes
    (20, 20, 20)
    """
    check_whole("examples", examples, d_in if whitened else 1)
    check_whole("test", test, d_in if whitened else 1)
    check_number("noise", noise, 0, 1e9)
    name = str(dtype).removeprefix("torch.")
    check(name in DTYPES, "dtype", dtype, "one of " + ", ".join(DTYPES))
    shapes: dict[str, Any] = {"clients": clients, "d_in": d_in, "d_out": d_out, "rank": rank}
    shapes |= {"heterogeneity": heterogeneity, "seed": seed}
    base, factors = teachers(**shapes)

    def draw(kind: str, count: int) -> list[tuple[Tensor, Tensor]]:
        pairs = []
        for k, (b, a) in enumerate(factors):
            rng = Streams(seed).numpy(f"regression {kind}", k)
            x = rng.standard_normal((count, d_in))
            x = np.linalg.qr(x)[0] * math.sqrt(count) if whitened else x
            y = x @ (base + b @ a).T + noise * rng.standard_normal((count, d_out))
            x, y = (torch.from_numpy(part).to(DTYPES[name]) for part in (x, y))
            pairs.append((x, y))
        return pairs

    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced below
        linear = nn.Linear(d_in, d_out, bias=False, dtype=DTYPES[name]).requires_grad_(False)
    linear.weight.copy_(torch.from_numpy(base))
    rest = {"examples": examples, "noise": noise, "test": test, "whitened": whitened, "dtype": name}
    return Task(
        name="regression",
        model=nn.Sequential(OrderedDict[str, nn.Module](map=linear)).eval(),
        targets=("map",),
        clients=tuple(draw("private", examples)),
        test=concatenate(draw("test", test)),
        validation=concatenate(draw("validation", test)),
        loss=squared_error,
        metrics=select_metrics((), "regression"),
        info={"task": "regression", "arguments": {**shapes, **rest}},
    )


def teachers(
    clients: int = 10,
    d_in: int = 32,
    d_out: int = 16,
    rank: int = 4,
    heterogeneity: float = 0.5,
    seed: int = 0,
    **_: Any,
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Draws the base W0 (d_out, d_in) and every client's (B_k, A_k), in float64.

    The factors (d_out, rank) and (rank, d_in) are sqrt(1 - h) of a shared draw plus sqrt(h) of the
    client's own, h the heterogeneity: the law of a teacher does not depend on h.

    Args: those of `regression`; ``teachers(**task.info["arguments"])`` are a task's own.
    Raises: ValueError for a value out of range.
    Guarantees: test_tasks.py::test_heterogeneity_moves_the_teachers.
    """
    for label, value in {"clients": clients, "d_in": d_in, "d_out": d_out}.items():
        check_whole(label, value, 1)
    check_whole("rank", rank, 1, min(d_in, d_out))
    check_number("heterogeneity", heterogeneity, 0, 1)
    check_whole("seed", seed)

    def draw(purpose: str, *client: int) -> tuple[np.ndarray, np.ndarray]:
        rng = Streams(seed).numpy(purpose, *client)
        b = rng.standard_normal((d_out, rank))
        a = rng.standard_normal((rank, d_in))
        return b / math.sqrt(rank), a / math.sqrt(d_in)

    base = Streams(seed).numpy("regression base").standard_normal((d_out, d_in)) / math.sqrt(d_in)
    shared = draw("regression shared teacher")
    own = [draw("regression own teacher", k) for k in range(clients)]
    keep = math.sqrt(1 - heterogeneity)
    leave = math.sqrt(heterogeneity)
    return base, [(keep * shared[0] + leave * b, keep * shared[1] + leave * a) for b, a in own]


def zero_signal(task: Task) -> Task:
    """Replaces a task's loss by zero, so that only the noise moves the factors; metrics stay.

    From B = 0, the norm of the product is then the norm of the noise accumulated in W.

    Guarantees: test_a_silent_task_moves_only_by_noise.

    >>> task = zero_signal(regression(clients=2, examples=8))
    >>> x, y = task.test
    >>> float(task.loss(task.model(x), y).sum())
    0.0
    """
    return replace(task, loss=lambda outputs, y: 0.0 * task.loss(outputs, y))
