"""What exercises and predictions share: their entries, their words, and the reader's progress.

Entries stand in the lessons' TOML files. Their words may hold code in backticks, mathematics
between dollars, and functions on lines of their own. Progress, which exercises were tried and
solved and what was predicted, is kept in one JSON file of the reader's (FEDLORA_PROGRESS, else
``fedlora_lab/progress.json`` in XDG_DATA_HOME or ~/.local/share) and sent nowhere.
"""

import json
import os
import re
import tomllib
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora_lab._utils.files import lock_folder, parse_json, write_atomically

if TYPE_CHECKING:
    import pandas as pd

PREDICTION = re.compile(r"\d\d\.[a-z]")
"""Keys such as "02.a"; the key of an exercise is "02.1"."""


@cache
def entries() -> dict[str, tuple[str, dict[str, Any]]]:
    """Collects every entry of every lesson: key -> (folder of the lesson, entry)."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in sorted(Path(__file__).parent.glob("lesson_*/exercises.toml")):
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        found |= {key: (path.parent.name, entry) for key, entry in content.items()}
    return found


def blocks(text: str) -> list[tuple[bool, str]]:
    """Splits a text into prose and code, in their order: (whether it is code, its lines).

    Code is what stands between lines of three backticks, and a ``def`` with its indented lines.
    """
    parts: list[tuple[bool, list[str]]] = [(False, [])]
    lines, fenced, inside = text.splitlines(), False, False
    for i, line in enumerate(lines):
        if line.startswith("```"):
            fenced, inside = not fenced, False
            parts.append((fenced, []))
            continue
        starts = line.startswith("def ") and lines[i + 1 : i + 2] and lines[i + 1].startswith(" ")
        inside = not fenced and bool(starts or (inside and (not line or line.startswith(" "))))
        if parts[-1][0] != (fenced or inside):
            parts.append((fenced or inside, []))
        parts[-1][1].append(line)
    joined = [(code, "\n".join(lines).strip("\n")) for code, lines in parts]
    return [(code, part) for code, part in joined if part.strip()]


def flow(text: str) -> str:
    """Joins the lines of prose, which are wrapped in the file, and keeps those of code."""
    parts = []
    for code, part in blocks(text):
        fenced = code and not part.startswith("def ")
        prose = part if code else " ".join(part.split())
        parts.append(f"```\n{part}\n```" if fenced else prose)
    return "\n".join(parts)


def to_html(text: str) -> str:
    """Returns the text as paragraphs and blocks of code.

    Backticks become ``<code>``; mathematics stays between its dollars, for the page's MathJax.
    """

    def prose(part: str) -> str:
        # A dollar inside backticks is code, a backtick inside dollars mathematics.
        pieces = re.split(r"(\$\$.+?\$\$|\$[^$]+\$|`[^`]+`)", part)
        coded = (x.startswith("`") and x.endswith("`") and len(x) > 2 for x in pieces)
        return "".join(
            f"<code>{escape(x[1:-1])}</code>" if code else escape(x)
            for x, code in zip(pieces, coded, strict=True)
        )

    return "\n".join(
        f"<pre><code>{escape(part)}</code></pre>" if code else f"<p>{prose(part)}</p>"
        for code, part in blocks(text)
    )


SOLVED, TRIED = "solved", "tried"
# What this session has seen, by file: all that there is where the file cannot be written.
_session: dict[Path, dict[str, str]] = {}
_told: set[Path] = set()


def progress_file() -> Path:
    """Where the reader's progress is kept."""
    if own := os.environ.get("FEDLORA_PROGRESS"):
        return Path(own).expanduser()
    data = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    return data / "fedlora_lab" / "progress.json"


def _load(path: Path) -> dict[str, str]:
    """Raises ``ValueError`` for a file that is not one of progress, ``OSError`` for an unreadable
    one."""
    if not path.exists():
        return {}
    if not path.is_file():
        raise ValueError(f"{path}: expected a file")
    found = parse_json(path.read_bytes(), str(path))
    words = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    if not words:
        raise ValueError(f"{path}: expected a file of progress")
    return found


def seen() -> dict[str, str]:
    """Key -> "tried" or "solved" of an exercise, or the letter that was predicted."""
    path = progress_file()
    try:
        kept = _load(path)
    except (OSError, ValueError):
        kept = {}
    return kept | _session.get(path, {})


def note(key: str, value: str) -> None:
    """Keeps one result; a solved exercise stays solved.

    A file that cannot be written, or holds something else, is left alone: the result then counts
    in this session, and one line says so, once.

    Guarantees: test_progress_without_a_writable_file_is_one_line.
    """
    path = progress_file()
    value = SOLVED if seen().get(key) == SOLVED else value
    _session.setdefault(path, {})[key] = value
    try:
        with lock_folder(path.parent, f".{path.name}.lock", patience=2.0):
            kept = _load(path)
            if kept.get(key) != value:
                content = dict(sorted((kept | {key: value}).items()))
                write_atomically(path, json.dumps(content, indent=1) + "\n")
    except (OSError, ValueError) as error:
        if path not in _told:
            _told.add(path)
            reason = " ".join(str(error).split())
            print(f"Your progress counts in this session only: it cannot be kept ({reason}).")


def progress() -> "pd.DataFrame":
    """Returns the reader's progress as a table, one row a lesson and one for all of them.

    It is read from a file on this computer (`progress_file`) and sent nowhere.

    >>> progress().columns.tolist()
    ['solved', 'tried', 'exercises', 'predicted right', 'predicted', 'predictions']
    """
    import pandas as pd

    found, rows = seen(), []
    for key, (_, entry) in entries().items():
        got, predicted = found.get(key), bool(PREDICTION.fullmatch(key))
        done = [got is not None and got == (entry["answer"] if predicted else SOLVED)]
        counts = [*done, got is not None, True]
        none = [False] * 3
        rows.append([key[:2], *(none + counts if predicted else counts + none)])
    names = ["solved", "tried", "exercises", "predicted right", "predicted", "predictions"]
    table = pd.DataFrame(rows, columns=["lesson", *names]).groupby("lesson").sum()
    table.loc["all"] = table.sum()
    return table.astype(int)
