"""A run's folder: its state, each round written whole or not at all, its ledger, and its rows.

What is released, the server's tensors, lies in the folder. What is not, because it carries no noise
or tells who took part, lies in its subfolder ``private/``. A run goes on from both together only.
Each part of a round is one sealed file: tensors by safetensors, and beside them a JSON text.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load, save

from fedlora_lab._utils.environment import __version__
from fedlora_lab._utils.files import (
    Damaged,
    JsonObject,
    append_line,
    has_key,
    keyed_digest,
    parse_json,
    private_folder,
    read_bytes,
    read_lines,
    read_sealed,
    write_sealed,
)
from fedlora_lab._utils.validation import check, warn
from fedlora_lab.federated.config import Config
from fedlora_lab.measures.runs import COLUMNS
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.state import ParamKey, ServerState, TensorDict, Tensors
from fedlora_lab.privacy.ledger import Ledger

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 12
"""Of the files; those of another version are refused."""
KEPT_ROUNDS = 2
"""The last so many rounds stay in the folder: should the newest be damaged, one is left."""
LEDGER = "ledger.json"
ROWS = "rounds.jsonl"
"""The rows of a run's frame, a line a round."""


@dataclass
class RunState:
    """The state of a run between two rounds: all that the next round depends on.

    Args:
        server: the server's tensors, and the number of rounds done.
        personal: key -> (all clients, ...), what moved and was not sent.
        seen: rounds done when each client last received the server's state; -1: never.
        changed: for each round done, the server's tensors that it changed, and the rank of the
            change (0: the tensor is new as a whole).
    """

    server: ServerState
    personal: TensorDict
    seen: list[int]
    changed: list[dict[ParamKey, int]] = field(default_factory=list)


# ---- the folder


def run_folder(out: "str | Path | None") -> Path | None:
    """The folder of one run, or ``None``. Args: out: see `run`."""
    check(isinstance(out, str | Path | None), "out", out, "a folder's path or None")
    check(not out or not Path(out).is_file(), "out", out, "a folder, not a file")
    return Path(out).expanduser() if out else None


def contents(folder: Path) -> tuple[list[int], bytes | None]:
    """The rounds in a folder, and the bytes of its ledger."""
    path = folder / LEDGER
    return rounds_in(folder), read_bytes(path) if os.path.lexists(path) else None


def rounds_in(folder: Path) -> list[int]:
    """Rounds whose released part is in the folder, ascending."""
    names = [re.fullmatch(r"round-(\d{6,})", path.name) for path in folder.glob("round-*")]
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
        "lora": config.lora.settings(),
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


def settings_with_keyed_task(folder: Path, settings: Mapping[str, Any]) -> JsonObject:
    """A run's settings as its checkpoints hold them: a keyed digest in the task's place.

    Args:
        folder: of the run; its secret key is made here if need be.
        settings: as `settings_of` gives them.
    """
    # A plain digest of the data would confirm a guess at them.
    return {**settings, "task": keyed_digest(folder, settings["task"])}


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

    Guarantees: test_store.py::test_a_kept_run_is_read_back_bit_by_bit,
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


# ---- writing


def write(folder: Path, state: RunState, settings: Mapping[str, Any]) -> None:
    """Writes the state after a round, and removes older rounds but one.

    Args:
        folder, state: where, and what.
        settings: what a run that goes on from it must agree on.

    Guarantees: what lies outside ``private/`` tells nothing of who took part but what the server's
        tensors tell (test_attack_folders.py::test_nothing_outside_private_tells_who_took_part).
    """
    round = state.server.round
    about = {"round": round, "settings": settings_with_keyed_task(folder, settings)}
    released = _to_bytes({"server": state.server.tensors}, about)
    about_private = {
        "round": round,
        "seen": state.seen,
        "changed": [[[*key, rank] for key, rank in x.items()] for x in state.changed],
        # Each part may be whole and of another run, or of the same round before a restart.
        "released": hashlib.sha256(released).hexdigest(),
    }
    private = {"personal": state.personal}
    # The released part last: without it the round is not there, whatever a kill has left.
    write_sealed(_place(private_folder(folder), round), _to_bytes(private, about_private))
    write_sealed(_place(folder, round), released)
    stored = [earlier for earlier in rounds_in(folder) if earlier <= round]
    for earlier in stored[:-KEPT_ROUNDS]:
        remove(folder, earlier)


def remove(folder: Path, round: int) -> None:
    """Deletes a round, what is released first: a round without it does not count as stored."""
    for path in (_place(folder, round), _place(private_folder(folder), round)):
        path.unlink(missing_ok=True)


def _place(folder: Path, round: int) -> Path:
    return folder / f"round-{round:06d}"


