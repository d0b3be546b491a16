"""The live run: a federation that trains while you watch, and that you may pause, stop, and repeat in a cell."""

from typing import TYPE_CHECKING, Any

from fedlora_lab import methods
from fedlora_lab.checks import check, check_number, check_whole
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.summary import against
from fedlora_lab.tasks import Task
from fedlora_lab.tuning import suggestion
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.scene import Scene
from fedlora_lab.widgets.settings import Settings, finite
from fedlora_lab.widgets.training import Events, Training

if TYPE_CHECKING:
    import pandas as pd

    from fedlora_lab.method import Method
    from fedlora_lab.record import Round

PAST = 5  # earlier runs that stay in the figure


class Live(Training):
    """The live run of a task; see `live`. ``records`` and ``frame`` hold the run that is shown.

    Guarantees: what is shown, saved and offered as a cell is that of the run, from Start until the next Start or Reset,
        wherever the controls stand (test_a_run_keeps_its_own_recipe).
    """

    def __init__(self, settings: Settings, scene: Scene) -> None:
        super().__init__("live run", settings.task.name)
        self.settings, self.scene, self._recipe = settings, scene, settings.recipe()
        self.records: list[Round] = []
        self._past: list[pd.DataFrame] = []
        self.chart, self.examples = controls.picture(560, 290, narrowest=480), controls.picture(340, 290)
        self.cell, self.link = (
            controls.code("this run as a cell", "copy it into a cell to repeat the run"),
            controls.words(),
        )
        advice = controls.row(settings.take, settings.hint)
        bar = controls.row(*self.buttons.values(), self.progress)
        figures = controls.row(self.chart, *([self.examples] if scene.pictured else []))
        self.children = [settings, advice, bar, self.status, figures, self.sentence, self.cell, self.link]
        settings.watch(self.ready)
        self.ready(first=True)

    @property
    def frame(self) -> "pd.DataFrame":
        """The tidy frame of the run that is shown, as far as it has come."""
        from fedlora_lab.record import to_frame  # slow to import

        return to_frame(self.records)

    def begin(self) -> tuple[Events, int]:
        """An earlier run of this widget stays in the figure, pale."""
        if len(self.records) > 1:
            self._past = [*self._past, self.frame][-PAST:]
        self._recipe, self.records = self.settings.recipe(), []
        return self._recipe.events, self._recipe.plan.rounds * self._recipe.plan.local_steps

    def keep(self, event: Any) -> bool:
        """Records are kept; the rest are ticks."""
        if is_record := hasattr(event, "metrics"):
            self.records.append(event)
        return is_record

    def told(self) -> str:
        """Round and privacy spent."""
        target = "" if self._recipe.epsilon is None else f" of {self._recipe.epsilon:g}"
        seen = against(None if self._recipe.epsilon is None else self._recipe.privacy.trust)
        spent = finite(self.records[-1].epsilon if self.records else 0.0)
        return f"round {max(len(self.records) - 1, 0)} of {self._recipe.plan.rounds} · ε spent {spent}{target}{seen}"

    def planned(self) -> str:
        """The empty figure of what the controls say, and its cell; or the run that is there, as it was made."""
        if not self.records:
            self._recipe = self.settings.recipe()
            return "ready"
        return "" if self.worker is None else f"{self.worker.state} · {self.told()}"

    def changed(self) -> bool:
        """Whether Start would make another run than the one that is shown."""
        return bool(self.records) and self.settings.recipe() != self._recipe

    def forget(self) -> None:
        """No runs, first settings."""
        self.records, self._past = [], []
        self.settings.reset()

    def lock(self, locked: bool) -> None:
        """Whenever the controls change hands: the cell that repeats the run, and its frame as a file to keep."""
        self.settings.lock(locked)
        self.cell.value = self._recipe.cell()
        if locked or not self.records:
            controls.say(self.link, "The frame of the run can be saved here when it has ended.")
        else:
            name = f"{self._recipe.task.name}-{self._recipe.method.slug}.csv"
            controls.offer(self.link, f"Save the frame of this run ({name})", name, self.frame.to_csv(index=False))

    def wanted(self) -> Any:
        """The run so far and the earlier ones."""
        return self._recipe, tuple(self.records), tuple(self._past)

    def paint(self, wanted: Any) -> Any:
        """Curves, images, sentence."""
        return (wanted[0], *self.scene.draw(*wanted))

    def show(self, painted: Any) -> None:
        """A drawing of an earlier run comes too late."""
        recipe, chart, examples, text = painted
        if recipe is self._recipe:
            self.chart.value, self.examples.value = chart, examples
            controls.say(self.sentence, text)


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
        plan, privacy, lora: the rest of the setting, with the library's defaults and the learning rate that is
            suggested for method, ε and unit. The controls change the plan's rounds and learning rate; ``privacy`` is
            calibrated for the chosen ε and the plan that runs. The rate follows the suggestion until you set it.

    A second live run of the same task ends the first one's thread.

    Raises: ``ValueError`` for a setting that no run could have.
    Guarantees: nothing is trained before Start; Stop ends within one local step (test_live_stops_within_a_step); an
        error is one line in the widget (test_live_shows_an_error); no thread is left behind
        (test_a_new_live_ends_the_old).
    """
    row, base = methods.get(method), plan or Plan()
    _check(task, epsilon, seed, base)
    if plan is None:
        unit = "example" if privacy is None else privacy.unit
        base = base.replace(lr=suggestion(task, row, epsilon, unit).lr)
    # What a calibration for another ε would replace anyway.
    open_ = (privacy or Privacy()).replace(noise_multiplier=None, sample_rate=None, target=None)
    return Live(Settings(task, row, base, open_, epsilon, lora or Lora(), seed), Scene(task))


def _check(task: Any, epsilon: Any, seed: Any, plan: Plan) -> None:
    check(isinstance(task, Task), "task", task, "a task of fl.tasks")
    check_whole("seed", seed, 0, 2**31 - 1)
    check(1 <= plan.rounds <= 100, "plan.rounds", plan.rounds, "a whole number in [1, 100]")
    if epsilon is not None:
        check_number("epsilon", epsilon, 0, 1e6, open_low=True)
