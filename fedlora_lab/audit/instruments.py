"""Tools of audits: weights on single examples, and a run that records its releases.

A mark travels with each target in a last column, so that batches, clips and noise stay those of an
ordinary run: a task whose marks are all 0 trains to the same bits.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fedlora_lab._utils.validation import check
from fedlora_lab.federated.local_training import ClientBatch
from fedlora_lab.federated.run import Run
from fedlora_lab.methods.state import TensorDict
from fedlora_lab.tasks.metrics import OverAll
from fedlora_lab.tasks.ragged import Ragged
from fedlora_lab.tasks.task import Examples, Task, take

LEFT_OUT = -1
"""A mark; 0 is an ordinary example's, and a positive mark is the weight itself."""


def encode_marks(y: Tensor, marks: "Int[Tensor, ' n'] | None" = None) -> Tensor:
    """Puts marks (``None``: ordinary) beside targets: (n, ...) -> (n, numbers + 1)."""
    marks = torch.zeros(len(y)) if marks is None else marks
    return torch.cat([y.flatten(1) if y.dim() > 1 else y[:, None], marks.to(y)[:, None]], 1)


def decode_marks(y: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Splits targets from weights (n,): 1, the mark, or NaN for left out.

    A loss that is not finite counts as zero in the mechanism: NaN leaves an example out there, and
    is never clipped to the norm as a large number would be.
    """
    marks = y[:, -1].double()
    weights = torch.where(marks > 0, marks, torch.where(marks < 0, torch.nan, 1.0))
    return y[:, :-1].reshape(-1, *shape), weights


def ordinary_marks(task: Task) -> list[Tensor]:
    """Returns marks that change nothing, one tensor a client."""
    return [torch.zeros(n, dtype=torch.int64) for n in task.sizes]


def mark_examples(task: Task, marks: list[Tensor]) -> Task:
    """Returns the same task with a mark on each client's examples; public examples keep weight 1.

    Args: marks: for each client (n_k,): 0, `LEFT_OUT` or a weight >= 1.
    Guarantees: test_the_audit_changes_nothing_of_the_run.
    """
    sizes = tuple(len(mark) for mark in marks)
    check(sizes == task.sizes, "marks", sizes, f"one an example of each client: {task.sizes}")
    ragged = isinstance(task.test[1], Ragged)
    check(not ragged, "task", task.name, "labels of one number an example, or of one shape")
    shape = task.test[1].shape[1:]

    # The mark is in the target, so that it follows an example through every draw of a batch.
    def loss(outputs: Any, y: Tensor) -> Tensor:
        plain, weights = decode_marks(y, shape)
        value = task.loss(outputs, plain)
        return value * weights.to(value)

    def without_marks(metric: Any) -> Any:
        if isinstance(metric, OverAll):
            return OverAll(without_marks(metric.reduce), without_marks(metric.keep))
        return lambda outputs, y: metric(outputs, decode_marks(y, shape)[0])

    def public(pair: Examples) -> Examples:
        return pair[0], encode_marks(pair[1])

    clients = zip(task.clients, marks, strict=True)
    return replace(
        task,
        clients=[(x, encode_marks(y, mark)) for (x, y), mark in clients],
        held_out=replace(
            task.held_out,
            test=public(task.test),
            validation=None if task.validation is None else public(task.validation),
        ),
        loss=loss,
        metrics={name: without_marks(metric) for name, metric in task.metrics.items()},
    )


def select_examples(pair: Examples, index: Any) -> Examples:
    """Selects some examples of (x, y)."""
    return take(pair[0], index), pair[1][index]


@dataclass
class Recorder(Run):
    """A run that keeps what it releases and computes nothing else.

    Args:
        everyone: the clients at the end of the round, all that moved stacked over them.
        personal: what clients kept for themselves before the round, key -> (all clients, ...).

    Guarantees: test_the_audit_changes_nothing_of_the_run.
    """

    everyone: ClientBatch | None = None
    personal: TensorDict = field(default_factory=dict)

    @property
    def clip_norm(self) -> float:
        """The clip norm of the run; 1 without privacy."""
        return 1.0 if self.config.privacy is None else self.config.privacy.clip_norm

    # It stands in for the method of `Run`, with its arguments.

    def finish_round(self, opened, received, everyone):
        self.everyone = everyone
        self.personal = dict(self.state.personal)
        return super().finish_round(opened, received, everyone)
