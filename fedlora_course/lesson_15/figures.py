"""Notebook 15: sentences in place of a table of the reader's own, and looks at private rows."""

import numpy as np
import pandas as pd
from matplotlib.patches import Circle
from numpy.typing import ArrayLike

from fedlora_lab.plots import style
from fedlora_lab.tasks.sentences import FOLDER, TEST

COIN = "#F2C14E"
STEPS = (
    ("reads the\nlongest text", "∞", False),
    ("takes batch and\nσ from sizes", "", False),
    ("tries five\nrates", "tried", False),
    ("trains\nonce", "trained", True),
    ("plots the\nexact loss", "∞", False),
    ("averages the\nlast adapters", "", False),
    ("scores on\nprivate rows", "∞", False),
    ("scores on\npublic rows", "", False),
)
"""What a project does, the ε that it spends, and whether the ledger of the run counts it."""


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns two tables to start from: those of `fl.tasks.sentences`.

    Returns: the private rows, and 800 public ones, with the columns text, label and site. They are
        dealt from a fixed seed.
    """
    rows = pd.read_csv(FOLDER / "sentences.csv", dtype=str, keep_default_na=False).rename(
        columns={"domain": "site"}
    )
    rows = rows.sample(frac=1, random_state=0).reset_index(drop=True)
    return rows[TEST:], rows[:TEST]


@style.paper()
def project(tried: float, trained: float) -> style.Picture:
    """Draws a project as a line in time, a coin at each step that spends privacy.

    Args: tried: ε of all rates that are tried, together; trained: of the run that is kept.
    """
    spent = {"tried": f"{tried:.1f}", "trained": f"{trained:g}"}
    figure, (ax,) = style.subplots(10.4, 2.9)
    ax.plot([-0.6, len(STEPS) - 0.4], [0, 0], color=style.INK, lw=1.4)
    ax.plot(len(STEPS) - 0.4, 0, ">", color=style.INK, ms=7)
    for x, (words, epsilon, counted) in enumerate(STEPS):
        edge = style.RIGHT if counted else style.WRONG
        ax.plot(x, 0, "o", ms=7, mfc=style.CARD, mec=style.INK)
        ax.text(x, -0.22, words, ha="center", va="top", fontsize=9, linespacing=1.2)
        if not epsilon:
            style.note(ax, x, 0.22, "free", style.SOFT, 9, ha="center", transform=ax.transData)
            continue
        ax.add_patch(Circle((x, 0.62), 0.36, fc=COIN, ec=edge, lw=2.6))
        size = 15 if epsilon == "∞" else 11
        ax.text(x, 0.62, spent.get(epsilon, epsilon), ha="center", va="center", fontsize=size)
        label = "counted" if counted else "not counted"
        ink = {"fontsize": 8.5, "weight": "bold", "color": edge}
        ax.text(x, 1.06, label, ha="center", va="bottom", **ink)
    ax.set(xlim=(-0.7, len(STEPS) - 0.3), ylim=(-0.95, 1.3), aspect="equal")
    ax.axis("off")
    style.headline(figure, "The project spends five coins, and its ledger counts one")
    style.footer(figure, "in a coin: the ε that the step spends on the private rows; ∞: no ε holds")
    return figure


@style.paper()
def plan_ends(ends: pd.DataFrame) -> style.Picture:
    """Draws beside each other what plans promise and where they end.

    Args: ends: columns epsilon, plan, ratio and accuracy on the public sentences.
    """
    figure, (left, right) = style.subplots(9.2, 3.6, columns=2)
    labels: dict[str, list[style.Label]] = {"ratio": [], "accuracy": []}
    for (words, part), colour in zip(ends.groupby("epsilon", sort=False), style.SERIES):
        places = np.arange(len(part))
        for ax, name in ((left, "ratio"), (right, "accuracy")):
            line = style.named_line(ax, places, part[name], str(words), colour, marker="o", ms=5)
            labels[name].append(line)
        error = sampling_error(part["accuracy"])
        right.errorbar(places, part["accuracy"], error, fmt="none", ecolor=colour, lw=1)
    for ax, name in ((left, "ratio"), (right, "accuracy")):
        plans = [plan.replace(" of ", "\nof ") for plan in ends["plan"].unique()]
        ax.set_xticks(range(len(plans)), plans)
        style.label_ends(ax, labels[name])
    left.set(ylim=(0, 0.45), ylabel="noise over the largest signal")
    right.set(ylim=(0.5, 0.8), ylabel="accuracy, with its sampling error")
    style.headline(figure, "The noise against signal falls, and the accuracy does not rise")
    return figure


@style.paper()
def rows_count(ends: dict[str, float], untrained: float) -> style.Picture:
    """Draws where runs end that differ in their rows, over the accuracy before training.

    Args: ends: words -> accuracy on the public sentences; untrained: before training.
    """
    figure, (ax,) = style.subplots(7.6, 2.6)
    values = np.array([*ends.values()])
    places = np.arange(len(ends))
    error = sampling_error(values)
    ax.errorbar(values, places, xerr=error, fmt="o", color=style.SERIES[0], lw=2, ms=6)
    ax.axvline(untrained, color=style.GREY, lw=1, ls=style.DOTTED)
    ax.set_yticks(places, [*ends])
    ax.set(ylim=(len(ends) - 0.5, -0.5), xlim=(0.48, 0.75))
    ax.set_xlabel("accuracy, with its sampling error (dotted: before training)")
    style.headline(figure, "At the same ε = 1, 800 rows a site learn where 25 hardly do")
    return figure


def sampling_error(accuracy: ArrayLike) -> np.ndarray:
    """Half of a 95 % interval of an accuracy on the public sentences."""
    shares = np.asarray(accuracy)
    return 1.96 * np.sqrt(shares * (1 - shares) / TEST)
