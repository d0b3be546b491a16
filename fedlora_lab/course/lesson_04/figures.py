"""Figures of notebook 04: what noise on the factors becomes in the product."""

import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fedlora_lab import theory
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.course.widgets.dial import Dial
from fedlora_lab.federated.records import Round, require_source
from fedlora_lab.federated.run import run
from fedlora_lab.lora import peft
from fedlora_lab.measures.deviation import noise_energies
from fedlora_lab.methods.plan import Plan
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.plots import style, tidy
from fedlora_lab.plots import theory_checks as checks
from fedlora_lab.plots.training_curves import TERMS
from fedlora_lab.privacy.config import Privacy
from fedlora_lab.privacy.mechanism import gaussian_noise
from fedlora_lab.tasks.task import Task

WORDS = {"noise_B": "noise on B", "noise_A": "noise on A", "noise_BA": "noise × noise"}
COLOURS = {term: TERMS[term][0] for term in WORDS} | {"signal": style.RIGHT}
STD = "τ, standard deviation of the noise on each entry of B and A"


def gathered_noise(task: Task, privacy: Privacy, plan: Plan, seeds: Sequence[int]) -> Any:
    """Trains FedLoRA and splits its product, round by round, into what it learned and the noise.

    The noise of every release is drawn once more from the run's seed and added up. With Ξ_B and Ξ_A
    so far, B̂ = B − Ξ_B and Â = A − Ξ_A, the product has the parts B̂ Â, Ξ_B Â, B̂ Ξ_A and
    Ξ_B Ξ_A.

    Args: task, privacy, plan: of the runs, in the example unit under plain SGD; seeds: of them.
    Returns: columns seed, round, kind ("gathered", or "round": of this round's noise alone, as the
        records have it), term ("signal", "noise_B", "noise_A", "noise_BA"), value: energies γ²‖…‖²,
        added up over the layers; and term "accuracy" of kind "run", at the start and the end.
    Guarantees: the noise drawn again is that of the run
        (test_the_noise_drawn_again_is_that_of_the_run).
    """
    rows: list[tuple] = []
    for seed in seeds:
        for record, scaling, layers in split_run(task, privacy, plan, seed):
            rows.append((seed, record.index, "run", "accuracy", record.metrics["accuracy"]))
            if not record.index:
                continue
            found = dict.fromkeys(("signal", *WORDS), 0.0)
            for a, b, xi_a, xi_b in layers.values():
                parts = noise_energies(a, b, xi_a, xi_b, scaling)
                parts["signal"] = float((scaling * (b @ a)).square().sum())
                found = {term: value + parts[term] for term, value in found.items()}
            frame = record.layers.groupby("measure")["value"].sum()
            rows += [(seed, record.index, "gathered", term, x) for term, x in found.items()]
            rows += [(seed, record.index, "round", term, float(frame[term])) for term in WORDS]
    table = pd.DataFrame(rows, columns=["seed", "round", "kind", "term", "value"])
    return table.dropna(subset="value")


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
            keys = peft.adapt(task.model, task.targets, task.head, lora).places
            shapes = {key: state.tensors[key].shape for key in keys if key.side in "AB"}
            noise = {key: torch.zeros(shape, dtype=torch.float64) for key, shape in shapes.items()}
        else:
            drawn = _round_noise(shapes, task, privacy, plan, seed, record.index - 1)
            noise = {key: noise[key] + xi for key, xi in drawn.items()}
        layers = {}
        for layer, (a, b) in record.adapter.items():
            xi_a, xi_b = noise[ParamKey("A", layer)], noise[ParamKey("B", layer)]
            layers[layer] = (a.double() - xi_a, b.double() - xi_b, xi_a, xi_b)
        yield record, lora.scaling, layers


