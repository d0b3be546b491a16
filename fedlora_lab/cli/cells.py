"""One cell of a comparison: a method at a seed, kept round by round so that a killed run goes on where it was."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora_lab.files import write_atomically
from fedlora_lab.folder import Folder, read_frame

if TYPE_CHECKING:
    from fedlora_lab.comparison import Cell
    from fedlora_lab.record import Round


def _kept(checkpoint: Path) -> Any:
    """Rows of the rounds that are done, and a checkpoint that goes on right after the last of them; else ``None``.

    The loop writes its state before it yields a round, and the rows are written after. A run that was killed in between
    has one round too many in the checkpoint: it is taken back and played again.
    """
    from fedlora_lab.checkpoint import latest, rounds_in

    if not (checkpoint / "rounds.csv").exists():
        return None
    frame: Any = read_frame(checkpoint / "rounds.csv")
    for number in rounds_in(checkpoint):
        if number > frame["round"].max():
            for ending in ("json", "safetensors"):
                (checkpoint / f"round-{number:06d}.{ending}").unlink(missing_ok=True)
    if not rounds_in(checkpoint):
        return None
    state, _ = latest(checkpoint)
    return frame[frame["round"] <= state.round]


def play(folder: Folder, cell: "Cell") -> "Iterator[Round]":
    """Run a cell to its end, or from where it was left; keeps its frame and ledger in the folder.

    Guarantees: killed at any moment and started again, the cell's frame is that of an undisturbed run, but for the
        seconds (test_killed_run_is_taken_up).
    """
    import pandas as pd

    from fedlora_lab.ledger import Ledger

    checkpoint = folder.checkpoint(cell.slug, cell.seed)
    earlier = _kept(checkpoint)
    parts = [] if earlier is None else [earlier]
    where: dict[str, Any] = (
        {"checkpoint": checkpoint} if earlier is None else {"resume": checkpoint, "checkpoint": checkpoint}
    )
    ledger = None
    for record in cell.run(**where):
        parts.append(cell.frame([record]))
        write_atomically(checkpoint / "rounds.csv", pd.concat(parts, ignore_index=True).to_csv(index=False))
        ledger = record.ledger
        yield record
    if ledger is None and cell.privacy is not None:  # every round was done, only the last step was missing
        ledger = Ledger.load(checkpoint / "ledger.json")
    text = None if ledger is None else json.loads(ledger.to_json())
    folder.save(cell.slug, cell.seed, pd.concat(parts, ignore_index=True), text)
