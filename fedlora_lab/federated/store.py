"""The state of a run on disk, each round written whole or not at all.

What is released, the server's tensors, lies in the folder. What is not, because it carries no noise
or tells who took part, lies in its subfolder ``private/``. A run goes on from both together only.
Each part of a round is one sealed file: tensors by safetensors, and beside them a JSON text.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from fedlora_lab._utils.files import (
    Damaged,
    JsonObject,
    has_key,
    keyed_digest,
    parse_json,
    private_folder,
    read_bytes,
    read_sealed,
    write_sealed,
)
from fedlora_lab._utils.validation import check, warn
from fedlora_lab.federated.config import Config
from fedlora_lab.methods.optimizers import OptimizerState
from fedlora_lab.methods.state import ParamKey, ServerState, TensorDict, Tensors
from fedlora_lab.privacy.ledger import Ledger

FORMAT = 11
"""Of the files; those of another version are refused."""
KEPT_ROUNDS = 2
"""The last so many rounds stay in the folder: should the newest be damaged, one is left."""
LEDGER = "ledger.json"


@dataclass
class RunState:
    """The state of a run between two rounds: all that the next round depends on.

    Args:
        server: the server's tensors, and the number of rounds done.
        personal: key -> (all clients, ...), what moved and was not sent.
        seen: rounds done when each client last received the server's state; -1: never.
        changed: for each round done, the server's tensors that it changed, and the rank of the
            change (0: the tensor is new as a whole).
        optimizer: what the server's optimiser remembers.
    """

    server: ServerState
    personal: TensorDict
    seen: list[int]
    changed: list[dict[ParamKey, int]] = field(default_factory=list)
    optimizer: OptimizerState = field(default_factory=dict)


# ---- the folder


def checkpoint_folder(save: "str | Path | None", resume: "str | Path | None") -> Path | None:
    """Chooses the folder for checkpoints, or ``None``; refuses one that holds another run.

    Args:
        save, resume: as ``checkpoint`` and ``resume`` of `run`.
    """
    for name, value in (("checkpoint", save), ("resume", resume)):
        check(isinstance(value, str | Path | None), name, value, "a folder's path or None")
        check(not value or not Path(value).is_file(), name, value, "a folder, not a file")
    if not (save or resume):
        return None
    folder = Path(save or resume or "").expanduser()
    places = (*folder.glob("round-*"), *private_folder(folder).glob("round-*"))
    strange = [path.name for path in places if path.is_dir()]
    # Found now: a round that cannot be stored would be released again by every call.
    check(not strange, "checkpoint", strange, "files of these names, no folders")
    if not save:
        return folder
    if resume:
        # Elsewhere the ledger of the one would not know how the other went on.
        goes_on = Path(resume).expanduser().resolve() == folder.resolve()
        check(
            goes_on, "checkpoint", str(folder), f"{str(resume)!r}: a run goes on in its own folder"
        )
        return folder
    free = not (any(rounds_in(folder)) or (folder / LEDGER).exists())
    expected = "a folder without rounds of another run; resume= goes on from them"
    check(free, "checkpoint", str(folder), expected)
    return folder


def contents(folder: Path) -> tuple[list[int], bytes | None]:
    """The rounds in a folder, and the bytes of its ledger."""
    path = folder / LEDGER
    return rounds_in(folder), read_bytes(path) if os.path.lexists(path) else None


def rounds_in(folder: Path) -> list[int]:
    """Rounds whose released part is in the folder, ascending."""
    names = [re.fullmatch(r"round-(\d{6,})", path.name) for path in folder.glob("round-*")]
    return sorted(int(match[1]) for match in names if match)


def settings_with_keyed_task(folder: Path, settings: Mapping[str, Any]) -> JsonObject:
    """A run's settings as its checkpoints hold them: a keyed digest in the task's place.

    Args:
        folder: of the run; its secret key is made here if need be.
        settings: as `Config.settings` gives them.
    """
    # A plain digest of the data would confirm a guess at them.
    return {**settings, "task": keyed_digest(folder, settings["task"])}


# ---- writing


def write(folder: Path, state: RunState, settings: Mapping[str, Any]) -> None:
    """Writes the state after a round, and removes older rounds but one.

    Args:
        folder, state: where, and what.
        settings: what a run that goes on from it must agree on.

    Guarantees: what lies outside ``private/`` tells nothing of who took part but what the server's
        tensors tell (test_attack_folders.py::test_nothing_outside_private_tells_who_took_part).
    """
    moments: dict[str, Tensors] = {}
    for key, of_tensor in state.optimizer.items():
        for name, x in of_tensor.items():
            moments.setdefault(f"optimizer {name}", {})[key] = x  # type: ignore[index]
    round = state.server.round
    about = {"round": round, "settings": settings_with_keyed_task(folder, settings)}
    released = _to_bytes({"server": state.server.tensors, **moments}, about)
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
        if not path.is_dir():  # which `checkpoint_folder` refuses, in words
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
    moments: dict[ParamKey, dict[str, Tensor]] = {}
    for group in groups.keys() - {"server"}:
        for key, x in groups[group].items():
            moments.setdefault(key, {})[group.removeprefix("optimizer ")] = x
    state = RunState(
        server=ServerState(groups["server"], round),
        personal=private_groups.get("personal", {}),
        seen=about_private["seen"],
        changed=[{ParamKey(*key): rank for *key, rank in x} for x in about_private["changed"]],
        optimizer=moments,
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
    check(usable, "resume", str(folder), "a folder with its subfolder private/ as it was")
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
    """Reads the state and the ledger to resume with; refuses those of another run.

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
        text = f"resume={str(folder)!r}: {text}, and what stands in its ledger stays spent"
        warn(text)
        return fresh, _stored_ledger(folder, config, fresh, opened)
    check(latest is not None, "resume", str(folder), "a folder with a whole checkpoint")
    assert latest is not None
    state, stored = latest
    for name, value in settings_with_keyed_task(folder, settings).items():
        equal = stored.get(name) == value
        check(equal, "resume", str(folder), f"the same {name} as in this run")
    layers = state.server.tensors.keys()
    fits = layers == fresh.server.tensors.keys()
    check(fits, "resume", str(folder), "the same layers as in this run")
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
