"""Write constraints.txt, the exact versions of this environment for everything pyproject.toml asks
for, and requirements.lock, the SHA-256 of every file of those versions.

No addresses and no local builds are written, so that the files mean the same everywhere. torch and
the CUDA libraries it brings have no digest: each of its builds is a file of its own, and which one
fits is the machine's affair. Run it after the tests have passed: ``make pins``.
"""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
# The set of versions the tests were run with (Python 3.11, Linux); written by `make pins`.
# Use: pip install -c constraints.txt -e ".[dev,text,flower]"
"""
LOCK_HEAD = """\
# The files of the versions in constraints.txt, by digest, for Python 3.11 to 3.13 on any system;
# written by `make pins`. `make setup` installs no other file. torch is chosen by the machine.
"""
EXTRAS = ("dev", "text", "flower")
MACHINES = re.compile(r"(torch|triton|cuda-|nvidia-)")
"""Packages whose files differ with the machine's accelerator."""


def wanted(extras: tuple[str, ...]) -> list[Requirement]:
    """The requirements of pyproject.toml, those of the named extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [
        project["dependencies"],
        *(project["optional-dependencies"][extra] for extra in extras),
    ]
    return [Requirement(text) for part in lists for text in part]


def closure(requirements: list[Requirement]) -> dict[str, str]:
    """Name -> version of all that is installed and needed, directly or not."""
    pins: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = list(requirements)
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            installed = distribution(requirement.name)
        except PackageNotFoundError:
            continue  # needed elsewhere only: another system or another Python
        pins[key[0]] = Version(installed.version).public
        for text in installed.requires or []:
            inner = Requirement(text)
            if inner.marker is None or any(
                inner.marker.evaluate({"extra": extra}) for extra in (*key[1], "")
            ):
                todo.append(inner)
    return pins


def digests() -> list[str]:
    """The pinned packages, each with the digests of its files, by uv, which comes with Flower."""
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "pyproject.toml"]
    for extra in EXTRAS:
        command += ["--extra", extra]
    command += ["--constraints", "constraints.txt", "--python-version", "3.11", "--universal"]
    command += ["--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate"]
    compiled = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    packages = re.split(r"\n(?=\S)", compiled.stdout.strip())
    return [package for package in packages if not MACHINES.match(package)]


def main() -> None:
    pins = closure(wanted(EXTRAS))
    lines = [f"{name}=={pins[name]}" for name in sorted(pins)]
    (ROOT / "constraints.txt").write_text(HEAD + "\n".join(lines) + "\n")
    locked = digests()
    (ROOT / "requirements.lock").write_text(LOCK_HEAD + "\n".join(locked) + "\n")


if __name__ == "__main__":
    main()
