"""Clients of a simulation: in this process, or as virtual nodes of Flower's engine on Ray."""

import logging
import os
import secrets
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from threading import Event, Lock
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

import fedlora_lab as fl
from fedlora_lab._utils.environment import mute_logger, telemetry_off
from fedlora_lab._utils.validation import check_whole
from fedlora_lab.federated.records import Round
from fedlora_lab.federated.run import Run
from fedlora_lab.flower.client import LOG, WHY, Participant, client_app
from fedlora_lab.flower.server import Stopped, clients_kept_state, open_run, rounds
from fedlora_lab.tasks.task import Task

RUN = 1
SERVER = 1
FAILED = 2


class InProcessGrid(Grid):
    """A Flower grid without Ray, sockets or threads, for notebooks and tests.

    A client that raises is answered for with an error, as by Flower. Nothing is timed.

    Args:
        app: of every client.
        clients: how many nodes there are; node n + 1000 has the partition n.
        seen: called with every message, the server's and the clients', as read from the wire.
    """

    def __init__(
        self, app: ClientApp, clients: int, seen: "Callable[[Message], None] | None" = None
    ) -> None:
        # A message takes its sender from the process that makes it, which here is the server's.
        TaskIdentity.run_id = RUN
        TaskIdentity.node_id = SERVER
        TaskIdentity.task_id = 1
        self.app = app
        self.seen = seen or (lambda message: None)
        self.contexts = {}
        for n in range(clients):
            config: Any = {"partition-id": n, "num-partitions": clients}
            self.contexts[1000 + n] = Context(RUN, 1000 + n, config, RecordDict(), {})
        self.replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """There is one run."""

    @property
    def run(self) -> FlowerRun:
        return FlowerRun.create_empty(RUN)

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.replies.pop(key) for key in list(message_ids) if key in self.replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: Any = None) -> Any:
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> str:
        key = str(len(self.replies))
        received = self._over_the_wire(message, key)
        try:
            reply = self.app(received, self.contexts[received.metadata.dst_node_id])
        except Exception as error:
            reply = Message(Error(FAILED, str(error)), reply_to=received)
        self.replies[key] = self._over_the_wire(reply, f"reply to {key}")
        return key

    def _over_the_wire(self, message: Message, key: str) -> Message:
        message.metadata.__dict__["_message_id"] = key
        proto = message_to_proto(message)
        read = message_from_proto(type(proto).FromString(proto.SerializeToString()))
        self.seen(read)
        return read


_PREPARED: dict[str, Participant] = {}
"""The terms that this process has prepared; the last ones only."""
_ALONE = Lock()
"""A process has one Ray at a time; a second simulation waits for the first to end."""


@dataclass(frozen=True)
class SimulatedClients:
    """The clients of a simulation, to load for `client_app`: a node's partition is its number.

    Its fields are the first arguments of `fl.run`.
    """

    task: Task
    method: "fl.Method | str"
    privacy: fl.Privacy | None
    plan: fl.Plan
    lora: Any = None
    seed: int | None = 0
    key: str = field(default_factory=lambda: secrets.token_hex(8))

    def participant(self) -> Participant:
        """Returns the terms, prepared once in a process."""
        if self.key not in _PREPARED:
            terms = (self.task, self.method, self.privacy, self.plan)
            _PREPARED.clear()
            _PREPARED[self.key] = Participant.of(*terms, lora=self.lora, seed=self.seed)
        return _PREPARED[self.key]

    def __call__(self, context: Context) -> tuple[Participant, int, Any]:
        number = int(context.node_config["partition-id"])
        data: Any = self.task.clients[number]
        if self.privacy is not None and self.privacy.unit == "person":
            data = (*data, self.task.local_persons[number])
        return self.participant(), number, data


def open_simulation(participant: Participant, *where: Any, **options: Any) -> Run:
    """Opens the server's run; it resets where clients, new at every start, had kept something.

    Args: participant: the terms. where, options: as of `open_run`.
    """
    run = open_run(participant, *where, **options)
    if run.resumed and clients_kept_state(run):
        run.reset()
    return run


def simulate(
    task: Task,
    method: "fl.Method | str",
    privacy: fl.Privacy | None,
    plan: fl.Plan,
    *,
    lora: Any = None,
    seed: int | None = 0,
    checkpoint: "str | Path | None" = None,
    resume: "str | Path | None" = None,
    stop_at: float | None = None,
    workers: int | None = None,
    **waiting: float,
) -> Iterator[Round]:
    """Trains as `fl.run` does, through Flower's simulation engine; yields the rounds' records.

    The engine goes on while a record is looked at; leaving the iterator stops it after the round
    that it is in. With trust="secagg" this server stands for the protocol of secure aggregation:
    single uploads, which hold a share of the noise only, are read by nothing but their sum. Of an
    error on a client's examples only class and place are logged.

    Args:
        checkpoint, resume, stop_at: as of `fl.run`. What clients keep is lost with
            their processes: with such a method ``resume`` begins anew, and what the ledger holds
            stays spent.
        workers: processes that play the clients; default: one a processor, at most one a client.
        waiting: ``timeout`` and ``patience`` of `server.rounds`.
    Raises: ``ValueError`` (name, value, range) at the call, before anything is started.
    Guarantees: the numbers of the loop
        (tests/flower/test_flower_simulation.py::test_a_client_that_hangs_or_raises_is_left_out);
        spending survives a kill
        (tests/privacy/test_attack_spending.py::test_a_simulation_that_was_cut_short_forgets_no_release).
    """
    workers = min(os.cpu_count() or 1, len(task.sizes)) if workers is None else workers
    check_whole("workers", workers, 1)
    clients = SimulatedClients(task, method, privacy, plan, lora, seed)
    participant = clients.participant()
    run = open_simulation(participant, checkpoint, resume, stop_at)
    app = client_app(clients, [_locate_errors])
    return _records(lambda each: run_engine(app, participant, run, each, workers, **waiting))


