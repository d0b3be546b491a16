"""The state of a run on disk: safetensors and JSON, one pair a round, each written whole or not at all.

What is released, the server's tensors, lies in the folder. What is not, because it carries no noise or tells who took
part, lies in its subfolder ``private/``. Of a run without privacy nothing carries noise, wherever it lies. A run goes
on from both together only.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from fedlora_lab.checks import check
from fedlora_lab.files import has_key, keyed, private, write_atomically
from fedlora_lab.method import Global, Slot

VERSION = 3
KEPT = 2
LEDGER = "ledger.json"


class Broken(ValueError):
    """A checkpoint that is not what was written."""


@dataclass
class State:
    """All that the next round depends on.

    Args:
        round: rounds done.
        server: the server's tensors.
        personal: slot -> (all clients, ...), what moved and was not sent.
        seen: for each client, the number of rounds done when it last received the server's state; -1: never.
        changed: for each round done, the server's tensors that it changed, by name, and the rank of the change (0:
            the tensor is new as a whole).
    """

    round: int
    server: Global
    personal: dict[Slot, Tensor]
    seen: list[int]
    changed: list[dict[str, int]] = field(default_factory=list)

    def advance(self, ids: Sequence[int], own: Mapping[Slot, Tensor], after: Global, rank: int) -> None:
        """Move on by a round.

        Args:
            ids: who took part.
            own: slot -> (participants, ...), what moved and was not sent.
            after: the server's tensors.
            rank: of what the round adds to a residual.

        Guarantees: the tensors lie in memory as a loaded state's do, for some processors multiply transposed ones to
            other last bits (test_checkpoint.py::test_resume_equals_uninterrupted).
        """
        before, there = self.server.tensors, set(ids)
        for slot, tensor in own.items():
            mine = self.personal.get(slot)
            if mine is None:
                mine = before[slot].expand(len(self.seen), *before[slot].shape)
            self.personal[slot] = mine.index_copy(0, torch.tensor(list(ids), dtype=torch.int64), tensor)
        changed = [slot for slot, x in after.tensors.items() if x is not before[slot]]
        self.changed.append({str(slot): rank if slot.side == "W" else 0 for slot in changed})
        self.seen = [self.round if k in there else last for k, last in enumerate(self.seen)]
        tensors = {slot: x.contiguous() for slot, x in after.tensors.items()}
        self.server, self.round = replace(after, tensors=tensors, round=self.round + 1), self.round + 1


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def disguised(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run as its checkpoints in this folder hold them."""
    return {**settings, "task": keyed(folder, settings["task"])}


def _named(group: str, tensors: Mapping[Slot, Tensor]) -> bytes:
    named = {f"{group}/{slot.side}/{slot.layer}": tensor for slot, tensor in tensors.items()}
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in named.items()})


def _sealed(body: Mapping[str, Any]) -> bytes:
    text = json.dumps(body, sort_keys=True)
    return json.dumps({"body": body, "sha256": _digest(text.encode())}).encode()


def _paths(folder: Path, round: int) -> tuple[Path, ...]:
    """The files of a round: what is released, tensors and JSON, and what stays private, likewise."""
    stems = (folder / f"round-{round:06d}", private(folder) / f"round-{round:06d}")
    return tuple(stem.with_suffix(ending) for stem in stems for ending in (".safetensors", ".json"))


def store(folder: Path, state: State, settings: Mapping[str, Any]) -> None:
    """Write the state after a round: the server's tensors, and in ``private/`` what depends on more than the releases.

    Each part is tensors and a JSON that names their digest; the private JSON also names that of the server's tensors.
    The server's JSON is written last: without it the round is not there. Older rounds but one go.

    Guarantees: what lies outside ``private/`` tells nothing of who took part but what the server's tensors tell
        (test_attack_folders.py::test_nothing_outside_private_tells_who_took_part).
    """
    content, own = _named("server", state.server.tensors), _named("personal", state.personal)
    about = {"version": VERSION, "round": state.round}
    hidden = {**about, "seen": state.seen, "changed": state.changed}
    hidden |= {"server": _digest(content), "tensors": _digest(own)}
    open_part = {**about, "settings": disguised(folder, settings), "tensors": _digest(content)}
    parts = (content, _sealed(open_part), own, _sealed(hidden))
    paths = _paths(folder, state.round)
    for i in (2, 3, 0, 1):
        write_atomically(paths[i], parts[i])
    for old in [done for done in rounds_in(folder) if done <= state.round][:-KEPT]:
        remove(folder, old)


def remove(folder: Path, round: int) -> None:
    """Take a round away, its JSON first: without that it is not there."""
    tensors, text, *hidden = _paths(folder, round)
    for path in (text, tensors, *hidden):
        path.unlink(missing_ok=True)


