"""Figures of notebook 03: what ε promises, and what a clip costs.

They look at private gradients before the clip: for the laboratory, never for a release.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import norm

from fedlora_course import drawing
from fedlora_course.lesson_03.theory import membership_bound
from fedlora_lab import theory
from fedlora_lab._utils.rounding import round_up
from fedlora_lab.federated.records import Round
from fedlora_lab.lora.source import require_source
from fedlora_lab.measures.gradients import private_gradients
from fedlora_lab.plots import style
from fedlora_lab.privacy.ledger import Ledger

LEAK = style.WRONG
SPARSE = (0, (2, 2))
BOLD: Any = {"weight": "bold"}
TOP: Any = {"va": "top", **BOLD}
CURVES = (style.INK, style.SERIES[0], style.SERIES[1])
BESIDE: Any = {"textcoords": "offset points", **BOLD}


@style.paper()
def odds() -> style.Picture:
    """Draws what an attacker may believe at most after any release, where δ = 0.

    The odds that an example was there grow by a factor of e^ε at most.
    """
    figure, (ax,) = style.subplots(6.4, 3.9, columns=1)
    epsilon = np.linspace(0, 8, 201)
    lines = (0.5, style.INK, (3.6, 0.88)), (0.01, style.SOFT, (5.3, 0.55))
    for before, colour, place in lines:
        ax.plot(epsilon, _believed(before, epsilon), color=colour)
        ax.text(*place, f"before: {100 * before:.0f} %", color=colour, **BOLD)
        at = np.array([1.0, 3.0, 8.0])
        after = _believed(before, at)
        style.draw_dots(ax, at, after, colour, 6)
        for x, y in zip(at, after, strict=True):
            words = f"{100 * y:.2f} %" if y > 0.99 else f"{100 * y:.0f} %"
            below = before < 0.5 and x == 8
            look: Any = {"color": colour, "ha": "right", **BOLD}
            shift = (6, -18) if below else (-4, 7)
            ax.annotate(words, (x, y), xytext=shift, textcoords="offset points", **look)
    ax.set(xlim=(0, 8.3), ylim=(0, 1.12), xlabel="ε (δ = 0)")
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    ax.set_ylabel("believed after, at most")
    ax.set_title("At ε = 1, 50 % becomes at most 73 %; ε = 8 allows near certainty")
    return figure


def _believed(before: float, epsilon: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Bayes' rule: odds of ``before`` times e^ε, as a probability."""
    after = before / (1 - before) * np.exp(epsilon)
    return after / (1 + after)


@style.paper()
def two_normals(
    with_you: Float[np.ndarray, "n 2"], without_you: Float[np.ndarray, "n 2"], sigma: float
) -> style.Picture:
    """Draws outputs with and without one example, along their difference and across it.

    Args: with_you, without_you: each release along the direction of the example's clipped gradient
        and along another, in units of C; sigma: noise multiplier.
    """
    worlds = (without_you, style.WITHOUT), (with_you, style.WITH)
    figure, (ax, right) = style.subplots(10.2, 3.9, columns=2)
    mu = theory.gaussian_mu(sigma)
    span = (-4, mu + 4)
    x = np.linspace(*span, 301)
    edges = np.linspace(*span, 41).tolist()
    peak = float(norm.pdf(0))
    for points, colour in worlds:
        t = points / sigma
        style.draw_dots(ax, t[:600, 0], t[:600, 1], colour, 3.2, alpha=0.5, mew=0)
        right.hist(t[:, 0], edges, density=True, color=colour, alpha=0.25)
    drawing.two_worlds(right, x, mu)
    ax.set(xlim=span, ylim=(-4.5, 4.5), ylabel="along any other direction")
    ax.set_title("One direction tells, 4,095 do not")
    right.set(xlim=span, ylim=(0, 1.3 * peak), ylabel="probability density")
    right.set_title("Along it: two normals, one unit apart")
    for axes in (ax, right):
        axes.set_xlabel("t: along your clipped gradient, in units of σC")
    count = f"{len(with_you):,} releases of each world (left: 600 of them)"
    style.footer(figure, f"{count}, σ = {sigma:g}; lines: theory")
    return figure