def _locate_errors(message: Message, context: Context, call: ClientAppCallable) -> Message:
    """Reduces an error on a client's examples to its class and place, around every message.

    Its text can hold a label, and logs of Ray's processes are no place for it.

    Guarantees: test_flower_simulation.py::test_a_client_that_hangs_or_raises_is_left_out.
    """
    with mute_logger(LOG.name):
        try:
            return call(message, context)
        except ValueError as error:
            cause = error.__context__
            if cause is None or not str(error).endswith(WHY):
                raise
            *_, last = traceback.extract_tb(cause.__traceback__)
            place = f"{Path(last.filename).name}:{last.lineno}, in {last.name}"
            words = f"{type(cause).__name__} at {place}"
            raise ValueError(str(error).removesuffix(WHY) + words) from None


def run_engine(
    app: ClientApp,
    participant: Participant,
    run: Run,
    each: Callable[[Round], None],
    workers: int,
    **waiting: float,
) -> None:
    """Runs Flower's simulation from start to end.

    Args:
        app, participant, run: the clients', the server's terms, and its run.
        each: called with every record.
        workers, waiting: as of `simulate`.
    """
    server = ServerApp()

    @server.main()
    def _main(grid: Grid, context: Context) -> None:
        for record in rounds(grid, participant, run, **waiting):
            each(record)

    with _ALONE, mute_logger(below=logging.WARNING), private_ray() as own:
        # They load Ray, which only a simulation needs. This is the engine behind `flwr run`; its
        # public wrapper in Python is deprecated, and a task of this process is no app on a disk.
        from flwr.simulation.run_simulation import _run_simulation
        from flwr.supercore.telemetry import EventType

        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        init: Any = {"num_cpus": workers, **quiet, **own}
        backend: Any = {"init_args": init, "client_resources": {"num_cpus": 1}}
        sites = len(participant.spec.task.sizes)
        ended = EventType.PYTHON_API_RUN_SIMULATION_LEAVE
        apps: Any = {"server_app": server, "client_app": app}
        _run_simulation(sites, ended, **apps, backend_config=backend)


def _records(play: Callable[[Callable[[Round], None]], None]) -> Iterator[Round]:
    """Iterates over the records that ``play`` passes to its argument; its error is raised last."""
    records: Queue[Round | None] = Queue()
    left = Event()

    def each(record: Round) -> None:
        if left.is_set():
            raise Stopped("the consumer has left the iterator")
        records.put(record)

    with ThreadPoolExecutor(1, "flower") as pool:
        played = pool.submit(play, each)
        played.add_done_callback(lambda _: records.put(None))
        try:
            yield from iter(records.get, None)
        finally:
            left.set()
    played.result()


SHORT = 24
"""Longest name of a folder in which the paths of Ray's sockets stay below the system's 104."""


@contextmanager
def temporary_private_folder() -> Iterator[Path]:
    """Makes a temporary folder of mode 0700, deleted afterwards; a killed process leaves it."""
    usual = tempfile.gettempdir()
    place = usual if len(usual) <= SHORT or os.name == "nt" else "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="fl-", dir=place))
    try:
        yield folder
    finally:
        # A process that is just ending may still write a last file.
        for _ in range(50):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.1)


@contextmanager
def private_ray() -> Iterator[dict[str, Any]]:
    """Yields options of `ray.init` for a Ray of this simulation alone, which it ends afterwards.

    By default Ray's logs are readable by all accounts, and it listens on every address of the
    machine. Here its files lie in a private folder, it listens on the loopback, and it answers only
    to a token of its own processes.

    Raises: ``ValueError`` where this process has a Ray already: Flower would use and stop that one.
    Guarantees: test_flower_simulation.py::test_a_client_that_hangs_or_raises_is_left_out.
    """
    with ExitStack() as after:
        folder = after.enter_context(temporary_private_folder())
        again = after.enter_context(ExitStack())  # after the variables are as before
        after.enter_context(telemetry_off())
        import ray
        from ray._private import ray_constants as constants
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        expected = "none in this process, a simulation starts its own; call ray.shutdown() before"
        if ray.is_initialized():
            raise ValueError(f"ray: expected {expected}")

        def read_again() -> None:
            """Ray reads the variables once in a process, and keeps the first token it saw."""
            AuthenticationTokenLoader.instance().reset_cache()
            Config.initialize("")

        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        read_again()
        again.callback(read_again)
        # Otherwise Ray turns 127.0.0.1 into an address that others can reach.
        after.callback(setattr, constants, "ENABLE_RAY_CLUSTER", constants.ENABLE_RAY_CLUSTER)
        constants.ENABLE_RAY_CLUSTER = False
        after.callback(ray.shutdown)
        # Ray opens its own folder to everybody: it gets one inside the private folder.
        yield {"address": "local", "_temp_dir": str(folder / "r"), "include_dashboard": False}
