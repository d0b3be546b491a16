"""Apps for a real deployment: each site has a file of agreed terms and a file of its own examples.

A Flower app whose components are ``deployment.server(task)`` and ``deployment.client(task)`` is
complete; ``fedlora-lab new-app`` writes one. ``task`` is a function that builds the public part:
the frozen model, the public examples, the number of examples of every client (see
`placeholder_examples`). The terms are never sent: every participant reads its own copy, and one
whose copy differs is refused. With ``rehearsal`` the same two components also run in Flower's
simulation, on public examples dealt to as many sites as it has nodes.

Out of scope: the app itself comes from whoever starts the run; a site that does not trust them lets
its node take signed apps only (``flower-supernode --trusted-entities``; in Flower 1.41 signatures
come from Flower Hub). Whoever reaches the SuperLink's port may start runs and register keys unless
accounts are set up there: keep the port internal.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from safetensors.torch import load_file, save

import fedlora_lab as fl
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.validation import check, check_keys, check_number, check_whole
from fedlora_lab.federated.checkpoint import ADAPTER
from fedlora_lab.federated.records import Round, to_frame
from fedlora_lab.federated.simulation import Federation
from fedlora_lab.flower.client import (
    Participant,
    client_app,
    placeholder_persons,
    private_errors,
)
from fedlora_lab.flower.server import PRESENCE, Stopped, clients_kept_state, open_run, rounds
from fedlora_lab.flower.simulators import SimulatedClients
from fedlora_lab.lora import peft
from fedlora_lab.methods.plan import lora_of
from fedlora_lab.report.run_folder import read_frame, with_ledger_epsilon
from fedlora_lab.tasks.task import Examples, Task, person_numbers

TERM_FIELDS = ("method", "privacy", "plan", "lora", "seed")
SIZES_FIELD = "sizes"
"""In terms beside `TERM_FIELDS`, where the task is built from the numbers of examples."""
REHEARSALS = "rehearsals"
A_REHEARSAL = "a run without terms rehearses; between sites: --run-config 'terms=\"…/terms.json\"'"
NO_REHEARSAL = "terms, base model, public examples differ there, or it is a node of a simulation"
TaskBuilder = Callable[..., Task]
Rehearsal = Callable[[int], SimulatedClients]


def write_terms(
    path: "str | Path",
    method: "str | fl.Method",
    privacy: fl.Privacy | None,
    plan: fl.Plan,
    *,
    lora: Any = None,
    seed: int | None,
    sizes: Sequence[int] | None = None,
) -> Path:
    """Writes the terms of a federation as JSON: every participant needs a copy.

    Args:
        method, privacy, plan, lora: as of `fl.run`; the method is a row of the table.
        seed: a number for rehearsals only, whoever knows it can take the noise away; ``None`` for a
            release.
        sizes: the number of examples, or in the person unit of persons, of each site, for an app
            whose ``task`` takes them.
    """
    slug = fl.methods.get(method).slug
    same = isinstance(method, str) or method == fl.methods.get(slug)
    check(same, "method", slug, "a row as it stands in the table")
    parts = privacy and privacy.settings(), asdict(plan), lora_of(lora).settings()
    terms: dict[str, Any] = dict(zip(TERM_FIELDS, (slug, *parts, seed), strict=True))
    if sizes is not None:
        terms[SIZES_FIELD] = _checked_sizes(sizes)
    write_atomically(path, json.dumps(terms, indent=1))
    return Path(path)


def _checked_sizes(sizes: Any) -> list[int]:
    expected = "the number of examples of each site"
    check(isinstance(sizes, Sequence) and len(sizes) > 0, SIZES_FIELD, sizes, expected)
    for size in sizes:
        check_whole(SIZES_FIELD, size, 1)
    return list(sizes)


def read_terms(path: "str | Path", task: "Task | TaskBuilder") -> Participant:
    """Returns the terms in a file, with the public task they are about.

    Args:
        path: of the file.
        task: the public task, or a function that builds it; of the terms' ``sizes``, if they hold
            some.
    Raises: ``ValueError`` in one line, also for any trust but "local".
    """
    with _written_by("terms", path, "write_terms"):
        parts = json.loads(Path(path).read_text(encoding="utf-8"))
    check_keys("terms", parts, (*TERM_FIELDS, SIZES_FIELD))
    whole = set(TERM_FIELDS) <= set(parts)
    check(whole, "terms", sorted(parts), ", ".join(TERM_FIELDS))
    sizes = [_checked_sizes(parts[SIZES_FIELD])] if SIZES_FIELD in parts else []
    task = task if isinstance(task, Task) else task(*sizes)
    agree = not sizes or list(task.sizes) == sizes[0]
    check(agree, "terms", sizes, f"{SIZES_FIELD} of the task, {list(task.sizes)}")
    privacy = None if parts["privacy"] is None else fl.Privacy(**parts["privacy"])
    if privacy is not None and privacy.unit == "person" and task.persons is None:
        task = replace(task, persons=placeholder_persons(task.sizes))  # the sizes are of persons
    trust = None if privacy is None else privacy.trust
    # No protocol of secure aggregation runs here: the server would see uploads with a share of the
    # noise only.
    expected = "'local': in a deployment every upload is seen by itself"
    check(trust in (None, "local"), "trust", trust, expected)
    plan, lora = fl.Plan(**parts["plan"]), fl.Lora(**parts["lora"])
    return Participant.of(task, parts["method"], privacy, plan, lora=lora, seed=parts["seed"])


@contextmanager
def _written_by(name: str, path: "str | Path", writer: str) -> Iterator[None]:
    """Names the file in one line where reading it fails."""
    try:
        yield
    except Exception as error:
        expected = f"a file that {writer} wrote ({error})"
        raise ValueError(f"{name}={str(path)!r}: expected {expected}") from None


def write_examples(path: "str | Path", data: Examples, persons: Any = None) -> Path:
    """Writes a client's examples as safetensors: ``y``, ``x`` or one tensor ``x.key`` for each
    input, and with ``persons``, a number or word for each example, ``person``, numbers in their
    place. The file is readable by its owner only.

    Args: path, data: where, and (x, y). persons: whose each example is, for the person unit.
    Raises: ``ValueError`` unless there is a person for each example, or none at all.
    """
    x, y = data
    inputs = {f"x.{key}": value for key, value in x.items()} if isinstance(x, dict) else {"x": x}
    if persons is not None:
        (inputs["person"],) = person_numbers([persons], (len(y),))
    write_atomically(path, save({k: v.contiguous() for k, v in {**inputs, "y": y}.items()}))
    return Path(path)


def read_examples(path: "str | Path") -> Any:
    """Returns the examples in a file, (x, y) or (x, y, persons). Raises ``ValueError`` in one line.

    Guarantees: test_flower.py::test_persons_travel_with_the_examples_of_their_client.
    """
    with _written_by("data", path, "write_examples"):
        tensors = load_file(path)
    persons = (tensors.pop("person"),) if "person" in tensors else ()
    check("y" in tensors and len(tensors) > 1, "data", sorted(tensors), "y, and x or x.key")
    y, x = tensors.pop("y"), tensors.get("x")
    if set(tensors) != {"x"}:
        x = {name.removeprefix("x."): value for name, value in tensors.items()}
    return x, y, *persons


def client(
    task: TaskBuilder, patience: float = 600.0, rehearsal: "Rehearsal | None" = None
) -> ClientApp:
    """Builds the clients' app.

    Its settings stand in the node's configuration, which is the client's own: ``client``, its
    number; ``terms`` and ``data``, paths; ``memory``, the whole path of a folder for what it keeps
    and for its last answers. The memory belongs to the data and outlives the node and the run, see
    `client_app`.

    Args:
        task: builds the public part, of the terms' ``sizes`` where they hold some.
        patience: seconds that a message waits for another run's message to the same memory, > 0.
        rehearsal: number of sites -> clients with public examples, which the nodes of Flower's
            simulation play. A node that was given ``terms`` never rehearses.
    Guarantees: tests/flower/test_attack_flower.py::test_a_site_builds_its_public_part_once.
    """
    site = _Site(task, rehearsal)
    return client_app(site.load, memory=site.memory, patience=patience)


NODES = "num-partitions"


def _simulated(context: Context) -> bool:
    """Whether Flower's simulation plays this node: it has a partition, and no terms of its own."""
    return NODES in context.node_config and "terms" not in context.node_config


