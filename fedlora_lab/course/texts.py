"""The lessons' texts: entries of their TOML files, with code, mathematics and prose set apart.

Prose is wrapped in the file. Backticks hold code, dollars mathematics, and lines of three backticks
a block of code.
"""

import re
import tomllib
from functools import cache
from html import escape
from pathlib import Path
from string import ascii_lowercase
from typing import Any

PREDICTION_KEY = re.compile(r"\d\d\.[a-z]")
"""Keys such as "02.a"; the key of an exercise is "02.1"."""

Entry = dict[str, Any]


@cache
def entries() -> dict[str, tuple[str, Entry]]:
    """Collects every entry of every lesson: key -> (folder of the lesson, entry)."""
    return {
        key: (path.parent.name, entry)
        for path in sorted(Path(__file__).parent.glob("lesson_*/exercises.toml"))
        for key, entry in tomllib.loads(path.read_text(encoding="utf-8")).items()
    }


def split_code(text: str) -> list[tuple[bool, str]]:
    """Splits a text at its lines of three backticks: (whether it is code, its lines)."""
    pieces = re.split(r"^```\w*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    # What the pattern caught, every second part, is code.
    pairs = [(i % 2 == 1, part.strip("\n")) for i, part in enumerate(pieces)]
    return [(is_code, part) for is_code, part in pairs if part.strip()]


def unwrap(text: str) -> str:
    """Joins the lines of prose, which are wrapped in the file, and keeps those of code."""
    return "\n".join(
        f"```\n{part}\n```" if is_code else " ".join(part.split())
        for is_code, part in split_code(text)
    )


def to_html(text: str) -> str:
    """Returns the text as paragraphs and blocks of code.

    Backticks become ``<code>``; mathematics stays between its dollars, for the page's MathJax.
    """
    return "\n".join(
        f"<pre><code>{escape(part)}</code></pre>" if is_code else f"<p>{_prose_to_html(part)}</p>"
        for is_code, part in split_code(text)
    )


def inline_html(text: str) -> str:
    """Returns a text of one paragraph without the paragraph around it."""
    return to_html(text).removeprefix("<p>").removesuffix("</p>")


def question_html(text: str) -> str:
    """Returns the text as `to_html` does, with options (a), (b), … each on a line of its own."""
    question, *options = re.split(r"\s(?=\([a-z]\)\s)", text)
    letters = "".join(option[1] for option in options)
    if len(letters) < 2 or not ascii_lowercase.startswith(letters):
        return to_html(text)
    items = "\n".join(f"<li>{inline_html(option)}</li>" for option in options)
    return f'{to_html(question)}\n<ul style="list-style: none">\n{items}\n</ul>'


def _prose_to_html(prose: str) -> str:
    # A dollar inside backticks is code, a backtick inside dollars mathematics.
    html = []
    for piece in re.split(r"(\$\$.+?\$\$|\$[^$]+\$|`[^`]+`)", prose):
        is_code = len(piece) > 2 and piece.startswith("`") and piece.endswith("`")
        html.append(f"<code>{escape(piece[1:-1])}</code>" if is_code else escape(piece))
    return "".join(html)
