"""Runs of notebook 14: the reader's quantiser, gradients at a copy, and what its parties hold."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_course.lesson_03.figures import example_gradients
from fedlora_lab import methods
from fedlora_lab.federated.records import Round
from fedlora_lab.lora import adapters, per_example
from fedlora_lab.lora.source import require_source
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.quantization import normal_float, normal_levels
from fedlora_lab.tasks.task import examples_to_judge

Receive = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""Numbers, levels and the size of a block -> what arrives."""


@dataclass(frozen=True)
class _Received:
    """A broadcast rule from the reader's function of exercise 14.2, in blocks of 64."""

    receive: Receive
    width: int

    def __call__(self, tensor: Tensor) -> Tensor:
        if not tensor.any():  # the exercise knows no block of zeros: B at the start
            return tensor
        levels = np.array(normal_levels(self.width))
        rounded = self.receive(tensor.flatten().double().numpy(), levels, 64)
        return torch.from_numpy(rounded).to(tensor).view_as(tensor)

    def bits(self, numbers: int) -> int:
        return normal_float(self.width, 64).bits(numbers)


def rounded_by(receive: Receive, width: int) -> Method:
    """Makes FedLPP with a quantiser of one's own.

    Args: receive: as in exercise 14.2. width: bits of the code.
    """
    rule = _Received(receive, width)
    return methods.FedLPP.replace(name=f"my FedLPP, {width} bits", broadcast=rule)


def gradient_at(record: Any, rule: Callable[[Tensor], Tensor]) -> Float[np.ndarray, " p"]:
    """Computes the gradient of the mean loss at the factors changed by ``rule``.

    The mean is over every fourth example of each client: enough for a direction.

    Args: record: of a run; rule: such as a quantiser, or the identity.
    Guarantees: test_lesson_14.py::test_the_gradient_at_rounded_factors.
    """
    task, lora, state = require_source(record)
    task = replace(task, clients=tuple((x[::4], y[::4]) for x, y in task.clients))
    changed = state.replace_tensors({key: rule(x) for key, x in state.tensors.items()})
    rows = example_gradients(replace(record, source=(task, lora, changed)))
    return torch.from_numpy(rows).double().mean(0).numpy()


def held_after_rounds(
    records: Iterable[Round], rule: Callable[[Tensor], Tensor] = lambda x: x
) -> Float[np.ndarray, "rounds numbers"]:
    """Lists what is held after each round, all numbers of the factors in one row.

    Args:
        records: of a run, one row each.
        rule: of the broadcast, for the copy that every client receives; without it the server's.
    """
    rows = []
    for record in records:
        _, _, state = require_source(record)
        rows.append(torch.cat([rule(x).flatten() for x in state.tensors.values()]))
    return torch.stack(rows).double().numpy()


def score(record: Round, numbers: Float[np.ndarray, " numbers"]) -> float:
    """Computes the share of test prompts that a model answers word for word.

    Args: record: of a run on text. numbers: of the model's factors, as `held_after_rounds` lists.
    Raises: ``ValueError`` for a private run whose test examples are not public.
    Guarantees: test_lesson_14.py::test_the_server_scores_what_its_record_says.
    """
    task, lora, state = require_source(record)
    ends = np.cumsum([x.numel() for x in state.tensors.values()])
    parts = np.split(numbers, ends[:-1])
    pairs = zip(state.tensors.items(), parts, strict=True)
    values = {key: torch.from_numpy(part).to(x).view_as(x) for (key, x), part in pairs}
    test = examples_to_judge(task, record.ledger is not None)
    return per_example.evaluate(task, adapters.adapt(task, lora), values, test)["exact_match"]
