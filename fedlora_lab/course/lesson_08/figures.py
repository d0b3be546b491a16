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
from fedlora_lab.course.lesson_08.server_form import ServerForm
from fedlora_lab.course.widgets.dial import Dial, round_to_digits
from fedlora_lab.federated.run import run
from fedlora_lab.lora import peft, per_example
from fedlora_lab.measures.deviation import AggregationInput
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Plan
from fedlora_lab.methods.quantization import normal_float, normal_levels
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.plots import style
from fedlora_lab.plots import theory_checks as checks
from fedlora_lab.plots.tidy import bands
from fedlora_lab.plots.training_curves import accuracy_row
from fedlora_lab.privacy.config import Privacy
from fedlora_lab.tasks.task import Task, concatenate, examples_to_judge

CODE = style.look("fedlpp").colour
WIDTHS, BLOCKS, BINS = (2, 3, 4, 5, 6, 7, 8), (8, 16, 32, 64, 128, 256), 60
KINDS = ("a normal draw", "outliers", "a trained factor")
HOLDERS = {
    "server": ("the server's adapter", style.INK),
    "received": ("what a client receives", CODE),
    "averaged": ("mean of the last five received", "#C06A2B"),
    "trained": ("the client with the best test score after its own training", style.SERIES[0]),
}


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
    row, levels = _numbers(kind, trained), np.array(normal_levels(width))
    received = normal_float(width, block)(torch.from_numpy(row)).numpy()
    error = float(np.linalg.norm(received - row) / np.linalg.norm(row))
    across = (0.065, 0.26), (0.405, 0.235), (0.735, 0.255)
    figure, (one, two, three) = style.row(8.4, 3.6, (0.15, 0.74), *across)
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


@style.paper()
def quantiser_check(
    widths: Sequence[int] = (1, 2, 3, 4, 6, 8),
    blocks: Sequence[int] = (16, 64, 256),
    seeds: int = 100,
    size: int = 2048,
) -> tuple[style.Picture, pd.DataFrame]:
    """Draws the squared error of the library's quantiser on normal numbers over its closed form.

    Args: widths, blocks: of the codes; seeds: >= 2; size: numbers a seed, a multiple of all blocks.
    Returns: the figure; and a table block, width, bits, measured, expected, half, inside.
    """
    check_whole("seeds", seeds, 2)
    check(all(size % block == 0 for block in blocks), "size", size, "a multiple of every block")
    rows = []
    for block, width in product(sorted(blocks), widths):
        rule, bits = normal_float(width, block), normal_float(width, block).bits(size) / size
        draws = np.random.default_rng([block, width]).standard_normal((seeds, size))
        off = ((rule(torch.from_numpy(draws)).numpy() - draws) ** 2).mean(1)
        expected = theory.quantiser_error(normal_levels(width), block)
        rows.append(checks.mean_row(block, width, bits, values=off, expected=expected))
    table = checks.ratio_table(rows, "block", "width", "bits")
    (figure, left, right), labels = checks.ratio_panels(room=0.1), []
    for i, (block, part) in enumerate(table.groupby("block")):
        x, colour, expected = part["bits"], style.SERIES[i % 3], part["expected"] ** 0.5
        labels.append(style.named_line(left, x, expected, f"blocks of {block}", colour))
        style.dots(left, x, part["measured"] ** 0.5, colour)
        checks.draw_ratios(right, part["width"] + 0.18 * (i - 1), part, colour)
    left.set(yscale="log", ylim=(0.003, 1), ylabel="relative error")
    left.set_xlabel("bits a number on the wire, scale included")
    style.log_axis(left.yaxis, (0.003, 0.01, 0.03, 0.1, 0.3, 1))
    style.draw_labels(left, labels, together=False)
    right.set(xticks=list(widths), xlabel="bits of a code")
    words = f" of {size:,} normal numbers; lines: closed form"
    checks.finish_ratios(figure, right, table, seeds, words)
    left.set_title("From 3 bits on, each bit halves the error")
    return figure, table


def _over_bits(
    ax: Any, part: Any, column: str, words: str, colour: str, aside: float
) -> style.Label:
    """Draws means over seeds with their intervals, one place for each number of bits."""
    widths, means, low, high = bands(part, "width", column)
    x = np.arange(len(widths)) + aside
    ax.vlines(x, low, high, color=colour, alpha=0.4)
    ax.set_xticks(range(len(widths)), [f"{width:g}" for width in widths])
    ax.set_xlabel("bits of a code")
    mark: Any = {"marker": "o", "ms": 6, "mec": style.CARD, "label": words}
    return style.named_line(ax, x, means, words, colour, **mark)