def _round_noise(
    shapes: Any, task: Task, privacy: Privacy, plan: Plan, seed: int, t: int
) -> dict[ParamKey, torch.Tensor]:
    """Draws the noise of round t on the averaged factors: the mean over the clients."""
    clients, sigmas = range(len(task.clients)), privacy.noise_multiplier
    each = sigmas if isinstance(sigmas, tuple) else [sigmas] * len(clients)
    std = [float(s or 0) * privacy.clip_norm for s in each]
    total = {key: torch.zeros(shape, dtype=torch.float64) for key, shape in shapes.items()}
    for s in range(plan.local_steps):
        drawn = gaussian_noise(shapes, std, Streams(seed), [(t, k, s) for k in clients])
        for key, xi in drawn.items():
            total[key] -= plan.rate(key.side, t) / (plan.batch or 1) * xi.double().mean(0)
    return total


@style.paper()
def noise_by_round(table: Any, predicted: float) -> style.Picture:
    """Draws signal and noise energy in the product over the rounds, and the quadratic share.

    Args: table: as `gathered_noise` gives it; predicted: ρ at the last round.
    Guarantees: the lines are the means over seeds (test_the_rounds_are_drawn_as_they_are).
    """
    gathered, seeds = table[table["kind"] == "gathered"], table["seed"].nunique()
    figure, (ax, right) = style.row(10.2, 4.1, (0.16, 0.74), (0.065, 0.39), (0.6, 0.26))
    last, labels = int(gathered["round"].max()), []
    names = {"signal": "learned product", **WORDS}
    means = {}
    for term, words in names.items():
        part = gathered[gathered["term"] == term].groupby("round")["value"]
        bands, means[term] = zip(*part.apply(tidy.confidence_interval), strict=True), part.mean()
        drawn = means[term].index, means[term], words, COLOURS[term]
        labels.append(style.named_line(ax, *drawn, *(np.maximum(x, 1e-3) for x in bands)))
    over = means["noise_BA"] >= means["noise_B"]
    ax.set(yscale="log", xlim=(1, last), ylim=(1e-2, 200), xlabel="round")
    ticks = [1, *range(5, last + 1, 5)]
    ax.set(ylabel="energy in γ B A", title="Noise × noise overtakes the noise on B")
    style.log_axis(ax.yaxis, (0.01, 0.1, 1, 10, 100))
    if over.any():
        at = int(over.idxmax())
        where: Any = {"marker": "*", "color": style.INK, "ms": 14, "mec": style.CARD, "zorder": 5}
        ax.plot([at], [means["noise_BA"][at]], **where)
        style.note(ax, 0.03, 0.95, f"★ in round {at}", style.INK, 9, va="top", weight="bold")
    style.draw_labels(ax, labels, together=False)
    shares, told = quadratic_shares(table), []
    for kind, words, colour in (
        ("gathered", "of all that has gathered", style.INK),
        ("round", "of a single round's noise", style.GREY),
    ):
        mean = shares[shares["kind"] == kind].groupby("round")["share"].mean()
        told.append(style.named_line(right, mean.index, mean, words, colour))
    closed = np.arange(1, last + 1) / last * predicted
    right.plot(range(1, last + 1), closed / (1 + closed), color=style.SERIES[0], ls=style.DASHED)
    right.set(xlim=(1, last), ylim=(0, 0.8), xlabel="round", ylabel="share of noise × noise")
    for axes in (ax, right):
        axes.set_xticks(ticks)
    right.set_title("A single round's share hides it")
    style.note(right, 0.03, 0.95, "dashed: ρ/(1 + ρ)", style.SERIES[0], 8.5, va="top")
    style.draw_labels(right, told, together=False, wide=12)
    style.footer(figure, f"means of {seeds} seeds, band: 95 % interval; energies of all layers")
    return figure


def quadratic_shares(table: Any) -> Any:
    """Computes the share of noise × noise: columns kind, seed, round, share."""
    noise = table[table["term"].isin([*WORDS])]
    wide = noise.pivot_table("value", ["kind", "seed", "round"], "term")
    return (wide["noise_BA"] / wide[[*WORDS]].sum(axis=1)).rename("share").reset_index()


def _factors(rank: int, width: int, size_B: float) -> tuple[Any, Any]:
    """Makes B (width, r) and A (r, width) with ‖A‖² = r / 3 (Kaiming) and ‖B‖ = size_B ‖A‖."""
    A = np.full((rank, width), (3 * width) ** -0.5)
    return size_B * A.T, A


