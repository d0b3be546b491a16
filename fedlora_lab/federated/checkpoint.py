"""The state of a run on disk: safetensors and JSON, each round written whole or not at all.

What is released, the server's tensors, lies in the folder. What is not, because it carries no noise
or tells who took part, lies in its subfolder ``private/``. A run goes on from both together only.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from fedlora_lab._utils.files import (
    has_key,
    keyed_digest,
    private_folder,
    write_atomically,
)
from fedlora_lab._utils.validation import check, error_text
from fedlora_lab.methods.optimizers import Optimizer, OptimizerState
from fedlora_lab.methods.state import ParamKey, ServerState

FORMAT_VERSION = 4
"""Of the files; those of another version are refused."""
KEPT_ROUNDS = 2
"""The last so many rounds stay in the folder: should the newest be damaged, one is left."""
LEDGER = "ledger.json"
ADAPTER = "adapter"
"""Folder of the adapter that a run ends with, as PEFT reads it."""


class DamagedCheckpoint(ValueError):
    """Raised for a checkpoint whose content is not what was written."""


@dataclass
class RunState:
    """The state of a run between two rounds: all that the next round depends on.

    ``changed``: for each round done, the server's tensors that it changed, by name, and the rank of
    the change (0: the tensor is new as a whole).
    """

    round: int  # rounds done
    server: ServerState
    personal: dict[ParamKey, Tensor]  # key -> (all clients, ...), what moved and was not sent
    seen: list[int]  # rounds done when each client last received the server's state; -1: never
    changed: list[dict[str, int]] = field(default_factory=list)
    optimizer: OptimizerState = field(default_factory=dict)  # what the server's optimiser remembers


def settings_with_keyed_task(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings as its checkpoints hold them: a keyed digest in the task's place.

    Args:
        folder: of the run; its secret key is made here if need be.
        settings: as `RunSpec.settings` gives them.
    """
    # A plain digest of the data would confirm a guess at them.
    return {**settings, "task": keyed_digest(folder, settings["task"])}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _flat(moments: OptimizerState) -> dict[ParamKey, Tensor]:
    """An optimiser's moments as tensors with names of their own, such as "momentum A"."""
    return {
        ParamKey(f"{name} {key.side}", key.layer): x
        for key, own in moments.items()
        for name, x in own.items()
    }


def _named(**groups: Mapping[ParamKey, Tensor]) -> bytes:
    return save({
        f"{group}/{key.side}/{key.layer}": x.detach().cpu().contiguous()
        for group, part in groups.items()
        for key, x in part.items()
    })  # fmt: skip


def _with_digest(body: Mapping[str, Any]) -> bytes:
    text = json.dumps(body, sort_keys=True)
    return json.dumps({"body": body, "sha256": _digest(text.encode())}).encode()


def _paths(folder: Path, round: int) -> tuple[Path, ...]:
    """The files of a round: released tensors and JSON, then private tensors and JSON."""
    stems = (folder / f"round-{round:06d}", private_folder(folder) / f"round-{round:06d}")
    return tuple(stem.with_suffix(ending) for stem in stems for ending in (".safetensors", ".json"))


def store(folder: Path, state: RunState, settings: Mapping[str, Any]) -> None:
    """Writes the state after a round, and removes older rounds but one.

    Each part is tensors and a JSON that names their digest; the private JSON also names that of the
    server's tensors.

    Args:
        folder, state: where, and what.
        settings: what a run that goes on from it must agree on.

    Guarantees: what lies outside ``private/`` tells nothing of who took part but what the server's
        tensors tell (test_attack_folders.py::test_nothing_outside_private_tells_who_took_part).
    """
    content = _named(server=state.server.tensors, optimizer=_flat(state.optimizer))
    own = _named(personal=state.personal)
    about = {"version": FORMAT_VERSION, "round": state.round}
    keyed = settings_with_keyed_task(folder, settings)
    shown = about | {"settings": keyed, "tensors": _digest(content)}
    hidden = about | {"seen": state.seen, "changed": state.changed}
    hidden |= {"server": _digest(content), "tensors": _digest(own)}
    parts = (content, _with_digest(shown), own, _with_digest(hidden))
    paths = _paths(folder, state.round)
    for i in (2, 3, 0, 1):  # the released JSON last: without it the round is not there
        write_atomically(paths[i], parts[i])
    for old in [done for done in rounds_in(folder) if done <= state.round][:-KEPT_ROUNDS]:
        remove(folder, old)


def remove(folder: Path, round: int) -> None:
    """Deletes a round, its JSON first: a round without its JSON does not count as stored."""
    tensors, text, *hidden = _paths(folder, round)
    for path in (text, tensors, *hidden):
        path.unlink(missing_ok=True)


def rounds_in(folder: Path) -> list[int]:
    """Rounds with a JSON file in the folder, ascending."""
    names = [re.fullmatch(r"round-(\d{6,})\.json", path.name) for path in folder.glob("round-*")]
    return sorted(int(found[1]) for found in names if found)


