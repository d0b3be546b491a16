"""A run's folder: its ledger, its rows, and its state, each written whole or not at all.

Ledger and rows tell what records show. The state lies in the subfolder ``private/``: what clients
keep carries no noise. It is one sealed file: tensors by safetensors, and beside them a JSON text.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load, save

from fedlora_lab._utils.environment import __version__
from fedlora_lab._utils.files import (
    JsonObject,
    append_line,
    parse_json,
    private_folder,
    read_lines,
    read_sealed,
    write_sealed,
)
from fedlora_lab._utils.validation import check
from fedlora_lab.federated.config import Config
from fedlora_lab.measures.runs import COLUMNS
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.state import ParamKey, ServerState, TensorDict
from fedlora_lab.privacy.ledger import Ledger

if TYPE_CHECKING:
    import pandas as pd

KEPT_ROUNDS = 2
"""The last so many states stay in the folder: should the newest be lost, one is left."""
LEDGER = "ledger.json"
ROWS = "rounds.jsonl"
"""The rows of a run's frame, a line a round."""


@dataclass
class RunState:
    """The state of a run between two rounds: all that the next round depends on.

    Args:
        server: the server's tensors, and the number of rounds done.
        personal: key -> (all clients, ...), what moved and was not sent.
        changed: the server's tensors that a client of the next round needs, and by which rank they
            changed (0: new as a whole): those of the last round. Clients who take part by chance
            are taken to keep nothing, and need all that changed since the start.
    """

    server: ServerState
    personal: TensorDict
    changed: dict[ParamKey, int]


# ---- the folder


def run_folder(out: "str | Path | None") -> Path | None:
    """The folder of one run, or ``None``. Args: out: see `run`."""
    check(not out or not Path(out).is_file(), "out", out, "a folder, not a file")
    return Path(out).expanduser() if out else None


def has_run(folder: Path) -> bool:
    """Whether a run has begun in a folder."""
    return bool(rounds_in(folder)) or os.path.lexists(folder / LEDGER)


def rounds_in(folder: Path) -> list[int]:
    """Rounds whose state is in the folder, ascending."""
    paths = private_folder(folder).glob("round-*")
    names = [re.fullmatch(r"round-(\d{6,})", path.name) for path in paths]
    return sorted(int(match[1]) for match in names if match)


# ---- what a run is known by


def settings_of(config: Config) -> JsonObject:
    """What a run and the one that goes on from it must share, as JSON values.

    Rules are known by their names and the text of the data that they hold; the version of the
    package stands for their code.

    Args: config: of the run.
    """
    # Target and number of rounds change no round that is done: a longer run may go on from it
    # with replace(target_epsilon=None). A rule that reads the planned rounds then sees more.
    free = ("rounds", "target_epsilon")
    task = config.task
    privacy = {} if config.privacy is None else config.privacy.settings()
    settings = {
        "method": {x.name: rule_identity(getattr(config.method, x.name)) for x in fields(Method)},
        "plan": {name: x for name, x in asdict(config.plan).items() if name not in free},
        "lora": asdict(config.lora),
        "seed": config.seed,
        "privacy": {name: x for name, x in privacy.items() if name not in free} or None,
        "task": f"{task.fingerprint} {rule_identity(task.loss)}",
        "targets": task.targets,
        "head": task.head,
        "model": hashlib.sha256(rule_identity(task.model).encode()).hexdigest(),
        "package_version": __version__,
    }
    # As they come back from a file: tuples are lists there.
    return json.loads(json.dumps(settings, default=str))


def rule_identity(rule: object) -> str:
    """A rule's name, and the text of what it holds, the same in every process.

    >>> rule_identity(sorted)
    'builtins.sorted'
    """
    if hasattr(rule, "__qualname__"):
        return f"{rule.__module__}.{rule.__qualname__}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(rule))


# ---- rows


def append_rows(folder: Path, round: int, rows: Iterable[Sequence[Any]]) -> None:
    """Writes the rows of a record's frame.

    Args: folder: of the run. round: of the record. rows: with the value last.
    """
    # As text: JSON has neither NaN nor infinities, and Python's shortest is exact.
    lines = [[*row[:-1], repr(float(row[-1]))] for row in rows]
    append_line(folder / ROWS, {"round": round, "rows": lines})


def stored_rows(folder: Path) -> dict[int, list[list[Any]]]:
    """Round -> the rows of its record. A round that was run again replaces what followed it."""
    rows: dict[int, list[list[Any]]] = {}
    for entry in read_lines(folder / ROWS):
        before = {round: kept for round, kept in rows.items() if round < entry["round"]}
        its_rows = [[*row[:-1], float(row[-1])] for row in entry["rows"]]
        rows = {**before, entry["round"]: its_rows}
    return rows


def stored_frame(folder: Path) -> "pd.DataFrame":
    """The tidy frame of a run in its folder; its last epsilon is what the ledger counts now.

    A round that was begun and never recorded, since its process was killed, was released.

    Guarantees: test_store.py::test_a_kept_release_is_read_back_bit_by_bit,
        test_attack_spending.py::test_a_table_states_what_killed_rounds_spent.
    """
    import pandas as pd

    rows = [row for kept in stored_rows(folder).values() for row in kept]
    frame = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    if (folder / LEDGER).exists() and len(frame):
        spent = Ledger.load(folder / LEDGER).epsilon_or_inf()
        at_end = (frame["round"] == frame["round"].max()) & (frame["layer"] == "all")
        last = at_end & (frame["measure"] == "epsilon")
        frame.loc[last, "value"] = frame.loc[last, "value"].clip(lower=spent).fillna(spent)
    return frame


