"""Figures of notebook 08: quantised broadcasts, and what each party holds at the end."""

from collections.abc import Iterable, Mapping, Sequence
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
from fedlora_lab.course import check_figure as checks
from fedlora_lab.federated.comparison import compare
from fedlora_lab.federated.records import to_frame
from fedlora_lab.federated.simulation import run
from fedlora_lab.lora import peft, per_example
from fedlora_lab.measures.deviation import AggregationInput
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Plan
from fedlora_lab.methods.quantization import NormalFloat, normal_float, normal_levels
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.plots import style
from fedlora_lab.plots.tidy import confidence_interval
from fedlora_lab.privacy.config import Privacy
from fedlora_lab.tasks.task import Task, examples_to_judge

CODE = style.look("fedlpp").colour
WIDTHS = (2, 3, 4, 5, 6, 7, 8)
KINDS = ("a normal draw", "outliers", "a trained factor")
HOLDERS = {
    "server": ("the server's adapter", style.INK),
    "received": ("what a client receives", CODE),
    "averaged": ("mean of the last five received", "#C06A2B"),
    "trained": ("the best client, after its own training", style.SERIES[0]),
}


def _numbers(kind: str, trained: Any) -> np.ndarray:
    """Numbers to quantise, mean square 1: 4,096 normal ones, the same with one in 256 made 8 times
    larger, or the given ones.
    """
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
    """Relative error of normal numbers for each of `WIDTHS`."""
    return [theory.quantiser_error(normal_levels(w), block) ** 0.5 for w in WIDTHS]


