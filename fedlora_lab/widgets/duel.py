"""Two methods over several budgets, trained in the background while the figure fills run by run."""

import itertools
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from fedlora_lab.checks import check
from fedlora_lab.plan import Plan
from fedlora_lab.plots.budgets import budgets as chart
from fedlora_lab.plots.budgets import last_scores
from fedlora_lab.plots.style import name, png
from fedlora_lab.privacy import Privacy
from fedlora_lab.tasks import Task
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.dial import NARROW, _size
from fedlora_lab.widgets.settings import finite
from fedlora_lab.widgets.worker import FAILED, OVER, READY, RUNNING, Latest, Worker

if TYPE_CHECKING:
    import pandas as pd

Rates = Mapping[float | None, Mapping[str, float]]
_OPEN: "weakref.WeakValueDictionary[str, Duel]" = weakref.WeakValueDictionary()


class Duel(w.VBox):
    """Runs of some methods at some budgets; see `duel`. ``frames`` holds what is done: ε -> tidy frame."""

    def __init__(self, task: Task, rates: Rates, plan: Plan, privacy: Privacy) -> None:
        self.task, self.rates, self.plan, self.privacy = task, rates, plan, privacy
        self.frames: dict[float | None, pd.DataFrame] = {}
        self.worker: Worker | None = None
        self._painter = Latest(self._paint, self._show, self._fail, rest=0.03)
        self.rounds = controls.slider("rounds", plan.rounds, 1, 30, 1, "how often the server averages in each run")
        self.seeds = controls.slider("seeds", 2, 1, 5, 1, "runs of each method at each budget")
        self.buttons = {
            "start": controls.button("Start", "play", "train every run", self.start, "primary"),
            "stop": controls.button("Stop", "stop", "end after this local step", self.stop),
            "reset": controls.button("Reset", "undo", "forget all runs, put the controls back", self.reset),
        }
        self.progress = w.IntProgress(value=0, max=1, description="progress", tooltip="local steps done",
                                      style=controls.STYLE, layout=w.Layout(width=controls.WIDE))  # fmt: skip
        outputs = task.forward(task.model, task.test[0])
        self._start = float(task.metrics["accuracy"](outputs, task.test[1]).mean())
        self.status, self.sentence = controls.words(1), controls.words(2)
        image, text = self._paint({})
        width, height = _size(image)
        self.picture = controls.picture(width, height, narrowest=NARROW)
        place = w.HBox([self.picture], layout=w.Layout(height=f"{height + 6}px", overflow="hidden"))
        bar = w.HBox([self.rounds, self.seeds, *self.buttons.values(), self.progress],
                     layout=w.Layout(flex_flow="row wrap"))  # fmt: skip
        for knob in (self.rounds, self.seeds):
            knob.observe(lambda _: self._planned(), "value")
        super().__init__([bar, self.status, place, self.sentence])
        self._show((image, text))
        self._state(READY)
        self._planned()

    def start(self) -> None:
        """Train every method at every budget with every seed; what was there is forgotten."""
        if self.worker is not None and self.worker.alive:
            return
        self.frames, self.progress.value, methods = {}, 0, sum(len(row) for row in self.rates.values())
        plan, seeds = self.plan.replace(rounds=self.rounds.value), self.seeds.value
        self.progress.max = plan.rounds * plan.local_steps * methods * seeds
        worker = Worker(lambda: self._runs(plan, seeds), lambda event: self._see(worker, event),
                        lambda state: self._changed(worker, state), name="duel")  # fmt: skip
        self.worker = worker
        worker.start()

    def stop(self, wait: float | None = None) -> bool:
        """End after the local step under way; True when nothing runs any more, within ``wait`` seconds."""
        return self.worker is None or self.worker.stop(wait)

    def reset(self) -> None:
        """Stop, forget all runs and put the controls back."""
        self.stop(wait=5.0)
        self.worker, self.frames, self.progress.value = None, {}, 0
        self.rounds.value, self.seeds.value = self.plan.rounds, 2
        self._state(READY)
        self._planned()
        self._painter.ask({})

    def settle(self, wait: float = 10.0) -> bool:
        """Wait until the figure shows all that is done; True when it does."""
        return self._painter.settle(wait)

    def close(self) -> None:
        """End the thread and take the widget down."""
        self.stop(wait=5.0)
        self._painter.close()
        super().close()

    def _planned(self) -> None:
        """Before a run: what Start would do."""
        if self.worker is None or not self.worker.alive:
            count = self.seeds.value * sum(len(row) for row in self.rates.values())
            controls.say(self.status, f"ready · {count} runs of {self.rounds.value} rounds")

    def _runs(self, plan: Plan, seeds: int) -> Iterator[Any]:
        """Ticks of all runs, and after each run its budget with its frame; all budgets come before the second seed."""
        from fedlora_lab import loop, record  # slow to import

        noise: dict[float | None, Privacy | None] = {None: None}
        for seed, (budget, row) in itertools.product(range(seeds), self.rates.items()):
            if budget not in noise:
                noise[budget] = self.privacy.calibrate(epsilon=budget or 0.0, task=self.task, plan=plan)
            for slug, lr in row.items():
                records = []
                for event in loop.ticks(self.task, slug, noise[budget], plan.replace(lr=lr), seed=seed):
                    if hasattr(event, "metrics"):
                        records.append(event)
                    else:
                        yield f"{name(slug)} at ε = {finite(budget or float('inf'))}, seed {seed}"
                yield budget, record.to_frame(records)

    def _see(self, worker: Worker, event: Any) -> None:
        import pandas as pd

        if worker is not self.worker:  # forgotten by a reset
            return
        if isinstance(event, str):
            self.progress.value += 1
            if self.progress.value % 5 == 1:
                controls.say(self.status, f"running · {event}")
            return
        budget, frame = event
        old = [self.frames[budget]] if budget in self.frames else []
        self.frames = {**self.frames, budget: pd.concat([*old, frame], ignore_index=True)}
        self._painter.ask(self.frames)

    def _changed(self, worker: Worker, state: str) -> None:
        if worker is not self.worker:
            return
        self._state(state)
        if state == FAILED:
            controls.say(self.status, worker.error, error=True)
        elif state in OVER:
            self._painter.ask(self.frames)

    def _state(self, state: str) -> None:
        alive = state == RUNNING
        for knob, held in ((self.buttons["start"], alive), (self.buttons["stop"], not alive), (self.rounds, alive),
                           (self.seeds, alive)):  # fmt: skip
            knob.disabled = held
        controls.say(self.status, state)

    def _paint(self, frames: "dict[float | None, pd.DataFrame]") -> tuple[bytes, str]:
        text = f"Press Start. Before training {self._start:.3f} of the test examples are right."
        if frames:
            means = last_scores(frames).groupby(["budget", "method"])["value"].mean().unstack()
            leads = means.idxmax(axis=1)
            parts = [f"ε = {finite(e)}: {name(leads[e])} {means.loc[e, leads[e]]:.3f}" for e in means.index]
            text = f"Ahead so far, after {len(last_scores(frames))} runs: " + "; ".join(parts) + "."
        return png(chart(frames, axis=list(self.rates), start=self._start)), text

    def _show(self, painted: tuple[bytes, str]) -> None:
        self.picture.value, text = painted
        controls.say(self.sentence, text)

    def _fail(self, line: str) -> None:
        controls.say(self.status, line, error=True)


def duel(task: Task, rates: Rates, *, plan: Plan | None = None, privacy: Privacy | None = None) -> Duel:
    """Methods against each other over privacy budgets, trained live: every run adds its mark to the figure.

    Args:
        task: with the metric "accuracy".
        rates: ε -> {slug: learning rate}; ``None`` is no privacy.
        plan, privacy: the rest of the setting; ``privacy`` is calibrated for each ε.

    A second one ends the first one's thread.

    Raises: ``ValueError`` for a task without accuracy, or without any rate.
    Guarantees: nothing is trained before Start; Stop ends within one local step (test_duel_stops_within_a_step); an
        error is one line in the widget (test_duel_shows_an_error).
    """
    check(isinstance(task, Task) and "accuracy" in task.metrics, "task", task, "a task with accuracy")
    check(bool(rates) and all(rates.values()), "rates", rates, "ε -> {slug: learning rate}")
    older = _OPEN.pop("duel", None)
    if older is not None:
        older.stop(wait=5.0)
    open_ = (privacy or Privacy()).replace(noise_multiplier=None, sample_rate=None, target=None)
    made = _OPEN["duel"] = Duel(task, rates, plan or Plan(), open_)
    return made
