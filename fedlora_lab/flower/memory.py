"""What a client keeps across runs, in a file: its last answers, and a ledger of all it released."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from fedlora_lab._utils.files import (
    Damaged,
    lock_folder,
    read_sealed,
    write_atomically,
    write_sealed,
)
from fedlora_lab._utils.validation import check
from fedlora_lab.flower.messages import private_errors
from fedlora_lab.flower.participant import Participant
from fedlora_lab.privacy.ledger import Ledger

Memory = Callable[[Context], str | Path]
FILE = "client"
"""The name of the file in a memory's folder."""
BEGUN = "begun"
"""An empty file that tells a memory that was lost from one that is new."""
RELEASED = "released"
"""The record with a ledger for each terms, as text."""
PATIENCE = 600.0
"""Seconds that a message waits for another run's message to the same memory."""


@contextmanager
def open_memory(memory: Memory, context: Context) -> Iterator[RecordDict]:
    """Yields a client's state as its memory holds it; what was changed is on the disk afterwards.

    Locked from reading it to writing it: two runs that ask at once would get two answers, each with
    new noise. An error that names a folder stays at the site.

    Args:
        memory: context -> the folder.
        context: of the message.
    """
    with ExitStack() as held:
        with private_errors("opening its memory"):
            folder = Path(memory(context))
            # A node that is started somewhere else would find another, empty one, and answer again.
            expected = "the folder's whole path, the same wherever the node is started"
            check(folder.is_absolute(), "memory", str(folder), expected)
            what = f"memory={str(folder)!r}"
            held.enter_context(lock_folder(folder, patience=PATIENCE, what=what))
            state = read_memory(folder) if is_begun(folder) else RecordDict()
        yield state
        with private_errors("writing its memory"):
            write_sealed(folder / FILE, recorddict_to_proto(state).SerializeToString())
            write_atomically(folder / BEGUN, b"")


def is_begun(folder: "str | Path") -> bool:
    """Whether something was kept in a memory's folder, be it that its file is lost since then."""
    # Also a link that leads nowhere: a new memory would forget what was answered and spent.
    return any(os.path.lexists(Path(folder) / name) for name in (BEGUN, FILE))


def read_memory(folder: "str | Path") -> RecordDict:
    """Reads what a client keeps in its memory.

    Raises: ``ValueError`` for a memory that is damaged or gone: what was answered and spent is then
        lost.
    Guarantees: test_client_memory.py::test_no_answer_comes_from_a_damaged_memory.
    """
    try:
        content = read_sealed(Path(folder) / FILE, f"memory={str(folder)!r}")
    except Damaged as error:
        expected = "what this client wrote there; it is damaged, and nothing is answered from it"
        raise ValueError(f"memory={str(folder)!r}: expected {expected}") from error
    return recorddict_from_proto(ProtoRecordDict.FromString(content))


# ---- what was released


def count_release(participant: Participant, client: int, state: RecordDict, t: int) -> ConfigRecord:
    """Returns the client's ledgers with the release of round t, one for each terms.

    Args: participant, client: its terms and number. state: what it keeps. t: the round.
    Raises: ``ValueError`` where releases under other terms do not add up with it.
    """
    ledgers: dict[str, Any] = {**state.config_records.get(RELEASED, {})}
    ledger = participant.config.ledger(participant.prepared.uncertified)
    charge = participant.config.charge
    assert ledger is not None and charge is not None  # terms without privacy are refused
    if participant.terms in ledgers:
        ledger = Ledger.from_json(ledgers[participant.terms])
    entry = charge.at(t + 1, (client,))
    [(_, (sigma, rate))] = entry.rows()
    # For everybody: in other terms the client has another number, and its examples are the same.
    ledger.record(entry.round, None, entry.count, sample_rate=rate, noise_multiplier=sigma)
    ledgers[participant.terms] = ledger.to_json()
    # Terms that do not add up are refused before anything is trained under them. Which unit and
    # delta the others have is no concern of this coordinator.
    with private_errors("adding this release to those under other terms"):
        _compose(ledgers)
    return ConfigRecord(ledgers)


def client_ledger(memory: "str | Path") -> "Ledger | None":
    """Adds up what a client has released from its examples under all terms; ``None`` for nothing.

    Args: memory: the client's folder.
    Raises: ``ValueError`` for a memory that is damaged.
    Guarantees: test_client_memory.py::test_a_client_counts_its_releases_under_all_terms.
    """
    if not is_begun(memory):
        return None
    return _compose(read_memory(memory).config_records[RELEASED])


def _compose(texts: Mapping[str, Any]) -> Ledger:
    """The sum of the ledgers of all terms."""
    return Ledger.compose(*map(Ledger.from_json, texts.values()))
