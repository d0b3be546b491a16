"""Weights on single examples: 1 as given, larger for one that shouts, none for one that is left out.

A weight travels beside the target, so any task takes it. Left out means "adds zero to every sum": the loss of such an
example is not a number, and the clip counts a gradient that is not finite as zero. Sizes, sample rates and all other
examples' draws stay as they are, which is what neighbours are in the example unit.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fedlora_lab.checks import check
from fedlora_lab.tasks.task import Task, take

GIVEN, OUT = 0, -1
"""Marks; a positive mark is the weight itself."""


def coded(y: Tensor, marks: Int[Tensor, " n"]) -> Tensor:
    """Targets with their marks in a last column: (n, ...) -> (n, numbers + 1)."""
    return torch.cat([y.flatten(1) if y.dim() > 1 else y[:, None], marks.to(y)[:, None]], 1)


def decoded(y: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The targets in their own shape, and the weights (n,): 1, the mark, or NaN for what is left out."""
    marks = y[:, -1].double()
    weights = torch.where(marks > 0, marks, torch.where(marks < 0, torch.nan, 1.0))
    return y[:, :-1].reshape(-1, *shape), weights


def marked(task: Task, marks: list[Tensor]) -> Task:
    """The same task with a mark on each client's examples; public examples keep weight 1.

    Args: marks: for each client (n_k,): `GIVEN`, `OUT` or a weight >= 1.
    Guarantees: test_given_marks_change_nothing, test_left_out_is_as_if_it_were_not_there.
    """
    sizes = tuple(len(mark) for mark in marks)
    check(sizes == task.sizes, "marks", sizes, f"as many as the clients have examples: {task.sizes}")
    shape = task.test[1].shape[1:]

    def loss(outputs: Any, y: Tensor) -> Tensor:
        plain, weights = decoded(y, shape)
        found = task.loss(outputs, plain)
        return found * weights.to(found)

    def unmarked(metric: Any) -> Any:
        return lambda outputs, y: metric(outputs, decoded(y, shape)[0])

    def public(pair: Any) -> Any:
        return (pair[0], coded(pair[1], torch.zeros(len(pair[1]), dtype=torch.int64)))

    return replace(
        task,
        clients=tuple((x, coded(y, mark)) for (x, y), mark in zip(task.clients, marks, strict=True)),
        test=public(task.test),
        validation=None if task.validation is None else public(task.validation),
        loss=loss,
        metrics={name: unmarked(metric) for name, metric in task.metrics.items()},
    )


def given(task: Task) -> list[Tensor]:
    """Marks that change nothing."""
    return [torch.zeros(n, dtype=torch.int64) for n in task.sizes]


def joined(first: Any, second: Any) -> Any:
    """Two (x, y) one after the other."""
    (x, y), (u, v) = first, second
    both = {key: torch.cat([x[key], u[key]]) for key in x} if not isinstance(x, Tensor) else torch.cat([x, u])
    return both, torch.cat([y, v])


def some(pair: Any, index: Any) -> Any:
    """Some examples of (x, y)."""
    return take(pair[0], index), pair[1][index]