def _to_bytes(groups: Mapping[str, Tensors], about: JsonObject) -> bytes:
    tensors = {
        f"{group}/{key.name}/{key.layer}": x.detach().cpu().contiguous()
        for group, values in groups.items()
        for key, x in values.items()
    }
    # A single entry: several have no order of their own, and equal states would be unequal bytes.
    text = json.dumps({"format": FORMAT, **about}, sort_keys=True, allow_nan=False)
    return save(tensors, {"about": text})


# ---- reading


def read(folder: Path, round: int) -> tuple[RunState, JsonObject]:
    """Reads one checkpoint and its run's settings.

    Args: folder, round: which.
    Raises: `Damaged` where a part is missing, or is not what was written; another ``ValueError``
        where a part is there and cannot be read, or is of another version.
    """
    name = f"checkpoint=round-{round:06d}"
    released = read_sealed(_place(folder, round), name)
    private = read_sealed(_place(private_folder(folder), round), name)
    about, groups = _from_bytes(released, round)
    about_private, private_groups = _from_bytes(private, round)
    if about_private["released"] != hashlib.sha256(released).hexdigest():
        text = "a whole one (what is private belongs to other tensors of the server)"
        raise Damaged(f"{name}: expected {text}")
    state = RunState(
        server=ServerState(groups["server"], round),
        personal=private_groups.get("personal", {}),
        seen=about_private["seen"],
        changed=[{ParamKey(*key): rank for *key, rank in x} for x in about_private["changed"]],
    )
    return state, about["settings"]


def _from_bytes(content: bytes, round: int) -> tuple[JsonObject, dict[str, TensorDict]]:
    """The JSON and the tensors, by group, of one part of a round."""
    # The seal is whole, so this is what some version wrote.
    length = int.from_bytes(content[:8], "little")
    about = parse_json(parse_json(content[8 : 8 + length], "header")["__metadata__"]["about"], "it")
    name = f"checkpoint=round-{round:06d}"
    if about["format"] != FORMAT:
        expected = f"format {FORMAT}, not {about['format']!r}: go on with the version that wrote it"
        raise ValueError(f"{name}: expected {expected}")
    if about["round"] != round:
        raise Damaged(f"{name}: expected a whole one (it is of round {about['round']})")
    groups: dict[str, TensorDict] = {}
    for place, tensor in load(content).items():
        group, tensor_name, layer = place.split("/", 2)
        groups.setdefault(group, {})[ParamKey(tensor_name, layer)] = tensor
    return about, groups


def whole_checkpoints(folder: Path) -> Iterator[tuple[RunState, JsonObject]]:
    """Yields the whole checkpoints of a folder, the newest first; warns of damaged ones."""
    rounds = rounds_in(folder)
    # With a new key no run would know its own data again.
    usable = not rounds or has_key(folder)
    check(usable, "out", str(folder), "a folder with its subfolder private/ as it was")
    for round in reversed(rounds):
        try:
            yield read(folder, round)
        except Damaged as error:
            warn(f"{error}; going back to an earlier one")


# ---- resuming


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
        settings: of that run, as its checkpoints hold them.
        fresh, opened: state and ledger of that run if it began anew.

    Where no checkpoint is whole and a ledger is there it begins anew: what was spent stays spent.
    Not from a seed: nothing would tell whether the rounds in the ledger are released again alike.

    Raises: ``ValueError`` where the folder is of another run, or its ledger not the one that this
        run would have written.
    Guarantees: test_attack_spending.py::test_a_lost_checkpoint_forgets_no_release,
        test_checkpoint.py::test_a_round_is_replayed_to_the_same_bits_or_not_at_all.
    """
    latest = next(whole_checkpoints(folder), None)
    # Releases do not come back with the files that are lost.
    begins_anew = latest is None and opened is not None and (folder / LEDGER).exists()
    if begins_anew and not config.replays_noise:
        text = "no checkpoint in it is whole; the run begins anew"
        text = f"out={str(folder)!r}: {text}, and what stands in its ledger stays spent"
        warn(text)
        return fresh, _stored_ledger(folder, config, fresh, opened)
    check(latest is not None, "out", str(folder), "a folder with a whole checkpoint")
    assert latest is not None
    state, stored = latest
    for name, value in settings_with_keyed_task(folder, settings).items():
        equal = stored.get(name) == value
        check(equal, "out", str(folder), f"the same {name} as in this run")
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
        exist = all(k < len(state.seen) for k in entry.clients or ())
        check(exist, "ledger", entry, "clients of this run")
        ours = charge.at(entry.round, None if entry.clients is None else tuple(entry.clients))
        # Files of earlier versions count an upload for every client, which is never too little.
        if entry.clients is None and not (config.releases_steps or config.releases_sum):
            ours = replace(ours, clients=None)
        check(entry == ours, "ledger", entry, f"{ours}, as this run writes it")
    # More is no error: a round that was cut short was released, and stays spent.
    written = {entry.round for entry in ledger.releases}
    complete = written >= set(range(1, state.server.round + 1))
    check(complete, "ledger", sorted(written), f"all {state.server.round} rounds done")
    return ledger
