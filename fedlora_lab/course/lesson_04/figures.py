"""Figures of notebook 04: what noise on the factors becomes in the product."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch

from fedlora_lab import theory
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.federated.records import Round
from fedlora_lab.federated.run import run
from fedlora_lab.lora import adapters
from fedlora_lab.lora.source import require_source
from fedlora_lab.measures.deviation import noise_energies
from fedlora_lab.methods.plan import Plan
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.plots import tidy
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.privacy.privatizer import gaussian_noise
from fedlora_lab.tasks.task import Task

WORDS = {"noise_B": "noise on B", "noise_A": "noise on A", "noise_BA": "noise × noise"}
PARTS = {"signal": "learned product", **WORDS}
"""What the product consists of: term -> words."""


def gathered_noise(task: Task, privacy: Privacy, plan: Plan, seeds: Sequence[int]) -> Any:
    """Trains FedLoRA and splits its product, round by round, into what it learned and the noise.

    The noise of every release is drawn once more from the run's seed and added up. With Ξ_B and Ξ_A
    so far, B̂ = B − Ξ_B and Â = A − Ξ_A, the product has the parts B̂ Â, Ξ_B Â, B̂ Ξ_A and
    Ξ_B Ξ_A.

    Args: task, privacy, plan: of the runs, in the example unit under plain SGD; seeds: of them.
    Returns: columns seed, round, kind ("gathered", or "round": of this round's noise alone, as the
        records have it), term ("signal", "noise_B", "noise_A", "noise_BA"), value: energies γ²‖…‖²,
        added up over the layers, and their words as part; and term "accuracy" of kind "run", at the
        start and the end.
    Guarantees: the noise drawn again is that of the run
        (test_the_noise_drawn_again_is_that_of_the_run).
    """
    rows: list[tuple] = []
    for seed in seeds:
        for record, scaling, layers in split_run(task, privacy, plan, seed):
            rows.append((seed, record.index, "run", "accuracy", record.metrics["accuracy"]))
            if not record.index:
                continue
            energies = dict.fromkeys(PARTS, 0.0)
            for a, b, xi_a, xi_b in layers.values():
                of_layer = noise_energies(a, b, xi_a, xi_b, scaling)
                of_layer["signal"] = float((scaling * (b @ a)).square().sum())
                energies = {term: value + of_layer[term] for term, value in energies.items()}
            frame = record.layers.groupby("measure")["value"].sum()
            rows += [(seed, record.index, "gathered", term, x) for term, x in energies.items()]
            rows += [(seed, record.index, "round", term, float(frame[term])) for term in WORDS]
    table = pd.DataFrame(rows, columns=["seed", "round", "kind", "term", "value"])
    return table.assign(part=table["term"].map(PARTS)).dropna(subset="value")


def split_run(
    task: Task, privacy: Privacy, plan: Plan, seed: int
) -> Iterator[tuple[Round, float, dict[str, Any]]]:
    """Trains FedLoRA; yields each record, the scale, and of each layer Â, B̂, Ξ_A and Ξ_B.

    Args: task, privacy, plan, seed: as of `gathered_noise`.
    """
    check(privacy.unit == "example", "unit", privacy.unit, "'example'")
    check(plan.batch is not None, "batch", plan.batch, "a number")
    noise: dict[ParamKey, torch.Tensor] = {}
    shapes: dict[ParamKey, torch.Size] = {}
    for record in run(task, "fedlora", privacy, plan, seed=seed, evaluate_every=plan.rounds):
        _, lora, state = require_source(record)
        if not record.index:
            keys = adapters.adapt(task.model, task.targets, task.head, lora).places
            shapes = {key: state.tensors[key].shape for key in keys if key.side in "AB"}
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
    sigmas = privacy.noise_multiplier
    each = sigmas if isinstance(sigmas, tuple) else [sigmas] * len(clients)
    std = [float(s or 0) * privacy.clip_norm for s in each]
    total = {key: torch.zeros(shape, dtype=torch.float64) for key, shape in shapes.items()}
    for s in range(plan.local_steps):
        drawn = gaussian_noise(shapes, std, Streams(seed), [(t, k, s) for k in clients])
        for key, xi in drawn.items():
            total[key] -= plan.rate(key.side, t) / (plan.batch or 1) * xi.double().mean(0)
    return total


def quadratic_shares(table: Any) -> Any:
    """Computes the share of noise × noise: columns kind, seed, round, share."""
    noise = table[table["term"].isin([*WORDS])]
    wide = noise.pivot_table("value", ["kind", "seed", "round"], "term")
    return (wide["noise_BA"] / wide[[*WORDS]].sum(axis=1)).rename("share").reset_index()


def factors_at_start(rank: int, width: int, size_B: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Makes B (width, r) and A (r, width) with ‖A‖² = r / 3, as PEFT draws it on average.

    Args: rank, width: of the layer; size_B: ‖B‖ over ‖A‖, 0 at the start of training.
    """
    A = np.full((rank, width), (3 * width) ** -0.5)
    return size_B * A.T, A


