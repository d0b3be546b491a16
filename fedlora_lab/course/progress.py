"""The reader's progress: which exercises were tried and solved, and what was predicted.

It is kept in one JSON file of the reader's (FEDLORA_PROGRESS, else ``fedlora_lab/progress.json`` in
XDG_DATA_HOME or ~/.local/share) and sent nowhere.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fedlora_lab._utils.files import lock_folder, parse_json, write_atomically
from fedlora_lab.course.question import PREDICTION, entries

if TYPE_CHECKING:
    import pandas as pd

SOLVED, TRIED = "solved", "tried"
# What this session has seen, by file: all that there is where the file cannot be written.
_session: dict[Path, dict[str, str]] = {}
_told: set[Path] = set()


def progress_file() -> Path:
    """Where the reader's progress is kept."""
    if own := os.environ.get("FEDLORA_PROGRESS"):
        return Path(own).expanduser()
    data = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    return data / "fedlora_lab" / "progress.json"


def _load(path: Path) -> dict[str, str]:
    """Raises ``ValueError`` for a file that is not one of progress, ``OSError`` for an unreadable
    one."""
    if not path.exists():
        return {}
    if not path.is_file():
        raise ValueError(f"{path}: expected a file")
    found = parse_json(path.read_bytes(), str(path))
    words = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    if not words:
        raise ValueError(f"{path}: expected a file of progress")
    return found


def seen() -> dict[str, str]:
    """Key -> "tried" or "solved" of an exercise, or the letter that was predicted."""
    path = progress_file()
    try:
        kept = _load(path)
    except (OSError, ValueError):
        kept = {}
    return kept | _session.get(path, {})


def note(key: str, value: str) -> None:
    """Keeps one result; a solved exercise stays solved.

    A file that cannot be written, or holds something else, is left alone: the result then counts
    in this session, and one line says so, once.

    Guarantees: test_progress_without_a_writable_file_is_one_line.
    """
    path = progress_file()
    value = SOLVED if seen().get(key) == SOLVED else value
    _session.setdefault(path, {})[key] = value
    try:
        with lock_folder(path.parent, f".{path.name}.lock", patience=2.0):
            kept = _load(path)
            if kept.get(key) != value:
                content = dict(sorted((kept | {key: value}).items()))
                write_atomically(path, json.dumps(content, indent=1) + "\n")
    except (OSError, ValueError) as error:
        if path not in _told:
            _told.add(path)
            reason = " ".join(str(error).split())
            print(f"Your progress counts in this session only: it cannot be kept ({reason}).")


def progress() -> "pd.DataFrame":
    """Returns the reader's progress as a table, one row a lesson and one for all of them.

    It is read from a file on this computer (`progress_file`) and sent nowhere.

    >>> progress().columns.tolist()
    ['solved', 'tried', 'exercises', 'predicted right', 'predicted', 'predictions']
    """
    import pandas as pd

    found, rows = seen(), []
    for key, (_, entry) in entries().items():
        got, predicted = found.get(key), bool(PREDICTION.fullmatch(key))
        done = [got is not None and got == (entry["answer"] if predicted else SOLVED)]
        counts = [*done, got is not None, True]
        none = [False] * 3
        rows.append([key[:2], *(none + counts if predicted else counts + none)])
    names = ["solved", "tried", "exercises", "predicted right", "predicted", "predictions"]
    table = pd.DataFrame(rows, columns=["lesson", *names]).groupby("lesson").sum()
    table.loc["all"] = table.sum()
    return table.astype(int)
