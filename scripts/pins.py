"""Write constraints.txt: the exact versions of this environment for everything pyproject.toml asks
for.

Only names and versions are written, no addresses and no local builds, so that the file means the
same everywhere. Run it after the tests have passed: ``make pins``.
"""

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
            found = distribution(requirement.name)
        except PackageNotFoundError:
            continue  # needed elsewhere only: another system or another Python
        pins[key[0]] = Version(found.version).public
        for text in found.requires or []:
            inner = Requirement(text)
            if inner.marker is None or any(
                inner.marker.evaluate({"extra": extra}) for extra in (*key[1], "")
            ):
                todo.append(inner)
    return pins


def main() -> None:
    pins = closure(wanted(("dev", "text", "flower")))
    lines = [f"{name}=={pins[name]}" for name in sorted(pins)]
    (ROOT / "constraints.txt").write_text(HEAD + "\n".join(lines) + "\n")
    print(f"constraints.txt: {len(lines)} packages")


if __name__ == "__main__":
    main()
