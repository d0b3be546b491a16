"""Write the repository's address, which stands in pyproject.toml, wherever else it is needed.

    python scripts/address.py            fill it in, and say where it was another one or missing
    python scripts/address.py --check    only say so, and fail

README.md gets badges under its title. A notebook gets the same links in words: it is read without a
network too, and a badge is a picture from somebody else's server.
"""

import argparse
import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
HOSTS = "github.com", "mybinder.org/v2/gh", "colab.research.google.com/github"
ADDRESS = re.compile(rf"({'|'.join(map(re.escape, HOSTS))})/[\w-]+/[\w.-]*\w")
LINE = re.compile(r"\n\n(?:\[!)?\[Open in Binder\].*")  # the paragraph that an earlier run wrote
BINDER = "https://mybinder.org/badge_logo.svg"
COLAB = "https://colab.research.google.com/assets/colab-badge.svg"


def repository() -> str:
    """Owner and name, as in OWNER/fedlora_lab."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].removeprefix("https://github.com/").strip("/")


def notebooks() -> list[Path]:
    """The notebooks of the course, in order."""
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def files() -> list[Path]:
    """All that holds the address, but pyproject.toml."""
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    pages = [ROOT / "CITATION.cff", ROOT / "docs" / "open_elsewhere.md"]
    return [*forms, *pages, README, *notebooks()]


def places(path: Path) -> tuple[str, str]:
    """Where Binder and Colab open a notebook."""
    name, notebook = repository(), f"notebooks/{path.name}"
    binder = f"https://mybinder.org/v2/gh/{name}/HEAD?urlpath=lab/tree/{notebook}"
    return binder, f"https://colab.research.google.com/github/{name}/blob/main/{notebook}"


def badges() -> str:
    """The line of README.md: the first notebook elsewhere."""
    binder, colab = places(notebooks()[0])
    return f"[![Open in Binder]({BINDER})]({binder}) [![Open in Colab]({COLAB})]({colab})"


def words(path: Path) -> str:
    """The line of a notebook."""
    binder, colab = places(path)
    page = f"https://github.com/{repository()}/blob/main/docs/open_elsewhere.md#on-colab"
    return f"[Open in Binder]({binder}) · [Open in Colab]({colab}) (run [one cell]({page}) first)"


def under_title(text: str, line: str) -> str:
    """The text with this line as the paragraph after its first heading."""
    plain = LINE.sub("", text)
    title = re.search(r"^# .+", plain, re.M)
    assert title, "expected a heading"
    return f"{plain[: title.end()]}\n\n{line}{plain[title.end() :]}"


def filled(path: Path) -> str:
    """The text of a file as it should be."""
    text = path.read_text(encoding="utf-8")
    if path == README:
        return under_title(text, badges())
    if path.suffix != ".ipynb":
        return ADDRESS.sub(rf"\1/{repository()}", text)
    notebook = json.loads(text)
    first = notebook["cells"][0]
    first["source"] = under_title("".join(first["source"]), words(path)).splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """The command line."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [path for path in files() if filled(path) != path.read_text(encoding="utf-8")]
    for path in stale:
        if not check:
            path.write_text(filled(path), encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {'another address, or none' if check else 'filled'}")
    sys.exit("run: python scripts/address.py" if check and stale else 0)


if __name__ == "__main__":
    main()