class _Site:
    """A site's side: what it loads for a message, and the memory around its answer.

    The simulation sends it to other processes, which prepare what they need for themselves.
    """

    def __init__(self, task: TaskBuilder, rehearsal: "Rehearsal | None") -> None:
        self.task, self.rehearsal = task, rehearsal
        self._prepared = lru_cache(maxsize=1)(lambda path, changed: read_terms(path, task))
        self._rehearsed = lru_cache(maxsize=1)(rehearsal) if rehearsal else None
        self._building = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Site, (self.task, self.rehearsal)

    def load(self, context: Context) -> tuple[Participant, int, Any]:
        """What belongs to a node: its terms, its number, its examples."""
        if self._rehearsed is not None and _simulated(context):
            with self._building:
                return self._rehearsed(int(context.node_config[NODES]))(context)
        config = _settings(context.node_config, "client", "terms", "data", "memory")
        check_whole("client", config["client"])
        whole = "the folder's whole path, the same wherever the node is started"
        check(Path(config["memory"]).is_absolute(), "memory", config["memory"], whole)
        terms = Path(config["terms"])
        # One thread at a time: a task's builder may seed torch's global generator, which all
        # threads share, and weights drawn out of turn would be under other terms.
        with self._building:
            participant = self._prepared(terms, terms.exists() and terms.stat().st_mtime_ns)
        with private_errors("reading its examples"):
            return participant, config["client"], read_examples(config["data"])

    def memory(self, context: Context) -> str | None:
        """Where a node keeps what it must remember; a simulated node's own state is its memory."""
        if self.rehearsal is not None and _simulated(context):
            return None
        return str(context.node_config["memory"])


