"""Figures of notebook 08: quantised broadcasts, and what each party holds at the end."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab import measures, methods
from fedlora_lab._utils.validation import check_whole
from fedlora_lab.federated.run import run
from fedlora_lab.lora import adapters, evaluation
from fedlora_lab.lora.source import require_source
from fedlora_lab.measures.deviation import AggregationInput
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Plan
from fedlora_lab.methods.quantization import normal_float, normal_levels
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Task, concatenate, examples_to_judge


@dataclass(frozen=True)
class _Received:
    """A broadcast rule from the reader's function of exercise 08.2."""

    receive: Callable[[np.ndarray, np.ndarray, int], np.ndarray]
    width: int
    block: int

    def __call__(self, tensor: Tensor) -> Tensor:
        if not tensor.any():  # the exercise knows no block of zeros: B at the start
            return tensor
        row = tensor.flatten().double().numpy()
        rounded = self.receive(row, np.array(normal_levels(self.width)), self.block)
        return torch.from_numpy(rounded).to(tensor).view_as(tensor)

    def bits(self, numbers: int) -> int:
        return normal_float(self.width, self.block).bits(numbers)


def rounded_by(
    receive: Callable[[np.ndarray, np.ndarray, int], np.ndarray], width: int = 4, block: int = 64
) -> Method:
    """Makes FedLPP with a quantiser of one's own.

    Args: receive: as in exercise 08.2; width, block: of the code.
    Guarantees: test_lesson_08.py::test_the_readers_quantiser_trains_as_the_library_s.
    """
    rule = _Received(receive, width, block)
    return methods.FedLPP.replace(name="my FedLPP", broadcast=rule)


def gradient_at(record: Any, rule: Callable[[Tensor], Tensor]) -> Float[np.ndarray, " p"]:
    """Computes the gradient of the clients' mean loss at the factors changed by ``rule``.

    Args: record: of a run; rule: such as a quantiser, or the identity.
    Guarantees: test_lesson_08.py::test_the_gradient_at_rounded_factors.
    """
    task, lora, state = record.source
    adapted = adapters.adapt(task.model, task.targets, task.head, lora)
    factors = {key: rule(x).detach().requires_grad_() for key, x in state.tensors.items()}
    for key, value in factors.items():
        adapted.set_tensor(key, value)
    x, y = concatenate(task.clients)
    with torch.enable_grad():
        loss = task.loss(task.forward(adapted.model, x), y).mean()
        gradients = torch.autograd.grad(loss, list(factors.values()))
    return torch.cat([part.flatten() for part in gradients]).double().numpy()


def model_protection(
    record: Any, method: Method, seen: Sequence[AggregationInput], last: int = 5
) -> pd.DataFrame:
    """Measures what server and clients hold after the last round; ``method`` names the holder.

    "server"; "received", the broadcast of the final state; "averaged", the mean of that and the
    ``last`` - 1 broadcasts before it, which any client can form; "trained", of the clients' own
    adapters after their local training in the last round the best. Measures: "accuracy" on the
    public test examples, and "distance" from the server's factors, all of them together, relative.

    Args: record, seen: of one run of ``measures.record_aggregation(method)``; last: >= 1.
    Returns: a tidy frame.
    Raises: ``ValueError`` for a private run whose test examples are not public.
    Guarantees: test_lesson_08.py::test_accuracy_per_holder.
    """
    check_whole("last", last, 1, len(seen) + 1)
    task, lora, state = require_source(record)
    adapted = adapters.adapt(task.model, task.targets, task.head, lora)
    server, test = state.tensors, examples_to_judge(task, record.ledger is not None)
    final = {key: x if key.side == "head" else method.broadcast(x) for key, x in server.items()}
    received = [final, *(one.sent.tensors for one in reversed(seen))][:last]
    averaged = {key: torch.stack([one[key] for one in received]).mean(0) for key in server}
    ended = seen[-1]
    own = [{key: x[k] for key, x in ended.uploads.items()} for k in range(len(ended.weights))]

    def accuracy(values: Mapping[ParamKey, Tensor]) -> float:
        return evaluation.evaluate(task, adapted, values, test)["accuracy"]

    def distance(values: Mapping[ParamKey, Tensor]) -> float:
        off = sum(float((values[key] - x).double().square().sum()) for key, x in server.items())
        return (off / sum(float(x.double().square().sum()) for x in server.values())) ** 0.5

    trained = max(({**ended.sent.tensors, **x} for x in own), key=accuracy)
    holders = {"server": server, "received": final, "averaged": averaged, "trained": trained}
    rows = [
        (record.task, record.seed, record.index, "all", who, measure.__name__, measure(values))
        for measure in (accuracy, distance)
        for who, values in holders.items()
    ]
    columns = ["task", "seed", "round", "layer", "method", "measure", "value"]
    return pd.DataFrame(rows, columns=columns)


def rounded_at_the_end(runs: Mapping[int, Sequence[Any]], widths: Iterable[int]) -> pd.DataFrame:
    """Scores adapters that were trained in full precision and rounded once, after training.

    Args: runs: the records of a run for each seed; widths: bits of a code.
    Returns: columns width, seed and value, the accuracy.
    """
    rows = []
    for (seed, records), width in product(runs.items(), widths):
        task, lora, state = require_source(records[-1])
        adapted = adapters.adapt(task.model, task.targets, task.head, lora)
        values = {key: normal_float(width, 64)(x) for key, x in state.tensors.items()}
        test = examples_to_judge(task, records[-1].ledger is not None)
        rows.append((width, seed, evaluation.evaluate(task, adapted, values, test)["accuracy"]))
    return pd.DataFrame(rows, columns=["width", "seed", "value"])


def runs_with_holders(
    task: Task, widths: Iterable[int], privacy: Privacy | None, plan: Plan, seeds: Iterable[int]
) -> pd.DataFrame:
    """Trains FedLPP at some widths and seeds; returns `model_protection` of each run, and width.

    Args: task, privacy, plan: of every run; widths: bits of a code; seeds: of each width.
    """
    parts = []
    for width, seed in product(widths, seeds):
        name = f"FedLPP {width} bits"
        row = methods.FedLPP.replace(name=name, broadcast=normal_float(width, 64))
        watched, seen = measures.record_aggregation(row)
        *_, last = run(task, watched, privacy, plan, seed=seed, evaluate_every=plan.rounds)
        part = model_protection(last, row, seen, min(5, plan.rounds))
        parts.append(part.assign(width=width))
    return pd.concat(parts, ignore_index=True)
