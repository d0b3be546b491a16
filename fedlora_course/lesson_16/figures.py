"""What notebook 16 measures: how far one example reaches, calls without a seed, all verdicts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import dp_review
from fedlora_lab._utils.rounding import round_up
from fedlora_lab.plots import style

if TYPE_CHECKING:
    from dp_review import Review

CHANGES = ("left out", "a million times")
EXHIBITS = {
    2: (
        "Clipping the mean gradient of a batch",
        "Microbatches are clipped",
        "A sum added to itself",
    ),
    4: (
        "A divisor that counts the data",
        "One key for all tensors",
        "Noise on a copy",
        "Only what was chosen is noised",
    ),
}
"""Section of the notebook -> the mistakes that it shows."""
QUESTIONS = {
    "sensitivity": "How far does one example move the release?",
    "noise size": "How large is the noise, over what is claimed?",
    "noise and data": "Is the noise equally large whatever the data are?",
    "noise independence": "Is the noise new for every number and every call?",
    "noise law": "Is the noise Gaussian?",
    "un-noised output": "Does anything leave without noise?",
    "post-processing": "Is what was noised left as it is afterwards?",
    "sampling": "Are batches drawn as the accountant assumes?",
    "empty batch": "Does a batch without examples get noise, too?",
    "non-finite": "What does an example with NaN do?",
    "failure": "Does the step run without an error on every batch?",
    "signal": "Does any example move the release at all?",
    "accounting": "Which ε do all steps spend?",
}
"""Check -> what it asks, in the words of the notebook; *frozen* needs a claim."""
FIRST = (
    "sensitivity",
    "noise size",
    "noise independence",
    "noise law",
    "non-finite",
    "accounting",
)
"""The checks of the notebook's first table."""


def exhibits(section: int) -> "dict[str, dp_review.mistakes.Mistake]":
    """Collects the mistakes that a section of the notebook shows, by name and in its order.

    Args: section: 2, where one example moves too much, or 4, before and after.
    """
    return {name: dp_review.mistakes.MISTAKES[name] for name in EXHIBITS[section]}


def _released(step: Callable[[list, int], Any], examples: Sequence[Any], seed: int = 0) -> Any:
    """Returns all numbers that a step releases, in a row."""
    outputs = step(list(examples), seed)
    return np.concatenate([np.ravel(np.asarray(x, float)) for x in outputs.values()])


def sensitivity_by_change(
    step: Callable[[list, int], Mapping[str, Any]], batch: Sequence[Any], unit: float
) -> dict[str, float]:
    """Measures how far one example moves a step at most, by its change (see `CHANGES`).

    Args:
        step: (examples, seed) -> name -> array; batch: pairs (x, y) of an array and a class.
        unit: the distance that counts as 1: the clip norm over the denominator.

    Guarantees: notebook 16 finds 1 for a sum of clipped gradients, 2 for one added twice.
    """
    # One seed for all calls: the noise cancels in a difference.
    released = partial(_released, step)
    complete = released(batch)
    moved = dict.fromkeys(CHANGES, 0.0)
    for i, (x, y) in enumerate(batch):
        without = released([*batch[:i], *batch[i + 1 :]])
        loud = released([*batch[:i], (1e6 * np.asarray(x), y), *batch[i + 1 :]])
        moves = complete - without, loud - without
        for name, move in zip(CHANGES, moves, strict=True):
            moved[name] = max(moved[name], float(np.linalg.norm(move)) / unit)
    return moved


@style.paper()
def cancels(step: Callable[[list, int], Any], batch: Sequence[Any], unit: float) -> style.Picture:
    """Draws a release with an example and without it, and their difference at one seed and at two.

    Args: step, batch, unit: as of `sensitivity_by_change`; the first example is left out.
    """
    complete, without = (_released(step, some, 7) / unit for some in (batch, batch[1:]))
    panels = {
        "with all examples": (complete, style.WITH),
        "without one of them": (without, style.WITHOUT),
        "difference: same seed": (complete - without, style.RIGHT),
        "difference: another seed": (complete - _released(step, batch[1:], 8) / unit, style.WRONG),
    }
    figure, axes = style.subplots(10.4, 3.0, columns=4, sharey=True)
    for ax, (words, (numbers, colour)) in zip(axes, panels.items(), strict=True):
        ax.bar(np.arange(len(numbers)), numbers, color=colour, width=0.9)
        ax.set_title(words, fontsize=9.5)
        ax.set_xlabel(f"length {np.linalg.norm(numbers):.2f}")
        ax.set_xticks([])
    axes[0].set_ylabel("release, in C / b")
    style.headline(figure, "With one seed the noise cancels, and one clipped gradient is left")
    style.footer(figure, "a bar for each number of the release")
    return figure


