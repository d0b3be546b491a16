"""What the live run shows: its curves, some test images, and a sentence."""

import math
from typing import TYPE_CHECKING, Any

import torch

from fedlora_lab.plots.live import images, kind
from fedlora_lab.plots.live import live as chart
from fedlora_lab.plots.style import png
from fedlora_lab.summary import against, fall, number
from fedlora_lab.tasks.task import take
from fedlora_lab.widgets.recipe import Recipe
from fedlora_lab.widgets.settings import finite

if TYPE_CHECKING:
    import pandas as pd

    from fedlora_lab.record import Round
    from fedlora_lab.tasks import Task

SHOWN = 63


class Scene:
    """Draws a run of one task. ``pictured`` says whether its examples are small images with classes.

    Of test examples that are not public nothing is shown in a private run, no score and no image
    (test_live_shows_nothing_of_private_test_examples).
    """

    def __init__(self, task: "Task") -> None:
        x, y = task.test
        self.task, self.measure = task, "accuracy" if "accuracy" in task.metrics else next(iter(task.metrics))
        self.pictured = task.public_test and task.labels is not None and isinstance(x, torch.Tensor) and x.ndim == 3
        some = slice(0, 512 if self.pictured else 64)  # the first drawing comes within a second
        with torch.no_grad():
            outputs = task.forward(task.model, take(x, some))
        self.first = float(task.metrics[self.measure](outputs, y[some]).mean())
        if self.pictured:
            self.x, self.truth = x[:SHOWN], y[:SHOWN].tolist()
            self.before = outputs[:SHOWN].argmax(1).tolist()

    def start(self, recipe: Recipe, records: "tuple[Round, ...]") -> float:
        """The score before training: the run's own, or what some test examples give before there is a run."""
        if records:
            return records[0].metrics[self.measure]
        return self.first if self.task.public_test or recipe.epsilon is None else math.nan

    def draw(
        self, recipe: Recipe, records: "tuple[Round, ...]", past: "tuple[pd.DataFrame, ...]"
    ) -> tuple[bytes, bytes, str]:
        """PNG of the curves, PNG of the images (empty where there are none), the sentence."""
        frame, now = None, None
        if records:
            from fedlora_lab import loop  # slow to import
            from fedlora_lab.record import to_frame

            frame = to_frame(records)
            now = loop.predict(self.task, records[-1], self.x).argmax(1).tolist() if self.pictured else None
        start, rounds = self.start(recipe, records), recipe.plan.rounds
        curves = chart(frame, rounds=rounds, start=start, target=recipe.epsilon, measure=self.measure, past=past)
        if not self.pictured:
            return png(curves), b"", self.words(recipe, records, None)
        grid = images(self.x.numpy(), self.truth, self.before, now)
        return png(curves), png(grid), self.words(recipe, records, now)

    def words(self, recipe: Recipe, records: "tuple[Round, ...]", now: list[int] | None) -> str:
        """What the figures show, with its numbers."""
        start = self.start(recipe, records)
        if not records:
            count = len(self.task.clients)
            text = f"Press Start: {recipe.method.name} trains on the data of {count} clients."
            return f"{text} Before training: {self.measure} {number(start)}."
        last: Any = records[-1]
        text = f"{recipe.method.name} after round {last.index} of {recipe.plan.rounds}: {self.measure} "
        score = last.metrics[self.measure]
        text += f"{number(score, infinite='∞')} ({number(start)} before)"
        if fell := fall(self.measure, start, score):
            text += f": it {fell}"
        if now is not None:
            kinds = [kind(*three) for three in zip(self.truth, self.before, now, strict=True)]
            turned = kinds.count("turned right"), kinds.count("turned wrong")
            text += f"; of the {len(kinds)} images shown, {turned[0]} turned right and {turned[1]} turned wrong"
        return f"{text}; ε spent: {finite(last.epsilon)}{against(last.ledger.trust if last.ledger else None)}."
