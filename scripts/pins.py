"""Write constraints.txt, the exact versions of this environment, which `make setup` made and nobody
added to, and requirements.lock, the SHA-256 of every file of those versions.

No addresses and no local builds are written, so that the files mean the same everywhere. torch and
the CUDA libraries it brings have no digest: each of its builds is a file of its own, and which one
fits is the machine's affair. Run it after the tests have passed: ``make pins``.
"""

import re
import subprocess
import sys
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
# The set of versions the tests were run with (Python 3.11, Linux); written by `make pins`.
# Use: pip install -c constraints.txt -e ".[dev,lab,text,flower]"
"""
LOCK_HEAD = """\
# The files of the versions in constraints.txt, by digest, for Python 3.11 to 3.13 on any system;
# written by `make pins`. `make setup` installs no other file. torch is chosen by the machine.
"""
EXTRAS = ("dev", "lab", "text", "flower")
MACHINES = re.compile(r"(torch|triton|cuda-|nvidia-)")
"""Packages whose files differ with the machine's accelerator."""


def pins() -> list[str]:
    """The packages that are installed, without this one and pip, at their public versions."""
    command = [sys.executable, "-m", "pip", "freeze", "--all", "--exclude-editable"]
    for name in ("pip", "fedlora-lab", "fedlora-course", "dp-review"):
        command += ["--exclude", name]
    frozen = subprocess.run(command, check=True, capture_output=True, text=True)
    named = (line.partition("==") for line in frozen.stdout.splitlines())
    return sorted(f"{canonicalize_name(name)}=={x.partition('+')[0]}" for name, _, x in named)


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
    (ROOT / "constraints.txt").write_text(HEAD + "\n".join(pins()) + "\n")
    locked = digests()
    (ROOT / "requirements.lock").write_text(LOCK_HEAD + "\n".join(locked) + "\n")


if __name__ == "__main__":
    main()
