"""The controls of a run: method, ε, learning rate, rounds, seed. Together they are a `Recipe`."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from fedlora_lab import methods
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.tuning import Suggestion, rates, suggestion
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.recipe import Recipe

if TYPE_CHECKING:
    from fedlora_lab.method import Method
    from fedlora_lab.tasks import Task

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 3.0, 5.0)


class Settings(w.HBox):
    """Controls for one task; `recipe` reads them, `reset` puts them back, `lock` holds them while a run goes on.

    The learning rate follows what is suggested for method, ε and unit until the reader sets it; then it is kept, and
    ``take`` offers the suggestion. ``hint`` says what was suggested and for what.
    """

    def __init__(
        self, task: "Task", method: "Method", plan: Plan, privacy: Privacy, epsilon: float | None, lora: Lora, seed: int
    ) -> None:
        self.task, self.plan, self.privacy, self.lora = task, plan, privacy, lora
        rows = {row.name: row for row in [*methods.ALL.values(), method]}
        self.method = controls.choice("method", list(rows.items()), method, "the method that trains")
        budgets = sorted({*EPSILONS, *([] if epsilon is None else [float(epsilon)])})
        listed = [(f"{value:g}", value) for value in budgets] + [("∞ (no privacy)", math.inf)]  # None is not shown
        given = math.inf if epsilon is None else float(epsilon)
        self.epsilon = controls.choice("privacy ε", listed, given, "the promise: smaller is more private and noisier")
        self.lr = controls.steps("learning rate", self._rates(), plan.rate("B"), "step of the clients' optimiser")
        self.rounds = controls.slider("rounds", plan.rounds, 1, 100, 1, "how often the server averages")
        self.seed = w.BoundedIntText(
            value=seed, min=0, max=2**31 - 1, description="seed", tooltip="every random number follows from it",
            style=controls.STYLE, layout=w.Layout(width=controls.WIDE),
        )  # fmt: skip
        self._knobs = (self.method, self.epsilon, self.lr, self.rounds, self.seed)
        self._first = [knob.value for knob in self._knobs]
        self._touched = self._following = False
        self.hint = controls.words(2)
        self.hint.layout.flex, self.hint.layout.width = "1 1 320px", "auto"  # beside the button
        self.take = controls.button("Use it", "magic", "take the suggested learning rate", self._take)
        self.lr.observe(self._touch, "value")
        for knob in (self.method, self.epsilon):
            knob.observe(lambda _: self._suggest(), "value")
        self._say()
        super().__init__(self._knobs, layout=w.Layout(flex_flow="row wrap"))

    def _rates(self) -> list[float]:
        """Learning rates to choose from: a plain ladder, the plan's own, and those found by tuning."""
        known = rates().get(self.task.name, {})
        tuned = {lr for rows in known.values() for budgets in rows.values() for lr in budgets.values()}
        return sorted({*RATES, Plan().rate("B"), self.plan.rate("B"), *tuned})

    @property
    def suggestion(self) -> Suggestion:
        """What is suggested for the method, ε and unit that the controls say."""
        return suggestion(self.task, self.method.value, limited(self.epsilon.value), self.privacy.unit)

    def _suggest(self) -> None:
        """Method or ε has moved: follow the suggestion, unless the rate is the reader's own."""
        if not self._touched:
            self._follow(self.suggestion.lr)
        self._say()

    def _follow(self, lr: float) -> None:
        self._following = True
        self.lr.value = lr
        self._following = False

    def _touch(self, _: Any) -> None:
        self._touched = self._touched or not self._following
        self._say()

    def _take(self) -> None:
        self._touched = False
        self._suggest()

    def _say(self) -> None:
        found = self.suggestion
        self.take.disabled = self.lr.disabled or self.lr.value == found.lr
        controls.say(self.hint, f"suggested learning rate {found.lr:g}: {found.words}", role="note")

    def watch(self, act: Callable[[], None]) -> None:
        """Call ``act`` after any control has moved."""
        for knob in self._knobs:
            knob.observe(lambda _: act(), "value")

    def reset(self) -> None:
        """Put every control back."""
        self._following = True
        for knob, value in zip(self._knobs, self._first, strict=True):
            knob.value = value
        self.lr.value = self._first[2]  # which the method before it has moved
        self._touched = self._following = False
        self._say()

    def lock(self, locked: bool) -> None:
        """Hold or free the controls."""
        for knob in self._knobs:
            knob.disabled = locked
        self._say()

    def recipe(self) -> Recipe:
        """What the controls say."""
        lr: Any = self.lr.value
        if isinstance(self.plan.lr, Mapping):
            lr = {side: rate * lr / self.plan.rate("B") for side, rate in self.plan.lr.items()}
        plan = self.plan.replace(rounds=self.rounds.value, lr=lr)
        budget = limited(self.epsilon.value)
        return Recipe(self.task, self.method.value, plan, self.privacy, budget, self.lora, int(self.seed.value))


def limited(epsilon: float) -> float | None:
    """A menu's ε as a plan has it: the infinite one is training without privacy."""
    return epsilon if math.isfinite(epsilon) else None


def finite(value: float) -> str:
    """ε in words."""
    return f"{value:.2f}" if math.isfinite(value) else "∞"
