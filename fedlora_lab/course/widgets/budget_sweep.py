"""Compares methods over privacy budgets: trained in the background, drawn run by run."""

import itertools
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from fedlora_lab import methods
from fedlora_lab._utils.validation import check
from fedlora_lab.course.widgets import controls
from fedlora_lab.course.widgets.run_config import RunConfig, drop_calibration, epsilon_text
from fedlora_lab.course.widgets.training_panel import Events, TrainingPanel
from fedlora_lab.experiments.tuned_rates import suggestion
from fedlora_lab.methods.plan import Plan
from fedlora_lab.plots.style import name, png
from fedlora_lab.plots.training_curves import budgets, last_scores
from fedlora_lab.privacy.config import Privacy
from fedlora_lab.report.summary_table import observer_phrase
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd

Rates = Mapping[float | None, Mapping[str, float]]
Frames = Mapping[float | None, "pd.DataFrame"]


def check_scored(task: Any) -> None:
    """Refuses a task without accuracy, or whose test examples may not be looked at."""
    scored = isinstance(task, Task) and "accuracy" in task.metrics
    check(scored, "task", task, "a task with accuracy")
    check(task.public_test, "public_test", False, "True: what is shown are scores on test examples")


def accuracy_before(task: Task) -> float:
    """Measures the accuracy before training."""
    x, y = task.test
    with torch.no_grad():
        return float(task.metrics["accuracy"](task.forward(task.model, x), y).mean())


@dataclass(frozen=True)
class BudgetSweep:
    """Runs of some methods at some privacy budgets, ``seeds`` of each.

    Args:
        rates: ε -> {slug: learning rate}; ``None`` is no privacy.
        privacy: calibrated anew for each ε.
    """

    task: Task
    rates: Rates
    plan: Plan
    privacy: Privacy
    seeds: int

    @property
    def runs(self) -> int:
        """The number of runs."""
        return self.seeds * sum(map(len, self.rates.values()))

    def events(self) -> Generator[Any, None, None]:
        """Yields the run's name at every local step, and after a run its ε and frame.

        All ε come before the second seed.
        """
        from fedlora_lab.federated.records import to_frame  # slow to import

        for seed, (epsilon, row) in itertools.product(range(self.seeds), self.rates.items()):
            for slug, lr in row.items():
                setting = self.task, methods.get(slug), self.plan.replace(lr=lr), self.privacy
                records = []
                for event in RunConfig(*setting, epsilon, seed=seed).events():
                    if hasattr(event, "metrics"):
                        records.append(event)
                    else:
                        yield f"{name(slug)} at ε = {epsilon_text(epsilon)}, seed {seed}"
                yield epsilon, to_frame(records)


