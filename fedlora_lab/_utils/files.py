"""Files written whole or not at all, strict JSON and folder locks."""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from fedlora_lab._utils.validation import error_text

JsonObject = dict[str, Any]
"""What a JSON text in braces is read as, and written from."""


def _make_folder(path: Path) -> None:
    """Makes a folder and its missing parents, readable by their owner only."""
    # From the top, each with its mode at creation: changed afterwards, others could look inside.
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
            _sync_names(folder.parent)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder", str(path))


def write_atomically(
    path: str | os.PathLike,
    content: "bytes | str",
    *,
    shared: bool = False,
) -> None:
    """Writes a file so that a reader finds the old content or the new one, at every moment.

    Args:
        path: of the file; missing folders are made.
        content: text is UTF-8 with its line ends as they are.
        shared: the modes of the file and its folders follow the umask, for files that are handed
            on. Otherwise only the owner can read it, at every moment.

    Raises: ``OSError`` where the disk or the folder does not allow it; the old file is then as it
        was and nothing else is left.
    Guarantees: test_a_failed_write_leaves_the_old_file, test_every_file_of_a_run_is_its_owner_s.
    """
    # Through a link: its file would stay behind, as a ledger that states too little.
    # `Path.resolve` raises at links in a circle; here the file takes the place of such a link.
    target = Path(os.path.realpath(Path(path).expanduser()))
    if shared:
        target.parent.mkdir(parents=True, exist_ok=True)
    else:
        _make_folder(target.parent)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        # The mode is given at creation: changed afterwards, others could read for a moment.
        with open(draft, "xb", opener=partial(os.open, mode=0o666 if shared else 0o600)) as file:
            # Half letters, such as a byte of Latin-1 in a name, are escaped as JSON has them.
            raw = content.encode(errors="backslashreplace") if isinstance(content, str) else content
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
        _sync_names(target.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk names no file
            error.filename = str(target)
        raise
    finally:
        draft.unlink(missing_ok=True)


def read_bytes(path: Path) -> bytes:
    """The content of a file; ``ValueError`` in one line where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        expected = f"expected a file that can be read ({error.strerror})"
        raise ValueError(f"{path}: {expected}") from error


class Damaged(ValueError):
    """Raised for a sealed file that is missing, or is not what was written."""


def write_sealed(path: Path, content: bytes) -> None:
    """Writes a file as `write_atomically` does, with a digest before its content.

    The digest finds damage, not forgery. Args: path, content: see there.
    """
    write_atomically(path, hashlib.sha256(content).digest() + content)


def read_sealed(path: Path, name: str) -> bytes:
    """Reads what `write_sealed` wrote.

    Args: path: of the file. name: with which an error begins.
    Raises: `Damaged` in one line where the file is missing or other than it was written; another
        ``ValueError`` where it is there and cannot be read: it may be whole.
    Guarantees: test_store.py::test_a_sealed_file_is_what_was_written_or_refused.
    """
    try:
        sealed = path.read_bytes()
    except FileNotFoundError as error:
        raise Damaged(f"{name}: expected a whole one (a file is missing)") from error
    except OSError as error:
        expected = f"expected one that can be read ({error.strerror})"
        raise ValueError(f"{name}: {expected}") from error
    size = hashlib.sha256().digest_size
    content = sealed[size:]
    if hashlib.sha256(content).digest() != sealed[:size]:
        raise Damaged(f"{name}: expected a whole one (its content has changed)")
    return content


def _sync_names(folder: Path) -> None:
    """Flushes a folder: only then does a new name in it survive a loss of power."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folder
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that cannot flush a folder
            raise
    finally:
        os.close(handle)


def lock_folder(
    folder: "Path | None", patience: float = 0.0, what: str | None = None
) -> AbstractContextManager[Any]:
    """Locks a folder, made if missing, until the block or the process ends, however it ends.

    Args:
        folder: ``None`` locks nothing.
        patience: seconds to wait for another holder before a ``ValueError``.
        what: how to call it in an error; default: ``out`` and the folder.

    Guarantees: test_two_runs_in_one_folder_refuse_each_other,
        test_a_run_that_ends_at_any_write_goes_on_and_loses_nothing.
    """
    if folder is None:
        return nullcontext()
    from filelock import FileLock, Timeout

    what = what or f"out={str(folder)!r}"
    _make_folder(folder)
    # The operating system lets go of it when the process ends, however it ends.
    lock = FileLock(folder / ".lock", timeout=patience, mode=0o600, thread_local=False)
    try:
        return lock.acquire()
    except Timeout:
        waited = f" within {patience:g} s" if patience else ""
        expected = f"a folder that no other run is using{waited}"
        raise ValueError(f"{what}: expected {expected}") from None


def parse_json(text: "str | bytes", name: str) -> Any:
    """Parses JSON strictly: no NaN, no infinity, no key twice.

    Raises: ``ValueError`` in one line that begins with ``name``, for any other text or bytes.
    Guarantees: test_damaged_files.py::test_json_is_taken_strictly.
    """
    try:
        return _STRICT.decode(text.decode("utf-8") if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: expected JSON ({error_text(error, 120)})") from error


def to_json(value: Any) -> str:
    """Writes indented JSON; infinities and NaN are refused, since not every reader takes them."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def unique_keys(pairs: list[tuple[str, Any]]) -> JsonObject:
    """The object of some pairs, for a decoder of `json`; refuses a key that stands there twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands there twice")
    return content


_STRICT = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=unique_keys)


def read_lines(path: Path) -> list[JsonObject]:
    """The objects of a file of JSON lines; a line cut short by a kill is skipped."""
    entries = []
    # By line ends alone: other separators of Unicode may stand inside a text.
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            entry = parse_json(line, path.name)
        except ValueError:
            continue
        entries += [entry] if isinstance(entry, dict) else []
    return entries


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Appends one JSON line and flushes it to the disk; a torn last line is closed first.

    Guarantees: test_json_is_taken_strictly, test_every_file_of_a_run_is_its_owner_s.
    """
    _make_folder(path.parent)
    line = json.dumps(entry).encode() + b"\n"
    with open(path, "ab+", opener=partial(os.open, mode=0o600)) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        # A kill may have cut the last line short: this one must not continue it.
        file.write(line if file.read() in (b"", b"\n") else b"\n" + line)
        file.flush()
        os.fsync(file.fileno())
    _sync_names(path.parent)


def private_folder(folder: Path) -> Path:
    """Where a run folder keeps what must not leave it: clients' state, who took part."""
    return folder / "private"
