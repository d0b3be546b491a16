"""Figures of notebook 08: quantised broadcasts, and what each party holds at the end."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab import measures, methods, theory
from fedlora_lab._utils.validation import check, check_one_of, check_whole
from fedlora_lab.course.widgets.dial import Dial, round_to_digits
from fedlora_lab.federated.run import run
from fedlora_lab.lora import peft, per_example
from fedlora_lab.measures.deviation import AggregationInput
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Plan
from fedlora_lab.methods.quantization import normal_float, normal_levels
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.plots import style
from fedlora_lab.privacy.config import Privacy
from fedlora_lab.tasks.task import Task, concatenate, examples_to_judge

CODE = style.look("fedlpp").colour
WIDTHS = (2, 3, 4, 5, 6, 7, 8)
BLOCKS = (8, 16, 32, 64, 128, 256)
BINS = 60
KINDS = ("a normal draw", "outliers", "a trained factor")


def _numbers(kind: str, trained: Any) -> np.ndarray:
    """Returns numbers to quantise, mean square 1: normal, with outliers, or the given ones."""
    check_one_of("kind", kind, KINDS)
    row = np.random.default_rng(2).standard_normal(4096)
    if kind == "outliers":
        row[::256] *= 8
    elif kind == "a trained factor":
        check(trained is not None, "trained", trained, "the numbers of a factor")
        row = np.asarray(trained, float).ravel()
    return row / np.sqrt(np.mean(row**2))


@cache
def expected_errors(block: int) -> list[float]:
    """Computes the relative error of normal numbers for each of `WIDTHS`."""
    return [theory.quantiser_error(normal_levels(w), block) ** 0.5 for w in WIDTHS]


@style.paper()
def quantiser(
    width: int = 3,
    block: int = 64,
    kind: str = "a normal draw",
    trained: "Float[np.ndarray, '...'] | None" = None,
) -> style.Picture:
    """Draws levels under the numbers they stand for, the staircase, and error against bits.

    Args: width: bits of a code, 2 to 8; block: numbers to a scale; kind: of `KINDS`, the numbers
        that are quantised; trained: those of a trained factor.
    Guarantees: axes stand still; the dot is the measured error
        (test_lesson_08.py::test_the_quantiser_figure_states_the_measured_error).
    """
    row = _numbers(kind, trained)
    levels = np.array(normal_levels(width))
    received = normal_float(width, block)(torch.from_numpy(row)).numpy()
    error = float(np.linalg.norm(received - row) / np.linalg.norm(row))
    figure, (one, two, three) = style.subplots(9.2, 3.6, columns=3)
    edges = np.linspace(-1, 1, BINS + 1)
    one.stairs(_histogram(row, block), edges, fill=True, color=style.FAINT)  # quicker than bars
    one.vlines(levels, -0.16, 0, color=CODE, lw=2 if len(levels) <= 16 else 0.9)
    one.axhline(0, color=style.SOFT, lw=0.8)
    one.set(xlim=(-1.03, 1.03), ylim=(-0.18, 2.2), xticks=(-1, 0, 1), yticks=())
    one.set(xlabel="number ÷ largest of its block", ylabel="density", title=f"{len(levels)} levels")
    two.plot([-1, 1], [-1, 1], color=style.GREY, lw=1)
    middles = (levels[1:] + levels[:-1]) / 2
    two.stairs(levels, [-1, *middles, 1], baseline=None, color=CODE, lw=1.8)
    two.set(xlim=(-1.03, 1.03), ylim=(-1.06, 1.06), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    two.set(xlabel="sent", ylabel="received", title="Small numbers arrive best")
    three.plot(WIDTHS, expected_errors(block), color=style.GREY, lw=1.6)
    style.dots(three, [width], [error], CODE, 10, zorder=5, clip_on=False)
    three.set(yscale="log", xlim=(1.6, 8.4), ylim=(0.003, 1.2), xticks=WIDTHS[::2])
    three.set(xlabel="bits of a code", ylabel="relative error", title=f"The error is {error:.1%}")
    style.log_axis(three.yaxis, (0.01, 0.1, 1))
    style.note(three, 0.98, 0.96, "line: closed form,\nnormal numbers", ha="right", va="top")
    return figure


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
    style.dots(ax, code, np.exp(-(code**2) / 2), CODE, 5)
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
    adapted = peft.adapt(task.model, task.targets, task.head, lora)
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
    source = record.source
    check(source is not None, "record", "a copy without its task", "a record as run() yields it")
    check_whole("last", last, 1, len(seen) + 1)
    task, lora, state = source
    adapted = peft.adapt(task.model, task.targets, task.head, lora)
    server, test = state.tensors, examples_to_judge(task, record.ledger is not None)
    final = {key: x if key.side == "head" else method.broadcast(x) for key, x in server.items()}
    received = [final, *(one.sent.tensors for one in reversed(seen))][:last]
    averaged = {key: torch.stack([one[key] for one in received]).mean(0) for key in server}
    ended = seen[-1]
    own = [{key: x[k] for key, x in ended.uploads.items()} for k in range(len(ended.weights))]

    def accuracy(values: Mapping[ParamKey, Tensor]) -> float:
        return per_example.evaluate(task, adapted, values, test)["accuracy"]

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
    Guarantees: test_lesson_08.py::test_coarser_copies_lie_further_away.
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


def quantiser_explorer(trained: Any = None) -> Dial:
    """Makes a dial for bits, block and numbers: the levels, what arrives, and the error.

    The library's quantiser runs here, once for every choice; its errors are sent.

    Args: trained: numbers of a trained factor, offered beside made ones.
    Guarantees: the levels are `normal_levels` (tests/browser/test_dials.py::test_formulas).
    """
    kinds = KINDS if trained is not None else KINDS[:2]
    histograms = []
    errors = []
    for kind in kinds:
        row = _numbers(kind, trained)
        received = [
            [normal_float(width, block)(torch.from_numpy(row)).numpy() for width in WIDTHS]
            for block in BLOCKS
        ]
        errors.append(np.linalg.norm(np.array(received) - row, axis=2) / np.linalg.norm(row))
        histograms.append([_histogram(row, block) for block in BLOCKS])
    data = {
        "kinds": list(kinds),
        "blocks": list(BLOCKS),
        "widths": list(WIDTHS),
        "histograms": round_to_digits(histograms, 2),
        "errors": round_to_digits(errors),
        "closed": round_to_digits([expected_errors(block) for block in BLOCKS]),
    }
    about = (
        "A normal-float code: its levels, what arrives of a number, and the error over the bits."
    )
    return Dial(8, "quantiser_explorer", about, data, width=3, block=64, kind=kinds[0])


def _histogram(row: np.ndarray, block: int) -> np.ndarray:
    """Computes the density of the numbers over the largest of their block, in [-1, 1]."""
    padded = np.pad(row, (0, -len(row) % block)).reshape(-1, block)
    scale = np.abs(padded).max(1, keepdims=True)
    unit = (padded / np.where(scale > 0, scale, 1)).ravel()[: len(row)]
    return np.histogram(unit, np.linspace(-1, 1, BINS + 1), density=True)[0]
