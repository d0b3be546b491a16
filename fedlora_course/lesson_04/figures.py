"""Figures of lesson 04: what noise on the factors becomes in the product, and where rates end."""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_course.widgets.scene import COLOURS as SCENE_COLOURS, shades_of
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check
from fedlora_lab.federated.records import Round
from fedlora_lab.federated.run import run
from fedlora_lab.lora import adapters, per_example
from fedlora_lab.lora.source import require_source
from fedlora_lab.measures.deviation import noise_energies
from fedlora_lab.methods.plan import Plan
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.plots import style
from fedlora_lab.privacy.ledger import per_client
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.privacy.privatizer import gaussian_noise
from fedlora_lab.recipes.rehearsal import plateau_end
from fedlora_lab.tasks.task import Task, concatenate
from fedlora_lab.theory.products import FactorA, FactorB

WORDS = {"noise_B": "noise on B", "noise_A": "noise on A", "noise_BA": "noise × noise"}
PARTS = {"signal": "learned product", **WORDS}
"""What the product consists of: term -> words."""
SUM = {
    "product": "γ B A =",
    "signal": "γ B̂ Â (learned)",
    "noise_B": "+ γ E_B Â",
    "noise_A": "+ γ B̂ E_A",
    "noise_BA": "+ γ E_B E_A",
}
"""The product as the sum of its parts: what stands above each matrix."""
COLOURS = dict(zip(PARTS, ("green", "blue", "orange", "purple"), strict=True))
"""Term -> its colour in formulas, dials and figures, of `scene.COLOURS`."""
CORNER = 16
"""How many rows and columns of a matrix are drawn."""
SplitRound = tuple[Round, float, dict[str, Any]]
"""A record, the scale γ, and of each layer Â, B̂, E_A and E_B."""


def gathered_noise(runs: Sequence[Sequence[SplitRound]]) -> pd.DataFrame:
    """Computes the energies of what was learned and of the noise, round by round.

    Args: runs: of `split_run`, one a seed.
    Returns: columns seed (place in ``runs``), round, kind ("gathered", or "round": of this round's
        noise alone, as the records have it), term ("signal", "noise_B", "noise_A", "noise_BA"),
        value: energies γ²‖…‖², added up over the layers, and their words as part.
    Guarantees: the noise drawn again is that of the run
        (test_the_noise_drawn_again_is_that_of_the_run).
    """
    rows: list[tuple] = []
    for seed, run_rounds in enumerate(runs):
        for record, scaling, layers in run_rounds[1:]:
            energies = dict.fromkeys(PARTS, 0.0)
            for a, b, xi_a, xi_b in layers.values():
                energies["signal"] += float((scaling * (b @ a)).square().sum())
                for term, value in noise_energies(a, b, xi_a, xi_b, scaling).items():
                    energies[term] += value
            frame = record.layers.groupby("measure")["value"].sum()
            rows += [(seed, record.index, "gathered", term, x) for term, x in energies.items()]
            rows += [(seed, record.index, "round", term, float(frame[term])) for term in WORDS]
    table = pd.DataFrame(rows, columns=["seed", "round", "kind", "term", "value"])
    return table.assign(part=table["term"].map(PARTS))


def split_run(task: Task, privacy: Privacy, plan: Plan, seed: int) -> Iterator[SplitRound]:
    """Trains FedLoRA; yields each record, the scale, and of each layer Â, B̂, E_A and E_B.

    The noise of every release is drawn once more from the run's seed and added up. With E_B and E_A
    so far, B̂ = B − E_B and Â = A − E_A, the product has the parts B̂ Â, E_B Â, B̂ E_A and
    E_B E_A.

    Args: task, privacy, plan, seed: of the run, in the example unit under plain SGD.
    """
    check(privacy.unit == "example", "unit", privacy.unit, "'example'")
    check(plan.batch is not None, "batch", plan.batch, "a number")
    noise: dict[ParamKey, torch.Tensor] = {}
    shapes: dict[ParamKey, torch.Size] = {}
    for record in run(task, "fedlora", privacy, plan, seed=seed, evaluate_every=plan.rounds):
        _, lora, state = require_source(record)
        if not record.index:
            keys = adapters.adapt(task, lora).places
            shapes = {key: state.tensors[key].shape for key in keys if key.name in "AB"}
            noise = {key: torch.zeros(shape, dtype=torch.float64) for key, shape in shapes.items()}
        else:
            drawn = _round_noise(shapes, task, privacy, plan, seed, record.index - 1)
            noise = {key: noise[key] + xi for key, xi in drawn.items()}
        layers = {}
        for layer, (a, b) in record.adapter.items():
            xi_a = noise[ParamKey("A", layer)]
            xi_b = noise[ParamKey("B", layer)]
            layers[layer] = (a.double() - xi_a, b.double() - xi_b, xi_a, xi_b)
        yield record, lora.scaling, layers


