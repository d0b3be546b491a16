"""Runs beside a run: what earlier releases of the same rows have spent, in folders of their own.

Rows are known again by the keyed fingerprint in each folder, which sees every private and test row,
the split and the model. Of a table that was sorted otherwise or enlarged, or under another model,
nobody can tell from the folders whether it is the same: that is said, with a bound.
"""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from fedlora_lab._utils.files import has_key
from fedlora_lab._utils.validation import error_text, few
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.report.run_folder import Folder, Ledgers, total_statements


@dataclass(frozen=True)
class Neighbours:
    """The runs beside a run.

    Args:
        same: place -> ledgers of a folder's runs on the same rows, with the same split and model.
        others: likewise, of releases on other rows, or the same under another split or model.
        unreadable: place -> why it cannot be read.
    """

    same: dict[str, Ledgers] = field(default_factory=dict)
    others: dict[str, dict[str, Ledger]] = field(default_factory=dict)
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
        found = cls()
        seen = {folder.resolve()}
        try:
            paths = sorted(folder.parent.iterdir()) if folder.parent.is_dir() else []
        except OSError as error:
            found.unreadable[str(folder.parent)] = error.strerror or "no folder"
            paths = []
        for path in paths:
            # The same folder may lie there twice, under a link.
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            try:
                if (path / "settings.json").is_file():
                    found._add(path, fingerprint, built_in)
            except (ValueError, OSError, LookupError, TypeError, AttributeError) as error:
                reason = error_text(error).replace(f"{path.parent}{os.sep}", "")
                found.unreadable[str(path)] = reason[:120]
        return found

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
        if name == built_in:
            self.others[str(path)] = _released(ledgers)

    def spent(self) -> float:
        """Epsilon of all releases of the same rows beside the run; 0 where there is none."""
        released = [book for part in self.same.values() for book in _released(part).values()]
        if not released:
            return 0.0
        try:
            return _sum(released).epsilon_or_inf()
        except ValueError:  # of several units or deltas
            return math.inf

    def statements(self, folder: Folder, frame: pd.DataFrame) -> list[str]:
        """States what the runs of a folder spend together with those beside it.

        Args: folder, frame: of the run.
        """
        own = folder.ledgers()
        shown = folder.shown(frame)
        same = {
            f"{place}/{cell}": book
            for place, ledgers in self.same.items()
            for cell, book in ledgers.items()
        }
        where = "here"
        if same:
            where = f"here and, on the same rows, in {_names(self.same)} beside it"
        sentences = [*folder.stopped_cells(), *total_statements(own | same, shown, where)]
        sentences += [
            f"{_names([place])} beside it: {stopped} The same call with its out= goes on there."
            for place in self.same
            for stopped in Folder(place).stopped_cells()
        ]
        others = {place: ledgers for place, ledgers in self.others.items() if ledgers}
        mine = _released(own | same)
        if others and mine:
            event = f"Releases of other rows, or of these in another split, lie in {_names(others)}"
            books = [*mine.values(), *(book for part in others.values() for book in part.values())]
            sentences.append(f"{event}. {_bound(books)}")
        sentences += [
            f"{_names([place])} cannot be read ({reason}): what it released is not counted here."
            for place, reason in self.unreadable.items()
        ]
        return sentences


def _names(places: Iterable[str]) -> str:
    """Folders without where they lie on this machine."""
    return few((Path(place).name for place in places), 5)


def _released(ledgers: Mapping[str, Ledger | None]) -> dict[str, Ledger]:
    """The ledgers of releases: of private runs without a seed."""
    books = ((name, book) for name, book in ledgers.items() if book is not None)
    return {name: book for name, book in books if not book.reproducible and book.releases}


def _sum(books: list[Any]) -> Ledger:
    return books[0] if len(books) == 1 else Ledger.compose(*books)


def _bound(books: list[Ledger]) -> str:
    """What releases spend at most on rows that all of them share."""
    try:
        epsilon = Ledger.compose(*(book.for_everyone() for book in books)).epsilon_or_inf()
    except (ValueError, TypeError):  # of several units or deltas, or a sum already
        epsilon = math.inf
    if math.isfinite(epsilon):
        return f"On rows that they share all together spend at most epsilon = {epsilon:.4g}."
    return "On what they share they spend more than is stated here: give every run one table."
