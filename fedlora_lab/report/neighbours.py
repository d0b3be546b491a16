"""Runs beside a run: what earlier releases of the same rows have spent, in folders of their own.

Rows are known again by the keyed fingerprint in each folder, which sees every private and test row,
the split and the model. Of a table that was sorted otherwise or enlarged, or under another model,
nobody can tell from the folders whether it is the same: that is said.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from fedlora_lab._utils.files import has_key
from fedlora_lab._utils.validation import error_text, few
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.report.run_folder import CELLS, Folder, Ledgers, total_statements

UNREADABLE = (ValueError, OSError, LookupError, TypeError, AttributeError)
"""What a damaged folder may raise."""


@dataclass(frozen=True)
class Neighbours:
    """The runs beside a run.

    Args:
        same: place -> ledgers of a folder's runs on the same rows, with the same split and model.
        others: places of releases on other rows, or on the same under another split or model.
        unreadable: place -> why it cannot be read.
    """

    same: dict[str, Ledgers] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, fingerprint: str, built_in: str | None = None) -> "Neighbours":
        """Looks into the folders beside a run's; nothing is written there.

        Args:
            folder: of the run; it need not exist yet.
            fingerprint: of its task.
            built_in: name of an embedded task, which shares no rows with another task.
        Guarantees: test_neighbours.py::test_runs_beside_a_run_are_counted_with_it.
        """
        neighbours = cls()
        # By where they lie: the same folder may be there twice, under a link.
        places: dict[Path, Path] = {}
        try:
            for path in sorted(folder.parent.iterdir()) if folder.parent.is_dir() else []:
                places.setdefault(path.resolve(), path)
        except OSError as error:
            neighbours.unreadable[str(folder.parent)] = error.strerror or "no folder"
        places.pop(folder.resolve(), None)
        for path in places.values():
            try:
                # A run without its settings is one that cannot be read.
                if any(os.path.lexists(path / name) for name in ("settings.json", CELLS)):
                    neighbours._add(path, fingerprint, built_in)
            except UNREADABLE as error:
                reason = error_text(error).replace(f"{path.parent}{os.sep}", "")
                neighbours.unreadable[str(path)] = reason[:120]
        return neighbours

    def _add(self, path: Path, fingerprint: str, built_in: str | None) -> None:
        folder = Folder(path)
        task = folder.settings["task"]
        ledgers = folder.ledgers()
        # Without its key a folder says nothing about its rows.
        if has_key(path) and folder.keyed_fingerprint(fingerprint) == task["fingerprint"]:
            self.same[str(path)] = ledgers
            return
        info = task["info"]
        name = info["task"] if "arguments" in info else None
        if name == built_in and _released(ledgers):
            self.others.append(str(path))

    def spent(self) -> float:
        """Epsilon of all releases of the same rows beside the run; 0 where there is none."""
        released = [book for ledgers in self.same.values() for book in _released(ledgers)]
        try:
            return Ledger.compose(*released).epsilon_or_inf() if released else 0.0
        except ValueError:  # of several units or deltas
            return math.inf

    def statements(self, folder: Folder, frame: pd.DataFrame) -> list[str]:
        """States what the runs of a folder spend together with those beside it.

        Args: folder, frame: of the run.
        """
        ledgers = folder.ledgers()
        for place, beside in self.same.items():
            ledgers |= {f"{place}/{cell}": book for cell, book in beside.items()}
        where = "here"
        if self.same:
            where = f"in all, here and, on the same rows, in {_names(self.same)} beside it"
        sentences = [
            *folder.stopped_cells(),
            *total_statements(ledgers, folder.shown(frame), where),
        ]
        sentences += [
            f"{_names([place])} beside it: {stopped} The same call with its out= goes on there."
            for place in self.same
            for stopped in Folder(place).stopped_cells()
        ]
        if self.others and _released(ledgers):
            sentences.append(
                "Releases of other rows, or of these in another split, lie in "
                f"{_names(self.others)}. On rows that they share with this run all together spend "
                "more than is stated here."
            )
        sentences += [
            f"{_names([place])} cannot be read ({reason}): what it released is not counted here."
            for place, reason in self.unreadable.items()
        ]
        return sentences


def _names(places: Iterable[str]) -> str:
    """Folders without where they lie on this machine."""
    return few((Path(place).name for place in places), 5)


def _released(ledgers: Ledgers) -> list[Ledger]:
    """The ledgers of releases: of private runs without a seed."""
    books = (book for book in ledgers.values() if book is not None)
    return [book for book in books if not book.reproducible and book.releases]
