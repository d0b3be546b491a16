"""Configures a run in a widget: its settings, their controls, and what is known before Start."""

import inspect
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedlora_lab import methods, tasks
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.optimizers import Optimizer
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.recipes.tuned_rates import OUTPUT_VARIANCE, carry_over, suggest_lr
from fedlora_lab.report import bytes_text
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    from fedlora_lab.federated.config import Config

TABLE = Path(__file__).with_name("knobs.toml")
ADAPTIVE_RATE = 0.01  # a usual first rate of optimisers that rescale gradients; none was tuned
ON_OUTPUTS = f"noise on an output, v; predicted end of the range: {OUTPUT_VARIANCE}"
Facts = list[tuple[str, str]]
"""Terms and what is known of them before a run."""


class Suggestion(NamedTuple):
    """A learning rate of B, and where it comes from; where A has another, it keeps its ratio."""

    lr: float
    origin: str


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run; ``epsilon=None`` trains without privacy.

    Guarantees: the text of `cell` makes the same plans and task (test_the_cell_is_complete).
    """

    task: Task
    method: Method
    plan: Plan
    privacy: Privacy
    epsilon: float | None
    lora: Lora = field(default_factory=Lora)
    seed: int = 0

    def __post_init__(self) -> None:
        check(isinstance(self.task, Task), "task", self.task, "a task of fl.tasks")
        check_whole("plan.rounds", self.plan.rounds, 1, 1000)
        check_whole("seed", self.seed, 0, 2**31 - 1)
        if self.epsilon is not None:
            check_number("epsilon", self.epsilon, 0, 1e6, open_low=True)

    def calibrated(self) -> Privacy | None:
        """Calibrates the noise for the chosen ε and the plan that runs; ``None`` without privacy.

        The library remembers calibrations, so Start does not wait for what was shown before it.
        """
        if self.epsilon is None:
            return None
        return self.privacy.calibrate(epsilon=self.epsilon, task=self.task, plan=self.plan)

    def checked(self) -> "Config":
        """The checked arguments of the run. Raises ``ValueError`` for one that could not begin."""
        from fedlora_lab.federated.make_config import make_config  # slow to import

        privacy = self.calibrated()
        return make_config(self.task, self.method, privacy, self.plan, self.lora, self.seed)

    def suggestion(self) -> Suggestion:
        """Suggests a learning rate from public numbers: no run was looked at for it.

        Of single examples it is the one at which the noise can be borne, see `fl.suggest_lr`. In
        the other units noise does not depend on the rate, and without privacy there is none.
        """
        plan = self.plan
        if plan.optimizer.nonlinear:
            source = f"a usual first rate with {plan.optimizer.name}; none was tuned with it"
            return Suggestion(ADAPTIVE_RATE, source)
        usual = carry_over(Plan().rate("B"), self.lora, by_clip=False)
        default = Suggestion(float(f"{usual:.2g}"), "a usual first rate; no noise depends on it")
        if self.epsilon is None or not self.privacy.releases_steps:
            return default
        try:
            privacy = self.calibrated()
            assert privacy is not None  # as ε is a number
            found = suggest_lr(self.task, self.method, privacy, plan, self.lora)
        except ValueError:  # a run that cannot begin, which its facts say, or a row that rests B
            return default._replace(origin="a usual first rate; public numbers suggest none here")
        return Suggestion(float(f"{found.lr:.2g}"), "from public numbers, by fl.suggest_lr")

    def with_rate(self, lr: float) -> "RunConfig":
        """Returns the same run at another learning rate of B; A's keeps its ratio to it."""
        changed: Any = lr
        if isinstance(self.plan.lr, Mapping):
            ratio = lr / (self.plan.rate("B") or 1.0)
            changed = {side: rate * ratio for side, rate in self.plan.lr.items()}
        return replace(self, plan=self.plan.replace(lr=changed))

    def facts(self) -> Facts:
        """Returns numbers known before the run: σ, sample rate, ρ, v and bytes.

        Raises: ``ValueError`` for a run that could not begin.
        Guarantees: test_live_run.py::test_the_numbers_before_start_are_those_of_the_run.
        """
        from fedlora_lab.federated.exchange import bytes_of_round
        from fedlora_lab.federated.noise_forecast import forecast_of  # slow to import

        config = self.checked()
        privacy = self.calibrated()
        sigma = "no noise"
        rate = "–"
        taken_up = "none"
        on_outputs = "none"
        if privacy is not None:
            sigma = _range(privacy.noise_multiplier)
            rate = _range(privacy.sample_rate)
            forecast = forecast_of(config)
            if forecast.unknown:
                taken_up = f"not known: {forecast.unknown}"
            else:
                rho = forecast.mean()
                taken_up = f"{_round(rho)} × A's energy" if rho else "none: A is frozen"
            variance = float(forecast.output_variance_by_round()[-1])
            on_outputs = _round(variance)
            if forecast.unknown_on_outputs:
                on_outputs = f"not known: {forecast.unknown_on_outputs}"
        try:
            up, down = bytes_of_round(config)
        except ValueError:  # targets that do not fit, say
            up = down = math.nan
        clients = self.plan.participation * len(self.task.clients)
        sent = bytes_text(clients * up)
        received = bytes_text(clients * down)
        once = "step" if self.privacy.releases_steps else "round"
        return [
            ("noise multiplier σ", sigma),
            (f"sample rate of a {once}", rate),
            ("noise that A takes up, ρ", taken_up),
            (ON_OUTPUTS, on_outputs),
            (
                "sent in a round",
                f"{sent} each way" if up == down else f"{sent} up, {received} down",
            ),
        ]

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

