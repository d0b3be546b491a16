"""Figures of notebook 08: quantised broadcasts, and what each party holds at the end."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab import measures, methods, theory
from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.federated.run import run
from fedlora_lab.lora import adapters, evaluation
from fedlora_lab.lora.source import require_source
from fedlora_lab.measures.deviation import AggregationInput
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Plan
from fedlora_lab.methods.quantization import normal_float, normal_levels
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.plots import style
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Task, concatenate, examples_to_judge

CODE = style.look("fedlpp").colour


def quantiser_table(
    widths: Sequence[int] = (1, 2, 3, 4, 6, 8),
    blocks: Sequence[int] = (16, 64, 256),
    seeds: int = 100,
    size: int = 2048,
) -> pd.DataFrame:
    """Measures the squared error of the library's quantiser on normal numbers.

    Args: widths, blocks: of the codes; seeds: >= 2; size: numbers a seed, a multiple of all blocks.
    Returns: columns group (the blocks), x (bits of a code), mean, low, high and closed, for
        `fl.plots.closed_form`.
    """
    check_whole("seeds", seeds, 2)
    check(all(size % block == 0 for block in blocks), "size", size, "a multiple of every block")
    rows = []
    for block, width in product(blocks, widths):
        draws = np.random.default_rng([block, width]).standard_normal((seeds, size))
        off = normal_float(width, block)(torch.from_numpy(draws)).numpy() - draws
        errors = (off**2).mean(1)
        band = theory.mean_band(errors, 1.96)
        closed = theory.quantiser_error(normal_levels(width), block)
        rows.append((f"blocks of {block}", width, *band, closed))
    return pd.DataFrame(rows, columns=["group", "x", "mean", "low", "high", "closed"])


@style.paper()
def code_levels(width: int = 4) -> style.Picture:
    """Draws where the levels of a code come from: equal steps of probability, scaled to [-1, 1].

    Guarantees: the marks are `normal_levels` (test_lesson_08.py::test_normal_levels).
    """
    edge = 1.848  # the quantile 0.9677083: where the outermost level stands before scaling
    code = np.array(normal_levels(width)) * edge
    x = np.linspace(-3, 3, 301)
    figure, (ax,) = style.subplots(8.2, 2.9)
    ax.fill_between(x, np.exp(-(x**2) / 2), color=style.FAINT, lw=0)
    ax.vlines(code, 0, np.exp(-(code**2) / 2), color=CODE, lw=1.8)
    style.draw_dots(ax, code, np.exp(-(code**2) / 2), CODE, 5)
    ax.vlines([0], 0, 1, color=style.INK, lw=2.2)
    ax.set(xlim=(-3, 3), ylim=(0, 1.08), yticks=[])
    ax.set_xlabel("a normal number, in standard deviations")
    words = f"{len(code)} levels: dense where numbers are many, one of them exactly zero"
    ax.set_title(words, color=style.INK)
    ax.grid(False)
    return figure


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
