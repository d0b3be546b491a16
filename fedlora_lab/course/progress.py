"""The reader's progress: which exercises were tried and solved, and what was predicted.

It is one JSON file of the reader's (FEDLORA_PROGRESS, else ``fedlora_lab/progress.json`` in
XDG_DATA_HOME or ~/.local/share), which is sent nowhere.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fedlora_lab._utils.files import parse_json, write_atomically
from fedlora_lab._utils.validation import error_text
from fedlora_lab.course.texts import PREDICTION_KEY, entries

if TYPE_CHECKING:
    import pandas as pd

SOLVED = "solved"
TRIED = "tried"
Results = dict[str, str]
"""Key -> "tried" or "solved" of an exercise, or the predicted letter."""

# What this process has seen, by file: all that there is where the file cannot be written.
_session: dict[Path, Results] = {}
_warned: set[Path] = set()


def progress_file() -> Path:
    """Returns the path of the file in which the reader's progress is kept."""
    chosen = os.environ.get("FEDLORA_PROGRESS")
    if chosen:
        return Path(chosen).expanduser()
    data = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    return data / "fedlora_lab" / "progress.json"


def _load(path: Path) -> Results:
    """Reads a file of progress; raises ``ValueError`` for any other, ``OSError`` if unreadable."""
    if not path.exists():
        return {}
    results = parse_json(path.read_bytes(), str(path))
    if not isinstance(results, dict) or not all(isinstance(x, str) for x in results.values()):
        raise ValueError(f"{path}: expected a file of progress")
    return results


def read_progress() -> Results:
    """Reads the progress from the file, and what this process has seen."""
    path = progress_file()
    try:
        results = _load(path)
    except (OSError, ValueError):
        results = {}
    return results | _session.get(path, {})


def save_result(key: str, result: str) -> None:
    """Saves one result; a solved exercise stays solved.

    A file that cannot be written, or holds something else, is left alone: the result then counts
    in this process, and one line says so, once.

    Guarantees: test_progress_without_a_writable_file_is_one_line.
    """
    path = progress_file()
    if read_progress().get(key) == SOLVED:
        result = SOLVED
    _session.setdefault(path, {})[key] = result
    try:
        results = _load(path) | {key: result}
        write_atomically(path, json.dumps(results, indent=1, sort_keys=True) + "\n")
    except (OSError, ValueError) as error:
        if path not in _warned:
            _warned.add(path)
            reason = error_text(error)
            print(f"Your progress counts in this session only: it cannot be kept ({reason}).")


def progress() -> "pd.DataFrame":
    """Returns the reader's progress as a table, one row a lesson and one for all of them.

    It is read from a file on this computer (`progress_file`) and sent nowhere.

    >>> progress().columns.tolist()
    ['solved', 'tried', 'exercises', 'predicted right', 'predicted', 'predictions']
    """
    import pandas as pd

    results = read_progress()
    rows = []
    for key, (_, entry) in entries().items():
        result = results.get(key)
        row = {"lesson": key[:2]}
        if PREDICTION_KEY.fullmatch(key):
            right = result == entry["answer"]
            row |= {"predicted right": right, "predicted": result is not None, "predictions": True}
        else:
            row |= {"solved": result == SOLVED, "tried": result is not None, "exercises": True}
        rows.append(row)
    columns = ["solved", "tried", "exercises", "predicted right", "predicted", "predictions"]
    table = pd.DataFrame(rows, columns=["lesson", *columns])
    table[columns] = table[columns].eq(True)
    table = table.groupby("lesson").sum()
    table.loc["all"] = table.sum()
    return table.astype(int)