def rounds_in(folder: Path) -> list[int]:
    """Rounds with a JSON file in the folder, ascending."""
    names = (re.fullmatch(r"round-(\d{6,})\.json", path.name) for path in folder.glob("round-*.json"))
    return sorted(int(found[1]) for found in names if found)


def _part(folder: Path, round: int, group: str, at: int) -> tuple[dict[str, Any], dict[Slot, Tensor]]:
    """The JSON and the tensors of one part of a round; any exception stands for damage."""
    tensors, text = _paths(folder, round)[at : at + 2]
    whole = json.loads(text.read_bytes())
    body, content = whole["body"], tensors.read_bytes()
    if whole["sha256"] != _digest(json.dumps(body, sort_keys=True).encode()):
        raise Broken("the JSON part is not what was written")
    if body["tensors"] != _digest(content):
        raise Broken("the tensors are not those of the JSON part")
    if body["version"] != VERSION or body["round"] != round:
        raise Broken("another version, or another round's file")
    found = {}
    for name, tensor in load(content).items():
        kind, side, layer = name.split("/", 2)
        if kind != group:
            raise Broken(f"tensors of {kind} among those of {group}")
        found[Slot(side, layer)] = tensor
    return body, found


def _broken(round: int, error: Exception) -> Broken:
    words = " ".join(str(error).split())[:200]
    return Broken(f"checkpoint=round-{round:06d}: expected a whole one ({words})")


def released(folder: "str | Path", round: int) -> tuple[Global, dict[str, Any]]:
    """What a checkpoint holds outside ``private/``: the server's tensors, and the settings of the run.

    Raises: `Broken` unless it is, bit for bit, what was written.
    """
    try:
        body, tensors = _part(Path(folder), round, "server", 0)
        return Global(tensors), body["settings"]
    except Exception as error:
        raise _broken(round, error) from error


def read(folder: Path, round: int) -> tuple[State, dict[str, Any]]:
    """One checkpoint and the settings it was made with. Raises `Broken` unless it is, bit for bit, what was written."""
    server, settings = released(folder, round)
    try:
        body, personal = _part(folder, round, "personal", 2)
        if body["server"] != json.loads(_paths(folder, round)[1].read_bytes())["body"]["tensors"]:
            raise Broken("what is private belongs to other tensors of the server")
        _counted(round, body["seen"], body["changed"])
        return State(round, server, personal, body["seen"], body["changed"]), settings
    except Exception as error:
        raise _broken(round, error) from error


def _counted(round: int, seen: Any, changed: Any) -> None:
    """Refuse lists that no run of so many rounds leaves behind."""
    rounds = isinstance(seen, list) and all(type(t) is int and -1 <= t < max(round, 1) for t in seen)
    ranks = isinstance(changed, list) and len(changed) == round
    ranks = ranks and all(
        isinstance(one, dict) and all(type(r) is int and r >= 0 for r in one.values()) for one in changed
    )
    if not (rounds and ranks):
        raise Broken("the lists of rounds are not those of a run")


def latest(folder: Path) -> tuple[State, dict[str, Any]]:
    """The newest whole checkpoint of a folder; a broken one is passed over with a warning.

    Raises: ``ValueError`` when there is none.
    """
    found = newest(folder)
    check(found is not None, "resume", str(folder), "a folder with a whole checkpoint")
    assert found is not None
    return found


def newest(folder: Path) -> tuple[State, dict[str, Any]] | None:
    """As `latest`, but ``None`` when there is none. Raises: ``ValueError`` when the private part is gone."""
    folder = Path(folder)
    found = rounds_in(folder)
    check(not found or has_key(folder), "resume", str(folder), "a folder with its subfolder private/ as it was")
    for round in reversed(found):
        try:
            return read(folder, round)
        except Broken as error:
            warnings.warn(f"{error}; going back to an earlier one", stacklevel=2)
    return None


def ordered(state: State, like: Global) -> State:
    """The same state with its tensors in the run's order. Raises ``ValueError`` when they are another model's."""
    check(set(state.server.tensors) == set(like.tensors), "resume", "another model's checkpoint", "the same layers")
    for slot, tensor in like.tensors.items():
        found, asked = ((tuple(x.shape), x.dtype) for x in (state.server.tensors[slot], tensor))
        check(found == asked, f"resume, {slot}", found, f"{asked}")
    for slot, own in state.personal.items():
        found, whole = (tuple(own.shape), own.dtype), like.tensors.get(slot)
        asked = None if whole is None else ((len(state.seen), *whole.shape), whole.dtype)
        check(found == asked, f"resume, {slot} of the clients", found, f"{asked}")
    tensors = {slot: state.server.tensors[slot] for slot in like.tensors}
    state.server = Global(tensors, state.round, like.planned, like.streams)
    return state
