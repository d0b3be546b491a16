"""Flower's simulation engine: every client is a virtual node, Ray's processes play them."""

import logging
import os
import secrets
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Event, Lock, Thread
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from fedlora_lab.checks import check_whole
from fedlora_lab.flower.client import LOG, WHY, client_app
from fedlora_lab.flower.cluster import private_ray
from fedlora_lab.flower.party import Party
from fedlora_lab.flower.quiet import reporting_nothing, saying_nothing
from fedlora_lab.flower.server import kept, open_run, server_app
from fedlora_lab.loop import Federation
from fedlora_lab.method import Method
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.record import Round
from fedlora_lab.tasks.task import Examples, Task

_HELD: dict[str, Party] = {}
"""The terms that this process plays by; the last ones only."""
_ALONE = Lock()
"""A process has one Ray at a time; a second simulation waits for the first to end."""


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


def opened(
    party: Party,
    checkpoint: "str | Path | None" = None,
    resume: "str | Path | None" = None,
    stop_at: float | None = None,
) -> Federation:
    """The server's run where clients are new at every start: it begins anew where they would have kept something."""
    run = open_run(party, checkpoint, resume, stop_at)
    if run.resumed and kept(run):
        run.begin_again()
    return run


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
    stop_at: float | None = None,
    workers: int | None = None,
    **waiting: float,
) -> Iterator[Round]:
    """Train as `run` does, through Flower's simulation engine; yields the records of the rounds.

    The engine works in threads of its own and goes on while a record is looked at. Leaving the iterator stops it after
    the round that it is in.

    Args:
        checkpoint, resume, stop_at: as of `run`. The ledger is on the disk before every round. What clients keep goes
            with their processes: where a method has them keep something, ``resume`` begins anew, and what the folder's
            ledger holds stays spent.
        workers: processes that play the clients; default: as many as there are processors, at most one a client.
        waiting: ``timeout`` and ``patience`` of `server.rounds`.

    With trust="secagg" the server of the simulation stands for the protocol of secure aggregation: single uploads,
    which hold a share of the noise only, are seen by nothing but the sum over them.

    Ray listens on the loopback, to whoever has its token; its files are in a temporary folder of mode 0700, which goes
    with the run. What an error on a client's examples says is not written: its class and its place are.

    Raises: ``ValueError`` (name, value, range) at the call, before anything is started.
    Guarantees: tests/test_flower_simulation.py::test_the_command; spending survives a kill
        (tests/test_attack_spending.py::test_a_killed_simulation_forgets_no_release).
    """
    workers = min(os.cpu_count() or 1, len(task.sizes)) if workers is None else workers
    check_whole("workers", workers, 1)
    who = everyone(task, method, privacy, plan, lora, seed)
    party = who.party()
    run = opened(party, checkpoint, resume, stop_at)
    return _events(lambda each: engine(client_app(who, [placed]), party, run, each, workers, **waiting))


def placed(message: Message, context: Context, call: ClientAppCallable) -> Message:
    """Around every message of a simulation: an error on a client's examples is told by its class and its place.

    The simulator holds all examples, but logs of Ray's processes are no place for them, and are gone after the run. So
    the text, which can hold a label, is written nowhere.

    Guarantees: tests/test_flower_simulation.py::test_a_client_that_hangs_or_raises_is_left_out.
    """
    with saying_nothing(LOG.name):
        try:
            return call(message, context)
        except ValueError as error:
            cause = error.__context__
            if cause is None or not str(error).endswith(WHY):
                raise
            *_, last = traceback.extract_tb(cause.__traceback__)
            place = f"{type(cause).__name__} at {Path(last.filename).name}:{last.lineno}, in {last.name}"
            raise ValueError(str(error).removesuffix(WHY) + place) from None


def engine(
    app: ClientApp, party: Party, run: Federation, each: Callable[[Round], None], workers: int, **waiting: float
) -> None:
    """Flower's simulation of one run with this app for every client, from its start to its end."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    with _ALONE, reporting_nothing(), saying_nothing(), private_ray() as own:
        from flwr.simulation import run_simulation  # loads Ray, which a deployment does without

        init: dict[str, Any] = {"num_cpus": workers, **quiet, **own}
        run_simulation(
            server_app(lambda context: (party, run), each, **waiting),
            app,
            num_supernodes=len(party.asked.task.sizes),
            backend_config={"init_args": init, "client_resources": {"num_cpus": 1}},  # type: ignore[dict-item]
        )


class _Left(Exception):
    """Nobody looks at the records any more."""


def _events(play: Callable[[Callable[[Round], None]], None]) -> Iterator[Round]:
    """What ``play`` hands to its argument, as an iterator; its error is raised at the end."""
    found: Queue[Round | BaseException | None] = Queue()
    left = Event()

    def each(record: Round) -> None:
        if left.is_set():
            raise _Left
        found.put(record)

    def work() -> None:
        try:
            play(each)
            found.put(None)
        except BaseException as error:
            found.put(error)

    thread = Thread(target=work, name="flower")
    thread.start()
    try:
        while isinstance(event := found.get(), Round):
            yield event
        if event is not None:
            raise event
    finally:
        left.set()
        thread.join()
