"""Figures of notebook 04: what noise on the factors becomes in the product."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.special import ndtri

from fedlora_lab import theory
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check_whole
from fedlora_lab.course import check_figure as checks
from fedlora_lab.measures.deviation import noise_energies
from fedlora_lab.plots import style, tidy
from fedlora_lab.plots.training_curves import TERMS

WORDS = {"noise_B": "noise on B", "noise_A": "noise on A", "noise_BA": "noise × noise"}
COLOURS = {term: TERMS[term][0] for term in WORDS}
STD = "noise std on each entry of the factors"


def _factors(rank: int, width: int, size_B: float) -> tuple[Any, Any]:
    """B (width, r) and A (r, width) with the norms that count: ‖A‖² = r / 3, as a Kaiming A has it,
    and the norm of B ``size_B`` times that of A.
    """
    A = np.full((rank, width), (3 * width) ** -0.5)
    return size_B * A.T, A


@style.paper()
def noise_amplification(
    std: float = 0.05, rank: int = 4, alpha: float = 8.0, width: int = 64, size_B: float = 0.0
) -> tuple[style.Picture, str]:
    """Draws the energies of the three noise terms over the noise std, and their shares at one std.

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
    style.note(ax, place, 1.04, f"★ crossover at std {cross:.3g}", style.INK, 8.5, weight="bold")
    ax.axvline(std, color=style.INK, lw=1.2, ls=(0, (2, 2)))
    ax.plot([cross], [linear * cross**2], marker="*", color=style.INK, ms=14, mec=style.CARD)
    ax.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-6, 1e6), xlabel=STD)
    ax.set_ylabel("energy in (α/r)·B·A")
    style.log_axis(ax.xaxis, (0.001, 0.01, 0.1, 1))
    style.log_axis(ax.yaxis, (1e-6, 1e-3, 1, 1e3, 1e6))
    ax.set_yticklabels(["10⁻⁶", "0.001", "1", "1,000", "10⁶"])
    ax.set_title("Noise on the factors, seen in the product", y=1, pad=22)
    right.barh(range(3), shares, color=list(COLOURS.values()), height=0.62)
    for i, share in enumerate(shares):
        words = f"{share:.0%}" + (", since B = 0" if i == 1 and size_B == 0 else "")
        right.text(share + 0.02, i, words, fontsize=10, va="center", weight="bold")
    right.set(xlim=(0, 1.18), ylim=(2.6, -0.6), xticks=(0, 0.5, 1), xlabel="share of the energy")
    right.set_yticks(range(3), list(WORDS.values()))
    right.set_title(f"At std {std:.3g}", y=1, pad=22)
    return figure, (
        f"Noise of std {std:.3g}, rank {rank}, {width} × {width} layer, α = {alpha:g}: the product "
        f"moves by {here.total**0.5:.3g} (root mean square norm). Noise × noise carries "
        f"{shares[2]:.0%} of the energy and takes over at std {cross:.3g}."
    )


@style.paper()
def energy_check(
    draws: Any,
    B: Float[np.ndarray, "d_out r"],
    A: Float[np.ndarray, "r d_in"],
    scaling: float = 1.0,
) -> tuple[style.Picture, Any]:
    """Draws measured energies of the three terms over the closed form with its 95 % band.

    Args: draws: as `noise_draws` gives them for the factors B and A and this scaling.
    Returns: the figure; and a table std, term, measured, expected, half (of the band), inside.
    """
    rows = []
    for (std, term), values in draws.groupby(["std", "term"], sort=False)["value"]:
        place = list(WORDS).index(str(term))
        expected = theory.noise_terms(B, A, std, std, scaling)[place]
        spread = theory.noise_terms_std(B, A, std, std, scaling)[place]
        half = float(ndtri(0.975)) * spread / len(values) ** 0.5
        rows.append((std, term, float(values.mean()), expected, half))
    table = checks.check_table(rows, "std", "term")
    lines = {term: (words, COLOURS[term]) for term, words in WORDS.items()}
    figure, left, right = checks.check_figure(table, "std", lines, draws["seed"].nunique())
    checks.log_panels(left, right, STD, (0.01, 0.03, 0.1, 0.3), table["std"].max() * 3.4)
    left.set_ylabel("energy (squared Frobenius norm)")
    return figure, table


