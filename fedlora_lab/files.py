"""Files that are there whole or not at all, lists that grow a line at a time, and folders with one owner.

What a run writes is readable by its owner only: files have mode 0600, folders made for them 0700. What is meant to be
handed on (`shared`) has the mode that the umask gives.
"""

import errno
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, each open to its owner only; one that is there stays as it is.

    Guarantees: test_attack_folders.py::test_every_file_of_a_run_is_its_owner_s.
    """
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
            _sync_names(folder.parent)
    if not path.is_dir():
        raise NotADirectoryError(f"{path}: expected a folder")


def write_atomically(path: str | os.PathLike, content: "bytes | str", *, shared: bool = False) -> None:
    """Write under a temporary name beside the target, flush to the disk, rename, flush the folder.

    Text as UTF-8, line ends as they are.

    A reader finds the old file or the new one, at every moment. Missing folders above it are made.

    Args: shared: the file is meant to be handed on; its mode, and that of folders made for it, follow the umask.

    Raises: ``OSError`` where the disk or the folder does not allow it, ``TypeError`` for anything but bytes or text;
        the old file is then as it was and nothing else is left.
    Guarantees: test_checkpoint.py::test_a_failed_write_leaves_the_old_file; without ``shared`` nobody else can read
        it, at no moment (test_attack_folders.py::test_every_file_of_a_run_is_its_owner_s).
    """
    target = Path(path)
    if shared:
        target.parent.mkdir(parents=True, exist_ok=True)
    else:
        make_folder(target.parent)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with open(draft, "xb", opener=partial(os.open, mode=0o666 if shared else 0o600)) as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
        _sync_names(target.parent)
    finally:
        draft.unlink(missing_ok=True)


def _sync_names(folder: Path) -> None:
    """Flush a folder: a new name in it survives a loss of power only then."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folder
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # said by file systems that cannot
            raise
    finally:
        os.close(handle)


@contextmanager
def held(folder: "Path | None", name: str = ".lock", patience: float = 0.0, what: str | None = None) -> Iterator[None]:
    """Hold a folder, which is made when it is not there, against every other holder of this name, in this process too.

    The operating system lets go of it when the process ends, however it ends. ``None`` holds nothing.

    Args:
        patience: seconds to wait for another holder.
        what: how to call it in an error; default: ``out`` and the folder.

    Raises: ``ValueError`` when somebody holds it for longer.
    Guarantees: test_faults_runs.py::test_two_runs_in_one_folder_refuse_each_other, ::test_a_dead_holder_is_no_holder.
    """
    if folder is None:
        yield
        return
    from filelock import FileLock, Timeout

    make_folder(folder)
    lock = FileLock(folder / name, timeout=patience, mode=0o600, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        waited = f" within {patience:g} s" if patience else ""
        expected = f"a {'folder' if what is None else 'file'} that no other run is using{waited}"
        raise ValueError(f"{what or f'out={str(folder)!r}'}: expected {expected}") from None
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

    Guarantees: test_study.py::test_a_killed_study_goes_on; a file or folder made here is its owner's only
        (test_attack_folders.py::test_a_list_is_its_owner_s).
    """
    make_folder(path.parent)
    with open(path, "ab+", opener=partial(os.open, mode=0o600)) as file:
        begun = file.seek(0, os.SEEK_END) > 0
        torn = begun and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if not begun:
        _sync_names(path.parent)


def private(folder: Path) -> Path:
    """Where a folder keeps what must not leave it: its key, what clients keep, who took part."""
    return folder / "private"


def has_key(folder: Path) -> bool:
    """Whether the folder's private part is there."""
    return (private(folder) / "key").is_file()


def keyed(folder: Path, fingerprint: str) -> str:
    """What may be written of a fingerprint of private data: a digest under the folder's own key, made here if need be.

    A plain digest tells whoever guesses an unknown label when the guess is right. This one tells nothing without the
    key, and two folders on the same data have different ones.

    Raises: ``ValueError`` where the key is damaged.
    Guarantees: test_attack_folders.py::test_a_label_cannot_be_guessed_from_a_digest. Source: HMAC-SHA256, RFC 2104.
    """
    path = private(folder) / "key"
    if not has_key(folder):
        write_atomically(path, secrets.token_hex(32) + "\n")
    content = path.read_bytes()
    if not re.fullmatch(rb"[0-9a-f]{64}\n", content):
        raise ValueError(f"key={str(path)!r}: expected the 64 digits that were written there")
    return hmac.new(bytes.fromhex(content.decode()), fingerprint.encode(), "sha256").hexdigest()
