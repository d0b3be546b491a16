"""What notebook 16 measures: how far one example reaches, calls without a seed, all verdicts."""

import textwrap
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

CHANGES = ("left out", "twice", "a million times")
EXHIBITS = {
    2: (
        "Clipping the mean gradient of a batch",
        "Microbatches are clipped",
        "A sum added to itself",
    ),
    4: (
        "A sum added to itself",
        "A divisor that counts the data",
        "One key for all tensors",
        "Noise on a copy",
        "Only what was chosen is noised",
    ),
}
"""Section of the notebook -> the mistakes that it shows."""
QUESTIONS = {
    "sensitivity": "How far does one example move what leaves?",
    "noise size": "How large is the noise, over what is claimed?",
    "noise and data": "Is it equally large whatever the data are?",
    "noise independence": "Is it new for every number and every call?",
    "noise law": "Is it Gaussian?",
    "un-noised output": "Does anything leave without noise?",
    "post-processing": "Is it left as it is afterwards?",
    "sampling": "Are batches drawn as the accountant assumes?",
    "empty batch": "Is a batch without examples released alike?",
    "non-finite": "What does an example with NaN do?",
    "failure": "Does the step go through on every batch?",
    "signal": "Does any example move what leaves?",
    "accounting": "Which ε do all steps spend?",
}
"""Check -> what it asks, in the words of the notebook; *frozen* needs a claim."""


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
        twice = released([*batch, (x, y)])
        moves = complete - without, twice - complete, loud - without
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
    axes[0].set_ylabel("what leaves, in C / b")
    style.headline(figure, "With one seed the noise cancels, and one clipped gradient is left")
    style.footer(figure, "a bar for each number that leaves")
    return figure


def first_table(review: "Review") -> pd.DataFrame:
    """Tabulates a review as questions and answers, in digits that no processor changes.

    Args: review: of a step, with each check of `QUESTIONS`.
    """
    measured = {name: f"{review[name].number:.2f}" for name in ("sensitivity", "noise size")}
    measured["accounting"] = f"ε = {round_up(review['accounting'].number, '.2f')}"
    rows = [
        (question, review[name].verdict, measured.get(name, ""))
        for name, question in QUESTIONS.items()
    ]
    return pd.DataFrame(rows, columns=["question", "verdict", "measured"], index=[*QUESTIONS])


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
    """Draws which check finds which mistake: red squares in stairs.

    Found is what a check calls broken, and what it calls not as claimed.

    Args: reviews: mistake -> its review; title: the finding.
    """
    verdicts = pd.DataFrame(
        {
            name: {one.check: one.verdict for one in review.findings}
            for name, review in reviews.items()
        }
    ).T
    found = verdicts.isin(["broken", "not as claimed"])
    counts = found.sum().sort_values(ascending=False, kind="stable")
    counts = counts[counts > 0]
    # Each row stands under the first check that finds it, of those that find most.
    order = np.argsort(found[counts.index].to_numpy().argmax(axis=1), kind="stable")
    shown = verdicts.iloc[order][counts.index]
    figure, (ax,) = style.subplots(9.6, 1.9 + 0.25 * len(shown))
    rows, columns = np.nonzero(shown == "sound")
    ax.plot(columns, rows, ".", color=style.GREY, ms=4)
    rows, columns = np.nonzero(found.loc[shown.index, counts.index])
    ax.plot(columns, rows, "s", color=style.WRONG, ms=9)
    # Our copy of the shuffled batches does not skip empty ones, as the reported code did.
    rows = [name.partition(";")[0] for name in shown.index]
    ax.set_yticks(range(len(shown)), rows, color=style.INK)
    names = [f"{check} ({count})" for check, count in counts.items()]
    ax.set_xticks(range(len(names)), names, rotation=35, ha="left", color=style.INK)
    ax.xaxis.tick_top()
    ax.invert_yaxis()
    style.headline(figure, title)
    words = "red: found; grey: looked at and not found; empty: cannot tell"
    style.footer(figure, words)
    return figure


@style.paper()
def reach_map(table: pd.DataFrame, title: str) -> style.Picture:
    """Draws how far one example moves a release: a row a step, a column a change to the example.

    Args: table: moves, in units of what is claimed; those of 2 and more look alike.
    """
    import seaborn as sns  # slow to import

    figure, (ax,) = style.subplots(4.2 + 0.9 * len(table.columns), 1.7 + 0.42 * len(table))
    sns.heatmap(
        table.rename(columns=lambda name: textwrap.fill(name, 12)),
        vmin=0.0,
        vmax=2.0,
        cmap="cividis",
        annot=True,
        fmt=".2f",
        annot_kws={"fontsize": 8},
        linewidths=0.6,
        linecolor=style.CARD,
        cbar_kws={"label": "move, in C / b (grey: 1; 2 and more alike)"},
        ax=ax,
    )
    ax.grid(visible=False)
    ax.tick_params(axis="both", rotation=0)
    ax.set(xlabel="what is done to the example", ylabel="")
    style.headline(figure, title)
    return figure
