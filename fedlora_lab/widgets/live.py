"""The live run: a federation that trains while you watch, and that you may pause, stop, and repeat in a cell."""

import time
import weakref
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from fedlora_lab import methods
from fedlora_lab.checks import check, check_number, check_whole
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.tasks import Task
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.recipe import Recipe
from fedlora_lab.widgets.scene import Scene
from fedlora_lab.widgets.settings import Settings, finite, suggested
from fedlora_lab.widgets.worker import FAILED, OVER, PAUSED, READY, RUNNING, Latest, Worker

if TYPE_CHECKING:
    import pandas as pd

    from fedlora_lab.method import Method
    from fedlora_lab.record import Round

PAST = 5  # earlier runs that stay in the figure
_OPEN: "weakref.WeakValueDictionary[str, Live]" = weakref.WeakValueDictionary()


class Live(w.VBox):
    """The live run of a task; see `live`. ``records`` and ``frame`` hold the run that is shown."""

    def __init__(self, settings: Settings, scene: Scene) -> None:
        self.settings, self.scene = settings, scene
        self.worker: Worker | None = None
        self.records: list[Round] = []
        self._past: list[pd.DataFrame] = []
        self._recipe, self._ticks, self._told, self._since = settings.recipe(), 0, 0.0, 0.0
        self._painter = Latest(self._paint, self._show, self._fail, rest=0.05)
        self.chart = controls.picture(560, 290, narrowest=480)
        self.examples = controls.picture(340, 290)
        self.sentence, self.status, self.link = controls.words(2), controls.words(1), controls.words(1)
        self.progress = w.IntProgress(
            value=0, max=1, description="progress", tooltip="local steps done", style=controls.STYLE,
            layout=w.Layout(width=controls.WIDE),
        )  # fmt: skip
        self.buttons = {
            "start": controls.button("Start", "play", "train with these settings", self.start, "primary"),
            "pause": controls.button("Pause", "pause", "hold after this local step", self.pause),
            "resume": controls.button("Resume", "forward", "go on", self.resume),
            "stop": controls.button("Stop", "stop", "end after this local step", self.stop),
            "reset": controls.button("Reset", "undo", "forget all runs, put the controls back", self.reset),
        }
        self.cell = w.Textarea(
            description="this run as a cell", tooltip="copy it into a cell to repeat the run", rows=10, disabled=False,
            style={"description_width": "120px"}, layout=w.Layout(width="98%", height="196px"),
        )  # fmt: skip
        settings.watch(self._planned)
        bar = w.HBox([*self.buttons.values(), self.progress], layout=w.Layout(flex_flow="row wrap"))
        shown = [self.chart, self.examples] if scene.pictured else [self.chart]
        figures = w.HBox(shown, layout=w.Layout(flex_flow="row wrap"))
        super().__init__([settings, bar, self.status, figures, self.sentence, self.cell, self.link])
        self._buttons(READY)
        self._planned()

    # What the reader does -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Train with the settings shown; an earlier run of this widget stays in the figure, pale."""
        if self.worker is not None and self.worker.alive:
            return
        if len(self.records) > 1:
            self._past = [*self._past, self.frame][-PAST:]
        self._recipe, self.records = self.settings.recipe(), []
        self._ticks, self._since = 0, 0.0
        self.progress.value, self.progress.max = 0, self._recipe.plan.rounds * self._recipe.plan.local_steps
        self._export()
        see, changed = lambda event: self._see(worker, event), lambda state: self._changed(worker, state)
        self.worker = worker = Worker(self._recipe.events, see, changed, name="live run")
        worker.start()

    def pause(self) -> None:
        """Hold after the local step under way."""
        if self.worker is not None:
            controls.say(self.status, "pausing after this step")
            self.worker.pause()

    def resume(self) -> None:
        """Go on after a pause."""
        if self.worker is not None:
            self.worker.resume()

    def stop(self, wait: float | None = None) -> bool:
        """End after the local step under way; True when nothing runs any more, within ``wait`` seconds."""
        if self.worker is None or not self.worker.alive:
            return True
        controls.say(self.status, "stopping after this step")
        return self.worker.stop(wait)

    def reset(self) -> None:
        """Stop, forget all runs and put the controls back."""
        self.stop(wait=5.0)
        self.worker, self.records, self._past = None, [], []
        self.settings.reset()
        self.progress.value = 0
        self._buttons(READY)
        self._planned()

    def close(self) -> None:
        """End the thread and take the widget down."""
        self.stop(wait=5.0)
        self._painter.close()
        super().close()

    @property
    def frame(self) -> "pd.DataFrame":
        """The tidy frame of the run that is shown, as far as it has come."""
        from fedlora_lab.record import to_frame  # slow to import

        return to_frame(self.records)

    def settle(self, wait: float = 10.0) -> bool:
        """Wait until the figures show the latest record; True when they do."""
        return self._painter.settle(wait)

    # What the thread tells ------------------------------------------------------------------------------------------

    def _see(self, worker: Worker, event: Any) -> None:
        if worker is not self.worker:  # forgotten by a reset
            return
        if hasattr(event, "metrics"):  # a record; the rest are ticks
            self.records.append(event)
            self._painter.ask((self._recipe, tuple(self.records), tuple(self._past)))
        else:
            self._ticks += 1
            self._since = self._since or worker.seconds
        if time.monotonic() - self._told > 0.1:
            self._tell(worker)

    def _changed(self, worker: Worker, state: str) -> None:
        if worker is not self.worker:
            return
        self._buttons(state)
        if state == FAILED:
            controls.say(self.status, worker.error, error=True)
            return
        self._tell(worker)
        if state in OVER:
            self._export()
            self._painter.ask((self._recipe, tuple(self.records), tuple(self._past)))

    def _tell(self, worker: Worker) -> None:
        """The line under the buttons: state, round, time left, privacy spent."""
        self._told, total = time.monotonic(), self.progress.max
        self.progress.value = min(self._ticks, total)
        rounds, spent = self._recipe.plan.rounds, self.records[-1].epsilon if self.records else 0.0
        text = "preparing" if not self.records and worker.state == RUNNING else worker.state
        text += f" · round {max(len(self.records) - 1, 0)} of {rounds}"
        if worker.state in (RUNNING, PAUSED) and self._ticks > 1:
            each = (worker.seconds - self._since) / (self._ticks - 1)
            text += f" · {max(total - self._ticks, 0) * each:.0f} s left"
        target = "" if self._recipe.epsilon is None else f" of {self._recipe.epsilon:g}"
        controls.say(self.status, f"{text} · ε spent {finite(spent)}{target}")

    # What is shown --------------------------------------------------------------------------------------------------

    def _planned(self) -> None:
        """Before a run: the empty figure of what the controls say."""
        if self.worker is None or not self.worker.alive:
            self._recipe = self.settings.recipe()
            controls.say(self.status, "ready")
            self._export()
            shown = (self._recipe, tuple(self.records), tuple(self._past))
            if self.chart.value:
                self._painter.ask(shown)
            else:
                self._show(self._paint(shown))

    def _paint(self, shown: "tuple[Recipe, tuple[Round, ...], tuple[pd.DataFrame, ...]]") -> tuple[Any, ...]:
        return (shown[0], *self.scene.draw(*shown))

    def _show(self, painted: tuple[Any, ...]) -> None:
        recipe, chart, examples, text = painted
        if recipe is self._recipe:  # a drawing of an earlier run comes too late
            self.chart.value, self.examples.value = chart, examples
            controls.say(self.sentence, text)

    def _fail(self, line: str) -> None:
        controls.say(self.status, line, error=True)

    def _buttons(self, state: str) -> None:
        alive = state in (RUNNING, PAUSED)
        free = {"start": not alive, "pause": state == RUNNING, "resume": state == PAUSED, "stop": alive}
        for name, is_free in free.items():
            self.buttons[name].disabled = not is_free
        self.settings.lock(alive)

    def _export(self) -> None:
        """The cell that repeats the run, and its frame as a file to keep."""
        self.cell.value = self._recipe.cell()
        if not self.records:
            controls.say(self.link, "The frame of the run can be saved here when it has ended.")
            return
        name = f"{self._recipe.task.name}-{self._recipe.method.slug}.csv"
        controls.offer(self.link, f"Save the frame of this run ({name})", name, self.frame.to_csv(index=False))


