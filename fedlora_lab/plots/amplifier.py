"""What noise on the factors becomes in the product, and how well the closed forms foretell it."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import ndtri

from fedlora_lab import theory
from fedlora_lab.plots import tidy
from fedlora_lab.plots.clipping import log_axis
from fedlora_lab.plots.curves import footer
from fedlora_lab.plots.noise import TERMS
from fedlora_lab.plots.style import CARD, FACTOR, INK, SOFT, Picture, paper, picture

WORDS = {"noise_B": "noise on B", "noise_A": "noise on A", "noise_BA": "noise × noise"}
COLOURS = {term: FACTOR[TERMS[term][0]] for term in WORDS}
HUES = ("#0F7F94", "#7A4FD0", "#8F5A33", "#B0486A")
HALF = float(ndtri(0.975))


def factors(rank: int, width: int, size_B: float) -> tuple[Any, Any]:
    """B (width, r), ``size_B`` times as long as A; and A (r, width) of norm sqrt(r / 3), as a Kaiming A has it."""
    A = np.full((rank, width), (3 * width) ** -0.5)
    return size_B * A.T, A


def amplifier(
    std: float = 0.05, rank: int = 4, alpha: float = 8.0, width: int = 64, size_B: float = 0.0
) -> tuple[Picture, str]:
    """Energies of the three noise terms over the noise std, their shares at one std; and the same in words.

    Args: std: on every entry of both factors. width: d_in = d_out. size_B: norm of B over norm of A, 0 at the start.
    Guarantees: the lines are `theory.noise_terms` (test_the_amplifier_draws_the_theory).
    """
    B, A = factors(rank, width, size_B)
    one = theory.noise_terms(B, A, 1.0, 1.0, alpha / rank)
    here = theory.noise_terms(B, A, std, std, alpha / rank)
    cross = float(np.sqrt((one.linear_B + one.linear_A) / one.quadratic))
    shares = [value / here.total for value in here]
    s = np.array([1e-3, 1.0])
    with paper():
        figure = picture(8.4, 3.6)
        ax, right = figure.add_axes((0.08, 0.15, 0.5, 0.69)), figure.add_axes((0.725, 0.15, 0.265, 0.69))
        for term, power, value in zip(WORDS, (2, 2, 4), one, strict=True):
            if value > 0:
                # With equal factors two of the lines are one: both stay visible.
                ax.plot(s, value * s**power, color=COLOURS[term], ls=(0, (4, 2)) if term == "noise_A" else "-")
        ax.axvline(std, color=INK, lw=1.2, ls=(0, (2, 2)))
        ax.plot([cross], [(one.linear_B + one.linear_A) * cross**2], marker="*", color=INK, ms=14, mec=CARD)
        ax.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-6, 1e6), ylabel="energy in (α/r)·B·A")
        ax.set_xlabel("noise std on each entry of the factors")
        log_axis(ax.xaxis, (0.001, 0.01, 0.1, 1))
        log_axis(ax.yaxis, (1e-6, 1e-3, 1, 1e3, 1e6))
        ax.set_yticklabels(["10⁻⁶", "0.001", "1", "1,000", "10⁶"])
        ax.set_title("Noise on the factors, seen in the product", y=1, pad=22)
        _key(ax, [term for term, value in zip(WORDS, one, strict=True) if value > 0], cross)
        right.barh(range(3), shares, color=list(COLOURS.values()), height=0.62)
        for i, share in enumerate(shares):
            words = f"{share:.0%}" + (", since B = 0" if i == 1 and size_B == 0 else "")
            right.text(share + 0.02, i, words, fontsize=10, va="center", weight="bold")
        right.set(xlim=(0, 1.18), ylim=(2.6, -0.6), xlabel="share of the energy")
        right.set_xticks((0, 0.5, 1))
        right.set_yticks(range(3), list(WORDS.values()))
        right.set_title(f"At std {std:.3g}", y=1, pad=22)
    text = (
        f"Noise of std {std:.3g}, rank {rank}, {width} × {width} layer, α = {alpha:g}: the product moves by "
        f"{here.total**0.5:.3g} (root mean square norm). Noise × noise carries {shares[2]:.0%} of the energy and takes "
        f"over at std {cross:.3g}."
    )
    return figure, text


def _key(ax: Any, terms: list[str], cross: float) -> None:
    """Which curve is which, above the axes, and where they cross."""
    words = [f"{'– –' if term == 'noise_A' else '—'} {WORDS[term]}" for term in terms]
    colours, place = [*(COLOURS[term] for term in terms), INK], 0.0
    for text, colour in zip([*words, f"★ crossover at std {cross:.3g}"], colours, strict=True):
        ax.text(place, 1.04, text, transform=ax.transAxes, fontsize=8.5, color=colour, weight="bold")
        place += 0.07 + 0.0163 * len(text)


def energy_check(
    draws: Any, B: Float[np.ndarray, "d_out r"], A: Float[np.ndarray, "r d_in"], scaling: float = 1.0
) -> tuple[Picture, Any]:
    """Measured energies of the three terms over the closed form, with the closed form's 95 % band of a mean.

    Args: draws: as `experiments.noise_draws` gives them for these factors.
    Returns: the figure; and a table std, term, measured, expected, half, inside (half: of the band).
    """
    rows = []
    for (std, term), part in draws.groupby(["std", "term"], sort=False):
        place = list(WORDS).index(str(term))
        expected = theory.noise_terms(B, A, std, std, scaling)[place]
        half = HALF * theory.noise_spread(B, A, std, std, scaling)[place] / len(part) ** 0.5
        rows.append((std, term, float(part["value"].mean()), expected, half))
    table = _judged(rows, ["std", "term"])
    with paper():
        figure, left, right = _pair()
        for i, (term, part) in enumerate(table.groupby("term", sort=False)):
            colour = COLOURS[str(term)]
            left.plot(part["std"], part["expected"], color=colour)
            left.plot(part["std"], part["measured"], "o", color=colour, mec=CARD, ms=6)
            left.text(part["std"].iloc[-1] * 1.12, part["expected"].iloc[-1], WORDS[str(term)], color=colour,
                      fontsize=9, va="center", weight="bold")  # fmt: skip
            _ratios(right, part["std"] * 1.07 ** (i - 1), part, colour)
        for ax in (left, right):
            ax.set_xscale("log")
            ax.set_xlabel("noise std on each entry of the factors")
            log_axis(ax.xaxis, (0.01, 0.03, 0.1, 0.3))
        left.set_xlim(None, table["std"].max() * 3.4)
        left.set_yscale("log")
        left.set_ylabel("energy (squared Frobenius norm)")
        _finish(figure, left, right, table, int(draws["seed"].nunique()))
    return figure, table


def share_check(draws: Any) -> tuple[Picture, Any]:
    """Noise times noise over linear noise at the start of training, measured and 3 std² d_in; where it passes 1.

    Args: draws: as `experiments.start_draws` gives them, one rank.
    Returns: the figure; and a table d_in, std, measured, expected, half, inside.
    """
    rows = []
    for (d_in, std), part in draws.groupby(["d_in", "std"]):
        wide = part.pivot(index="seed", columns="term", values="value")
        linear, quadratic, expected = wide["noise_B"], wide["noise_BA"], theory.quadratic_share(std, int(d_in))
        # The ratio of two means: its spread is that of the residuals about the line through the origin.
        low, high = tidy.band((quadratic - expected * linear) / linear.mean())
        rows.append((d_in, std, float(quadratic.mean() / linear.mean()), expected, (high - low) / 2))
    table = _judged(rows, ["d_in", "std"])
    with paper():
        figure, left, right = _pair()
        for i, (colour, (d_in, part)) in enumerate(zip(HUES, table.groupby("d_in"), strict=False)):
            star = theory.crossover(int(d_in))
            left.plot(part["std"], part["expected"], color=colour)
            left.plot(part["std"], part["measured"], "o", color=colour, mec=CARD, ms=6)
            left.plot([star], [1], marker="*", color=colour, ms=15, mec=CARD, zorder=5)
            left.text(part["std"].iloc[-1] * 1.15, part["expected"].iloc[-1], f"d_in = {d_in:,}", color=colour,
                      fontsize=9, va="center", weight="bold")  # fmt: skip
            _ratios(right, part["std"] * 1.12 ** (i - 1), part, colour)
        left.axhline(1, color=INK, lw=1)
        left.text(0.98, 0.03, "★ crossover 1/√(3 d_in)", transform=left.transAxes, fontsize=9, ha="right", color=SOFT)
        for ax in (left, right):
            ax.set_xscale("log")
            ax.set_xlabel("noise std on each entry of the factors")
            log_axis(ax.xaxis, (0.003, 0.01, 0.03, 0.1, 0.3))
        left.set_xlim(None, table["std"].max() * 3.6)
        left.set_yscale("log")
        left.set_ylabel("noise × noise / linear noise")
        _finish(figure, left, right, table, int(draws["seed"].nunique()))
    return figure, table


def rank_check(draws: Any, alpha: float = 8.0) -> tuple[Picture, Any]:
    """Norm of the linear noise at the start over the rank, with scaling α/r and α/√r, measured and closed form.

    Args: draws: as `experiments.start_draws` gives them, one d_in and one std, start "kaiming", d_out = 64.
    Returns: the figure; and a table rank, measured, expected, half, inside of the energies before scaling.
    """
    rows, linear = [], draws[draws["term"] == "noise_B"]
    std = float(linear["std"].iloc[0])
    for rank, part in linear.groupby("rank"):
        low, high = tidy.band(part["value"])
        expected = theory.linear_noise_norm(int(rank), float(rank), std, 64, "kaiming") ** 2
        rows.append((rank, float(part["value"].mean()), expected, (high - low) / 2))
    table = _judged(rows, ["rank"])
    with paper():
        figure, left, right = _pair()
        for colour, words, power in ((HUES[0], "scaling α/r", 1.0), (HUES[1], "scaling α/√r", 0.5)):
            factor = alpha / table["rank"] ** power
            left.plot(table["rank"], factor * table["expected"] ** 0.5, color=colour)
            left.plot(table["rank"], factor * table["measured"] ** 0.5, "o", color=colour, mec=CARD, ms=6)
            end = float((factor * table["expected"] ** 0.5).iloc[-1])
            left.text(table["rank"].iloc[-1] * 1.12, end, words, color=colour, fontsize=9, va="center", weight="bold")
        _ratios(right, table["rank"], table, INK)
        for ax in (left, right):
            ax.set_xscale("log")
            ax.set_xlabel("rank r")
            log_axis(ax.xaxis, (1, 2, 4, 8, 16, 32))
        left.set(
            xlim=(None, table["rank"].max() * 3.4), ylim=(0, None), ylabel="norm of the linear noise in the product"
        )
        _finish(figure, left, right, table, int(draws["seed"].nunique()))
    return figure, table


def run_check(frame: Any, expected: "dict[str, float]") -> tuple[Picture, Any]:
    """Noise energies of each layer that real runs measured in their first round, over one closed form for all layers.

    Args: frame: tidy, several seeds. expected: measure -> closed form, such as {"noise_B": ..., "noise_BA": ...}.
    Returns: the figure; and a table term, layer, measured, expected, half, inside.
    """
    first, rows = frame[frame["round"] == 1], []
    for term, value in expected.items():
        for layer, part in tidy.rows(first, term, layers=True).groupby("layer", sort=False):
            low, high = tidy.band(part["value"])
            rows.append((term, layer, float(part["value"].mean()), value, (high - low) / 2))
    table = _judged(rows, ["term", "layer"])
    layers = list(dict.fromkeys(table["layer"]))
    with paper():
        figure, left, right = _pair(0.13)
        for i, (term, part) in enumerate(table.groupby("term", sort=False)):
            colour = COLOURS[str(term)]
            places = np.arange(len(layers)) + 0.2 * (i - 0.5)
            left.plot(part["measured"], places, "o", color=colour, mec=CARD, ms=6)
            left.axvline(expected[str(term)], color=colour)
            words = left.text(expected[str(term)], -0.75, WORDS[str(term)], color=colour, fontsize=9, ha="center")
            words.set(weight="bold", bbox={"fc": CARD, "ec": "none", "pad": 1.5})
            right.hlines(places, 1 - part["half"] / part["expected"], 1 + part["half"] / part["expected"], color=colour,
                         alpha=0.3, lw=6)  # fmt: skip
            right.plot(part["measured"] / part["expected"], places, "o", color=colour, mec=CARD, ms=5.5)
        for ax in (left, right):
            ax.set_ylim(len(layers) - 0.5, -1.1)
            ax.set_yticks(range(len(layers)), layers if ax is left else [])
        left.set_xscale("log")
        left.set_xlim(0.6 * min(expected.values()), 3 * max(expected.values()))
        left.set_xlabel("energy in the first round (squared Frobenius norm)")
        right.axvline(1, color=INK, lw=1)
        _finish(figure, left, right, table, int(frame["seed"].nunique()))
        right.set_xlabel("measured / closed form")
        right.set_ylabel("")
    return figure, table


def _judged(rows: list, keys: list[str]) -> Any:
    table = pd.DataFrame(rows, columns=[*keys, "measured", "expected", "half"])
    return table.assign(inside=(table["measured"] - table["expected"]).abs() <= table["half"])


def _pair(left: float = 0.065) -> tuple[Picture, Any, Any]:
    figure = picture(10.2, 3.9)
    return figure, figure.add_axes((left, 0.17, 0.515 - left, 0.73)), figure.add_axes((0.6, 0.17, 0.385, 0.73))


def _ratios(ax: Any, x: Any, part: Any, colour: str) -> None:
    """Measured over expected, each dot with its band around 1."""
    ax.vlines(
        x, 1 - part["half"] / part["expected"], 1 + part["half"] / part["expected"], color=colour, alpha=0.3, lw=6
    )
    ax.plot(x, part["measured"] / part["expected"], "o", color=colour, mec=CARD, ms=5.5)


def _finish(figure: Picture, left: Any, right: Any, table: Any, seeds: int) -> None:
    if not right.get_yticklabels() or right.get_ylim()[0] < right.get_ylim()[1]:
        right.axhline(1, color=INK, lw=1)
        right.set_ylabel("measured / closed form")
    left.set_title("Lines: closed form. Dots: measured")
    right.set_title(f"{table['inside'].mean():.0%} of {len(table)} dots inside their 95 % band")
    footer(figure, f"each dot: mean over {seeds} seeds; bar: 95 % of such means lie here if the closed form is right")
