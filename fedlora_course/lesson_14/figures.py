"""Notebook 14: the reader's quantiser, what its parties hold, and copies on a parabola."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_course.lesson_11 import figures as lesson_11
from fedlora_lab import methods
from fedlora_lab.federated.records import Round
from fedlora_lab.lora import adapters, per_example
from fedlora_lab.lora.source import require_source
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.quantization import normal_float, normal_levels
from fedlora_lab.plots import style
from fedlora_lab.tasks.task import Task, examples_to_judge

GOALS = [round(0.05 * i, 2) for i in range(1, 20)]
ROUNDS = 1500
LATE = 1000
"""The first of the rounds over which means are taken: the number has found its place."""
STEP = 0.1
"""The share of the way to the best value that a client goes in a round."""
Receive = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""Numbers, levels and the size of a block -> what arrives."""


@dataclass(frozen=True)
class _Received:
    """A broadcast rule from the reader's function of exercise 14.1, in blocks of 64."""

    receive: Receive
    width: int

    def __call__(self, tensor: Tensor) -> Tensor:
        if not tensor.any():  # the exercise knows no block of zeros: B at the start
            return tensor
        levels = np.array(normal_levels(self.width))
        rounded = self.receive(tensor.flatten().double().numpy(), levels, 64)
        return torch.from_numpy(rounded).to(tensor).view_as(tensor)

    def bits(self, numbers: int) -> int:
        return normal_float(self.width, 64).bits(numbers)


def rounded_by(receive: Receive, width: int) -> Method:
    """Makes FedLPP with a quantiser of one's own.

    Args: receive: as in exercise 14.1. width: bits of the code.
    """
    rule = _Received(receive, width)
    return methods.FedLPP.replace(name=f"my FedLPP, {width} bits", broadcast=rule)


def messages() -> Task:
    """Makes lesson 11's task, scored by the share of test prompts answered word for word."""
    return replace(lesson_11.messages(), metrics={"exact_match": lesson_11.word_for_word})


def held_after_rounds(
    records: Iterable[Round], rule: Callable[[Tensor], Tensor] = lambda x: x
) -> Float[np.ndarray, "rounds numbers"]:
    """Lists what is held after each round, all numbers of the factors in one row.

    Args:
        records: of a run, one row each.
        rule: of the broadcast, for the copy that every client receives; without it the server's.
    """
    rows = []
    for record in records:
        _, _, state = require_source(record)
        rows.append(torch.cat([rule(x).flatten() for x in state.tensors.values()]))
    return torch.stack(rows).double().numpy()


def score(record: Round, numbers: Float[np.ndarray, " numbers"]) -> float:
    """Computes the share of test prompts that a model answers word for word.

    Args: record: of a run on text. numbers: of the model's factors, as `held_after_rounds` lists.
    Raises: ``ValueError`` for a private run whose test examples are not public.
    """
    task, lora, state = require_source(record)
    ends = np.cumsum([x.numel() for x in state.tensors.values()])
    parts = np.split(numbers, ends[:-1])
    pairs = zip(state.tensors.items(), parts, strict=True)
    values = {key: torch.from_numpy(part).to(x).view_as(x) for (key, x), part in pairs}
    test = examples_to_judge(task, record.ledger is not None)
    return per_example.evaluate(task, adapters.adapt(task, lora), values, test)["exact_match"]


@cache
def held_and_sent(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Follows numbers under FedLPP: what the server holds, and its copies, in every round.

    A block's scale is 1, and in each round clients move a tenth of the way from the copy to the
    best value, which the server adds to what it holds.

    Args: width: bits of the code.
    Returns: held and sent, (rounds, goals), a column for each best value of `GOALS`.
    Guarantees: test_lesson_14.py::test_a_number_settles_at_an_edge_and_its_copies_at_the_goal.
    """
    levels = np.array(normal_levels(width))
    edges = (levels[1:] + levels[:-1]) / 2
    held = np.zeros((ROUNDS, len(GOALS)))
    sent = np.zeros_like(held)
    for t in range(ROUNDS):
        sent[t] = levels[np.searchsorted(edges, held[t])]
        if t + 1 < ROUNDS:
            held[t + 1] = held[t] + STEP * (GOALS - sent[t])
    return held, sent


@style.paper()
def parabola() -> style.Picture:
    """Draws the loss of one number, the copies at which clients met it, and what the server holds.

    The loss is least at 0.6, and the code has two bits.
    """
    goal = 0.6
    held, sent = (x[LATE:, GOALS.index(goal)] for x in held_and_sent(width=2))
    figure, (ax,) = style.subplots(7.6, 3.6)
    grid = np.linspace(0.15, 1.1, 200)
    ax.plot(grid, (grid - goal) ** 2, color=style.INK, lw=1.8)
    purple = style.look("fedlpp").colour
    levels, counts = np.unique(sent, return_counts=True)
    for level, count in zip(levels, counts, strict=True):
        height = (level - goal) ** 2
        ax.plot(level, height, "o", color=purple, ms=9)
        ax.vlines(level, -0.1, height, color=purple, lw=1, ls=style.DOTTED)
        words = f"copy {level:.2f},\nin {count / len(sent):.0%} of the rounds"
        side, place = ("right", level - 0.02) if level > goal else ("left", level)
        ax.text(place, height + 0.03, words, color=purple, fontsize=9, ha=side)
    # Both copies pull at the number; their mean lies where the loss is least.
    ax.plot(sent.mean(), 0, "D", color=purple, ms=9)
    words = f"mean of the copies {sent.mean():.2f}"
    ax.text(goal, 0.025, words, color=purple, fontsize=9.5, weight="bold", ha="center")
    ax.plot(held.mean(), -0.06, "s", color=style.GREY, ms=7)
    words = "held: no loss is taken here"
    ax.text(held.mean() + 0.025, -0.068, words, color=style.GREY, fontsize=9)
    ax.set(xlim=(0.15, 1.15), ylim=(-0.1, 0.24), xlabel="one number", ylabel="its loss", yticks=())
    style.headline(figure, "In the end the mean of the copies lies in the minimum")
    return figure