@style.paper()
def neighbouring_outputs(
    noise_multiplier: float, epsilon: float, attack: tuple[np.ndarray, np.ndarray]
) -> style.Picture:
    """Draws outputs with and without one example, and what ε leaves to an attacker.

    The shaded area, where one curve exceeds e^ε times the other, is δ.

    Args:
        noise_multiplier, epsilon: σ and ε.
        attack: false and true positive rates that were measured, drawn as dots.

    δ is `theory.gdp_delta`.
    """
    mu = theory.gaussian_mu(noise_multiplier)
    delta = theory.gdp_delta(mu, epsilon)
    x = np.linspace(-4.5, mu + 4.5, 801)  # t, in units of σC
    out, into = (norm.pdf(x, mean) for mean in (0, mu))
    allowed = np.exp(epsilon) * out
    peak = float(out.max())
    figure, (ax, right) = style.subplots(10.2, 3.9, columns=2, width_ratios=[3, 2])
    ax.fill_between(x, allowed, into, where=into > allowed, color=LEAK, alpha=0.3, lw=0)
    drawing.two_worlds(ax, x, mu)
    ax.plot(x, allowed, color=style.WITHOUT, lw=1, ls=SPARSE)
    ax.set(xlim=(x[0], x[-1]), ylim=(0, 1.45 * peak), ylabel="probability density")
    ax.set_xlabel("released number t, in units of σC")
    ax.set_title("δ is what sticks out above e^ε times the other world")
    words = f"red area: δ = {round_up(delta, '.3f')}\nat ε = {epsilon:g}"
    style.note(ax, 0.98, 0.96, words, LEAK, 10, ha="right", **TOP)
    style.note(ax, 0.02, 0.96, "dashed: e^ε × without you", va="top")
    fpr = np.linspace(0, 1, 201)
    pair = membership_bound(fpr, epsilon, delta)
    right.plot(fpr, pair, color=LEAK, ls=style.DASHED)
    right.plot(fpr, norm.cdf(norm.ppf(fpr) + mu), color=style.INK)
    right.plot(fpr, fpr, color=style.GREY, lw=1, ls=SPARSE)
    right.set(xlim=(0, 1), ylim=(0, 1), xlabel="share of the others wrongly accused")
    right.set_ylabel("share of the members found")
    style.note(right, 0.03, 0.97, "dashed: what\n(ε, δ) allows", LEAK, 9, **TOP)
    style.note(right, 0.63, 0.52, "guessing", size=9, va="top")
    style.draw_dots(right, *attack, style.INK, 5)
    right.text(0.36, 0.63, "best\nattack", color=style.INK, fontsize=9, **TOP)
    right.set_title("ε and δ: two lines above the curve")
    return figure


@style.paper()
def best_attacks(ledgers: Mapping[str, Ledger], fpr: float) -> style.Picture:
    """Draws the trade-off curves of ledgers, and what ε and δ of the first alone would allow.

    Args: ledgers: by their names; fpr: the false positive rate at which the curves are read.
    Guarantees: the curves are those of the ledgers, and the dashed line lies above the first
        (test_lesson_03.py::test_the_best_attacks_are_those_of_the_ledgers).
    """
    figure, (ax,) = style.subplots(7.4, 4.4, columns=1)
    at = np.geomspace(1e-3, 1, 121)
    for (name, ledger), colour in zip(ledgers.items(), CURVES, strict=True):
        ax.plot(at, ledger.tradeoff(at), color=colour)
        found = float(ledger.tradeoff(fpr))
        style.draw_dots(ax, fpr, found, colour, 7)
        words = f"{100 * found:.{0 if found > 0.1 else 1}f} %"
        ax.annotate(words, (fpr, found), xytext=(8, -4), va="top", color=colour, **BESIDE)
        start = (at[0], float(ledger.tradeoff(at[0])))
        ax.annotate(name, start, xytext=(4, 20), color=colour, **BESIDE)
    first = next(iter(ledgers.values()))
    epsilon = first.epsilon()
    loose = membership_bound(at, epsilon, first.delta)
    ax.plot(at, loose, color=LEAK, ls=style.DASHED)
    style.note(ax, 0.03, 0.93, f"dashed: what ε = {epsilon:.0f} and δ alone allow", LEAK, 9, **TOP)
    ax.axvline(fpr, color=style.GREY, lw=1, ls=style.DOTTED, zorder=0.9)
    ax.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(2e-3, 1.2))
    ax.set(xlabel="false positive rate of the attack", ylabel="share of the members found, at most")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    top = 100 * float(first.tradeoff(fpr))
    ax.set_title(f"At ε = 8 an attack on this run finds at most {top:.0f} % at an FPR of 1 %")
    return figure


def example_gradients(record: Round) -> Float[np.ndarray, "n p"]:
    """Computes every private example's gradient at a record's global adapter, before any clip.

    Args: record: as `run` yields it.
    Returns: (n, p), clients one after the other; p counts the numbers that a release would carry.
    Guarantees: the mean row is the gradient of the mean loss
        (test_lesson_03.py::test_single_gradients_average_to_that_of_the_mean_loss).
    """
    parts = [
        torch.cat([x.flatten(1) for x in part.values()], 1)
        for part in private_gradients(require_source(record))
    ]
    return torch.cat(parts).numpy()