def server(task: TaskBuilder, rehearsal: "Rehearsal | None" = None) -> ServerApp:
    """Builds the server's app.

    Its settings stand in the run's configuration: ``terms``, a path; ``out``, the folder of its
    checkpoints, its ledger, its frame and its adapter, from which a restarted run goes on;
    ``timeout`` and ``patience``, seconds; optionally ``stop_at``, the epsilon to stop at; the last
    frame then states what the ledger states; and ``budget``, the file of an `fl.Budget` from which
    all runs of the federation draw. The server sees no example: the budget knows the data by the
    clients' numbers of examples and their shapes. A rehearsal writes to a folder of its own below
    ``rehearsals``, beside ``out``.

    Args:
        task, rehearsal: as of `client`; the run is a rehearsal where ``terms`` is empty.
    Guarantees: test_attack_flower.py::test_a_run_that_ends_at_once_says_what_was_spent.
    """
    app = ServerApp()

    @app.main()
    def _main(grid: Grid, context: Context) -> None:
        config = _settings(context.run_config, "terms", "out", "timeout", "patience")
        for name in ("timeout", "patience"):
            check_number(name, config[name], 0, open_low=True)
        waiting = {name: float(config[name]) for name in ("timeout", "patience")}
        check_number("stop_at", config.get("stop_at", 0), 0)
        stop_at = float(config.get("stop_at", 0)) or None
        budget, out = None, Path(config["out"])
        if config["terms"] or rehearsal is None:
            participant, why = read_terms(config["terms"], task), NO_REHEARSAL
            budget = fl.Budget(config["budget"]) if config.get("budget") else None
        else:
            why = A_REHEARSAL
            participant = rehearsal(_count_nodes(grid, waiting["patience"])).participant()
            out = out.with_name(REHEARSALS) / str(context.run_id)
        count, total = len(participant.spec.task.sizes), participant.spec.plan.rounds
        print(f"terms {participant.terms[:16]}: {count} sites, {total} rounds, out={out}")
        where: dict[str, Any] = folder_options(out)
        run, found = open_run(participant, **where, stop_at=stop_at, budget=budget), []
        for record in _with_reason(rounds(grid, participant, run, **waiting), why):
            found.append(record)
            frame = to_frame(found).to_csv(index=False)
            write_atomically(out / f"frame-{found[0].index:06d}.csv", frame)
            _save_adapter(run, out)
            print(_line(record, out, total))
        if not found:
            _save_adapter(run, out)  # killed before, between a checkpoint and its adapter
        if not found and run.ledger is not None:
            # A round that was killed is spent and not recorded: the last frame says so.
            for path in sorted(out.glob("frame-*.csv"))[-1:]:
                frame = with_ledger_epsilon(read_frame(path), run.ledger).to_csv(index=False)
                write_atomically(path, frame)
        print(f"finished: fedlora-lab export {out} --to adapter")

    return app


def _with_reason(records: Iterator[Round], why: str) -> Iterator[Round]:
    """The records; where a node has other terms, the error says what may be the reason."""
    try:
        yield from records
    except Stopped as error:
        raise Stopped(f"{error}; {why}" if "terms=" in str(error) else str(error)) from None


def _count_nodes(grid: Grid, patience: float) -> int:
    """How many nodes a simulation has; it starts them all at once."""
    end = time.monotonic() + patience
    while not (nodes := list(grid.get_node_ids())) and time.monotonic() < end:
        time.sleep(0.2)
    if not nodes:
        raise Stopped(f"clients=[]: expected some to be there within {patience:g} s")
    return len(nodes)


def _line(record: Round, out: Path, total: int) -> str:
    """A round in words, nothing of which is private: who was drawn may be, see `PRESENCE`."""
    there = json.loads((out / PRESENCE).read_text(encoding="utf-8"))
    words = [f"{len(there['there'])} of {there['sites']} sites"] if there["there"] else []
    words = words if record.index else ["before training"]
    words += [f"{name} {value:.3g}" for name, value in record.metrics.items()]
    return f"round {record.index} of {total}: {', '.join([*words, f'ε {record.epsilon:.3g}'])}"


def _save_adapter(run: Federation, out: Path) -> None:
    """Writes the server's tensors as a PEFT folder, where they are a whole adapter.

    They are none where sites keep a factor of their own, or where PEFT has no place for a tensor.
    """
    spec, tensors = run.spec, run.state.server.tensors
    if not clients_kept_state(run) and all(not key.kind.output for key in tensors):
        task = spec.task
        place = task.model, task.targets, task.head, spec.lora
        peft.save(*place, tensors, out / ADAPTER, task.new_modules)


def folder_options(out: Path) -> dict[str, Path]:
    """Returns the options of `open_run` for a folder: a run goes on from the state in it."""
    begun = any(out.glob("round-*.json")) or (out / "ledger.json").exists()
    return {"resume": out, "checkpoint": out} if begun else {"checkpoint": out}


def _settings(config: Any, *names: str) -> dict[str, Any]:
    absent = [name for name in names if name not in config]
    check(not absent, "configuration", sorted(config), f"also {', '.join(absent)}")
    return dict(config)
