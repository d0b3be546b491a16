"""What every party of a federation holds: the terms, the frozen model, the public examples; nobody's private ones."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fedlora_lab import agreement, engine, local
from fedlora_lab.agreement import Agreement
from fedlora_lab.checks import check
from fedlora_lab.method import Global, Method
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.tasks.task import Examples, Task


def stand_ins(sizes: tuple[int, ...], test: Examples) -> tuple[Examples, ...]:
    """As many examples as each client has, all zero, shaped like the public ones; they take no memory.

    How many examples a client has is taken as public: it decides the client's sample rate, which the ledger holds.
    """

    def zeros(tensor: Tensor, count: int) -> Tensor:
        return tensor.new_zeros(()).expand(count, *tensor.shape[1:])

    x, y = test
    return tuple(
        ({k: zeros(v, n) for k, v in x.items()} if isinstance(x, Mapping) else zeros(x, n), zeros(y, n)) for n in sizes
    )


def public(task: Task) -> Task:
    """The task without its clients' examples: what the server holds, and every client beside its own data."""
    return replace(task, clients=stand_ins(task.sizes, task.test))


@dataclass(frozen=True)
class Party:
    """The terms that server and clients agree on, and the adapted model that goes with them.

    Args:
        asked: with a public task.
        setting: of the engine; it holds no examples.
        begin: the server's tensors before training, for their names, shapes and types.
        terms: a digest of everything that must be the same for all; seed, privacy and base model included.
    """

    asked: Agreement
    setting: engine.Setting
    begin: Global
    terms: str

    @classmethod
    def of(
        cls,
        task: Task,
        method: "Method | str",
        privacy: Privacy | None,
        plan: Plan,
        *,
        lora: Lora | None = None,
        seed: int | None = 0,
    ) -> "Party":
        """Check the terms and prepare the model. The examples of the task's clients are not looked at.

        Raises: ``ValueError`` (name, value, range), also for trust="central": clients of this engine clip and noise
            for themselves, and no un-noised value reaches the server.
        """
        trust = None if privacy is None else privacy.trust
        check(
            trust != "central", "trust", trust, "'local' or 'secagg': on Flower clients clip and noise for themselves"
        )
        asked = agreement.agreed(public(task), method, privacy, plan, lora, seed)
        setting = local.prepared(asked, {})
        server = local.opening(asked, setting)
        slots = {str(slot): [list(x.shape), str(x.dtype)] for slot, x in server.tensors.items()}
        rules = [getattr(rule, "__qualname__", repr(rule)) for rule in (task.forward, task.loss)]
        work = {"slots": slots, "targets": task.targets, "head": task.head, "rules": rules, "rounds": plan.rounds}
        return cls(asked, setting, server, _digest({**asked.settings(), **work}))

    def with_data(self, client: int, data: Examples) -> engine.Setting:
        """The engine's setting of one client: its own examples and nobody else's.

        Raises: ``ValueError`` unless there are as many as the terms say, of the types and shapes of the public ones;
            no value of theirs is named.
        """
        sizes = self.asked.task.sizes
        check(0 <= client < len(sizes), "client", client, f"a number in [0, {len(sizes) - 1}]")
        if len(data[1]) != sizes[client]:
            raise ValueError(f"examples: expected {sizes[client]}, as agreed for client {client}")
        if _kinds(data) != _kinds(self.asked.task.test):
            raise ValueError("examples: expected inputs and labels of the types and shapes of the public test examples")
        return replace(self.setting, data={client: data})


def _kinds(data: Examples) -> dict[str, tuple[Any, ...]]:
    """Type and shape of each tensor of some examples, without their number."""
    x, y = data
    parts = {f"x.{key}": value for key, value in x.items()} if isinstance(x, Mapping) else {"x": x}
    return {name: (value.dtype, value.shape[1:]) for name, value in {**parts, "y": y}.items()}


def _digest(parts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