def _round_noise(
    shapes: Any, task: Task, privacy: Privacy, plan: Plan, seed: int, t: int
) -> dict[ParamKey, torch.Tensor]:
    """Draws the noise of round t on the averaged factors: the mean over the clients."""
    clients = range(len(task.clients))
    sigmas = per_client(privacy.noise_multiplier or 0.0, len(clients))
    std = [sigma * privacy.clip_norm for sigma in sigmas]
    total = {key: torch.zeros(shape, dtype=torch.float64) for key, shape in shapes.items()}
    for s in range(plan.local_steps):
        drawn = gaussian_noise(shapes, std, Streams(seed), [(t, k, s) for k in clients])
        for key, xi in drawn.items():
            total[key] -= plan.rate(key.name) / (plan.batch or 1) * xi.double().mean(0)
    return total


def part_colours() -> dict[str, str]:
    """Returns the colour of each part of the product, by its words."""
    return {words: SCENE_COLOURS[COLOURS[term]] for term, words in PARTS.items()}


@style.paper()
def predicted_share(measured: pd.DataFrame) -> style.Picture:
    """Draws the share of noise × noise, round by round, and the closed form ρ / (1 + ρ).

    Args: measured: columns round, mean, low and high of the seeds, and closed, the closed form.
    """
    figure, (ax,) = style.subplots(7.4, 4.2)
    t, purple = measured["round"], SCENE_COLOURS[COLOURS["noise_BA"]]
    label = style.named_line(ax, t, measured["closed"], "ρ / (1 + ρ)", style.INK)
    ax.vlines(t, measured["low"], measured["high"], color=purple, lw=1.5)
    style.draw_dots(ax, t, measured["mean"], purple, 6)
    ax.set(xlim=(0, t.max() + 0.5), ylim=(0, None), xlabel="round", xticks=range(0, 21, 5))
    ax.set_ylabel("noise × noise / (noise × noise + noise on B)")
    style.label_ends(ax, [label])
    ax.set_title("The closed form predicts the share of noise × noise")
    style.footer(figure, "dots: mean of 3 seeds, bars: its 95 % interval (Student's t)")
    return figure


# ---- the matrices themselves


def matrix_frames(
    run_rounds: Sequence[SplitRound], layer: str
) -> list[dict[str, Float[np.ndarray, "rows columns"]]]:
    """Computes B, A, γ B A and its four parts after every round.

    Args: run_rounds: of `split_run`; layer: name of an adapted layer.
    Returns: for each round: "B", "A", "product" and the terms of `PARTS` -> entries.
    Guarantees: the four parts add up to the product
        (test_the_noise_drawn_again_is_that_of_the_run).
    """
    frames = []
    for _, scaling, layers in run_rounds:
        a, b, xi_a, xi_b = (matrix.numpy() for matrix in layers[layer])
        matrices = {"B": b + xi_b, "A": a + xi_a, "product": scaling * (b + xi_b) @ (a + xi_a)}
        factors = {"signal": (b, a), "noise_B": (xi_b, a)}
        factors |= {"noise_A": (b, xi_a), "noise_BA": (xi_b, xi_a)}
        matrices |= {term: scaling * left @ right for term, (left, right) in factors.items()}
        frames.append(matrices)
    return frames


def shade(frames: Sequence[Any], name: str) -> list[Float[np.ndarray, "rows columns"]]:
    """Converts a corner of a matrix in all frames to shades, from 0 (zero) to 1 (as large as any).

    γ B A and its parts share a scale: equal shades are equal numbers. A and B have another.
    """
    alike = ("A", "B") if name in "AB" else ("product", *PARTS)
    largest = max(np.quantile(np.abs(frame[other]), 0.98) for frame in frames for other in alike)
    return [np.minimum(np.abs(frame[name][:CORNER, :CORNER]) / largest, 1) for frame in frames]


