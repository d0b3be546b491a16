"""Some methods at some privacy budgets: every run of the comparison one after the other, and what is seen of them."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from fedlora_lab.plan import Plan
from fedlora_lab.plots.budgets import budgets, last_scores
from fedlora_lab.plots.style import name, png
from fedlora_lab.privacy import Privacy
from fedlora_lab.summary import against
from fedlora_lab.tasks import Task
from fedlora_lab.widgets.settings import finite

if TYPE_CHECKING:
    import pandas as pd

Rates = Mapping[float | None, Mapping[str, float]]
Frames = Mapping[float | None, "pd.DataFrame"]


@dataclass(frozen=True)
class Bout:
    """A comparison: for every ε, the methods and their learning rates.

    Args:
        rates: ε -> {slug: learning rate}; ``None`` is no privacy.
        privacy: calibrated anew for each ε.
        seeds: runs of each method at each ε.
    """

    task: Task
    rates: Rates
    plan: Plan
    privacy: Privacy
    seeds: int

    def changed(self, rounds: int, seeds: int) -> "Bout":
        """The same comparison, longer or shorter."""
        return replace(self, plan=self.plan.replace(rounds=rounds), seeds=seeds)

    @property
    def runs(self) -> int:
        """How many runs there are."""
        return self.seeds * sum(len(row) for row in self.rates.values())

    @property
    def steps(self) -> int:
        """Local steps of all runs together."""
        return self.runs * self.plan.rounds * self.plan.local_steps

    def start(self) -> float:
        """Accuracy before training."""
        with torch.no_grad():
            outputs = self.task.forward(self.task.model, self.task.test[0])
        return float(self.task.metrics["accuracy"](outputs, self.task.test[1]).mean())

    def events(self) -> Iterator[Any]:
        """For every local step its run in words; after a run its ε and frame. All ε come before the second seed."""
        from fedlora_lab import loop, record  # slow to import

        noise: dict[float | None, Privacy | None] = {None: None}
        for seed, (budget, row) in itertools.product(range(self.seeds), self.rates.items()):
            if budget not in noise:
                noise[budget] = self.privacy.calibrate(epsilon=budget or 0.0, task=self.task, plan=self.plan)
            for slug, lr in row.items():
                records = []
                for event in loop.ticks(self.task, slug, noise[budget], self.plan.replace(lr=lr), seed=seed):
                    if hasattr(event, "metrics"):
                        records.append(event)
                    else:
                        yield f"{name(slug)} at ε = {finite(budget or float('inf'))}, seed {seed}"
                yield budget, record.to_frame(records)

    def draw(self, frames: Frames, start: float) -> tuple[bytes, str]:
        """PNG of the scores against ε, and who is ahead at each."""
        figure = png(budgets(frames, axis=list(self.rates), start=start))
        if not frames:
            return figure, f"Press Start. Before training {start:.3f} of the test examples are right."
        scores = last_scores(frames)
        means = scores.groupby(["budget", "method"])["value"].mean().unstack()
        leads = means.idxmax(axis=1)
        parts = [f"ε = {finite(e)}: {name(leads[e])} {means.loc[e, leads[e]]:.3f}" for e in means.index]
        fell = int((scores["value"] < start).sum())
        told = f" {fell} of them fell below their start." if fell else ""
        said = f"Ahead so far, after {len(scores)} runs of {self.plan.rounds} rounds: "
        seen = f" ε{against(self.privacy.trust)}." if any(budget is not None for budget in self.rates) else ""
        return figure, said + "; ".join(parts) + "." + told + seen
