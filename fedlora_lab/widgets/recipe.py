"""Everything that fixes a run, as one value: it opens the run, and it writes the cell that repeats it."""

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any

from fedlora_lab import loop, methods
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
        noise = None
        if self.epsilon is not None:
            noise = self.privacy.calibrate(epsilon=self.epsilon, task=self.task, plan=self.plan)
        return loop.ticks(self.task, self.method, noise, self.plan, lora=self.lora, seed=self.seed)

    def cell(self) -> str:
        """The code cell that repeats the run."""
        info, known = self.task.info, self.method in methods.ALL.values()
        task = f"fl.tasks.{info['task']}({_arguments(info['arguments'])})" if "arguments" in info else "...  # your task"
        privacy = "None"
        if self.epsilon is not None:
            words = _arguments(_changed(self.privacy, keep=("unit", "clip_norm", "delta")))
            privacy = f"fl.Privacy({words}).calibrate(epsilon={self.epsilon:g}, task=task, plan=plan)"
        plan = _arguments(_changed(self.plan, keep=("rounds", "local_steps", "batch", "lr")))
        lora = _arguments(_changed(self.lora, keep=("rank", "alpha")))
        lines = [
            "import fedlora_lab as fl",
            "",
            f"task = {task}",
            f"method = {self.method.slug!r}" if known else f"method = ...  # your row {self.method.name!r}",
            f"plan = fl.Plan({plan})",
            f"privacy = {privacy}",
            f"records = list(fl.run(task, method, privacy, plan, lora=fl.Lora({lora}), seed={self.seed}))",
            "frame = fl.to_frame(records)",
        ]
        return "\n".join(lines)


def _arguments(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in values.items())


def _changed(record: Any, keep: tuple[str, ...]) -> dict[str, Any]:
    """Fields of a dataclass that differ from their defaults, and those to keep in any case."""
    found = {}
    for field in fields(record):
        value = getattr(record, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.name in keep or value != default:
            found[field.name] = dict(value) if isinstance(value, dict) else value
    return found
