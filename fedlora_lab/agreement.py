"""What a run was asked for, checked together before anything is trained; and what its checkpoints must agree on."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from fedlora_lab import catalogue, checkpoint, methods
from fedlora_lab.checks import check, check_whole
from fedlora_lab.mechanism import uncertified
from fedlora_lab.method import Method
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.streams import Streams
from fedlora_lab.tasks.task import Task


class Agreement(NamedTuple):
    """Everything that decides a run's numbers, each part valid and all of them fitting together."""

    task: Task
    method: Method
    privacy: Privacy | None
    plan: Plan
    lora: Lora
    streams: Streams

    def settings(self) -> dict[str, Any]:
        """What a checkpoint must agree on with the run that goes on from it, as JSON values."""
        row = {name: catalogue.rule_name(getattr(self.method, name)) for name in Method.__dataclass_fields__}
        plan = {key: value for key, value in asdict(self.plan).items() if key != "rounds"}
        parts = {"method": row, "plan": plan, "lora": asdict(self.lora), "seed": self.streams.seed}
        # what it was calibrated for changes nothing that is released: a longer run goes on with replace(target=None)
        promise = {} if self.privacy is None else asdict(self.privacy)
        promised = {key: value for key, value in promise.items() if key not in ("target", "releases")}
        parts["privacy"] = None if self.privacy is None else promised
        parts["task"] = self.task.fingerprint
        return json.loads(json.dumps(parts, default=str))

    def entry(self, ids: tuple[int, ...] | None) -> dict[str, Any]:
        """How often these clients release in a round of a private run, and under how much noise."""
        assert self.privacy is not None
        steps = self.plan.local_steps if self.privacy.unit == "example" else 1
        return {"count": steps, **self.privacy.entry(ids)}


def agreed(
    task: Task, method: "Method | str", privacy: Privacy | None, plan: Plan, lora: Lora | None, seed: int | None
) -> Agreement:
    """The parts of a run, checked one by one and against each other.

    Raises: ``ValueError`` (name, value, range).
    """
    parts: Mapping[str, tuple[Any, Any]] = {
        "task": (task, Task),
        "privacy": (privacy, Privacy | None),
        "plan": (plan, Plan),
        "lora": (lora, Lora | None),
    }
    for name, (value, kind) in parts.items():
        check(isinstance(value, kind), name, value, f"a {name.capitalize()}")
    row, streams = methods.get(method), Streams(seed)
    for t in range(min(plan.rounds, 100)):
        row.moved(t, plan.local_steps)  # a schedule that gives no factor is refused here, not in round t
    uncertified(row.whiten)
    held = None if lora is None else lora.ranks
    check(held is None or len(held) == len(task.sizes), "ranks", held, f"one for each of {len(task.sizes)} clients")
    if privacy is not None:
        privacy = privacy.resolve(task, plan)
        even = privacy.unit == "example" or plan.weights == "uniform"
        check(even, "weights", plan.weights, "'uniform' in the client unit: sizes would set the sensitivity")
    return Agreement(task, row, privacy, plan, lora or Lora(), streams)


def folder(save: "str | Path | None", resume: "str | Path | None", asked: Agreement) -> Path | None:
    """Where checkpoints go; ``None``: nowhere. A folder that holds another run is refused, it would be lost.

    A release goes on in its own folder only: of a branch elsewhere that folder's ledger would know nothing, nor would
    the branch's ledger know how this run went on.
    """
    for name, value in (("checkpoint", save), ("resume", resume)):
        check(value is None or isinstance(value, (str, Path)), name, value, "a folder's path or None")
        check(not value or not Path(value).is_file(), name, value, "a folder, not a file")
    if not save:
        return Path(resume) if resume else None
    save = Path(save)
    same = bool(resume) and Path(resume or "").resolve() == save.resolve()
    branch = bool(resume) and not same and asked.privacy is not None and asked.streams.seed is None
    check(not branch, "checkpoint", str(save), f"{str(resume)!r}: a release (seed=None) goes on in its own folder")
    free = same or not (any(checkpoint.rounds_in(save)) or (save / checkpoint.LEDGER).exists())
    check(free, "checkpoint", str(save), "a folder without rounds of another run; resume= goes on from them")
    return save


def chunks(**sizes: int | None) -> None:
    """Refuse chunk sizes that are neither ``None`` nor a whole number >= 1."""
    for name, value in sizes.items():
        if value is not None:
            check_whole(name, value, 1)