# ---- the state


def write(folder: Path, state: RunState, settings: Mapping[str, Any]) -> None:
    """Writes the state after a round, and removes older ones but one.

    Args:
        folder, state: where, and what.
        settings: what a run that goes on from it must agree on.

    Guarantees: what lies outside ``private/`` tells nothing of who took part
        (test_attack_folders.py::test_nothing_outside_private_tells_who_took_part).
    """
    round = state.server.round
    about = {
        "round": round,
        "settings": settings,
        "changed": [[*key, rank] for key, rank in state.changed.items()],
    }
    tensors = {
        f"{group}/{key.name}/{key.layer}": x.detach().cpu().contiguous()
        for group, values in (("server", state.server.tensors), ("personal", state.personal))
        for key, x in values.items()
    }
    text = json.dumps(about, sort_keys=True, allow_nan=False)
    write_sealed(_place(folder, round), save(tensors, {"about": text}))
    for earlier in rounds_in(folder)[:-KEPT_ROUNDS]:
        _place(folder, earlier).unlink()


def _place(folder: Path, round: int) -> Path:
    return private_folder(folder) / f"round-{round:06d}"


def read(folder: Path) -> tuple[RunState, JsonObject]:
    """Reads the newest state in a folder, and its run's settings.

    Raises: ``ValueError`` in one line where there is none, where it is not what was written, and
        where another version of the package wrote it.
    """
    rounds = rounds_in(folder)
    check(bool(rounds), "out", str(folder), "a folder with its subfolder private/ as it was")
    round = rounds[-1]
    content = read_sealed(_place(folder, round), f"private/round-{round:06d}")
    length = int.from_bytes(content[:8], "little")
    about = parse_json(parse_json(content[8 : 8 + length], "header")["__metadata__"]["about"], "it")
    # Earlier versions kept no settings here.
    settings = about.get("settings", {})
    same = settings.get("package_version") == __version__
    check(same, "out", str(folder), "the same package_version as in this run")
    groups: dict[str, TensorDict] = {"server": {}, "personal": {}}
    for place, tensor in load(content).items():
        group, name, layer = place.split("/", 2)
        groups[group][ParamKey(name, layer)] = tensor
    state = RunState(
        server=ServerState(groups["server"], round),
        personal=groups["personal"],
        changed={ParamKey(*key): rank for *key, rank in about["changed"]},
    )
    return state, settings


# ---- resuming


def read_own(folder: Path, settings: Mapping[str, Any]) -> RunState:
    """Reads the newest state in the folder of a run; refuses that of another run.

    Args: folder: of the run. settings: of the run, as its states hold them.
    """
    state, stored = read(folder)
    for name, value in settings.items():
        equal = stored.get(name) == value
        check(equal, "out", str(folder), f"the same {name} as in this run")
    return state


def restore(
    folder: Path,
    config: Config,
    settings: Mapping[str, Any],
    fresh: RunState,
    opened: Ledger | None,
) -> tuple[RunState, Ledger | None]:
    """Reads the state and the ledger to go on with; refuses those of another run.

    Args:
        folder, config: the folder, and the run that goes on from it.
        settings: of that run, as its states hold them.
        fresh, opened: state and ledger of that run as it was opened.

    Raises: ``ValueError`` where the folder is of another run, its state lost or damaged, or its
        ledger not the one that this run would have written.
    Guarantees: test_attack_spending.py::test_a_lost_state_forgets_no_release,
        test_checkpoint.py::test_a_round_is_replayed_to_the_same_bits_or_not_at_all.
    """
    state = read_own(folder, settings)
    layers = state.server.tensors.keys()
    fits = layers == fresh.server.tensors.keys()
    check(fits, "out", str(folder), "the same layers as in this run")
    # One draw of noise is split over the tensors in their order: the run's own keeps its bits.
    tensors = {key: state.server.tensors[key] for key in fresh.server.tensors}
    state.server = replace(fresh.server, tensors=tensors, round=state.server.round)
    return state, _stored_ledger(folder, config, state, opened)


def _stored_ledger(
    folder: Path, config: Config, state: RunState, opened: Ledger | None
) -> Ledger | None:
    """Loads the folder's ledger; refuses entries that this run would not have written."""
    path = folder / LEDGER
    if opened is None or not (state.server.round or path.exists()):
        return opened
    # Also before the first round is done: what was spent in one that was cut short stays spent.
    check(path.exists(), "ledger", str(path), "the ledger of the rounds done")
    ledger = Ledger.load(path)
    expected = f"{opened.terms}, those of this run"
    check(ledger.terms == opened.terms, "ledger", ledger.terms, expected)
    # With other noise or rates than this run's the ledger would state another run's epsilon.
    charge = config.charge
    assert charge is not None  # as the ledger, it is there under privacy
    for entry in ledger.releases:
        ours = charge.at(entry.round, None if entry.clients is None else tuple(entry.clients))
        check(entry == ours, "ledger", entry, f"{ours}, as this run writes it")
    # More is no error: a round that was cut short was released, and stays spent.
    written = {entry.round for entry in ledger.releases}
    complete = written >= set(range(1, state.server.round + 1))
    check(complete, "ledger", sorted(written), f"all {state.server.round} rounds done")
    return ledger
