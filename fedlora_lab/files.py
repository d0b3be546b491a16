"""Files that are there whole or not at all, lists that grow a line at a time, and folders with one owner."""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn


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


@contextmanager
def held(folder: "Path | None", name: str = ".lock") -> Iterator[None]:
    """Hold a folder, which is made when it is not there, against every other holder of this name, in this process too.

    The operating system lets go of it when the process ends, however it ends. ``None`` holds nothing.

    Raises: ``ValueError`` when somebody holds it.
    Guarantees: test_faults_runs.py::test_two_runs_in_one_folder_refuse_each_other, ::test_a_dead_holder_is_no_holder.
    """
    if folder is None:
        yield
        return
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"out={str(folder)!r}: expected a folder that no other run is using") from None
    try:
        yield
    finally:
        lock.release()


def parsed(text: "str | bytes", name: str) -> Any:
    """The value that a JSON text stands for, in the strict sense: no NaN, no infinity, no key twice.

    Raises: ``ValueError`` in one line that begins with ``name``, for any other text or bytes.
    Guarantees: test_faults_files.py::test_json_is_taken_strictly.
    """
    try:
        plain = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(plain, parse_constant=_constant, object_pairs_hook=_pairs)
    except (ValueError, RecursionError) as error:
        words = " ".join(str(error).split())[:120]
        raise ValueError(f"{name}: expected JSON ({words})") from error


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, none without the file; a line cut short by a kill is passed over."""
    found = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            entry = parsed(line, path.name)
        except ValueError:
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