@style.paper()
def share_check(draws: Any) -> tuple[style.Picture, Any]:
    """Draws noise times noise over linear noise at the start; closed form 3 std² d_in.

    Args: draws: as `start_draws` gives them, one rank.
    Returns: the figure; and a table d_in, std, measured, expected, half, inside.
    """
    rows = []
    for (d_in, std), part in draws.groupby(["d_in", "std"]):
        wide = part.pivot(index="seed", columns="term", values="value")
        linear, quadratic = wide["noise_B"], wide["noise_BA"]
        expected = theory.quadratic_share(std, int(d_in))
        # The ratio of two means spreads as the residuals about the line through the origin do.
        low, high = tidy.confidence_interval((quadratic - expected * linear) / linear.mean())
        rows.append((d_in, std, quadratic.mean() / linear.mean(), expected, (high - low) / 2))
    table, seeds = checks.check_table(rows, "d_in", "std"), draws["seed"].nunique()
    widths = zip(table["d_in"].unique(), style.SERIES)
    lines = {d_in: (f"d_in = {d_in:,}", colour) for d_in, colour in widths}
    figure, left, right = checks.check_figure(table, "std", lines, seeds, apart=1.12)
    for d_in, (_, colour) in lines.items():
        star: Any = {"marker": "*", "color": colour, "ms": 15, "mec": style.CARD, "zorder": 5}
        left.plot([theory.crossover(int(d_in))], [1], **star)
    left.axhline(1, color=style.INK, lw=1)
    style.note(left, 0.98, 0.03, "★ crossover 1/√(3 d_in)", size=9, ha="right")
    checks.log_panels(left, right, STD, (0.003, 0.01, 0.03, 0.1, 0.3), table["std"].max() * 3.6)
    left.set_ylabel("noise × noise / linear noise")
    return figure, table


@style.paper()
def rank_check(draws: Any, alpha: float = 8.0) -> tuple[style.Picture, Any]:
    """Draws the norm of the linear noise at the start over the rank, with scaling α/r and α/√r.

    Args: draws: as `start_draws` gives them, one d_in and one std, d_out = 64.
    Returns: the figure; and a table rank, measured, expected, half, inside of unscaled energies.
    """
    rows, linear = [], draws[draws["term"] == "noise_B"]
    std = float(linear["std"].iloc[0])
    for rank, values in linear.groupby("rank")["value"]:
        expected = theory.linear_noise_norm(int(rank), float(rank), std, 64, "kaiming") ** 2
        rows.append(checks.mean_row(rank, values=values, expected=expected))
    table = checks.check_table(rows, "rank")
    x, (figure, left, right) = table["rank"], checks.check_panels()
    for colour, words, power in zip(style.SERIES, ("scaling α/r", "scaling α/√r"), (1.0, 0.5)):
        expected, measured = (alpha / x**power * table[c] ** 0.5 for c in ("expected", "measured"))
        checks.draw_closed_form(left, x, expected, measured, colour, words, 1.12)
    checks.draw_ratios(right, x, table, style.INK)
    checks.log_panels(left, right, "rank r", (1, 2, 4, 8, 16, 32), x.max() * 3.4)
    left.set(ylim=(0, None), ylabel="norm of the linear noise in the product")
    checks.finish_check(figure, left, right, table, draws["seed"].nunique())
    return figure, table