def _part(
    folder: Path, round: int, groups: tuple[str, ...], at: int
) -> tuple[dict[str, Any], list[dict[ParamKey, Tensor]]]:
    """The JSON and the tensors of one part of a round, by group; any exception means damage."""
    tensors, text = _paths(folder, round)[at : at + 2]
    whole = json.loads(text.read_bytes())
    body, content = whole["body"], tensors.read_bytes()
    if whole["sha256"] != _digest(json.dumps(body, sort_keys=True).encode()):
        raise DamagedCheckpoint("the JSON part is not what was written")
    if body["tensors"] != _digest(content):
        raise DamagedCheckpoint("the tensors are not those of the JSON part")
    if body["version"] != FORMAT_VERSION or body["round"] != round:
        raise DamagedCheckpoint("another version, or another round's file")
    found: dict[str, dict[ParamKey, Tensor]] = {group: {} for group in groups}
    for name, tensor in load(content).items():
        kind, side, layer = name.split("/", 2)
        if kind not in found:
            raise DamagedCheckpoint(f"tensors of {kind} among those of {' and '.join(groups)}")
        found[kind][ParamKey(side, layer)] = tensor
    return body, list(found.values())


def read(folder: Path, round: int, hidden: bool = True) -> tuple[RunState, dict[str, Any]]:
    """Reads one checkpoint and its run's settings.

    Args:
        folder, round: which.
        hidden: whether its private part is read too.

    Raises: `DamagedCheckpoint` unless it is what was written.
    """
    try:
        body, (tensors, flat) = _part(folder, round, ("server", "optimizer"), 0)
        moments: dict[Any, dict[str, Tensor]] = {}
        for key, x in flat.items():  # the inverse of `_flat`
            name, _, side = key.side.rpartition(" ")
            moments.setdefault(ParamKey(side, key.layer), {})[name] = x
        state = RunState(round, ServerState(tensors), {}, [], optimizer=moments)
        if hidden:
            mine, (state.personal,) = _part(folder, round, ("personal",), 2)
            # Each part may be whole and of another run, or of the same round before a restart.
            if mine["server"] != body["tensors"]:
                raise DamagedCheckpoint("what is private belongs to other tensors of the server")
            state.seen, state.changed = mine["seen"], mine["changed"]
            _check_lists(state)
        return state, body["settings"]
    except Exception as error:
        words = error_text(error, 200)
        words = f"checkpoint=round-{round:06d}: expected a whole one ({words})"
        raise DamagedCheckpoint(words) from error


def _check_lists(state: RunState) -> None:
    """Refuses lists that no run of so many rounds leaves behind."""
    seen: Any = state.seen
    changed: Any = state.changed
    latest = max(state.round, 1)
    known = isinstance(seen, list) and all(type(t) is int and -1 <= t < latest for t in seen)
    known = known and isinstance(changed, list) and len(changed) == state.round
    for one in changed if known else ():
        known &= isinstance(one, dict) and all(type(r) is int and r >= 0 for r in one.values())
    if not known:
        raise DamagedCheckpoint("the lists of rounds are not those of a run")


def read_released(folder: "str | Path", round: int) -> tuple[ServerState, dict[str, Any]]:
    """Reads what a checkpoint holds outside ``private/``. Raises as `read`.

    Args:
        folder, round: which.
    """
    state, settings = read(Path(folder), round, hidden=False)
    return state.server, settings


def read_latest(folder: Path) -> tuple[RunState, dict[str, Any]]:
    """Reads the newest whole checkpoint of a folder. Raises: ``ValueError`` when there is none."""
    found = read_latest_or_none(folder)
    check(found is not None, "resume", str(folder), "a folder with a whole checkpoint")
    assert found is not None
    return found


def read_latest_or_none(folder: Path) -> tuple[RunState, dict[str, Any]] | None:
    """As `read_latest`, or ``None`` without one; damaged ones are passed over with a warning."""
    folder, found = Path(folder), rounds_in(folder)
    whole = not found or has_key(folder)
    check(whole, "resume", str(folder), "a folder with its subfolder private/ as it was")
    for round in reversed(found):
        try:
            return read(folder, round)
        except DamagedCheckpoint as error:
            warnings.warn(f"{error}; going back to an earlier one", stacklevel=2)
    return None


def validate_and_reorder(state: RunState, like: ServerState, rule: Optimizer) -> RunState:
    """Checks that a stored state fits this run, and puts its tensors in the run's order.

    Args:
        state: as it was read.
        like, rule: the run's server before training, and its server's optimiser.

    Raises: ``ValueError`` if the state is another model's or optimiser's.
    """

    def forms(tensors: Mapping[ParamKey, Tensor]) -> dict[ParamKey, Any]:
        return {key: (tuple(x.shape), x.dtype) for key, x in tensors.items()}

    same = set(state.server.tensors) == set(like.tensors)
    check(same, "resume", "another model's checkpoint", "the same layers")
    found, wanted = forms(state.server.tensors), forms(like.tensors)
    for key, form in wanted.items():
        check(found[key] == form, f"resume, {key}", found[key], f"{form}")
    for key, form in forms(state.personal).items():
        shape, dtype = wanted.get(key, (None, None))
        each = None if shape is None else ((len(state.seen), *shape), dtype)
        check(form == each, f"resume, {key} of the clients", form, f"{each}")
    own = {key: x for key, x in like.tensors.items() if key in state.optimizer}
    moments = forms(_flat(state.optimizer)), forms(_flat(rule.init(own)))
    check(moments[0] == moments[1], "resume, server_optimizer", moments[0], f"{moments[1]}")
    # One draw of noise is split over the tensors in their order: the run's own keeps its bits.
    tensors = {key: state.server.tensors[key] for key in like.tensors}
    state.server = ServerState(tensors, state.round, like.planned, like.streams)
    return state
