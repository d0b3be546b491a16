"""What exercises and predictions share: their entries in the lessons' TOML files, and their words.

Words may hold code in backticks, mathematics between dollars, and functions on lines of their own.
"""

import re
import tomllib
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

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