@style.paper()
def noise_amplification(
    std: float = 0.05, rank: int = 4, alpha: float = 8.0, width: int = 64, size_B: float = 0.0
) -> tuple[style.Picture, str]:
    """Draws the energies of the three noise terms over τ, and their shares at one τ.

    Args:
        std: of the noise on every entry of both factors; rank, alpha: of the adapter.
        width: d_in = d_out.
        size_B: norm of B over norm of A, 0 at the start.

    Returns: the figure, and what it shows in words.
    Guarantees: the lines are `theory.noise_terms` (test_the_amplifier_draws_the_theory).
    """
    B, A = _factors(rank, width, size_B)
    one = theory.noise_terms(B, A, 1.0, 1.0, alpha / rank)
    here = theory.noise_terms(B, A, std, std, alpha / rank)
    linear = one.linear_B + one.linear_A
    cross = float(np.sqrt(linear / one.quadratic))
    shares = [value / here.total for value in here]
    s = np.array([1e-3, 1.0])
    figure, (ax, right) = style.row(8.4, 3.6, (0.15, 0.69), (0.08, 0.5), (0.725, 0.265))
    place = 0.0
    for (term, words), power, value in zip(WORDS.items(), (2, 2, 4), one, strict=True):
        if value > 0:
            # With equal factors two of the lines are one: both stay visible.
            mark, dash = ("– –", style.DASHED) if term == "noise_A" else ("—", "-")
            ax.plot(s, value * s**power, color=COLOURS[term], ls=dash)
            style.note(ax, place, 1.04, f"{mark} {words}", COLOURS[term], 8.5, weight="bold")
            place += 0.07 + 0.0163 * len(f"{mark} {words}")
    ax.axvline(std, color=style.INK, lw=1.2, ls=(0, (2, 2)))
    ax.plot([cross], [linear * cross**2], marker="*", color=style.INK, ms=14, mec=style.CARD)
    ax.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-6, 1e6), xlabel=STD)
    ax.set_ylabel("energy in γ B A")
    style.log_axis(ax.xaxis, (0.001, 0.01, 0.1, 1))
    style.log_axis(ax.yaxis, (1e-6, 1e-3, 1, 1e3, 1e6))
    ax.set_yticklabels(["10⁻⁶", "0.001", "1", "1,000", "10⁶"])
    ax.set_title(f"Noise × noise takes over at τ = {cross:.3g} (★)", y=1, pad=22)
    right.barh(range(3), shares, color=list(COLOURS.values()), height=0.62)
    for i, share in enumerate(shares):
        words = f"{share:.0%}" + (", since B = 0" if i == 1 and size_B == 0 else "")
        right.text(share + 0.02, i, words, fontsize=10, va="center", weight="bold")
    right.set(xlim=(0, 1.18), ylim=(2.6, -0.6), xticks=(0, 0.5, 1), xlabel="share of the energy")
    right.set_yticks(range(3), list(WORDS.values()))
    right.set_title(f"At τ = {std:.3g}: {shares[2]:.0%}", y=1, pad=22)
    return figure, (
        f"Noise of τ = {std:.3g}, rank {rank}, {width} × {width} layer, α = {alpha:g}: the product "
        f"moves by {here.total**0.5:.3g} (root mean square norm). Noise × noise carries "
        f"{shares[2]:.0%} of the energy and takes over at τ = {cross:.3g}."
    )