@style.paper()
def matrix_strip(frames: Sequence[Any], rounds: Sequence[int]) -> style.Picture:
    """Draws the product as the sum of its four parts, a row for each of some rounds.

    Args: frames: of `matrix_frames`; rounds: which ones, the rows.
    """
    figure, axes = style.subplots(9.4, 1.75 * len(rounds) + 0.6, len(rounds), len(SUM))
    for column, (name, label) in enumerate(SUM.items()):
        colour = COLOURS.get(name, "ink")
        shades = shade(frames, name)
        for row, t in enumerate(rounds):
            ax = axes[row * len(SUM) + column]
            ax.imshow(shades[t], cmap=shades_of(colour), vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
            if row == 0:
                # In mathematical type, for the letters below E.
                label = re.sub("E_([AB])", r"E$_\\mathbf{\1}$", label)
                label = label.replace("B̂", r"$\hat{\mathbf{B}}$")
                ax.set_title(label, loc="center", fontsize=10, color=SCENE_COLOURS[colour])
            if column == 0:
                ax.set_ylabel(f"round {t}", rotation=0, ha="right", va="center")
    style.headline(figure, "The learned product is faint beside the noise in the same matrix")
    figure.set_label(f"γ B A = {' + '.join(PARTS.values())}, after rounds {[*rounds]}")
    style.footer(figure, f"first {CORNER} rows and columns; shade: absolute value, one scale")
    return figure


# ---- a round of one's own, on one layer


def _with_factors(start: Round, B: FactorB, A: FactorA) -> tuple[Task, Any, dict[ParamKey, Tensor]]:
    """Returns a run's task, its adapted model, and the tensors with these factors.

    Args: start: the first record of a run whose task adapts one layer; B, A: the factors.
    """
    task, lora, state = require_source(start)
    adapted = adapters.adapt(task, lora)
    tensors = dict(state.tensors)
    for key in adapted.places:
        if key.name in "AB":
            tensors[key] = torch.tensor(A if key.name == "A" else B).float()
    return task, adapted, tensors


def drawn_gradients(
    start: Round, B: FactorB, A: FactorA, batch: int, rng: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Draws a batch of every client and computes its examples' gradients of B and A.

    Args:
        start: the first record of a run whose task adapts one layer.
        B, A: the factors to differentiate at.
        batch: expected size of a batch; each example is drawn by itself.
        rng: for the draws.

    Returns: g_B and g_A: for each client (n, d_out, r) and (n, r, d_in).
    """
    task, adapted, tensors = _with_factors(start, B, A)
    key_A, key_B = sorted(key for key in adapted.places if key.name in "AB")
    batches = []
    for x, y in task.clients:
        drawn = torch.from_numpy(rng.random(len(y)) < batch / len(y))
        batches.append((x[drawn], y[drawn]))
    rows = per_example.gradients_at(task, adapted, tensors, (key_A, key_B), concatenate(batches))
    sizes = [len(labels) for _, labels in batches]
    g_B, g_A = (
        [part.double().numpy() for part in rows[key].split(sizes)] for key in (key_B, key_A)
    )
    return g_B, g_A


def accuracy_of(start: Round, B: FactorB, A: FactorA) -> float:
    """Computes the test accuracy of the model with these factors in its one adapted layer.

    Args: start: see `drawn_gradients`; B, A: the factors.
    """
    task, adapted, tensors = _with_factors(start, B, A)
    x, y = task.test
    outputs = per_example.model_outputs(task, adapted, tensors, x)
    return float((outputs.argmax(1) == y).float().mean())


# ---- where ranges of learning rates end


def ends_found(runs: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Finds where each range of rates ended, beside the end that v predicted.

    Args:
        runs: columns cell, method, lr and validation, a row a run.
        predicted: columns cell, method and v, the rate at which v is 0.35; missing without noise.
    Returns: columns cell, method, predicted and found, without rows that have no prediction.
    """
    rows = []
    for (cell, method), part in runs.groupby(["cell", "method"], sort=False):
        here = (predicted["cell"] == cell) & (predicted["method"] == method)
        (end,) = predicted.loc[here, "v"]
        rows.append((cell, method, end, plateau_end(part.groupby("lr")["validation"].mean())))
    table = pd.DataFrame(rows, columns=["cell", "method", "predicted", "found"])
    return table.dropna().reset_index(drop=True)


def octaves_late(table: pd.DataFrame) -> pd.Series:
    """By how many octaves the predicted end lies behind the one that was found; below zero, early.

    Args: table: of `ends_found`.
    """
    return pd.Series(np.log2(table["predicted"] / table["found"]))


@cache
def late_ends() -> dict[str, pd.Series]:
    """By how many octaves the ends that v predicted lie behind those found in the stored studies.

    Reads the studies from the folder in which the notebooks stand.

    Returns: group of settings ("digits", "texts", "one layer", "few steps") -> `octaves_late`.
    """
    forecast = pd.read_csv("../studies/ends-predicted.csv")
    elsewhere = pd.read_csv("../results/v-elsewhere.csv")
    elsewhere = elsewhere.rename(columns={"case": "cell", "score": "validation"})
    expected = elsewhere.rename(columns={"predicted": "v"})[["cell", "method", "v"]]
    expected = expected.drop_duplicates()
    groups = {
        "digits": ends_found(pd.read_csv("../results/ends.csv"), forecast),
        "texts": ends_found(pd.read_csv("../results/ends-texts.csv"), forecast),
    }
    for case in ("one layer", "few steps"):
        groups[case] = ends_found(elsewhere[elsewhere["cell"] == case], expected)
    return {name: octaves_late(table) for name, table in groups.items()}