def live(
    task: Task,
    *,
    method: "Method | str" = "rolora",
    epsilon: float | None = 8.0,
    plan: Plan | None = None,
    privacy: Privacy | None = None,
    lora: Lora | None = None,
    seed: int = 0,
) -> Live:
    """A run to watch: start, pause, resume and stop it, and change what it is.

    Args:
        task: what is trained.
        method, epsilon, seed: what the controls say at first; ``epsilon=None`` is no privacy.
        plan, privacy, lora: the rest of the setting, with the library's defaults and a tuned learning rate if there is
            one. The controls change the plan's rounds and learning rate; ``privacy`` is calibrated for the chosen ε.

    A second live run of the same task ends the first one's thread.

    Raises: ``ValueError`` for a setting that no run could have.
    Guarantees: nothing is trained before Start; Stop ends within one local step (test_live_stops_within_a_step); an
        error is one line in the widget (test_live_shows_an_error); no thread is left behind
        (test_a_new_live_ends_the_old).
    """
    row, base = methods.get(method), plan or Plan()
    _check(task, epsilon, seed, base)
    if (older := _OPEN.pop(task.name, None)) is not None:
        older.stop(wait=5.0)
    if plan is None:
        base = base.replace(lr=suggested(task, row, base.rate("B")))
    # What a calibration for another ε would replace anyway.
    open_ = (privacy or Privacy()).replace(noise_multiplier=None, sample_rate=None, target=None)
    _OPEN[task.name] = made = Live(Settings(task, row, base, open_, epsilon, lora or Lora(), seed), Scene(task))
    return made


def _check(task: Any, epsilon: Any, seed: Any, plan: Plan) -> None:
    check(isinstance(task, Task), "task", task, "a task of fl.tasks")
    check_whole("seed", seed, 0, 2**31 - 1)
    check(1 <= plan.rounds <= 100, "plan.rounds", plan.rounds, "a whole number in [1, 100]")
    if epsilon is not None:
        check_number("epsilon", epsilon, 0, 1e6, open_low=True)
