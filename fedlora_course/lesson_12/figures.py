"""What notebook 12 measures and draws: ε as proved, provable and stated; the power of audits."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import binom, binomtest, norm

from fedlora_course import drawing
from fedlora_course.lesson_12.bounds import DELTA, gaussian_one_run_lower_bound
from fedlora_lab._utils.rounding import round_down, round_up
from fedlora_lab.audit.bounds import default_guesses, one_run_p_value
from fedlora_lab.plots import style
from fedlora_lab.privacy.accounting import noise_multiplier

if TYPE_CHECKING:
    from fedlora_lab.audit.canary_audit import Audit

LEAKS = (1.5, 2.0, 3.0, 4.0)
"""How much louder than the noise was made for each bug makes a canary."""
CANARIES = (50, 100, 200, 500, 1000, 2000, 5000)
REPEATS = 200
"""Simulated audits of each number of canaries."""


@style.paper()
def audit_bounds(audits: Mapping[str, "Audit"], title: str) -> style.Picture:
    """Draws each audit as a bar up to its lower bound, beside what is stated.

    Args: audits: words -> audit, valid ones at one δ; title: the finding.
    """
    figure, (ax,) = style.subplots(8.2, 1.6 + 0.42 * len(audits))
    for y, audit in enumerate(audits.values()):
        colour = style.look(audit.method).colour if audit.holds else style.WRONG
        ax.barh(y, audit.epsilon_lower, height=0.4, color=colour)
        ax.plot([audit.claimed], [y], "D", color=style.INK, ms=6, mec=style.CARD)
        proved = round_down(audit.epsilon_lower, ".2f")
        stated = round_up(audit.claimed, ".3g")
        text = f"{proved} {'≤' if audit.holds else '>'} {stated}"
        style.note(ax, 1.02, y, text, transform=ax.get_yaxis_transform(), va="center", size=9)
    ax.set_yticks(range(len(audits)), list(audits), color=style.INK)
    ax.grid(visible=False, axis="y")
    ax.invert_yaxis()
    ax.set_xlabel("ε (bar: proved; diamond: stated)")
    style.headline(figure, title)
    return figure


def rates_and_bound(threshold: float, mu: float) -> tuple[float, float, float]:
    """Computes the true FPR and FNR of a threshold, and the bound on ε that they give.

    Args: threshold: in noise deviations; mu: how many of them the two means are apart.
    """
    fpr, fnr = float(norm.sf(threshold)), float(norm.cdf(threshold - mu))
    return fpr, fnr, float(np.log((1 - DELTA - fnr) / fpr))


@style.paper()
def two_bells(mu: float, thresholds: Sequence[float]) -> style.Picture:
    """Draws the scores of runs with and without a canary, and the two error rates of a threshold.

    Args: mu: how many standard deviations the two means are apart; thresholds: one a panel.
    """
    figure, axes = style.subplots(10.2, 3.5, columns=len(thresholds), sharey=True)
    x = np.linspace(-4, 4 + mu, 601)
    without, with_it = norm.pdf(x), norm.pdf(x, mu)
    for ax, threshold in zip(axes, thresholds, strict=True):
        above = x >= threshold
        ax.fill_between(x, with_it, where=~above, color=style.WITH, alpha=0.25, lw=0)
        ax.fill_between(x, without, where=above, color=style.WITHOUT, alpha=0.7, lw=0)
        drawing.two_worlds(ax, x, mu, you="")
        ax.axvline(threshold, color=style.INK, lw=1.4)
        fpr, fnr, proved = rates_and_bound(threshold, mu)
        words = f"blue area: FPR {100 * fpr:.1f} %\npink area: FNR {100 * fnr:.1f} %"
        style.note(ax, 0.02, 0.97, words, size=9, va="top")
        ax.set_title(f"Threshold at {threshold:g}: ε ≥ {round_down(proved, '.2f')}")
        ax.set(xlim=(x[0], x[-1]), ylim=(0, 0.55), xlabel="score, in noise deviations")
    axes[0].set_ylabel("probability density")
    return figure


@style.paper()
def right_guesses(
    guesses: int, epsilon: float, right: Mapping[str, int], title: str
) -> style.Picture:
    """Draws how many right guesses ε allows at most (δ = 0), and how many some audits have.

    Args: guesses: of each audit; epsilon: stated; right: words -> how many were right; title: the
        finding.
    """
    figure, (ax,) = style.subplots(8.4, 3.7)
    count = np.arange(min(right.values()) - 5, guesses + 1)
    allowed = binom.pmf(count, guesses, expit(epsilon))
    ax.bar(count, allowed, width=0.85, color=style.GREY)
    middle = guesses * expit(epsilon)
    words = f"the best guesser\nunder ε = {epsilon:g}"
    ax.text(middle - 6, 0.75 * allowed.max(), words, color=style.GREY, ha="right", weight="bold")
    for words, number in right.items():
        beyond = binom.sf(number - 1, guesses, expit(epsilon)) < 0.05
        colour = style.WRONG if beyond else style.INK
        ax.axvline(number, color=colour, lw=1.8)
        place = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        ax.text(number, 1.01, f"{words}:\n{number}", color=colour, weight="bold", **place)
    ax.set(xlim=(count[0] - 5, guesses + 5), ylim=(0, None))
    ax.set_xlabel(f"right guesses of {guesses}")
    ax.set_ylabel("probability of each number")
    ax.set_title(title, pad=36)
    return figure


def power_table(epsilon: float) -> pd.DataFrame:
    """Measures how often audits find a bug, over the canaries.

    The attacker is the best there is: he reads every canary from a noised number of its own. He
    guesses as many coins as `default_guesses` says; other numbers may find more.

    Args: epsilon: stated; it sets the noise.
    Returns: columns kind (of the bound), canaries, leak, mean (the share of audits that
        find the bug), low, high (95 % Clopper-Pearson).
    """

    def refutes(kind: str, level: float, canaries: int, guesses: int, correct: int) -> bool:
        counts = (canaries, guesses, correct)
        if kind == "Gaussian noise":
            return gaussian_one_run_lower_bound(*counts, DELTA, level) > epsilon
        # One p-value decides, without a search for the bound.
        return one_run_p_value(*counts, epsilon, DELTA) < level

    sigma = noise_multiplier(epsilon, DELTA, sample_rate=1.0, steps=1)
    rows = []
    for m in CANARIES:
        guesses = default_guesses(m)
        # Several numbers of guesses are tried, so each bound has its share of the significance.
        level = 0.05 / len(guesses)
        coins = np.random.default_rng(m).random((REPEATS, m)) < 0.5
        noise = sigma * np.random.default_rng(m + 1).standard_normal((REPEATS, m))
        right = {}
        for leak in LEAKS:
            # Sorted once for all numbers of guesses; see `count_correct`.
            ranked = np.take_along_axis(coins, np.argsort(leak * coins + noise), axis=1)
            right[leak] = np.transpose(
                [ranked[:, m - top :].sum(1) + (~ranked[:, :last]).sum(1) for top, last in guesses]
            )
        for kind in ("any mechanism", "Gaussian noise"):
            # More right guesses prove more: the fewest that refute are found once.
            least = [
                bisect_left(range(sum(g) + 1), True, key=partial(refutes, kind, level, m, sum(g)))
                for g in guesses
            ]
            for leak in LEAKS:
                caught = int((right[leak] >= least).any(1).sum())
                exact = binomtest(caught, REPEATS).proportion_ci()  # Clopper and Pearson's
                rows.append((kind, m, leak, caught / REPEATS, *exact))
    return pd.DataFrame(rows, columns=["kind", "canaries", "leak", "mean", "low", "high"])