def energies_by_noise(rank: int, width: int, alpha: float, size_B: float = 0.0) -> pd.DataFrame:
    """Computes the energies of the noise terms in γ B A over τ; columns tau, part, value.

    Args: rank, alpha, width: of adapter and layer; size_B: as of `factors_at_start`.
    Guarantees: test_the_energies_are_the_theory.
    """
    B, A = factors_at_start(rank, width, size_B)
    rows = []
    for tau in np.geomspace(1e-3, 1, 13):
        terms = theory.noise_terms(B, A, tau, tau, alpha / rank)
        # A term of B is zero at the start, and has no place on a logarithmic axis.
        rows += [(tau, *pair) for pair in zip(WORDS.values(), terms, strict=True) if pair[1] > 0]
    return pd.DataFrame(rows, columns=["tau", "part", "value"])


def ratio_draws(
    widths: Sequence[int], releases: Sequence[int], stds: Sequence[float], seeds: int = 60
) -> Any:
    """Adds up noise on both factors from B = 0 and A as PEFT draws it, release after release.

    Args: widths, releases, stds: d_in, N and τ, each with each; seeds: draws of each combination.
    Returns: columns setting (words), rho, seed, linear, quadratic: energies of Ξ_B A₀ and Ξ_B Ξ_A.
    """
    check_whole("seeds", seeds, 2)
    rows = []
    for d_in, count, std, seed in product(widths, releases, stds, range(seeds)):
        rng = Streams(seed).numpy("ratio draws", d_in, count, round(1e9 * std))
        A = rng.uniform(-1, 1, (4, d_in)) / d_in**0.5
        B = np.zeros((64, 4))
        drawn = (std * sum(rng.standard_normal(x.shape) for _ in range(count)) for x in (A, B))
        xi_A, xi_B = map(torch.from_numpy, drawn)
        terms = noise_energies(torch.from_numpy(A), torch.from_numpy(B), xi_A, xi_B, 1.0)
        rho = theory.amplification(std, count, d_in)
        rows.append((f"d_in = {d_in:,}", rho, seed, terms["noise_B"], terms["noise_BA"]))
    return pd.DataFrame(rows, columns=["setting", "rho", "seed", "linear", "quadratic"])


def run_ratios(table: Any, predicted: float, rounds: Sequence[int]) -> Any:
    """Converts rounds of `gathered_noise` to the columns of `ratio_draws`.

    Args: table: of the runs; predicted: ρ at their last round; rounds: which ones.
    """
    part = table[(table["kind"] == "gathered") & table["round"].isin(rounds)]
    wide = part.pivot_table("value", ["round", "seed"], "term").reset_index()
    energies = wide.rename(columns={"noise_B": "linear", "noise_BA": "quadratic"})
    rho = predicted * wide["round"] / table["round"].max()
    columns = ["seed", "linear", "quadratic"]
    return energies[columns].assign(setting="private training", rho=rho)


def ratio_table(draws: pd.DataFrame) -> pd.DataFrame:
    """Computes noise × noise over linear noise beside ρ, for `fl.plots.closed_form`.

    Args: draws: columns setting, rho, seed, linear, quadratic.
    Returns: columns group (the setting), x and closed (both ρ), mean, low, high.
    """
    rows = []
    for (setting, rho), part in draws.groupby(["setting", "rho"], sort=False):
        linear = part["linear"]
        # The ratio of two means spreads as the residuals about the line through the origin do.
        off = tidy.confidence_interval((part["quadratic"] - rho * linear) / linear.mean())
        rows.append((setting, rho, rho, part["quadratic"].mean() / linear.mean(), *off))
    table = pd.DataFrame(rows, columns=["group", "x", "closed", "mean", "low", "high"])
    return table.assign(low=table["x"] + table["low"], high=table["x"] + table["high"])


def decision_tables(film: dict[str, Any], scan: int, rounds: Sequence[int]) -> dict[str, Any]:
    """Tabulates class probabilities of one scan after some rounds, with and without the noise.

    Args: film: as `decisions_film` gives it; scan: which of its scans; rounds: the columns.
    """
    frames = film["scans"][scan]
    titles = {"noisy": "as trained", "clean": "noise taken out"}
    return {
        f"{title} (a {frames['truth']})": pd.DataFrame({t: frames[name][t] for t in rounds})
        for name, title in titles.items()
    }
