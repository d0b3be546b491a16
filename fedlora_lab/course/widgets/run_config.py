"""A run's configuration and its controls: method, ε, learning rate, rounds, seed."""

import inspect
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from fedlora_lab import methods, tasks
from fedlora_lab.course.widgets import controls
from fedlora_lab.experiments.tuned_rates import Suggestion, rates, suggestion
from fedlora_lab.methods.optimizers import Optimizer
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.privacy.accounting import clt_noise_multiplier
from fedlora_lab.privacy.config import Privacy

if TYPE_CHECKING:
    from fedlora_lab.methods.method import Method
    from fedlora_lab.tasks.task import Task

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 3.0, 5.0)


def finite_or_none(epsilon: float) -> float | None:
    """Turns a menu's ε into a plan's: the infinite one is training without privacy."""
    return epsilon if math.isfinite(epsilon) else None


def epsilon_text(value: float | None) -> str:
    """Writes ε with two decimals; ``None`` is no privacy."""
    return "∞" if value is None or not math.isfinite(value) else f"{value:.2f}"


def drop_calibration(privacy: Privacy | None) -> Privacy:
    """Drops what a calibration for another ε would replace."""
    return (privacy or Privacy()).replace(noise_multiplier=None, sample_rate=None, target=None)


def epsilon_menu(epsilon: float | None, help: str) -> Any:
    """Makes the menu of ε. A menu shows nothing where its value is ``None``, so no privacy is ∞."""
    given = math.inf if epsilon is None else float(epsilon)
    finite = sorted({*EPSILONS, given} - {math.inf})
    options = [(f"{value:g}", value) for value in finite] + [("∞ (no privacy)", math.inf)]
    return controls.menu("privacy ε", options, given, help)


class RateSlider:
    """A slider of learning rates that follows suggestions until the reader moves it.

    Its values are a plain ladder, the tuned rates of the task, and ``rate``.
    """

    def __init__(self, task: "Task", rate: float, help: str) -> None:
        known = rates().get(task.name, {}).values()
        tuned = {lr for units in known for budgets in units.values() for lr in budgets.values()}
        ladder = sorted({*RATES, Plan().rate("B"), rate, *tuned})
        self.slider = controls.value_slider("learning rate", ladder, rate, help)
        self._followed = rate

    @property
    def own(self) -> bool:
        """Whether the reader has set a rate, which is then not the one suggested last."""
        return self.slider.value != self._followed

    def follow(self, rate: float, *, always: bool = False) -> None:
        """Takes a suggested rate, unless the reader has set one and not ``always``."""
        if always or not self.own:
            self._followed = self.slider.value = rate


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run; ``epsilon=None`` trains without privacy.

    Guarantees: the text of `cell` gives the frame of `events` (test_the_cell_repeats_the_run).
    """

    task: "Task"
    method: "Method"
    plan: Plan
    privacy: Privacy
    epsilon: float | None
    lora: Lora = field(default_factory=Lora)
    seed: int = 0

    def events(self) -> Generator[Any, None, None]:
        """Runs it: yields a tick after every local step, a record after every round."""
        from fedlora_lab.federated import simulation  # slow to import

        task, plan, privacy = self.task, self.plan, None
        if self.epsilon is not None:
            privacy = self.privacy.calibrate(epsilon=self.epsilon, task=task, plan=plan)
        return simulation.ticks(task, self.method, privacy, plan, lora=self.lora, seed=self.seed)

    def noise_forecast(self) -> str:
        """Says how much noise A will take up; "" without privacy, and where no run could begin.

        To be quick it is of the sigma of the central limit, some per cent from the calibrated one.
        """
        from fedlora_lab.federated.run_spec import amplification  # slow to import

        if self.epsilon is None:
            return ""
        try:
            some = self.privacy.replace(noise_multiplier=1.0).resolve(self.task, self.plan)
            steps = self.plan.rounds * (self.plan.local_steps if some.unit == "example" else 1)
            rate: Any = some.sample_rate
            rates = rate if isinstance(rate, tuple) else (rate,)
            known = {q: clt_noise_multiplier(self.epsilon, some.delta, q, steps) for q in {*rates}}
            sigma = tuple(known[q] for q in rates)
            some = some.replace(noise_multiplier=sigma if len(sigma) > 1 else sigma[0])
            found = amplification(self.task, self.method, some, self.plan, self.lora)
        except ValueError:  # what is wrong with the settings is said at Start
            return ""
        if found.unknown is not None:
            return f"How much noise A takes up is not known before the run: {found.unknown}."
        if not found.mean:
            return "A takes up no noise."
        return f"By the end A will have taken up about {found.mean:.2g} times its energy as noise."

    def cell(self) -> str:
        """Writes the code cell that repeats the run."""
        method = f"...  # your row {self.method.name!r}"
        if self.method in methods.ALL.values():
            method = repr(self.method.slug)
        privacy = "None"
        if self.epsilon is not None:
            privacy = _call(self.privacy, "unit", "clip_norm", "delta") + "\nprivacy = "
            privacy += f"privacy.calibrate(epsilon={self.epsilon:g}, task=task, plan=plan)"
        return f"""import fedlora_lab as fl

