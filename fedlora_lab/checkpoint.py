"""The state of a run on disk: safetensors and JSON, one pair a round, each written whole or not at all."""

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
from fedlora_lab.files import write_atomically
from fedlora_lab.method import Global, Slot

VERSION = 2
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


def store(folder: Path, state: State, settings: Mapping[str, Any]) -> None:
    """Write the state after a round; the JSON, written last, names the tensors' digest. Older pairs but one go."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"server/{slot.side}/{slot.layer}": tensor for slot, tensor in state.server.tensors.items()}
    tensors |= {f"personal/{slot.side}/{slot.layer}": tensor for slot, tensor in state.personal.items()}
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    body = {
        "version": VERSION,
        "round": state.round,
        "seen": state.seen,
        "changed": state.changed,
        "settings": settings,
        "tensors": _digest(content),
    }
    text = json.dumps(body, sort_keys=True)
    stem = f"round-{state.round:06d}"
    write_atomically(folder / f"{stem}.safetensors", content)
    write_atomically(folder / f"{stem}.json", json.dumps({"body": body, "sha256": _digest(text.encode())}).encode())
    for old in [done for done in rounds_in(folder) if done <= state.round][:-KEPT]:
        for ending in ("json", "safetensors"):
            (folder / f"round-{old:06d}.{ending}").unlink(missing_ok=True)


def rounds_in(folder: Path) -> list[int]:
    """Rounds with a JSON file in the folder, ascending."""
    names = (re.fullmatch(r"round-(\d{6,})\.json", path.name) for path in folder.glob("round-*.json"))
    return sorted(int(found[1]) for found in names if found)


def read(folder: Path, round: int) -> tuple[State, dict[str, Any]]:
    """One checkpoint and the settings it was made with. Raises `Broken` unless it is, bit for bit, what was written."""
    stem = folder / f"round-{round:06d}"
    try:
        whole = json.loads(stem.with_suffix(".json").read_bytes())
        body, content = whole["body"], stem.with_suffix(".safetensors").read_bytes()
        if whole["sha256"] != _digest(json.dumps(body, sort_keys=True).encode()):
            raise Broken("the JSON part is not what was written")
        if body["tensors"] != _digest(content):
            raise Broken("the tensors are not those of the JSON part")
        if body["version"] != VERSION or body["round"] != round:
            raise Broken("another version, or another round's file")
        groups: dict[str, dict[Slot, Tensor]] = {"server": {}, "personal": {}}
        for name, tensor in load(content).items():
            group, side, layer = name.split("/", 2)
            groups[group][Slot(side, layer)] = tensor
        _counted(round, body["seen"], body["changed"])
        state = State(round, Global(groups["server"]), groups["personal"], body["seen"], body["changed"])
        return state, body["settings"]
    except Exception as error:
        raise Broken(f"checkpoint={stem.name}: expected a whole one ({' '.join(str(error).split())[:200]})") from error


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
    folder = Path(folder)
    for round in reversed(rounds_in(folder)):
        try:
            return read(folder, round)
        except Broken as error:
            warnings.warn(f"{error}; going back to an earlier one", stacklevel=2)
    check(False, "resume", str(folder), "a folder with a whole checkpoint")
    raise AssertionError


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
