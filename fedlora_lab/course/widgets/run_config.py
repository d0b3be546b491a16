"""Configures a run in a widget: its settings, their controls, and forecasts before it starts."""

import inspect
import math
import tomllib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora_lab import methods, tasks
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.experiments.tuned_rates import Suggestion, rates, suggest_lr, suggestion
from fedlora_lab.methods.optimizers import OPTIMIZERS, SERVER_OPTIMIZERS, Optimizer
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.quantization import bytes_text
from fedlora_lab.privacy.accounting import clt_noise_multiplier
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    from fedlora_lab.methods.method import Method

TABLE = Path(__file__).with_name("knobs.toml")
ADAPTIVE_RATE = 0.01  # a usual first rate of optimisers that rescale gradients; none was tuned
TOO_NOISY = 8  # times the rate that public numbers suggest; where it was tuned, at most six times


def drop_calibration(privacy: Privacy | None) -> Privacy:
    """Drops what a calibration for another ε would replace."""
    return (privacy or Privacy()).replace(noise_multiplier=None, sample_rate=None, target=None)


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run; ``epsilon=None`` trains without privacy.

    Guarantees: the text of `cell` gives the frame of `events` (test_the_cell_repeats_the_run).
    """

    task: Task
    method: "Method"
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

    def events(self) -> Generator[Any, None, None]:
        """Runs it: yields a tick after every local step, a record after every round."""
        from fedlora_lab.federated.run import ticks  # slow to import

        task, plan, privacy = self.task, self.plan, None
        if self.epsilon is not None:
            privacy = self.privacy.calibrate(epsilon=self.epsilon, task=task, plan=plan)
        return ticks(task, self.method, privacy, plan, lora=self.lora, seed=self.seed)

    def likely_privacy(self) -> Privacy | None:
        """Estimates the calibrated privacy at once, by the central limit; ``None`` without privacy.

        It is known at once, where a calibration takes seconds. ``None`` without privacy.
        """
        if self.epsilon is None:
            return None
        some = self.privacy.replace(noise_multiplier=1.0).resolve(self.task, self.plan)
        steps = self.plan.rounds * (self.plan.local_steps if some.by_step else 1)
        rate: Any = some.sample_rate
        known = {
            q: clt_noise_multiplier(self.epsilon, some.delta, q, steps)
            for q in {*(rate if isinstance(rate, tuple) else (rate,))}
        }
        sigma = tuple(known[q] for q in rate) if isinstance(rate, tuple) else known[rate]
        return some.replace(noise_multiplier=sigma)

    def suggestion(self) -> Suggestion:
        """The learning rate suggested for method, ε and unit, with plain gradient descent."""
        plan, unit = self.plan, self.privacy.unit
        if plan.optimizer.nonlinear:
            words = f"a usual first rate with {plan.optimizer.name}; none was tuned with it"
            return Suggestion(ADAPTIVE_RATE, words, False)
        tuned = suggestion(self.task, self.method, self.epsilon, unit)
        try:
            privacy = self.likely_privacy() if unit == "example" else None
            if privacy is None:
                return tuned
            found = suggest_lr(self.task, self.method, privacy, plan, self.lora).lr
        except ValueError:
            return tuned
        if self.task.name not in rates():
            words = f"from public numbers, nothing was tuned on {self.task.name}"
        elif found < tuned.lr / TOO_NOISY:
            words = f"from public numbers: {tuned.lr:g} was tuned under less noise"
        else:
            return tuned
        return Suggestion(float(f"{found:.2g}"), words, False)

    def with_rate(self, lr: float) -> "RunConfig":
        """The same run at another learning rate of B; A's keeps its ratio to it."""
        old, plan = self.plan.lr, self.plan
        if isinstance(old, Mapping):
            ratio = lr / (plan.rate("B") or 1.0)
            return replace(self, plan=plan.replace(lr={k: v * ratio for k, v in old.items()}))
        return replace(self, plan=plan.replace(lr=lr))

    def facts(self) -> list[tuple[str, str]]:
        """Numbers known before the run: sigma, sample rate, noise against signal, bytes.

        Raises: ``ValueError`` for a run that could not begin.
        Guarantees: test_live_run.py::test_the_numbers_before_start_are_those_of_the_run.
        """
        from fedlora_lab.federated.amplification import forecast_of  # slow to import
        from fedlora_lab.federated.spec import make_run_spec

        privacy = self.likely_privacy()
        spec = make_run_spec(self.task, self.method, privacy, self.plan, self.lora, self.seed)
        sigma, rate, ratio, taken = "no noise", "–", "0", "none"
        once = "step" if self.privacy.by_step else "round"
        if privacy is not None:
            forecast = forecast_of(spec)
            unknown, ratio = forecast.unknown, f"≥ {_round(forecast.noise_to_signal())}"
            sigma, rate = f"≈ {_range(privacy.noise_multiplier)}", _range(privacy.sample_rate)
            rho = 0.0 if unknown else forecast.over_run().mean
            taken = f"{_round(rho)} × A's energy" if rho else "none: A rests"
            taken = f"not known: {unknown}" if unknown else taken
        up, down = _bytes(self.task, self.method, self.lora, self.plan.local_steps)
        clients = self.plan.participation * len(self.task.clients)
        sent, back = bytes_text(clients * up), bytes_text(clients * down)
        sent = f"{sent} each way" if sent == back else f"{sent} up, {back} down"
        return [
            ("noise multiplier σ", sigma),
            (f"sample rate of a {once}", rate),
            (f"noise / signal of a {once}", ratio),
            ("noise that A takes up, ρ", taken),
            ("sent in a round", sent),
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

task = {_task_call(self.task.info)}
method = {method}
plan = {_call(self.plan, "rounds", "local_steps", "batch", "lr")}
privacy = {privacy}
lora = {_call(self.lora, "rank", "alpha")}
records = list(fl.run(task, method, privacy, plan, lora=lora, seed={self.seed}))
frame = fl.to_frame(records)"""

    def method_row(self) -> str:
        """Writes the method's row: its fields as `fl.methods.table` names them."""
        table = methods.table([self.method]).drop(columns=["up", "down", "deviation"])
        lines = [f"{name}: {value}" for name, value in table.iloc[0].items() if value != ""]
        return "\n".join(lines)


def _round(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


def _range(values: Any) -> str:
    """Formats one number, or the least and the largest over clients."""
    every = values if isinstance(values, tuple) else (values,)
    some = sorted({f"{v:.2f}" for v in every}, key=float)
    return some[0] if len(some) == 1 else f"{some[0]} to {some[-1]}"


@lru_cache(maxsize=32)
def _counted(model: Any, targets: Any, head: Any, method: Any, lora: Any, steps: int, task: Any):
    from fedlora_lab.federated.uploads import bytes_of_round  # slow to import

    try:
        return bytes_of_round(task.value, method, lora, Plan(local_steps=steps))
    except ValueError:  # targets that do not fit, say
        return math.nan, math.nan


@dataclass(frozen=True)
class _Unhashed:
    """A value that takes no part in a cache's key."""

    value: Any = field(compare=False, hash=False)


def _bytes(task: Task, method: "Method", lora: Lora, steps: int) -> tuple[float, float]:
    """Counts bytes of one client in a round, up and down."""
    key = task.model, task.targets, task.head, method, lora, steps
    return _counted(*key, _Unhashed(task))


def _arguments(values: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        return _call(value) if isinstance(value, Optimizer) else repr(value)

    return ", ".join(f"{key}={text(value)}" for key, value in values.items())


def _call(record: Any, *always: str) -> str:
    """Writes the call that makes a dataclass: fields off their defaults, and those ``always``."""
    default, written = type(record)(), {}
    for one in fields(record):
        value = getattr(record, one.name)
        if one.name in always or value != getattr(default, one.name):
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


GROUP_HEADINGS = {
    "step": "Step",
    "privacy": "Privacy",
    "federation": "Federation",
    "adapter": "Adapter",
    "work": "Work",
}
"""Group of knobs -> its heading; knobs of no group stand first."""


# Knobs: each reads its text from a configuration, and writes a text into one


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
    read: Callable[[RunConfig], str]
    write: Callable[[RunConfig, str], RunConfig]


def text_of(value: Any, nothing: str = "∞") -> str:
    """Formats a knob's value as text."""
    if value is None:
        return nothing
    return f"{value:.12g}" if isinstance(value, float) else str(getattr(value, "slug", value))


def _number(kind: type, nothing: str | None = None, most: float = 1e9) -> Callable[[str], Any]:
    """Returns a reader of numbers up to ``most``; the word ``nothing`` is ``None``."""

    def read(text: str) -> Any:
        if nothing is not None and text.lower() in {nothing, "none", "∞", "inf"}:
            return None
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        words = "a whole number" if kind is int else "a number"
        words += f" or {nothing}" if nothing else ""
        check(abs(value) <= most, "typed", text, f"{words}, at most {most:g}")
        return value

    return read


def _field(path: str, kind: Callable[[str], Any], nothing: str = "none") -> Any:
    """Makes ``read`` and ``write`` of a field such as "seed" or "plan.rounds"."""
    owner, _, name = path.rpartition(".")

    def read(config: RunConfig) -> str:
        return text_of(attrgetter(path)(config), nothing)

    def write(config: RunConfig, text: str) -> RunConfig:
        part: Any = getattr(config, owner) if owner else config
        change = part.replace if hasattr(part, "replace") else partial(replace, part)
        changed = change(**{name: kind(text)})
        return replace(config, **{owner: changed}) if owner else changed

    return read, write


def _deal(argument: str, kind: Callable[[str], Any], nothing: str = "none") -> Any:
    """Makes ``read`` and ``write`` of how the task deals its data to clients."""

    def write(config: RunConfig, text: str) -> RunConfig:
        old, value = config.task, kind(text)
        if value == old.info["arguments"][argument]:
            return config
        dealt = tasks.build(old.info["task"], **{**old.info["arguments"], argument: value})
        kept = {name: getattr(old, name) for name in ("model", "loss", "metrics", "public_test")}
        return replace(config, task=replace(dealt, **kept))

    return lambda config: text_of(config.task.info["arguments"][argument], nothing), write


def _read_ratio(config: RunConfig) -> str:
    base = config.plan.rate("B")
    return f"{config.plan.rate('A') / base if base else 1.0:.6g}"


def _write_ratio(config: RunConfig, text: str) -> RunConfig:
    ratio, base, old = _number(float)(text), config.plan.rate("B"), config.plan.lr
    if ratio == 1 and not isinstance(old, Mapping):
        return config
    apart = {**(old if isinstance(old, Mapping) else {"B": base}), "A": ratio * base}
    return replace(config, plan=config.plan.replace(lr=apart))


def knobs(first: RunConfig, rows: "Mapping[str, Method]") -> dict[str, Knob]:
    """Returns the knobs of a task, by key, as they stand on the page.

    Args: first: the configuration at first; rows: slug -> method on offer.
    """

    def choose(config: RunConfig, text: str) -> RunConfig:
        return replace(config, method=rows[text] if text in rows else methods.get(text))

    whole, real = _number(int), _number(float)
    access: dict[str, Any] = {
        "method": (lambda config: config.method.slug, choose),
        "epsilon": _field("epsilon", _number(float, "∞"), "∞"),
        "lr": (
            lambda config: text_of(float(config.plan.rate("B"))),
            lambda config, text: config.with_rate(real(text)),
        ),
        "lr_ratio": (_read_ratio, _write_ratio),
        "rounds": _field("plan.rounds", whole),
        "seed": _field("seed", whole),
        "batch": _field("plan.batch", _number(int, "all"), "all"),
        "local_steps": _field("plan.local_steps", whole),
        "rank": _field("lora.rank", _number(int, most=1024)),
        "alpha": _field("lora.alpha", real),
    }
    access |= {name: _field(f"privacy.{name}", str) for name in ("unit", "trust")}
    access |= {name: _field(f"privacy.{name}", real) for name in ("clip_norm", "delta")}
    access |= {name: _field(f"plan.{name}", str) for name in ("optimizer", "server_optimizer")}
    access |= {name: _field(f"plan.{name}", real) for name in ("server_lr", "participation")}
    dealt = first.task.info.get("arguments", {})
    if "shares" not in dealt:
        kinds = {"clients": whole, "alpha": _number(float, "∞"), "heterogeneity": real}
        names = {"alpha": "beta"}
        for name in kinds.keys() & dealt.keys():
            access[names.get(name, name)] = _deal(name, kinds[name], "∞")
    options = {
        "method": [(slug, row.name) for slug, row in rows.items()],
        "optimizer": [*OPTIMIZERS],
        "server_optimizer": [*SERVER_OPTIMIZERS],
    }
    return {
        key: Knob(key, _page(page, options.get(key, [])), *access[key])
        for key, page in tomllib.loads(TABLE.read_text(encoding="utf-8")).items()
        if key in access
    }


def _page(page: dict[str, Any], options: list[Any]) -> dict[str, Any]:
    """Completes a row of knobs.toml with its options, or the stops of its slider."""
    if "options" in page:
        every = [(x, x) if isinstance(x, str) else x for x in [*page["options"], *options]]
        return {**page, "options": every}
    if "low" not in page:
        return page
    low, high = page["low"], page["high"]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    stops = [s * 10.0**p for p in powers for s in (1, 1.5, 2, 3, 4, 5, 7)]
    whole = all(isinstance(x, int) for x in (low, high))
    inside = [v for v in stops if low <= v * (1 + 1e-9) and v <= high * (1 + 1e-9)]
    texts = dict.fromkeys(f"{v:.6g}" for v in inside if not whole or v == int(v))
    return {**page, "values": [*texts, *([page["end"]] if "end" in page else [])]}


# Settings to click

BREAKS = {"unit": "client", "clients": "100", "participation": "0.2", "epsilon": "3"}
BREAKS |= {"rounds": "40", "clip_norm": "1", "delta": "0.001", "local_steps": "5", "lr_ratio": "1"}
BREAKS |= {"optimizer": "sgd"}
"""Where a method that moves both factors ends below its start."""
