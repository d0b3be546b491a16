"""Everything that fixes a run, as one value: it opens the run, and it writes the cell that repeats it."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from fedlora_lab import methods, tasks
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.privacy import Privacy

if TYPE_CHECKING:
    from fedlora_lab.method import Method
    from fedlora_lab.tasks import Task


@dataclass(frozen=True)
class Recipe:
    """A task, a method, a plan and a promise.

    Args: epsilon: to calibrate ``privacy`` for; ``None`` trains without privacy.
    Guarantees: running the text of `cell` gives the frame of `events` (test_the_cell_repeats_the_run).
    """

    task: "Task"
    method: "Method"
    plan: Plan
    privacy: Privacy
    epsilon: float | None
    lora: Lora
    seed: int

    def events(self) -> Iterator[Any]:
        """The run: a tick after every local step, a record after every round."""
        from fedlora_lab import loop  # slow to import

        noise = None
        if self.epsilon is not None:
            noise = self.privacy.calibrate(epsilon=self.epsilon, task=self.task, plan=self.plan)
        return loop.ticks(self.task, self.method, noise, self.plan, lora=self.lora, seed=self.seed)

    def cell(self) -> str:
        """The code cell that repeats the run."""
        known = self.method in methods.ALL.values()
        privacy = "None"
        if self.epsilon is not None:
            words = _arguments(_changed(self.privacy, keep=("unit", "clip_norm", "delta")))
            privacy = (
                f"fl.Privacy({words})\nprivacy = privacy.calibrate(epsilon={self.epsilon:g}, task=task, plan=plan)"
            )
        plan = _arguments(_changed(self.plan, keep=("rounds", "local_steps", "batch", "lr")))
        lora = _arguments(_changed(self.lora, keep=("rank", "alpha")))
        lines = [
            "import fedlora_lab as fl",
            "",
            f"task = {_task(self.task.info)}",
            f"method = {self.method.slug!r}" if known else f"method = ...  # your row {self.method.name!r}",
            f"plan = fl.Plan({plan})",
            f"privacy = {privacy}",
            f"lora = fl.Lora({lora})",
            f"records = list(fl.run(task, method, privacy, plan, lora=lora, seed={self.seed}))",
            "frame = fl.to_frame(records)",
        ]
        return "\n".join(lines)


def _arguments(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in values.items())


def _changed(record: Any, keep: tuple[str, ...]) -> dict[str, Any]:
    """Fields of a dataclass that differ from their defaults, and those to keep in any case."""
    plain, found = type(record)(), {}
    for field in fields(record):
        value = getattr(record, field.name)
        if field.name in keep or value != getattr(plain, field.name):
            found[field.name] = dict(value) if isinstance(value, Mapping) else value
    return found


def _task(info: Mapping[str, Any]) -> str:
    """The call that builds an embedded task, without the options that have their default."""
    if "arguments" not in info:
        return "...  # your task"
    kinds = inspect.signature(getattr(tasks, info["task"])).parameters
    plain = {k: list(p.default) if isinstance(p.default, tuple) else p.default for k, p in kinds.items()}
    options = {k for k, p in kinds.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    named = {k: v for k, v in info["arguments"].items() if k not in options or v != plain[k]}
    return f"fl.tasks.{info['task']}({_arguments(named)})"