@style.paper()
def quantiser(
    width: int = 3,
    block: int = 64,
    kind: str = "a normal draw",
    trained: "Float[np.ndarray, '...'] | None" = None,
) -> tuple[style.Picture, str]:
    """Draws levels under the numbers they stand for, the staircase, and error against bits.

    Args: width: bits of a code, 2 to 8; block: numbers to a scale; kind: of `KINDS`, the numbers
        that are quantised; trained: those of a trained factor.
    Returns: the figure, and what it shows in words.
    Guarantees: axes stand still; the dot is the measured error
        (test_lesson_08.py::test_the_quantiser_figure_states_the_measured_error).
    """
    row, levels = _numbers(kind, trained), np.array(normal_levels(width))
    rule = normal_float(width, block)
    received = rule(torch.from_numpy(row)).numpy()
    error = float(np.linalg.norm(received - row) / np.linalg.norm(row))
    bits = rule.bits(row.size) / row.size
    across = (0.065, 0.26), (0.405, 0.235), (0.735, 0.255)
    figure, (one, two, three) = style.row(8.4, 3.6, (0.15, 0.74), *across)
    padded = np.pad(row, (0, -len(row) % block)).reshape(-1, block)
    scale = np.abs(padded).max(1, keepdims=True)
    unit = (padded / np.where(scale > 0, scale, 1)).ravel()[: len(row)]
    heights, edges = np.histogram(unit, np.linspace(-1, 1, 61), density=True)
    one.stairs(heights, edges, fill=True, color=style.FAINT)  # one shape: quicker than 60 bars
    one.vlines(levels, -0.16, 0, color=CODE, lw=2 if len(levels) <= 16 else 0.9)
    one.axhline(0, color=style.SOFT, lw=0.8)
    one.set(xlim=(-1.03, 1.03), ylim=(-0.18, 2.2), xticks=(-1, 0, 1), yticks=())
    one.set(xlabel="number ÷ largest of its block", ylabel="density", title="numbers, levels below")
    two.plot([-1, 1], [-1, 1], color=style.GREY, lw=1)
    middles = (levels[1:] + levels[:-1]) / 2
    two.stairs(levels, [-1, *middles, 1], baseline=None, color=CODE, lw=1.8)
    two.set(xlim=(-1.03, 1.03), ylim=(-1.06, 1.06), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    two.set(xlabel="sent", ylabel="received", title="what arrives")
    three.plot(WIDTHS, expected_errors(block), color=style.GREY, lw=1.6)
    style.dots(three, [width], [error], CODE, 10, zorder=5, clip_on=False)
    three.set(yscale="log", xlim=(1.6, 8.4), ylim=(0.003, 1.2), xticks=WIDTHS[::2])
    three.set(xlabel="bits of a code", ylabel="relative error", title=f"error {error:.1%}")
    style.log_axis(three.yaxis, (0.01, 0.1, 1))
    style.note(three, 0.98, 0.96, "line: closed form,\nnormal numbers", ha="right", va="top")
    return figure, (
        f"{width} bits, {len(levels)} levels, blocks of {block}: {bits:.3g} bits a number on the "
        f"wire, {32 / bits:.1f} times fewer than float32. What arrives is {error:.1%} off; normal "
        f"numbers would be {expected_errors(block)[WIDTHS.index(width)]:.1%} off."
    )


@style.paper()
def quantiser_check(
    widths: Sequence[int] = (2, 3, 4, 6, 8),
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
    table = checks.check_table(rows, "block", "width", "bits")
    (figure, left, right), labels = checks.check_panels(room=0.1), []
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
    checks.finish_check(figure, left, right, table, seeds, f" of {size:,} normal numbers")
    return figure, table


@style.paper()
def accuracy_per_holder(table: pd.DataFrame, start: float | None = None) -> style.Picture:
    """Draws the accuracy of what each party holds at the end, over bits: the gap is all that is
    hidden.

    Args: table: as `quantised_runs` gives it; start: accuracy before training.
    Guarantees: dots are the means over seeds
        (test_lesson_08.py::test_the_accuracies_per_holder_are_drawn).
    """
    part: Any = table[table["measure"] == "accuracy"]
    means = part.groupby(["method", "width"], sort=False)["value"].agg(
        mean="mean", band=confidence_interval
    )
    figure, (ax,) = style.panels(8.6, 4.1, (0.08, 0.15, 0.5, 0.74))
    widths, labels = sorted(part["width"].unique()), []
    mark: Any = {"marker": "o", "ms": 6, "mec": style.CARD}
    for i, who in enumerate(part["method"].unique()):
        line, (words, colour) = means.loc[who].sort_index(), HOLDERS[who]
        x = np.array([widths.index(w) for w in line.index]) + 0.06 * (i - 1.5)
        ax.vlines(x, *zip(*line["band"], strict=True), color=colour, alpha=0.4, lw=1.4)
        labels.append(style.named_line(ax, x, line["mean"], words, colour, **mark))
    low = float(part["value"].min())
    if start is not None:
        low = min(low, start)
        ax.axhline(start, color=style.GREY, lw=1, ls=style.DOTTED)
        ax.text(-0.25, start, "before training", fontsize=8, color=style.SOFT, va="bottom")
    ax.set(xlim=(-0.3, len(widths) - 0.7), ylim=(max(0, low - 0.06), 1), xlabel="bits of a code")
    ax.set(ylabel="share of test examples right", title="Who holds how good a model")
    ax.set_xticks(range(len(widths)), [f"{w:g}" for w in widths])
    style.draw_labels(ax, labels, together=False, wide=30)
    words = f"dots: mean over {part['seed'].nunique()} seeds; bars: 95 % interval of the mean"
    style.footer(figure, words)
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


def fedlpp(width: int, block: int = 64) -> Method:
    """Makes FedLPP with codes of this many bits, named after them: "fedlpp-2-bits"."""
    return methods.FedLPP.replace(name=f"FedLPP {width} bits", broadcast=normal_float(width, block))


def quantised_runs(
    task: Task,
    which: Iterable[Method | str],
    privacy: Privacy | None,
    plan: Plan | Mapping[str, Plan],
    seeds: Iterable[int] = (0, 1, 2),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Trains rows at several seeds; with quantised factors, also measures who holds what.

    Args: task, which, privacy, seeds: as of `compare`; plan: one for all, or one for each slug.
    Returns: the tidy frame of the runs; and `model_protection` of each run with columns ``row``
        (its slug) and ``width`` (bits of a code). Models are judged before training and at the end,
        those without quantised factors every fourth round too: they are runs of notebook 00, which
        a cache of runs then holds.
    Guarantees: test_lesson_08.py::test_quantised_runs_measure_every_holder.
    """
    runs, parts, seeds = [], [], tuple(seeds)
    for row in map(methods.get, which):
        own = plan if isinstance(plan, Plan) else plan[row.slug]
        if not isinstance(row.broadcast, NormalFloat):
            options: Any = {"progress": False, "evaluate_every": 4}
            runs.append(compare(task, [row], privacy, own, seeds, **options))
            continue
        for seed in seeds:
            watched, seen = measures.record_aggregation(row)
            records = list(run(task, watched, privacy, own, seed=seed, evaluate_every=own.rounds))
            runs.append(to_frame(records))
            part = model_protection(records[-1], row, seen, min(5, own.rounds))
            parts.append(part.assign(row=row.slug, width=row.broadcast.width))
    held = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return pd.concat(runs, ignore_index=True), held
