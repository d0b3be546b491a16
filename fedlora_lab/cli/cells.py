"""One cell of a comparison: a method at a seed, kept round by round so that a killed run goes on where it was."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora_lab.files import write_atomically
from fedlora_lab.folder import Folder, read_frame, stated

if TYPE_CHECKING:
    from fedlora_lab.comparison import Cell
    from fedlora_lab.record import Round


def kept(checkpoint: Path, rows: Path) -> Any:
    """Rows of the rounds that are done, and a checkpoint that goes on right after the last of them; else ``None``.

    The loop writes its state before it yields a round, and the rows are written after. A run that was killed in between
    has one round too many in the checkpoint: it is taken back and played again. Without a seed that is a new release,
    and the ledger, which is left as it is, counts both.
    """
    from fedlora_lab.checkpoint import newest, remove, rounds_in

    frame: Any = read_frame(rows) if rows.exists() else None
    for number in rounds_in(checkpoint):
        if frame is None or number > frame["round"].max():
            remove(checkpoint, number)
    found = newest(checkpoint)
    return None if found is None or frame is None else frame[frame["round"] <= found[0].round]


def play(
    folder: Folder, cell: "Cell", stop_at: float | None = None, engine: "Callable[..., Iterator[Round]] | None" = None
) -> "Iterator[Round]":
    """Run a cell to its end, or from where it was left; keeps its frame and ledger in the folder.

    Args: engine: plays the cell, with options as of `run`; the cell's own loop unless another is given.

    Guarantees: killed at any moment and started again, the cell's frame is that of an undisturbed run, but for the
        seconds (test_killed_run_is_taken_up); the ledger holds every release of every start (test_attack_spending.py).
    """
    import pandas as pd

    from fedlora_lab.ledger import Ledger

    checkpoint = folder.checkpoint(cell.slug, cell.seed)
    earlier, spent = kept(checkpoint, checkpoint / "rounds.csv"), (checkpoint / "ledger.json").exists()
    if earlier is not None and not spent and not earlier["round"].max():
        earlier = None  # nothing was done or spent yet: the start is played again, and has the empty ledger
    parts = [] if earlier is None else [earlier]
    where: dict[str, Any] = {"checkpoint": checkpoint}
    if earlier is not None or spent:
        where["resume"] = checkpoint
    if cell.privacy is not None:
        where["stop_at"] = stop_at
    ledger = None
    for record in (engine or cell.run)(**where):
        if not record.index:  # begun anew: rows of an earlier start are of another run
            parts = []
        parts.append(cell.frame([record]))
        write_atomically(checkpoint / "rounds.csv", pd.concat(parts, ignore_index=True).to_csv(index=False))
        ledger = record.ledger
        yield record
    if ledger is None and cell.privacy is not None:  # no round was left to play, or none that may be spent
        ledger = Ledger.load(checkpoint / "ledger.json")
    text = None if ledger is None else json.loads(ledger.to_json())
    frame: Any = pd.concat(parts, ignore_index=True)
    if folder.done(cell.slug, cell.seed) and folder.ended(cell.slug, cell.seed) > frame["round"].max():
        frame = folder.read(cell.slug, cell.seed)  # stopped, begun anew and stopped again, earlier
    folder.save(cell.slug, cell.seed, stated(frame, ledger), text)