@style.paper()
def accuracy_per_holder(table: pd.DataFrame, start: float, title: str) -> style.Picture:
    """Draws the accuracy of what each party holds at the end, over bits.

    Args: table: as `runs_with_holders` gives it; start: accuracy before training; title: the
        finding.
    Guarantees: dots are the means over seeds
        (test_lesson_08.py::test_the_accuracies_per_holder_are_drawn).
    """
    part: Any = table[table["measure"] == "accuracy"]
    figure, (ax,) = style.panels(8.6, 3.9, (0.08, 0.16, 0.56, 0.72))
    labels = [
        _over_bits(ax, part[part["method"] == who], "value", *look, 0.07 * (i - 1.5))
        for i, (who, look) in enumerate(HOLDERS.items())
    ]
    ax.axhline(start, color=style.GREY, lw=1, ls=style.DOTTED)
    ax.text(-0.25, start, "before training", fontsize=8, color=style.SOFT, va="bottom")
    low = min(start, float(part["value"].min()))
    ax.set(xlim=(-0.3, part["width"].nunique() - 0.7), ylim=(max(0, low - 0.06), 1))
    ax.set(ylabel="share of test digits right", title=title)
    style.draw_labels(ax, labels, together=False, wide=30)
    seeds = part["seed"].nunique()
    style.footer(figure, f"dots: mean over {seeds} seeds; bars: 95 % interval of the mean")
    return figure


@style.paper()
def code_levels(width: int = 4) -> style.Picture:
    """Draws where the levels of a code come from: equal steps of probability, scaled to [-1, 1].

    Guarantees: the marks are `normal_levels` (test_lesson_08.py::test_normal_levels).
    """
    edge = 1.848  # the quantile 0.9677083: where the outermost level stands before scaling
    code, x = np.array(normal_levels(width)) * edge, np.linspace(-3, 3, 301)
    figure, (ax,) = style.panels(8.2, 2.9, (0.05, 0.19, 0.92, 0.68))
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
        found = torch.autograd.grad(loss, list(factors.values()))
    return torch.cat([one.flatten() for one in found]).double().numpy()


@style.paper()
def gradient_accuracy(table: pd.DataFrame, title: str) -> style.Picture:
    """Draws the cosine of the gradients at rounded and at true factors over bits.

    Args: table: columns round, seed, width, cosine; title: the finding.
    Guarantees: dots are the means over seeds
        (test_lesson_08.py::test_the_cosines_are_drawn).
    """
    figure, (ax,) = style.panels(8.2, 3.9, (0.09, 0.16, 0.7, 0.72))
    for i, (index, part) in enumerate(table.groupby("round")):
        _over_bits(ax, part, "cosine", f"after round {index}", style.SERIES[i], 0.07 * (i - 1))
    ax.axhline(1, color=style.GREY, lw=1, ls=style.DOTTED)
    ax.set(ylabel="cosine with the true gradient", ylim=(None, 1.04), title=title)
    ax.legend(frameon=False, loc="lower right", fontsize=9)
    style.footer(figure, f"{table['seed'].nunique()} seeds; bars: 95 % interval of the mean")
    return figure


@style.paper()
def four_forms(traces: Mapping[str, Sequence[tuple[float, float]]], goal: float) -> style.Picture:
    """Draws one number of the server under four forms of its step: what it holds and sends.

    Args: traces: title -> (held, sent) of every round; goal: where the loss is least.
    Guarantees: test_lesson_08.py::test_the_four_forms_are_drawn.
    """
    places = [(0.06 + 0.238 * i, 0.21, 0.205, 0.53) for i in range(len(traces))]
    figure, axes = style.panels(10.2, 3.2, *places)
    for ax, (title, trace) in zip(axes, traces.items(), strict=True):
        held, sent = np.array(trace).T
        ax.step(range(len(sent)), sent, where="mid", color=CODE, lw=1.2)
        ax.plot(held, color=style.INK, lw=2)
        ax.axhline(goal, color=style.RIGHT, lw=1.2, ls=style.DASHED)
        ax.set(xlabel="round", ylim=(-0.05, 1.05), xlim=(0, len(held) - 1), yticks=(0, 0.5, 1))
        ax.set_title(title, fontsize=9.5)
    for ax in axes[1:]:
        ax.set_yticklabels([])
    axes[0].set_ylabel("one number")
    title = "Only form 1 moves on: small steps add up in what the server keeps"
    figure.text(0.06, 0.91, title, fontsize=10.5, weight="bold")
    words = "black: what the server holds; coloured steps: what it sends; dashed: the best value"
    style.footer(figure, words)
    return figure


