"""Runs of notebook 08: the reader's quantiser, gradients at a copy, and adapters rounded late."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab import methods
from fedlora_lab.course.lesson_03.figures import example_gradients
from fedlora_lab.lora import adapters, per_example
from fedlora_lab.lora.source import require_source
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.quantization import normal_float, normal_levels
from fedlora_lab.tasks.task import examples_to_judge

Receive = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""Numbers, levels and the size of a block -> what arrives."""


@dataclass(frozen=True)
class _Received:
    """A broadcast rule from the reader's function of exercise 08.2: 4 bits, blocks of 64."""

    receive: Receive

    def __call__(self, tensor: Tensor) -> Tensor:
        if not tensor.any():  # the exercise knows no block of zeros: B at the start
            return tensor
        rounded = self.receive(tensor.flatten().double().numpy(), np.array(normal_levels(4)), 64)
        return torch.from_numpy(rounded).to(tensor).view_as(tensor)

    def bits(self, numbers: int) -> int:
        return normal_float(4, 64).bits(numbers)


def rounded_by(receive: Receive) -> Method:
    """Makes FedLPP with a quantiser of one's own.

    Args: receive: as in exercise 08.2.
    """
    return methods.FedLPP.replace(name="my FedLPP", broadcast=_Received(receive))


def gradient_at(record: Any, rule: Callable[[Tensor], Tensor]) -> Float[np.ndarray, " p"]:
    """Computes the gradient of the mean loss at the factors changed by ``rule``.

    The mean is over every fourth example of each client: enough for a direction.

    Args: record: of a run; rule: such as a quantiser, or the identity.
    Guarantees: test_lesson_08.py::test_the_gradient_at_rounded_factors.
    """
    task, lora, state = require_source(record)
    task = replace(task, clients=tuple((x[::4], y[::4]) for x, y in task.clients))
    changed = state.replace_tensors({key: rule(x) for key, x in state.tensors.items()})
    rows = example_gradients(replace(record, source=(task, lora, changed)))
    return torch.from_numpy(rows).double().mean(0).numpy()


def rounded_at_the_end(runs: Mapping[int, Sequence[Any]], widths: Iterable[int]) -> pd.DataFrame:
    """Scores adapters that were trained in full precision and rounded once, after training.

    Args: runs: the records of a run for each seed; widths: bits of a code.
    Returns: columns width, seed and value, the accuracy.
    Raises: ``ValueError`` for a private run whose test examples are not public.
    """
    rows = []
    for (seed, records), width in product(runs.items(), widths):
        task, lora, state = require_source(records[-1])
        adapted = adapters.adapt(task, lora)
        values = {key: normal_float(width, 64)(x) for key, x in state.tensors.items()}
        test = examples_to_judge(task, records[-1].ledger is not None)
        rows.append((width, seed, per_example.evaluate(task, adapted, values, test)["accuracy"]))
    return pd.DataFrame(rows, columns=["width", "seed", "value"])
