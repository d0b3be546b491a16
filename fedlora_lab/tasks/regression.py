"""Federated least squares with low-rank teachers: the task on which closed forms are exact."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedlora_lab.checks import check, check_number, check_whole
from fedlora_lab.streams import Streams
from fedlora_lab.tasks.task import REGRESSION, Task, squared_error

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class LinearMap(nn.Module):
    """y = x W^T with one frozen (d_out, d_in) matrix, named ``map``."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.map = nn.Linear(d_in, d_out, bias=False)

    def forward(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        return self.map(x)


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
    """Client k sees y = x (W0 + B_k A_k)^T + noise; the base W0 is public, the teacher B_k A_k is its own.

    The inputs are standard Gaussian. Before training the expected loss is about 1 + noise^2, whatever the sizes.

    Args:
        clients: number of clients, >= 1.
        examples: examples of each client, >= 1.
        d_in: inputs, >= 1.
        d_out: outputs, >= 1.
        rank: rank of every teacher, in [1, min(d_in, d_out)].
        heterogeneity: 0: all clients share one teacher; 1: their teachers are independent; in [0, 1].
        noise: standard deviation of the noise on y, >= 0.
        seed: a whole number >= 0.
        test: examples of each client in the test and in the validation set, >= 1.
        whitened: makes X_k^T X_k / n_k the identity exactly, in training, test and validation data alike, so that the
            loss of client k is ||W - W_k||_F^2 / d_out exactly when noise is 0; needs examples and test >= d_in.
        dtype: "float32" or "float64".
    Raises: ValueError for a value out of range.
    Guarantees: test_tasks.py::test_regression_loss_is_the_closed_form, ::test_heterogeneity_moves_the_teachers.
    """
    check_whole("examples", examples, d_in if whitened else 1)
    check_whole("test", test, d_in if whitened else 1)
    check_number("noise", noise, 0, 1e9)
    name = str(dtype).removeprefix("torch.")
    check(name in DTYPES, "dtype", dtype, "one of " + ", ".join(DTYPES))
    shapes: dict[str, Any] = {"clients": clients, "d_in": d_in, "d_out": d_out, "rank": rank}
    shapes |= {"heterogeneity": heterogeneity, "seed": seed}
    base, factors = teachers(**shapes)

    kinds = {"private": examples, "test": test, "validation": test}
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {kind: [] for kind in kinds}
    for kind, count in kinds.items():
        for k, (b, a) in enumerate(factors):
            rng = Streams(seed).numpy(f"regression {kind}", k)
            x, y = _pair(rng, base + b @ a, count, noise, whitened)
            pairs[kind].append((x.to(DTYPES[name]), y.to(DTYPES[name])))
    with torch.random.fork_rng(devices=[]):  # building the module draws numbers that are replaced below
        model = LinearMap(d_in, d_out).to(DTYPES[name]).eval().requires_grad_(False)
    model.map.weight.copy_(torch.from_numpy(base))
    others = {"examples": examples, "noise": noise, "test": test, "whitened": whitened, "dtype": name}
    return Task(
        name="regression",
        model=model,
        targets=("map",),
        clients=tuple(pairs["private"]),
        test=_together(pairs["test"]),
        validation=_together(pairs["validation"]),
        loss=squared_error,
        metrics=dict(REGRESSION),
        info={"task": "regression", "arguments": {**shapes, **others}},
    )


def _pair(
    rng: np.random.Generator, teacher: np.ndarray, count: int, noise: float, whitened: bool
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
    """Inputs, and what a teacher (d_out, d_in) answers, in float64."""
    d_out, d_in = teacher.shape
    x = rng.standard_normal((count, d_in))
    if whitened:
        x = np.linalg.qr(x)[0] * math.sqrt(count)
    y = x @ teacher.T + noise * rng.standard_normal((count, d_out))
    return torch.from_numpy(x), torch.from_numpy(y)


def _together(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def teachers(
    clients: int = 10,
    d_in: int = 32,
    d_out: int = 16,
    rank: int = 4,
    heterogeneity: float = 0.5,
    seed: int = 0,
    **_: Any,
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """The base W0 (d_out, d_in) and every client's (B_k, A_k), of shapes (d_out, rank) and (rank, d_in), in float64.

    Both factors are sqrt(1 - h) of a shared draw plus sqrt(h) of the client's own, h the heterogeneity: the law of a
    teacher does not depend on h. ``teachers(**task.info["arguments"])`` gives those of a task that exists.

    Raises: ValueError for a value out of range.
    Guarantees: test_tasks.py::test_regression_loss_is_the_closed_form, ::test_heterogeneity_moves_the_teachers.
    """
    for label, value in {"clients": clients, "d_in": d_in, "d_out": d_out}.items():
        check_whole(label, value, 1)
    check_whole("rank", rank, 1, min(d_in, d_out))
    check_number("heterogeneity", heterogeneity, 0, 1)
    check_whole("seed", seed)
    streams = Streams(seed)

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        b, a = rng.standard_normal((d_out, rank)), rng.standard_normal((rank, d_in))
        return b / math.sqrt(rank), a / math.sqrt(d_in)

    base = streams.numpy("regression base").standard_normal((d_out, d_in)) / math.sqrt(d_in)
    shared = draw(streams.numpy("regression shared teacher"))
    own = [draw(streams.numpy("regression own teacher", k)) for k in range(clients)]
    keep, leave = math.sqrt(1 - heterogeneity), math.sqrt(heterogeneity)
    return base, [(keep * shared[0] + leave * b, keep * shared[1] + leave * a) for b, a in own]