task = {_task_call(self.task)}
method = {method}
plan = {_call(self.plan, "rounds", "local_steps", "batch", "lr")}
privacy = {privacy}
lora = {_call(self.lora, "rank", "alpha")}
records = list(fl.run(task, method, privacy, plan, lora=lora, seed={self.seed}))
frame = fl.to_frame(records)"""


def _round(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


def _range(values: "float | tuple[float, ...] | None") -> str:
    """Formats one number, or the least and the largest over clients."""
    every = values if isinstance(values, tuple) else (values,)
    texts = sorted({f"{value:.3g}" for value in every}, key=float)
    return texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"


def _arguments(values: Mapping[str, Any]) -> str:
    def text(value: object) -> str:
        return _call(value) if isinstance(value, Optimizer) else repr(value)

    return ", ".join(f"{key}={text(value)}" for key, value in values.items())


def _call(record: Any, *always: str) -> str:
    """Writes the call that makes a dataclass: fields off their defaults, and those ``always``."""
    default = type(record)()
    written = {}
    for attribute in fields(record):
        name = attribute.name
        value = getattr(record, name)
        if name in always or value != getattr(default, name):
            written[name] = dict(value) if isinstance(value, Mapping) else value
    return f"fl.{type(record).__name__}({_arguments(written)})"


def _task_call(task: Task) -> str:
    """Writes the call that builds an embedded task, without options at their defaults."""
    named = dict(task.origin.arguments)
    if not named:
        return "...  # your task"
    for name, kind in inspect.signature(tasks.TASKS[task.name]).parameters.items():
        default = list(kind.default) if isinstance(kind.default, tuple) else kind.default
        if kind.kind is kind.KEYWORD_ONLY and name in named and named[name] == default:
            del named[name]
    return f"fl.tasks.{task.name}({_arguments(named)})"


# ---- knobs: each reads its text from a configuration, and writes a text into one


Read = Callable[[RunConfig], str]
Write = Callable[[RunConfig, str], RunConfig]
Parse = Callable[[str], Any]
GROUP_HEADINGS = {
    "privacy": "Privacy",
    "federation": "Federation",
    "adapter": "Adapter",
    "work": "Work",
}
"""Group of knobs -> its heading; knobs of no group stand first."""


@dataclass(frozen=True)
class Knob:
    """One thing to turn. Its value is a text, so that the reader may type any.

    Args:
        key: its name in code.
        page: how it stands on the page (knobs.toml): group, label, caption; where it has them
            symbol, unit, stops of a slider ("values") or (text, words) of a menu ("options").
        read: configuration -> text.
        write: (configuration, text) -> configuration; raises ``ValueError``.
    """

    key: str
    page: dict[str, Any]
    read: Read
    write: Write


def text_of(value: object, nothing: str = "∞") -> str:
    """Formats a knob's value as text."""
    if value is None:
        return nothing
    return f"{value:.12g}" if isinstance(value, float) else str(getattr(value, "slug", value))


def _number(kind: type, nothing: str | None = None, most: float = 1e9) -> Parse:
    """Returns a reader of numbers up to ``most``; the word ``nothing`` is ``None``."""

    def read(text: str) -> Any:
        if nothing is not None and text.lower() in {nothing, "none", "∞", "inf"}:
            return None
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        expected = "a whole number" if kind is int else "a number"
        expected += f" or {nothing}" if nothing else ""
        check(abs(value) <= most, "typed", text, f"{expected}, at most {most:g}")
        return value

    return read