def ratio_draws(
    widths: Sequence[int], releases: Sequence[int], stds: Sequence[float], seeds: int = 60
) -> Any:
    """Adds up noise on both factors from B = 0 and A as PEFT draws it, release after release.

    Args: widths, releases, stds: d_in, N and τ, each with each; seeds: draws of each combination.
    Returns: columns setting (words), rho, seed, linear, quadratic: energies of Ξ_B A₀ and Ξ_B Ξ_A.
    Guarantees: their ratio is `theory.amplification` (test_the_ratio_is_the_amplification).
    """
    check_whole("seeds", seeds, 2)
    rows = []
    for d_in, count, std, seed in product(widths, releases, stds, range(seeds)):
        rng = Streams(seed).numpy("ratio draws", d_in, count, round(1e9 * std))
        A, B = rng.uniform(-1, 1, (4, d_in)) / d_in**0.5, np.zeros((64, 4))
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
    rho, names = predicted * wide["round"] / table["round"].max(), ["noise_B", "noise_BA"]
    words = {"noise_B": "linear", "noise_BA": "quadratic"}
    found = wide[["seed", *names]].rename(columns=words)
    return found.assign(setting="private training", rho=rho)


@style.paper()
def ratio_check(draws: Any) -> tuple[style.Picture, Any]:
    """Draws noise × noise over linear noise against ρ: one line for all settings.

    Args: draws: columns setting, rho, seed, linear, quadratic.
    Returns: the figure; and a table setting, rho, measured, expected, half, inside.
    Guarantees: right dots lie inside their bands nearly always, dots 15 % off nearly never
        (test_the_check_judges).
    """
    rows = []
    for (setting, rho), part in draws.groupby(["setting", "rho"], sort=False):
        linear, quadratic = part["linear"], part["quadratic"]
        # The ratio of two means spreads as the residuals about the line through the origin do.
        low, high = tidy.confidence_interval((quadratic - rho * linear) / linear.mean())
        rows.append((setting, rho, quadratic.mean() / linear.mean(), rho, (high - low) / 2))
    table = checks.ratio_table(rows, "setting", "rho")
    figure, left, right = checks.ratio_panels()
    line = np.array([0.5 * table["rho"].min(), 2 * table["rho"].max()])
    left.plot(line, line, color=style.INK, lw=1)
    for place, (setting, part) in enumerate(table.groupby("setting", sort=False)):
        colour = style.SERIES[place] if place < 3 else style.INK
        style.dots(left, part["rho"], part["measured"], colour, 5.5)
        checks.draw_ratios(right, part["rho"] * 1.05 ** (place - 1), part, colour)
        put: Any = {"va": "top", "weight": "bold"}
        style.note(left, 0.03, 0.95 - 0.07 * place, str(setting), colour, 9, **put)
    ticks = (0.01, 0.1, 1, 10)
    for ax in (left, right):
        ax.set(xscale="log", xlabel="ρ = 3 d_in N τ², from public numbers")
        style.log_axis(ax.xaxis, ticks)
    left.set(yscale="log", ylabel="noise × noise / linear noise, measured")
    style.log_axis(left.yaxis, ticks)
    checks.finish_ratios(figure, right, table, "the setting's")
    left.set_title("Width, noise and releases fall onto one line")
    return figure, table


@style.paper()
def clip_trials(trials: Any) -> style.Picture:
    """Draws how far FedLoRA is ahead of FFA-LoRA against ρ, a colour for each ε.

    Args: trials: columns epsilon, rho, fedlora, ffa-lora.
    """
    figure, (ax,) = style.panels(7.6, 4.0, (0.1, 0.16, 0.68, 0.74))
    ax.axhline(0, color=style.INK, lw=1)
    for colour, (epsilon, part) in zip(style.SERIES, trials.groupby("epsilon")):
        part = part.sort_values("rho")
        gap = part["fedlora"] - part["ffa-lora"]
        ax.plot(part["rho"], gap, color=colour, lw=1, alpha=0.5)
        style.dots(ax, part["rho"], gap, colour, 8)
        place = 0.42 - 0.09 * sorted(trials["epsilon"].unique()).index(epsilon)
        style.note(ax, 0.03, place, f"ε = {epsilon:g}", colour, 10, weight="bold")
    ax.set(xscale="log", xlabel="ρ, both factors moving", ylim=(-0.6, 0.1))
    ax.set_ylabel("accuracy, FedLoRA − FFA-LoRA")
    ax.set_title("With the clip norm given, FedLoRA falls behind where ρ is large")
    style.log_axis(ax.xaxis, (0.1, 1, 10))
    style.footer(figure, "one tuning seed on validation data, the best rate at each clip norm")
    return figure