@style.paper()
def run_check(frame: Any, expected: "dict[str, float]") -> tuple[style.Picture, Any]:
    """Draws noise energies of real runs' first round over one closed form for all layers.

    Args: frame: tidy, several seeds. expected: measure ("noise_B", "noise_BA") -> closed form.
    Returns: the figure; and a table term, layer, measured, expected, half, inside.
    """
    first, rows = frame[frame["round"] == 1], []
    for term, value in expected.items():
        parts = tidy.select_measure(first, term, layers=True).groupby("layer", sort=False)["value"]
        rows += [checks.mean_row(term, k, values=part, expected=value) for k, part in parts]
    table = checks.check_table(rows, "term", "layer")
    layers = list(dict.fromkeys(table["layer"]))
    figure, left, right = checks.check_panels(0.13)
    for i, (term, value) in enumerate(expected.items()):
        part, colour = table[table["term"] == term], COLOURS[term]
        y = np.arange(len(layers)) + 0.2 * (i - 0.5)
        style.dots(left, part["measured"], y, colour)
        left.axvline(value, color=colour)
        words = left.text(value, -0.75, WORDS[term], color=colour, fontsize=9, ha="center")
        words.set(weight="bold", bbox={"fc": style.CARD, "ec": "none", "pad": 1.5})
        slack = part["half"] / value
        right.hlines(y, 1 - slack, 1 + slack, color=colour, alpha=0.3, lw=6)
        style.dots(right, part["measured"] / value, y, colour, 5.5)
    for ax in (left, right):
        ax.set_ylim(len(layers) - 0.5, -1.1)
        ax.set_yticks(range(len(layers)), layers if ax is left else [])
    left.set(xscale="log", xlim=(0.6 * min(expected.values()), 3 * max(expected.values())))
    left.set_xlabel("energy in the first round (squared Frobenius norm)")
    checks.finish_check(figure, left, right, table, frame["seed"].nunique(), across=True)
    return figure, table


def noise_draws(
    B: Float[np.ndarray, "d_out r"],
    A: Float[np.ndarray, "r d_in"],
    stds: Sequence[float],
    seeds: int = 100,
    scaling: float = 1.0,
) -> Any:
    """Draws noise on both factors and measures the energies of the three terms in the product.

    Args: stds: of the noise; seeds: draws of each; scaling: s of the product s·B·A.
    Returns: columns std, seed, term ("noise_B" of scaling·ξ_B·A, "noise_A" of scaling·B·ξ_A,
        "noise_BA" of scaling·ξ_B·ξ_A), value.
    Guarantees: means follow `theory.noise_terms`, spreads `theory.noise_terms_std`
        (test_draws_follow_the_closed_form).
    """
    check_whole("seeds", seeds, 2)
    rows = []
    for (i, std), seed in product(enumerate(stds), range(seeds)):
        terms = _energies(Streams(seed).numpy("noise draws", i), std, B, A, scaling)
        rows += [(float(std), seed, term, value) for term, value in terms.items()]
    return pd.DataFrame(rows, columns=["std", "seed", "term", "value"])


def start_draws(
    widths: Sequence[int], ranks: Sequence[int], stds: Sequence[float], seeds: int = 100
) -> Any:
    """As `noise_draws` at the start of training: B = 0 with d_out = 64, and for every draw a fresh
    A as PEFT draws it, uniform in +-1 / sqrt(d_in); scaling 1.

    Args: widths: d_in; ranks, stds, seeds: what is combined with each of them.
    Returns: columns d_in, rank, std, seed, term, value.
    """
    rows = []
    for d_in, rank, std, seed in product(widths, ranks, stds, range(seeds)):
        rng = Streams(seed).numpy("start draws", d_in, rank, round(1e9 * std), True)
        A = rng.uniform(-1, 1, (rank, d_in)) / d_in**0.5
        terms = _energies(rng, std, np.zeros((64, rank)), A, 1.0)
        rows += [(d_in, rank, std, seed, term, value) for term, value in terms.items()]
    return pd.DataFrame(rows, columns=["d_in", "rank", "std", "seed", "term", "value"])


def _energies(rng: np.random.Generator, std: float, B: Any, A: Any, scaling: float) -> Any:
    """Energies of the three terms for one draw of noise on B, then on A."""
    xi_B, xi_A = (torch.from_numpy(std * rng.standard_normal(x.shape)) for x in (B, A))
    return noise_energies(torch.from_numpy(A), torch.from_numpy(B), xi_A, xi_B, scaling)
