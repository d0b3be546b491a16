"""Two methods over several budgets, trained in the background while the figure fills run by run."""

from collections.abc import Iterable, Mapping
from typing import Any

from fedlora_lab.checks import check
from fedlora_lab.plan import Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.tasks import Task
from fedlora_lab.tuning import suggestion
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.bout import Bout, Frames, Rates
from fedlora_lab.widgets.training import Events, Training


class Duel(Training):
    """Runs of some methods at some budgets; see `duel`. ``frames`` holds what is done: ε -> tidy frame."""

    offered = ("start", "stop", "reset")

    def __init__(self, bout: Bout) -> None:
        super().__init__("duel")
        self.bout, self.frames, self._start = bout, {}, bout.start()
        self._run, self._done = "", 0
        self.rounds = controls.slider("rounds", bout.plan.rounds, 1, 30, 1, "how often the server averages in each run")
        self.seeds = controls.slider("seeds", bout.seeds, 1, 5, 1, "runs of each method at each budget")
        self._first = self.rounds.value, self.seeds.value
        self.picture = controls.picture(760, 410, narrowest=controls.NARROW)
        bar = controls.row(self.rounds, self.seeds, *self.buttons.values(), self.progress)
        self.children = [bar, self.status, controls.row(self.picture), self.sentence]
        for knob in (self.rounds, self.seeds):
            knob.observe(lambda _: self.ready(), "value")
        self.ready(first=True)

    def begin(self) -> tuple[Events, int]:
        """What was there is forgotten."""
        self.bout = self._asked()
        self.frames, self._run, self._done = {}, "", 0
        return self.bout.events, self.bout.steps

    def keep(self, event: Any) -> bool:
        """A run that has ended joins the others at its budget; words say which run is under way."""
        import pandas as pd

        if is_step := isinstance(event, str):
            self._run = f"{event} · "
        else:
            self._run, self._done, (budget, frame) = "", self._done + 1, event
            old = [self.frames[budget]] if budget in self.frames else []
            self.frames = {**self.frames, budget: pd.concat([*old, frame], ignore_index=True)}
        return not is_step

    def told(self) -> str:
        """The run under way, and how many are done."""
        return f"{self._run}{self._done} of {self.bout.runs} runs done"

    def _asked(self) -> Bout:
        """What Start would do."""
        return self.bout.changed(self.rounds.value, self.seeds.value)

    def planned(self) -> str:
        """What Start would do; what is done stays the comparison that it was."""
        if not self.frames:
            self.bout = self._asked()
            return f"ready · {self.bout.runs} runs of {self.bout.plan.rounds} rounds"
        return "" if self.worker is None else f"{self.worker.state} · {self.told()}"

    def changed(self) -> bool:
        """Whether Start would make another comparison than the one that is shown."""
        return bool(self.frames) and self._asked() != self.bout

    def forget(self) -> None:
        """No runs, first settings."""
        self.frames = {}
        self.rounds.value, self.seeds.value = self._first

    def lock(self, locked: bool) -> None:
        """The two sliders."""
        self.rounds.disabled = self.seeds.disabled = locked

    def wanted(self) -> tuple[Bout, Frames]:
        """What is done, and of which comparison."""
        return self.bout, self.frames

    def paint(self, wanted: tuple[Bout, Frames]) -> tuple[bytes, str]:
        """The scores, and who is ahead."""
        bout, frames = wanted
        return bout.draw(frames, self._start)

    def show(self, painted: tuple[bytes, str]) -> None:
        """Figure and sentence."""
        self.picture.value = painted[0]
        controls.say(self.sentence, painted[1])


def duel(
    task: Task,
    rates: "Rates | Mapping[float | None, Iterable[str]]",
    *,
    plan: Plan | None = None,
    privacy: Privacy | None = None,
) -> Duel:
    """Methods against each other over privacy budgets, trained live: every run adds its mark to the figure.

    Args:
        task: with the metric "accuracy".
        rates: ε -> {slug: learning rate}, or ε -> slugs, which take what `tuning.suggestion` gives for that ε; the ε
            ``None`` is no privacy.
        plan, privacy: the rest of the setting; ``privacy`` is calibrated for each ε.

    A second one ends the first one's thread.

    Raises: ``ValueError`` for a task without accuracy, without any rate, or whose test examples are not public.
    Guarantees: nothing is trained before Start; Stop ends within one local step (test_duel_stops_within_a_step); an
        error is one line in the widget (test_duel_shows_an_error).
    """
    check(isinstance(task, Task) and "accuracy" in task.metrics, "task", task, "a task with accuracy")
    check(task.public_test, "public_test", False, "True: what is shown are scores on test examples")
    check(bool(rates) and all(rates.values()), "rates", rates, "ε -> {slug: learning rate}")
    open_ = (privacy or Privacy()).replace(noise_multiplier=None, sample_rate=None, target=None)
    known = {
        budget: row if isinstance(row, Mapping) else {s: suggestion(task, s, budget, open_.unit).lr for s in row}
        for budget, row in rates.items()
    }
    return Duel(Bout(task, known, plan or Plan(), open_, seeds=2))