class MethodComparison(TrainingPanel):
    """Runs of some methods at some budgets; ``frames`` holds those done: ε -> tidy frame."""

    button_names = ("start", "stop", "reset")

    def __init__(self, sweep: BudgetSweep) -> None:
        super().__init__("method comparison")
        self.sweep, self.frames = sweep, {}
        self._start, self._run, self._done = accuracy_before(sweep.task), "", 0
        often, repeats = "how often the server averages in each run", "runs of each method and ε"
        self.rounds = controls.slider("rounds", sweep.plan.rounds, 1, 30, 1, often)
        self.seeds = controls.slider("seeds", sweep.seeds, 1, 5, 1, repeats)
        self.picture = controls.image_box(760, 410, narrowest=controls.NARROW)
        bar = controls.row(self.rounds, self.seeds, *self.buttons.values(), self.progress)
        self.children = [bar, self.status, controls.row(self.picture), self.sentence]
        self.follow(self.rounds, self.seeds)

    def _chosen(self) -> BudgetSweep:
        plan = self.sweep.plan.replace(rounds=self.rounds.value)
        return replace(self.sweep, plan=plan, seeds=self.seeds.value)

    def prepare_run(self) -> tuple[Events, int]:
        self.sweep, self.frames, self._run, self._done = self._chosen(), {}, "", 0
        plan = self.sweep.plan
        return self.sweep.events, self.sweep.runs * plan.rounds * plan.local_steps

    def handle_event(self, event: Any) -> bool:
        import pandas as pd

        if isinstance(event, str):  # a local step of the run of this name
            self._run = f"{event} · "
            return False
        self._run, self._done, (epsilon, frame) = "", self._done + 1, event
        old = [self.frames[epsilon]] if epsilon in self.frames else []
        self.frames = {**self.frames, epsilon: pd.concat([*old, frame], ignore_index=True)}
        return True

    def progress_text(self) -> str:
        return f"{self._run}{self._done} of {self.sweep.runs} runs done"

    def preview(self) -> str:
        if not self.frames:
            self.sweep = self._chosen()
            return f"ready · {self.sweep.runs} runs of {self.sweep.plan.rounds} rounds"
        return "" if self.worker is None else f"{self.worker.state} · {self.progress_text()}"

    def is_stale(self) -> bool:
        return bool(self.frames) and self._chosen() != self.sweep

    def clear_runs(self) -> None:
        self.frames = {}
        super().clear_runs()

    def drawing_input(self) -> tuple[BudgetSweep, Frames]:
        return self.sweep, self.frames

    def draw(self, wanted: tuple[BudgetSweep, Frames]) -> tuple[bytes, str]:
        """Draws the scores against ε, and says which method leads at each."""
        sweep, frames = wanted
        figure = png(budgets(frames, axis=list(sweep.rates), start=self._start))
        if not frames:
            before = f"{self._start:.3f} of the test examples are right."
            return figure, f"Press Start. Before training {before}"
        scores = last_scores(frames)
        means = scores.groupby(["budget", "method"])["value"].mean().unstack()
        leads = "; ".join(
            f"ε = {epsilon_text(e)}: {name(lead)} {means.loc[e, lead]:.3f}"
            for e, lead in means.idxmax(axis=1).items()
        )
        text = f"Ahead so far, after {len(scores)} runs of {sweep.plan.rounds} rounds: {leads}."
        if fell := int((scores["value"] < self._start).sum()):
            text += f" {fell} of them ended below their starting accuracy."
        if any(epsilon is not None for epsilon in sweep.rates):
            text += f" ε{observer_phrase(sweep.privacy.trust)}."
        return figure, text


def method_comparison(
    task: Task,
    rates: "Rates | Mapping[float | None, Iterable[str]]",
    *,
    plan: Plan | None = None,
    privacy: Privacy | None = None,
) -> MethodComparison:
    """Compares methods over privacy budgets, trained live: every run adds its mark to the figure.

    A second comparison ends the first one's thread.

    Args:
        task: with the metric "accuracy" and public test examples.
        rates: ε -> {slug: learning rate}, or ε -> slugs, which take the suggested rate for that ε;
            the ε ``None`` is no privacy.
        plan: rounds, steps and batch of every run; ``None``: the library's defaults.
        privacy: calibrated for each ε.

    Guarantees: nothing is trained before Start; for the rest see `TrainingPanel`.

    >>> import fedlora_lab as fl
    >>> widget = method_comparison(fl.tasks.digits(clients=2), {8: ["fedlora", "ffa-lora"]})
    >>> widget.sweep.runs
    4
    >>> widget.close()
    """
    check_scored(task)
    check(bool(rates) and all(rates.values()), "rates", rates, "ε -> {slug: learning rate}")
    privacy = drop_calibration(privacy)
    known = {
        epsilon: row
        if isinstance(row, Mapping)
        else {slug: suggestion(task, slug, epsilon, privacy.unit).lr for slug in row}
        for epsilon, row in rates.items()
    }
    return MethodComparison(BudgetSweep(task, known, plan or Plan(), privacy, seeds=2))
