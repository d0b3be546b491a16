"""Flower's simulation engine: every client is a virtual node, Ray's processes play them."""

import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context

from fedlora_lab.checks import check_whole
from fedlora_lab.flower.client import client_app
from fedlora_lab.flower.party import Party
from fedlora_lab.flower.server import open_run, server_app
from fedlora_lab.method import Method
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.record import Round
from fedlora_lab.tasks.task import Examples, Task

_HELD: dict[str, Party] = {}
"""The terms that this process plays by; the last ones only."""


@dataclass(frozen=True)
class Everyone:
    """Who is who in a simulation: the node's partition is the client's number, and picks its examples."""

    key: str
    task: Task
    terms: tuple[Any, ...]

    def party(self) -> Party:
        """The terms, prepared once in a process."""
        if self.key not in _HELD:
            method, privacy, plan, lora, seed = self.terms
            _HELD.clear()
            _HELD[self.key] = Party.of(self.task, method, privacy, plan, lora=lora, seed=seed)
        return _HELD[self.key]

    def __call__(self, context: Context) -> tuple[Party, int, Examples]:
        number = int(context.node_config["partition-id"])
        return self.party(), number, self.task.clients[number]


def everyone(
    task: Task, method: "Method | str", privacy: Privacy | None, plan: Plan, lora: Lora | None, seed: int | None
) -> Everyone:
    """The parties of a simulation."""
    return Everyone(secrets.token_hex(8), task, (method, privacy, plan, lora, seed))


def simulate(
    task: Task,
    method: "Method | str",
    privacy: Privacy | None,
    plan: Plan,
    *,
    lora: Lora | None = None,
    seed: int | None = 0,
    checkpoint: "str | Path | None" = None,
    resume: "str | Path | None" = None,
    workers: int | None = None,
    each: "Callable[[Round], None] | None" = None,
    **waiting: float,
) -> list[Round]:
    """Train as `run` does, through Flower's simulation engine; the records of all rounds.

    Args:
        workers: processes that play the clients; default: as many as there are processors, at most one a client.
        each: called with every record as soon as it is there.
        waiting: ``timeout`` and ``patience`` of `server.rounds`.

    With trust="secagg" the server of the simulation stands for the protocol of secure aggregation: single uploads,
    which hold a share of the noise only, are seen by nothing but the sum over them.

    Raises: ``ValueError`` (name, value, range) before anything is started.
    Guarantees: tests/test_flower_simulation.py::test_the_simulation_engine_gives_the_run_of_the_loop.
    """
    who, records = everyone(task, method, privacy, plan, lora, seed), []
    party = who.party()
    run = open_run(party, checkpoint=checkpoint, resume=resume)
    workers = min(os.cpu_count() or 1, len(task.sizes)) if workers is None else workers
    check_whole("workers", workers, 1)

    def keep(record: Round) -> None:
        records.append(record)
        if each is not None:
            each(record)

    from flwr.simulation import run_simulation  # loads Ray, which a deployment does without

    init: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False, "log_to_driver": False}
    logging.getLogger("flwr").setLevel(logging.ERROR)
    run_simulation(
        server_app(lambda context: (party, run), keep, **waiting),
        client_app(who),
        num_supernodes=len(task.sizes),
        backend_config={"init_args": init, "client_resources": {"num_cpus": 1}},  # type: ignore[dict-item]
    )
    return records