def first_table(review: "Review") -> pd.DataFrame:
    """Tabulates a review as questions and answers, in digits that no processor changes.

    Args: review: of a step, with each check of `FIRST`.
    """
    measured = {name: f"{review[name].number:.2f}" for name in ("sensitivity", "noise size")}
    measured["accounting"] = f"ε = {round_up(review['accounting'].number, '.2f')}"
    rows = [(QUESTIONS[name], review[name].verdict, measured.get(name, "")) for name in FIRST]
    return pd.DataFrame(rows, columns=["question", "verdict", "measured"], index=[*FIRST])


def found_by(reviews: "Mapping[str, Review]") -> pd.DataFrame:
    """Tabulates the check that had to find each mistake, what it asks, and its verdict.

    Args: reviews: mistake -> its review.
    """
    rows = []
    for name, review in reviews.items():
        check = dp_review.mistakes.MISTAKES[name].checks[0]
        rows.append((check, QUESTIONS[check], review[check].verdict))
    return pd.DataFrame(rows, columns=["check", "its question", "verdict"], index=[*reviews])


def gradient(x: np.ndarray, y: int) -> dict[str, np.ndarray]:
    """Computes one example's gradient in the small model of `dp_review.mistakes`.

    Args: x, y: features (8,) and class; what is not finite counts as zero.
    Returns: weight (8, 4) and bias (4,).
    """
    grads = dp_review.mistakes.example_gradients([(x, y)])
    weight, bias = (np.nan_to_num(grads[name][0]) for name in ("weight", "bias"))
    return {"weight": weight.T, "bias": bias}


@style.paper()
def verdict_map(reviews: "Mapping[str, Review]", title: str) -> style.Picture:
    """Draws which check finds which mistake: a row a check, a column a mistake, squares in stairs.

    Found is what a check calls broken, and what it calls not as claimed. Named are the mistakes of
    `EXHIBITS`.

    Args: reviews: mistake -> its review; title: the finding.
    """
    found = pd.DataFrame(
        {
            name: {
                one.check: one.verdict in ("broken", "not as claimed") for one in review.findings
            }
            for name, review in reviews.items()
        }
    ).T
    counts = found.sum().sort_values(ascending=False, kind="stable")
    counts = counts[counts > 0]
    # Each mistake stands under the first check that finds it, of those that find most.
    order = np.argsort(found[counts.index].to_numpy().argmax(axis=1), kind="stable")
    shown = found.iloc[order][counts.index]
    figure, (ax,) = style.subplots(10.4, 2.6 + 0.28 * len(counts))
    columns, rows = np.nonzero(shown)
    ax.plot(columns, rows, "s", color=style.WRONG, ms=10)
    questions = [f"{QUESTIONS[str(check)]} ({count})" for check, count in counts.items()]
    ax.set_yticks(range(len(counts)), questions, color=style.INK)
    met = {*EXHIBITS[2], *EXHIBITS[4]}
    places = [place for place, name in enumerate(shown.index) if name in met]
    names = [shown.index[place] for place in places]
    ax.set_xticks(places, names, rotation=38, ha="left", color=style.INK, fontsize=8.5)
    ax.xaxis.tick_top()
    ax.set(xlim=(-0.7, len(shown) + 1.5))
    ax.invert_yaxis()
    style.headline(figure, title)
    style.footer(figure, "in brackets: how many of the mistakes a check finds")
    return figure


@style.paper()
def reaches(table: pd.DataFrame, title: str) -> style.Picture:
    """Draws how far one example moves each step's release, left out or with huge features.

    Args: table: moves, in units of what is promised: a row a step, a column of `CHANGES` each.
    """
    figure, (ax,) = style.subplots(8.6, 1.6 + 0.45 * len(table))
    ax.axvline(1, color=style.INK, lw=1.4)
    looks = {"left out": (-0.13, style.WITHOUT), "a million times": (0.13, style.WRONG)}
    for change, (aside, colour) in looks.items():
        rows = np.arange(len(table)) + aside
        ax.plot(table[change], rows, "o", color=colour, ms=8)
        for row, move in zip(rows, table[change], strict=True):
            ax.text(1.12 * move, row, f"{move:.2f}", color=colour, va="center", size=9)
    style.note(
        ax, 0.98, 0.97, "left out", colour=style.WITHOUT, ha="right", va="top", weight="bold"
    )
    words = "features × a million"
    style.note(ax, 0.98, 0.85, words, colour=style.WRONG, ha="right", va="top", weight="bold")
    ax.set_yticks(range(len(table)), list(table.index), color=style.INK)
    ax.set(xscale="log", xlim=(0.5, 60), ylim=(len(table) - 0.5, -0.5))
    ax.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1\npromised", "2", "5", "10", "20", "50"])
    ax.minorticks_off()
    ax.set_xlabel("how far one example moves the release, in C / b")
    style.headline(figure, title)
    return figure
