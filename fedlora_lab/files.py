"""Files that are there whole or not at all, and lists that grow a line at a time."""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: str | os.PathLike, content: "bytes | str") -> None:
    """Write under a temporary name beside the target, flush to the disk, rename; text as UTF-8, line ends as they are.

    A reader finds the old file or the new one, at every moment. Missing folders above it are made.

    Raises: ``OSError`` where the disk or the folder does not allow it, ``TypeError`` for anything but bytes or text;
        the old file is then as it was and nothing else is left.
    Guarantees: test_checkpoint.py::test_a_failed_write_leaves_the_old_file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with open(draft, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, none without the file; a line cut short by a kill is passed over."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        found += [entry] if isinstance(entry, dict) else []
    return found


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """One more JSON line, on the disk when this returns; a torn last line is closed first.

    Guarantees: test_study.py::test_a_killed_study_goes_on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        file.seek(0, os.SEEK_END)
        torn = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