@style.paper()
def decision_strip(film: Any, scan: int, rounds: Sequence[int]) -> style.Picture:
    """Draws class probabilities of one scan after some rounds, with and without the noise.

    Args: film: as `decisions_film` gives it; scan: which of its scans; rounds: the frames.
    Guarantees: the bars are the film's (test_the_strip_is_drawn_from_the_film).
    """
    one, places = film["scans"][scan], np.arange(10)
    starts = np.linspace(0.18, 0.99, len(rounds) + 1)[:-1]
    wide = starts[1] - starts[0] - 0.018
    across = (0.01, 0.1), *((start, wide) for start in starts)
    figure, (left, *frames) = style.row(10.2, 3.2, (0.2, 0.45), *across)
    left.imshow(np.reshape(one["pixels"], (8, 8)), cmap="gray", vmin=0, vmax=1)
    left.set_title(f"a {one['truth']}")
    left.set_axis_off()
    for ax, t in zip(frames, rounds, strict=True):
        noisy, clean = one["noisy"][t], one["clean"][t]
        ax.bar(places - 0.2, noisy, 0.4, color=style.SERIES[1])
        ax.bar(places + 0.2, clean, 0.4, color=style.RIGHT)
        ax.set(ylim=(0, 1), yticks=(0, 0.5, 1), xticks=places, xlabel="digit")
        ax.tick_params(labelsize=7.5, labelleft=ax is frames[0])
        ax.set_title(f"round {t}: says {int(np.argmax(noisy))}", fontsize=9.5)
    frames[0].set_ylabel("probability")
    style.note(frames[0], 0, 1.24, "■ as trained", style.SERIES[1], 9, weight="bold")
    style.note(frames[1], 0, 1.24, "■ noise taken out", style.RIGHT, 9, weight="bold")
    words = "As noise gathers, the decision on one scan goes back and forth"
    figure.text(0.01, 0.92, words, color=style.INK, fontsize=11, weight="bold")
    return figure


FILM = Path(__file__).with_name("decisions.json")


def noise_explorer() -> Dial:
    """Makes a dial for noise, rank, α, width and the size of B: energies of three noise terms.

    Guarantees: the energies are `theory.noise_terms` (tests/browser/test_dials.py::test_formulas).
    """
    about = "What noise on both factors becomes in the product: its three terms over τ."
    values = {"std": 0.05, "width": 64, "rank": 4, "alpha": 8, "size_B": 0.0}
    return Dial(4, "noise_explorer", about, **values)


def noise_signal() -> Dial:
    """Makes a dial for a plan's settings: the noise gathered in the product over the rounds.

    Noise is that of `theory.accumulated_noise_terms`: in the client unit σC/K on each round's mean,
    in the example unit ησC/(b√K) on each step's. The signal is the largest that the clip allows.

    Guarantees: ρ is `theory.amplification` (tests/browser/test_dials.py::test_formulas).
    """
    about = "Linear noise, noise × noise and the largest signal of a plan, round by round."
    privacy = {"unit": "client", "sigma": 3.0, "C": 0.7}
    work = {"clients": 100, "rounds": 40, "lr": 0.5, "batch": 16, "steps": 5}
    adapter = {"width": 64, "rank": 4, "scale": 1}
    return Dial(4, "noise_signal", about, **privacy, **work, **adapter)


def decisions_film() -> dict[str, Any]:
    """Loads the stored film of seed 0 of the runs, written by scripts/decision_film.py.

    Guarantees: it is what the run gives (test_the_film_is_of_the_run).
    """
    return json.loads(FILM.read_text(encoding="utf-8"))


def decision_film() -> Dial:
    """Makes a dial for scan and round: class probabilities with and without the noise.

    Guarantees: it plays the stored probabilities
        (tests/browser/test_dials.py::test_a_film_plays_and_pauses).
    """
    about = (
        "What a privately trained model says of one scan, round by round, with and without noise."
    )
    data = decisions_film()
    return Dial(4, "decision_film", about, data, scan=0, round=len(data["changed"]) - 1)
