"""Apps for a real deployment: each site has a file with the terms it agreed to and a file with its own examples.

A Flower app whose components are ``deployment.server(task)`` and ``deployment.client(task)`` is complete. ``task`` is a
function that builds the public part: the frozen model, the public examples, the number of examples of every client
(see `stand_ins`). The terms do not travel: every party reads its own copy, and one whose copy differs is refused.

What this does not decide. The app itself comes from whoever starts the run: a site that does not trust them lets its
node take signed apps only (``flower-supernode --trusted-entities``). Whoever reaches the SuperLink's port may start
runs and register keys unless accounts are set up there: the port belongs inside.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid, ServerApp
from safetensors.torch import load_file, save

from fedlora_lab.checks import check, check_keys, check_number
from fedlora_lab.files import held, write_atomically
from fedlora_lab.flower import records
from fedlora_lab.flower.client import at_this_site, client_app
from fedlora_lab.flower.party import Party
from fedlora_lab.flower.server import open_run, rounds
from fedlora_lab.folder import read_frame, stated
from fedlora_lab.ledger import Ledger
from fedlora_lab.method import Method
from fedlora_lab.methods import get
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.record import to_frame
from fedlora_lab.tasks.task import Examples, Task

FIELDS = ("method", "privacy", "plan", "lora", "seed")


def write_terms(
    path: "str | Path",
    method: "str | Method",
    privacy: Privacy | None,
    plan: Plan,
    *,
    lora: Lora | None = None,
    seed: int | None,
) -> Path:
    """Write the terms of a federation as JSON: what every party must have a copy of.

    Args: seed: a number for rehearsals only, whoever knows it can take the noise away; ``None`` for a release.
    """
    slug = get(method).slug
    known = get(slug)
    check(not isinstance(method, Method) or method == known, "method", slug, "a row as it stands in the table")
    parts = {"method": slug, "privacy": None if privacy is None else asdict(privacy), "plan": asdict(plan)}
    text = json.dumps({**parts, "lora": asdict(lora or Lora()), "seed": seed}, indent=1)
    write_atomically(Path(path), text.encode())
    return Path(path)


def read_terms(path: "str | Path", task: Task) -> Party:
    """The terms in a file, with the public task they are about.

    Raises: ``ValueError`` in one line, also for any trust but "local".
    """
    try:
        parts = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"terms={str(path)!r}: expected a file that write_terms wrote ({error})") from None
    check_keys("terms", parts, FIELDS)
    check(set(parts) == set(FIELDS), "terms", sorted(parts), ", ".join(FIELDS))
    privacy = None if parts["privacy"] is None else Privacy(**parts["privacy"])
    trust = None if privacy is None else privacy.trust
    # No protocol of secure aggregation runs here: the server would see uploads with a share of the noise only.
    check(trust in (None, "local"), "trust", trust, "'local': in a deployment every upload is seen by itself")
    return Party.of(
        task, parts["method"], privacy, Plan(**parts["plan"]), lora=Lora(**parts["lora"]), seed=parts["seed"]
    )


def write_examples(path: "str | Path", data: Examples) -> Path:
    """Write one client's examples as safetensors: ``y``, and ``x`` or one tensor ``x.key`` for each input.

    The file is readable by its owner only.
    """
    x, y = data
    inputs = {f"x.{key}": value for key, value in x.items()} if isinstance(x, dict) else {"x": x}
    write_atomically(path, save({name: tensor.contiguous() for name, tensor in {**inputs, "y": y}.items()}))
    return Path(path)


def read_examples(path: "str | Path") -> Examples:
    """The examples in a file. Raises ``ValueError`` in one line."""
    try:
        tensors = load_file(path)
    except Exception as error:
        raise ValueError(f"data={str(path)!r}: expected a file that write_examples wrote ({error})") from None
    check("y" in tensors and len(tensors) > 1, "data", sorted(tensors), "y, and x or x.key")
    y = tensors.pop("y")
    x = tensors["x"] if set(tensors) == {"x"} else {name.removeprefix("x."): value for name, value in tensors.items()}
    return x, y


def client(task: Callable[[], Task], patience: float = 600.0) -> ClientApp:
    """The clients' app.

    Args: patience: seconds that a message waits for another run's message to the same memory, > 0.

    Its settings stand in the node's configuration, which is the client's own: ``client``, its number; ``terms`` and
    ``data``, paths; ``memory``, the whole path of a folder for what it keeps and for its last answer. The memory
    belongs to the terms: it outlives the node and the run, so that under the same terms no round is ever released
    twice: a message holds the memory from reading it to writing it, whatever processes and runs it comes from.

    Guarantees: tests/test_flower_memory.py; tests/test_attack_flower.py::test_two_runs_get_one_answer,
        ::test_no_answer_comes_from_a_damaged_memory.
    """
    check_number("patience", patience, 0, open_low=True)

    def own(context: Context) -> tuple[Party, int, Examples]:
        config = _settings(context.node_config, "client", "terms", "data", "memory")
        # A node that is started again somewhere else would find an empty one, and answer a round a second time.
        whole = "the folder's whole path, the same wherever the node is started"
        check(Path(config["memory"]).is_absolute(), "memory", config["memory"], whole)
        party = read_terms(config["terms"], task())
        with at_this_site("reading its examples"):
            return party, int(config["client"]), read_examples(config["data"])

    def remembering(message: Message, context: Context, call: ClientAppCallable) -> Message:
        party, number, _ = own(context)
        if message.metadata.message_type == MessageType.QUERY:
            return call(message, context)  # says terms and number, remembers nothing
        records.about(message, {"terms": party.terms})  # no memory is touched under other terms
        memory, name = Path(str(context.node_config["memory"])), f"client-{number}-{party.terms}"
        path = memory / name
        # From the reading to the writing: two runs that ask at once would get two answers with noise of their own.
        with held(memory, f".{name}.lock", patience, f"memory={str(path)!r}"):
            if path.exists():
                kept = _unsealed(path)
                with at_this_site("reading its memory"):
                    context.state = recorddict_from_proto(ProtoRecordDict.FromString(kept))
            reply = call(message, context)
            # On the disk before the reply leaves.
            write_atomically(path, _sealed(name, recorddict_to_proto(context.state).SerializeToString()))
        return reply

    return client_app(own, [remembering])


def _sealed(name: str, content: bytes) -> bytes:
    """The content of a client's memory behind a digest of it and of the memory's name; it finds damage, not forgery."""
    return hashlib.sha256(name.encode() + b"\0" + content).digest() + content


def _unsealed(path: Path) -> bytes:
    """What was sealed there. Raises ``ValueError`` for any other bytes: what was answered before is then not known."""
    whole = path.read_bytes()
    content = whole[hashlib.sha256().digest_size :]
    words = "what this site wrote there, it is damaged; no round is answered from it, go on under other terms"
    check(whole == _sealed(path.name, content), "memory", path.name, words)
    return content


def server(task: Callable[[], Task]) -> ServerApp:
    """The server's app.

    Its settings stand in the run's configuration: ``terms``, a path; ``out``, the folder of its checkpoints, its ledger
    and its frame, from which a restarted run goes on; ``timeout`` and ``patience``, seconds; where the run is to end
    before it spends more than some epsilon, ``stop_at``; the last frame then says what the ledger says.

    Guarantees: test_flower_memory.py::test_a_run_that_ends_at_once_says_what_was_spent.
    """
    app = ServerApp()

    @app.main()
    def _main(grid: Grid, context: Context) -> None:
        config = _settings(context.run_config, "terms", "out", "timeout", "patience")
        party, out, found = read_terms(config["terms"], task()), Path(config["out"]), []
        waiting = {name: float(config[name]) for name in ("timeout", "patience")}
        stop_at = float(config["stop_at"]) if "stop_at" in config else None
        run = open_run(party, **folders(out), stop_at=stop_at)
        for record in rounds(grid, party, run, **waiting):
            found.append(record)
            write_atomically(out / f"frame-{found[0].index:06d}.csv", to_frame(found).to_csv(index=False).encode())
        if not found and run.ledger is not None:
            _restate(out, run.ledger)

    return app


def _restate(out: Path, ledger: Ledger) -> None:
    """Let the last frame say no less than the ledger: a start that was killed in a round spent what no record shows."""
    for path in sorted(out.glob("frame-*.csv"))[-1:]:
        write_atomically(path, stated(read_frame(path), ledger).to_csv(index=False))


def folders(out: Path) -> dict[str, Path]:
    """Where the run keeps its state; it goes on from there where it has one."""
    begun = any(out.glob("round-*.json")) or (out / "ledger.json").exists()
    return {"resume": out, "checkpoint": out} if begun else {"checkpoint": out}


def _settings(config: Any, *names: str) -> dict[str, Any]:
    absent = [name for name in names if name not in config]
    check(not absent, "configuration", sorted(config), f"also {', '.join(absent)}")
    return dict(config)