def _field(path: str, parse: Parse, nothing: str = "none") -> tuple[Read, Write]:
    """Makes ``read`` and ``write`` of a field such as "seed" or "plan.rounds"."""
    owner, _, name = path.rpartition(".")

    def read(config: RunConfig) -> str:
        return text_of(attrgetter(path)(config), nothing)

    def write(config: RunConfig, text: str) -> RunConfig:
        part: Any = getattr(config, owner) if owner else config
        change = part.replace if hasattr(part, "replace") else partial(replace, part)
        changed = change(**{name: parse(text)})
        return replace(config, **{owner: changed}) if owner else changed

    return read, write


def _deal(argument: str, parse: Parse, nothing: str = "none") -> tuple[Read, Write]:
    """Makes ``read`` and ``write`` of how the task deals its data to clients."""

    def read(config: RunConfig) -> str:
        return text_of(config.task.origin.arguments[argument], nothing)

    def write(config: RunConfig, text: str) -> RunConfig:
        task = config.task
        value = parse(text)
        if value == task.origin.arguments[argument]:
            return config
        arguments = {**task.origin.arguments, argument: value}
        dealt = tasks.build(task.name, **arguments)
        # The reader may have changed these, and data that are dealt anew bring the task's own.
        changed = {name: getattr(task, name) for name in ("model", "loss", "metrics")}
        held_out = replace(dealt.held_out, public=task.public_test)
        return replace(config, task=replace(dealt, held_out=held_out, **changed))

    return read, write


def _read_ratio(config: RunConfig) -> str:
    base = config.plan.rate("B")
    return f"{config.plan.rate('A') / base if base else 1.0:.6g}"


def _write_ratio(config: RunConfig, text: str) -> RunConfig:
    ratio = _number(float)(text)
    base = config.plan.rate("B")
    both = config.plan.lr
    if ratio == 1 and not isinstance(both, Mapping):
        return config
    apart = {**(both if isinstance(both, Mapping) else {"B": base}), "A": ratio * base}
    return replace(config, plan=config.plan.replace(lr=apart))


def knobs(first: RunConfig, rows: Mapping[str, Method]) -> dict[str, Knob]:
    """Returns the knobs of a task, by key, as they stand on the page.

    Args: first: the configuration at first; rows: slug -> method on offer.
    """

    def choose(config: RunConfig, text: str) -> RunConfig:
        return replace(config, method=rows[text] if text in rows else methods.get(text))

    integer = _number(int)
    real = _number(float)
    access: dict[str, tuple[Read, Write]] = {
        "method": (lambda config: config.method.slug, choose),
        "epsilon": _field("epsilon", _number(float, "∞"), "∞"),
        "lr": (
            lambda config: text_of(float(config.plan.rate("B"))),
            lambda config, text: config.with_rate(real(text)),
        ),
        "lr_ratio": (_read_ratio, _write_ratio),
        "rounds": _field("plan.rounds", integer),
        "seed": _field("seed", integer),
        "batch": _field("plan.batch", _number(int, "all"), "all"),
        "local_steps": _field("plan.local_steps", integer),
        "participation": _field("plan.participation", real),
        "rank": _field("lora.rank", _number(int, most=1024)),
        "alpha": _field("lora.alpha", real),
        "unit": _field("privacy.unit", str),
        "trust": _field("privacy.trust", str),
        "clip_norm": _field("privacy.clip_norm", real),
        "delta": _field("privacy.delta", real),
    }
    dealt = first.task.origin.arguments
    if "clients" in dealt and "shares" not in dealt:
        access["clients"] = _deal("clients", integer)
        if "dirichlet" in dealt:
            access["beta"] = _deal("dirichlet", _number(float, "∞"), "∞")
    pages = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    pages["method"]["options"] = [(slug, row.name) for slug, row in rows.items()]
    return {
        key: Knob(key, _page(page), *access[key]) for key, page in pages.items() if key in access
    }


def _page(page: dict[str, Any]) -> dict[str, Any]:
    """Completes a row of knobs.toml with the stops of its slider."""
    if "low" not in page:
        return page
    low = page["low"]
    high = page["high"]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    stops = [step * 10.0**power for power in powers for step in (1, 1.5, 2, 3, 4, 5, 7)]
    integers = isinstance(low, int) and isinstance(high, int)
    # The slack keeps an end that floating point puts beside itself.
    inside = [v for v in stops if low <= v * (1 + 1e-9) and v <= high * (1 + 1e-9)]
    texts = dict.fromkeys(f"{v:.6g}" for v in inside if not integers or v == int(v))
    return {**page, "values": [*texts, *([page["end"]] if "end" in page else [])]}
