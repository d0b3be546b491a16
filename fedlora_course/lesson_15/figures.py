"""Notebook 15: sentences in place of a table of the reader's own, and looks at private rows."""

import warnings
from collections.abc import Mapping

import datasets
import numpy as np
import pandas as pd
import transformers
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from fedlora_lab.plots import intervals, style
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


def quiet() -> None:
    """Turns off progress bars and what Transformers says while it loads and saves."""
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)


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


def rows_count(ends: Mapping[str, float], untrained: float) -> Figure:
    """Draws where runs end that differ in their rows, over the accuracy before training.

    Args: ends: words -> accuracy on the public sentences; untrained: before training.
    """
    figure = intervals(
        with_sampling_error(pd.DataFrame({"rows": [*ends], "accuracy": [*ends.values()]})),
        by="rows",
        reference=untrained,
        title="At the same ε = 1, 800 rows a site teach far more than 25",
        xlabel="accuracy (dotted: before training)",
    )
    style.footer(figure, "mark: one run, bar: 95 % interval for the sampling of the test sentences")
    return figure


def with_sampling_error(ends: pd.DataFrame) -> pd.DataFrame:
    """Adds mean, low and high: an accuracy on the public sentences and its 95 % interval.

    Args: ends: with a column accuracy.
    """
    shares = ends["accuracy"]
    half = 1.96 * np.sqrt(shares * (1 - shares) / TEST)
    return ends.assign(mean=shares, low=shares - half, high=shares + half)
