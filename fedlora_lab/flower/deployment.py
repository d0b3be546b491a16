"""Apps for a real deployment: each site has a file of agreed terms and a file of its own examples.

A Flower app whose components are ``deployment.server(task)`` and ``deployment.client(task)`` is
complete. ``task`` is a function that builds the public part: the frozen model, the public examples,
the number of examples of every client (see `placeholder_examples`). The terms are never sent: every
participant reads its own copy, and one whose copy differs is refused.

Out of scope: the app itself comes from whoever starts the run; a site that does not trust them lets
its node take signed apps only (``flower-supernode --trusted-entities``). Whoever reaches the
SuperLink's port may start runs and register keys unless accounts are set up there: keep the port
internal.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid, ServerApp
from safetensors.torch import load_file, save

import fedlora_lab as fl
from fedlora_lab._utils.files import lock_folder, write_atomically
from fedlora_lab._utils.validation import check, check_keys, check_number
from fedlora_lab.federated.records import to_frame
from fedlora_lab.flower import messages
from fedlora_lab.flower.client import Participant, client_app, private_errors
from fedlora_lab.flower.server import open_run, rounds
from fedlora_lab.report.run_folder import read_frame, with_ledger_epsilon
from fedlora_lab.tasks.task import Examples, Task

FIELDS = ("method", "privacy", "plan", "lora", "seed")


def write_terms(
    path: "str | Path",
    method: "str | fl.Method",
    privacy: fl.Privacy | None,
    plan: fl.Plan,
    *,
    lora: fl.Lora | None = None,
    seed: int | None,
) -> Path:
    """Writes the terms of a federation as JSON: every participant needs a copy.

    Args:
        method, privacy, plan, lora: as of `fl.run`; the method is a row of the table.
        seed: a number for rehearsals only, whoever knows it can take the noise away; ``None`` for a
            release.
    """
    slug = fl.methods.get(method).slug
    same = isinstance(method, str) or method == fl.methods.get(slug)
    check(same, "method", slug, "a row as it stands in the table")
    parts = privacy and asdict(privacy), asdict(plan), asdict(lora or fl.Lora())
    terms = dict(zip(FIELDS, (slug, *parts, seed), strict=True))
    write_atomically(path, json.dumps(terms, indent=1))
    return Path(path)


def read_terms(path: "str | Path", task: Task) -> Participant:
    """Returns the terms in a file, with the public task they are about.

    Raises: ``ValueError`` in one line, also for any trust but "local".
    """
    with _written_by("terms", path, "write_terms"):
        parts = json.loads(Path(path).read_text(encoding="utf-8"))
    check_keys("terms", parts, FIELDS)
    check(set(parts) == set(FIELDS), "terms", sorted(parts), ", ".join(FIELDS))
    privacy = None if parts["privacy"] is None else fl.Privacy(**parts["privacy"])
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


def write_examples(path: "str | Path", data: Examples) -> Path:
    """Writes a client's examples as safetensors: ``y``, and ``x`` or one tensor ``x.key`` for each
    input. The file is readable by its owner only.
    """
    x, y = data
    inputs = {f"x.{key}": value for key, value in x.items()} if isinstance(x, dict) else {"x": x}
    write_atomically(path, save({k: v.contiguous() for k, v in {**inputs, "y": y}.items()}))
    return Path(path)


def read_examples(path: "str | Path") -> Examples:
    """Returns the examples in a file. Raises ``ValueError`` in one line."""
    with _written_by("data", path, "write_examples"):
        tensors = load_file(path)
    check("y" in tensors and len(tensors) > 1, "data", sorted(tensors), "y, and x or x.key")
    y = tensors.pop("y")
    if set(tensors) == {"x"}:
        return tensors["x"], y
    return {name.removeprefix("x."): value for name, value in tensors.items()}, y


def client(task: Callable[[], Task], patience: float = 600.0) -> ClientApp:
    """Builds the clients' app.

    Its settings stand in the node's configuration, which is the client's own: ``client``, its
    number; ``terms`` and ``data``, paths; ``memory``, the whole path of a folder for what it keeps
    and for its last answer. The memory belongs to the terms and outlives the node and the run, so
    that under the same terms no round is ever released twice: a message locks the memory from
    reading it to writing it, whatever processes and runs it comes from.

    Args:
        task: builds the public part.
        patience: seconds that a message waits for another run's message to the same memory, > 0.
    Guarantees: tests/flower/test_attack_flower.py::test_two_runs_get_one_answer,
        ::test_no_answer_comes_from_a_damaged_memory, ::test_a_site_builds_its_public_part_once.
    """
    check_number("patience", patience, 0, open_low=True)
    prepared = lru_cache(maxsize=1)(lambda path, changed: read_terms(path, task()))
    building = Lock()

    def load(context: Context) -> tuple[Participant, int, Examples]:
        config = _settings(context.node_config, "client", "terms", "data", "memory")
        # A node that is started again somewhere else would find an empty one, and answer a round a
        # second time.
        whole = "the folder's whole path, the same wherever the node is started"
        check(Path(config["memory"]).is_absolute(), "memory", config["memory"], whole)
        terms = Path(config["terms"])
        # One thread at a time: a task's builder may seed torch's global generator, which all
        # threads share, and weights drawn out of turn would be under other terms.
        with building:
            participant = prepared(terms, terms.exists() and terms.stat().st_mtime_ns)
        with private_errors("reading its examples"):
            return participant, int(config["client"]), read_examples(config["data"])

    def with_memory(message: Message, context: Context, call: ClientAppCallable) -> Message:
        participant, number, _ = load(context)
        if message.metadata.message_type == MessageType.QUERY:
            return call(message, context)  # says terms and number, remembers nothing
        # No memory is touched under other terms.
        messages.check_about(message, {"terms": participant.terms})
        memory = Path(str(context.node_config["memory"]))
        path = memory / f"client-{number}-{participant.terms}"
        # From reading to writing: two runs that ask at once would get two answers, each with new
        # noise.
        with lock_folder(memory, f".{path.name}.lock", patience, f"memory={str(path)!r}"):
            if path.exists():
                kept = _checked_memory(path)
                with private_errors("reading its memory"):
                    context.state = recorddict_from_proto(ProtoRecordDict.FromString(kept))
            reply = call(message, context)
            # On the disk before the reply leaves.
            content = recorddict_to_proto(context.state).SerializeToString()
            write_atomically(path, _with_digest(path.name, content))
        return reply

    return client_app(load, [with_memory])


def _with_digest(name: str, content: bytes) -> bytes:
    """A memory behind a digest of its content and name, which finds damage, not forgery."""
    return hashlib.sha256(name.encode() + b"\0" + content).digest() + content


def _checked_memory(path: Path) -> bytes:
    """The content of a memory. Raises ``ValueError`` for damage: earlier answers are then lost."""
    whole = path.read_bytes()
    content = whole[hashlib.sha256().digest_size :]
    words = "what this site wrote there, it is damaged; no round is answered from it, "
    same = whole == _with_digest(path.name, content)
    check(same, "memory", path.name, words + "go on under other terms")
    return content


def server(task: Callable[[], Task]) -> ServerApp:
    """Builds the server's app.

    Its settings stand in the run's configuration: ``terms``, a path; ``out``, the folder of its
    checkpoints, its ledger and its frame, from which a restarted run goes on; ``timeout`` and
    ``patience``, seconds; optionally ``stop_at``, the epsilon to stop at; the last frame then
    states what the ledger states.

    Guarantees: test_attack_flower.py::test_a_run_that_ends_at_once_says_what_was_spent.
    """
    app = ServerApp()

    @app.main()
    def _main(grid: Grid, context: Context) -> None:
        config = _settings(context.run_config, "terms", "out", "timeout", "patience")
        participant, out = read_terms(config["terms"], task()), Path(config["out"])
        waiting = {name: float(config[name]) for name in ("timeout", "patience")}
        stop_at = float(config["stop_at"]) if "stop_at" in config else None
        run, found = open_run(participant, **folders(out), stop_at=stop_at), []
        for record in rounds(grid, participant, run, **waiting):
            found.append(record)
            frame = to_frame(found).to_csv(index=False)
            write_atomically(out / f"frame-{found[0].index:06d}.csv", frame)
        if not found and run.ledger is not None:
            # A round that was killed is spent and not recorded: the last frame says so.
            for path in sorted(out.glob("frame-*.csv"))[-1:]:
                frame = with_ledger_epsilon(read_frame(path), run.ledger).to_csv(index=False)
                write_atomically(path, frame)

    return app


def folders(out: Path) -> dict[str, Path]:
    """Returns the options of `open_run` for a folder: a run goes on from the state in it."""
    begun = any(out.glob("round-*.json")) or (out / "ledger.json").exists()
    return {"resume": out, "checkpoint": out} if begun else {"checkpoint": out}


def _settings(config: Any, *names: str) -> dict[str, Any]:
    absent = [name for name in names if name not in config]
    check(not absent, "configuration", sorted(config), f"also {', '.join(absent)}")
    return dict(config)
