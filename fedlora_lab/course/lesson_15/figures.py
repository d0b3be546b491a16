"""What notebook 15 measures: how far one example reaches, calls without a seed, all verdicts."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fedlora_lab import review as reviewing
from fedlora_lab._utils.rounding import round_up
from fedlora_lab.plots import style

if TYPE_CHECKING:
    from fedlora_lab.review import Review

CHANGES = ("left out", "twice", "a million times")
EXHIBITS = {
    2: (
        "Clipping the mean gradient of a batch",
        "Microbatches are clipped",
        "A sum added to itself",
        "A bias measured by the wrong norm",
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
    "frozen": "Does what is claimed frozen stay where it is?",
    "accounting": "Which ε do all steps spend?",
}
"""Check -> what it asks, in the words of the notebook."""


def exhibits(section: int) -> "dict[str, reviewing.mistakes.Mistake]":
    """Collects the mistakes that a section of the notebook shows, by name and in its order.

    Args: section: 2, where one example moves too much, or 4, before and after.
    """
    return {name: reviewing.mistakes.MISTAKES[name] for name in EXHIBITS[section]}


def sensitivity_by_change(
    step: Callable[[list, int], Mapping[str, Any]], batch: Sequence[Any], unit: float
) -> dict[str, float]:
    """Measures how far one example moves a step at most, by its change (see `CHANGES`).

    Args:
        step: (examples, seed) -> name -> array; batch: pairs (x, y) of an array and a class.
        unit: the distance that counts as 1: the clip norm over the denominator.

    Guarantees: notebook 15 finds 1 for a sum of clipped gradients, 2 for one added twice.
    """

    def released(examples: Sequence[Any]) -> np.ndarray:
        # One seed for all calls: the noise cancels in a difference.
        outputs = step(list(examples), 0)
        return np.concatenate([np.ravel(np.asarray(x, float)) for x in outputs.values()])

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
    """Computes one example's gradient in the small model of `fl.review.mistakes`.

    Args: x, y: features (8,) and class; what is not finite counts as zero.
    Returns: weight (8, 4) and bias (4,).
    """
    grads = reviewing.mistakes.example_gradients([(x, y)])
    weight, bias = (np.nan_to_num(grads[name][0]) for name in ("weight", "bias"))
    return {"weight": weight.T, "bias": bias}


def verdict_table(reviews: "Mapping[str, Review]") -> pd.DataFrame:
    """Tabulates the verdict of each check on each mistake: 1 broken or not as claimed, 0 sound, NaN
    cannot tell.

    Args: reviews: mistake -> its review. Checks that find none of them are left out.
    """
    numbers = {"broken": 1.0, "not as claimed": 1.0, "sound": 0.0}
    rows = {
        name: {one.check: numbers.get(one.verdict, math.nan) for one in review.findings}
        for name, review in reviews.items()
    }
    table = pd.DataFrame(rows).T
    return table.loc[:, (table == 1).any()]


@style.paper()
def verdict_map(reviews: "Mapping[str, Review]", title: str) -> style.Picture:
    """Draws which check finds which mistake, each row under the first check that finds it.

    Args: reviews: mistake -> its review; title: the finding.
    """
    found = verdict_table(reviews)
    counts = (found == 1).sum()
    # The checks that find most stand left, so that the squares go down in stairs.
    found = found[counts.sort_values(ascending=False, kind="stable").index]
    first = (found == 1).to_numpy().argmax(axis=1)
    found = found.iloc[np.argsort(first, kind="stable")]
    figure, (ax,) = style.subplots(9.6, 1.9 + 0.25 * len(found))
    for value, look in ((0.0, (".", style.GREY, 4)), (1.0, ("s", style.WRONG, 9))):
        marker, colour, size = look
        rows, columns = np.nonzero(found.to_numpy() == value)
        ax.plot(columns, rows, marker, color=colour, ms=size, mew=0)
    ax.set_yticks(range(len(found)), list(found.index), color=style.INK)
    names = [f"{check} ({count})" for check, count in (found == 1).sum().items()]
    ax.set_xticks(range(len(names)), names, rotation=35, ha="left", color=style.INK)
    ax.xaxis.tick_top()
    ax.invert_yaxis()
    style.headline(figure, title)
    style.footer(figure, "red: found; grey: looked at and not found; empty: cannot tell")
    return figure