task = {_task_call(self.task.info)}
method = {method}
plan = {_call(self.plan, "rounds", "local_steps", "batch", "lr")}
privacy = {privacy}
lora = {_call(self.lora, "rank", "alpha")}
records = list(fl.run(task, method, privacy, plan, lora=lora, seed={self.seed}))
frame = fl.to_frame(records)"""


def _arguments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in values.items())


def _call(record: Any, *always: str) -> str:
    """Writes the call that makes a dataclass: fields off their defaults, and those ``always``."""
    default, written = type(record)(), {}
    for one in fields(record):
        value = getattr(record, one.name)
        if one.name in always or value != getattr(default, one.name):
            value = str(value) if isinstance(value, Optimizer) else value
            written[one.name] = dict(value) if isinstance(value, Mapping) else value
    return f"fl.{type(record).__name__}({_arguments(written)})"


def _task_call(info: Mapping[str, Any]) -> str:
    """Writes the call that builds an embedded task, without options at their defaults."""
    if "arguments" not in info:
        return "...  # your task"
    named = dict(info["arguments"])
    for name, kind in inspect.signature(tasks.TASKS[info["task"]]).parameters.items():
        default = list(kind.default) if isinstance(kind.default, tuple) else kind.default
        if kind.kind is kind.KEYWORD_ONLY and name in named and named[name] == default:
            del named[name]
    return f"fl.tasks.{info['task']}({_arguments(named)})"


class Settings(w.HBox):
    """Controls for one task; `config` reads them.

    The learning rate follows the suggestion for method, ε and unit until the reader sets it;
    ``take`` then returns to the suggestion, and ``hint`` says what it is and where it is from.
    """

    def __init__(self, first: RunConfig) -> None:
        self.task, self._config = first.task, first
        rows = {row.name: row for row in [*methods.ALL.values(), first.method]}
        options, promise = list(rows.items()), "the promise: smaller is more private and noisier"
        self.method = controls.menu("method", options, first.method, "the method that trains")
        self.epsilon = epsilon_menu(first.epsilon, promise)
        self._rate = RateSlider(self.task, first.plan.rate("B"), "step of the clients' optimiser")
        self.lr, often = self._rate.slider, "how often the server averages"
        self.rounds = controls.slider("rounds", first.plan.rounds, 1, 100, 1, often)
        look = controls.control_options("seed", "every random number follows from it")
        self.seed = w.BoundedIntText(value=first.seed, min=0, max=2**31 - 1, **look)
        self.hint = controls.text_box(2)
        self.hint.layout.flex, self.hint.layout.width = "1 1 320px", "auto"  # beside the button
        advice = "take the suggested learning rate"
        self.take = controls.button("Use it", "magic", advice, lambda: self._suggest(always=True))
        self.lr.observe(lambda _: self.show_hint(), "value")
        for knob in (self.method, self.epsilon):
            knob.observe(lambda _: self._suggest(), "value")
        self.show_hint()
        knobs = (self.method, self.epsilon, self.lr, self.rounds, self.seed)
        super().__init__(knobs, layout=w.Layout(flex_flow="row wrap"))

    @property
    def suggestion(self) -> Suggestion:
        """The learning rate suggested for the controls' method and ε."""
        epsilon = finite_or_none(self.epsilon.value)
        return suggestion(self.task, self.method.value, epsilon, self._config.privacy.unit)

    def _suggest(self, *, always: bool = False) -> None:
        self._rate.follow(self.suggestion.lr, always=always)
        self.show_hint()

    def show_hint(self) -> None:
        """Says which learning rate is suggested, and offers it where another is set."""
        now = self.suggestion
        self.take.disabled = self.lr.disabled or self.lr.value == now.lr
        text = f"suggested learning rate {now.lr:g}: {now.words}"
        controls.set_text(self.hint, text, role="note")

    def accept_rate(self) -> None:
        """Lets the present learning rate follow the suggestions again."""
        self._rate.follow(self.lr.value, always=True)
        self.show_hint()

    def config(self) -> RunConfig:
        """Reads the controls."""
        plan, lr, epsilon = self._config.plan, self.lr.value, finite_or_none(self.epsilon.value)
        if isinstance(plan.lr, Mapping):
            lr = {side: rate * lr / plan.rate("B") for side, rate in plan.lr.items()}
        plan = plan.replace(rounds=self.rounds.value, lr=lr)
        new: Any = {"method": self.method.value, "plan": plan, "epsilon": epsilon}
        return replace(self._config, **new, seed=int(self.seed.value))