@style.paper()
def accuracy_by_form(table: pd.DataFrame, start: float, title: str) -> style.Picture:
    """Draws the accuracy after the last round for each form of the server step.

    Args: table: columns form, seed, accuracy; start: before training; title: the finding.
    Guarantees: test_lesson_08.py::test_the_forms_are_compared.
    """
    figure, (ax,) = style.panels(7.6, 3.0, (0.24, 0.2, 0.64, 0.66))
    names = ["form 1: straight through", "form 2", "form 3", "form 4"]
    for form in range(1, 5):
        values = table[table["form"] == form]["accuracy"].to_numpy()
        colour = style.INK if form == 1 else CODE
        accuracy_row(ax, form, values, colour)
    ax.axvline(start, color=style.GREY, lw=1, ls=style.DOTTED)
    ax.set(ylim=(4.6, 0.4), xlabel="share of test digits right", title=title)
    ax.set_yticks(range(1, 5), names, color=style.INK)
    ax.grid(visible=False, axis="y")
    words = f"dots: {table['seed'].nunique()} seeds; diamonds: mean; bars: its 95 % interval"
    style.footer(figure, f"{words}; dotted: before training")
    return figure


@style.paper()
def differences(rows: Mapping[str, Sequence[Any]], title: str) -> style.Picture:
    """Draws paired differences of accuracy with their intervals, a panel for each comparison.

    Args: rows: comparison -> differences at the budgets 3, 8 and 20; title: the finding.
    Guarantees: test_lesson_08.py::test_the_differences_are_drawn.
    """
    places = [(0.09 + 0.47 * i, 0.27, 0.42, 0.49) for i in range(len(rows))]
    figure, axes = style.panels(8.6, 2.9, *places)
    for ax, (words, found) in zip(axes, rows.items(), strict=True):
        y = np.arange(len(found))
        ax.hlines(y, [one.low for one in found], [one.high for one in found], color=CODE, lw=2)
        style.dots(ax, [one.mean for one in found], y, CODE, 7)
        ax.axvline(0, color=style.INK, lw=1)
        ax.set(ylim=(len(found) - 0.5, -0.5), xlim=(-0.02, 0.02), xlabel="difference of accuracy")
        ax.set_xticks((-0.02, -0.01, 0, 0.01, 0.02))
        ax.set_title(words, fontsize=9.5)
        ax.set_yticks(y, [f"ε = {budget}" for budget in (3, 8, 20)][: len(found)])
        ax.grid(visible=False, axis="y")
    figure.text(0.09, 0.9, title, fontsize=10.5, weight="bold")
    seeds = next(iter(rows.values()))[0].seeds
    style.footer(figure, f"paired over {seeds} seeds; bars: 95 % interval of the mean difference")
    return figure


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


def fedlpp(width: int, form: int = 1) -> Method:
    """Makes FedLPP with codes of this many bits and one of the four forms of the server step."""
    name = f"FedLPP {width} bits" + (f" form {form}" if form > 1 else "")
    row = methods.FedLPP.replace(name=name, broadcast=normal_float(width, 64))
    return row.replace(aggregate=ServerForm(form)) if form > 1 else row


def runs_with_holders(
    task: Task, widths: Iterable[int], privacy: Privacy | None, plan: Plan, seeds: Iterable[int]
) -> pd.DataFrame:
    """Trains FedLPP at some widths and seeds; returns `model_protection` of each run, and width.

    Args: task, privacy, plan: of every run; widths: bits of a code; seeds: of each width.
    Guarantees: test_lesson_08.py::test_coarser_copies_lie_further_away.
    """
    parts = []
    for width, seed in product(widths, seeds):
        row = fedlpp(width)
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
    histograms, errors = [], []
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
