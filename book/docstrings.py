"""Sphinx extension: this project's docstrings as reStructuredText.

They are written to be read in an editor: a line of meaning, paragraphs, and sections ``Args:``,
``Returns:``, ``Raises:``, ``Guarantees:``, ``Source:``. Nothing in them is meant as markup but
literals, so all else is escaped."""

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes

SECTIONS = ("Args", "Returns", "Yields", "Raises", "Guarantees", "Source")
HEAD = re.compile(rf"^({'|'.join(SECTIONS)}):\s*(.*)$")
ENTRY = re.compile(r"^([\w*]+(?:, [\w*]+)*|``[^`]+``): (.*)$")
LITERAL = re.compile(r"(``.+?``|`[^`]+`)")
UNREADABLE = re.compile(r"(= ?)<[^<>]*>")
LONGEST_VALUE = 60
"""Letters up to which the value of a constant is shown."""


def inline(text: str) -> str:
    """A line of prose: literals as literals, every other character as itself."""
    parts = LITERAL.split(text)
    plain = [
        re.sub(r"([\\*|_`])", r"\\\1", part) if i % 2 == 0 else part for i, part in enumerate(parts)
    ]
    return "".join(f"``{part.strip('`')}``" if i % 2 else part for i, part in enumerate(plain))


def paragraphs(lines: list[str]) -> list[list[str]]:
    """Lines split where one is empty, and where a section begins."""
    found: list[list[str]] = [[]]
    for line in lines:
        if not line.strip() or (HEAD.match(line) and found[-1]):
            found.append([])
        if line.strip():
            found[-1].append(line.rstrip())
    return [part for part in found if part]


def entries(lines: list[str]) -> list[str]:
    """The lines of a section, those that go on joined to the one they continue."""
    indent = min(len(line) - len(line.lstrip()) for line in lines)
    joined: list[str] = []
    for line in lines:
        deeper = len(line) - len(line.lstrip()) > indent
        if joined and (deeper or not ENTRY.match(line.strip())):
            joined[-1] += " " + line.strip()
        else:
            joined.append(line.strip())
    return joined


def section(name: str, first: str, rest: list[str]) -> list[str]:
    """A section as a paragraph, or as a list when it stands on lines of its own."""
    label = {"Args": "Arguments"}.get(name, name)
    if first or not rest:
        text = " ".join([first, *(line.strip() for line in rest)]).strip()
        return [f"**{label}.** {inline(text)}", ""]
    out = [f"**{label}.**", ""]
    for entry in entries(rest):
        match = ENTRY.match(entry) if name != "Source" else None
        text = f"``{match[1].strip('`')}``: {inline(match[2])}" if match else inline(entry)
        out += [f"- {text}"]
    return [*out, ""]


def converted(lines: list[str]) -> list[str]:
    """A docstring's lines as reStructuredText."""
    out: list[str] = []
    for part in paragraphs(lines):
        head = HEAD.match(part[0])
        if head:
            out += section(head[1], head[2], part[1:])
        elif part[0].startswith(">>> "):
            out += [*part, ""]
        elif all(line.startswith("    ") for line in part):
            out += ["::", "", *part, ""]
        else:
            out += [inline(" ".join(line.strip() for line in part)), ""]
    return out


def rewrite(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Called by autodoc with the lines of a docstring, which it wants changed in place."""
    lines[:] = converted(lines)


def shorten_defaults(
    app: Any, what: str, name: str, thing: Any, options: Any, arguments: str | None, result: Any
) -> tuple[str | None, Any]:
    """Called by autodoc with a signature: a default that is no Python becomes an ellipsis.

    Sphinx could not parse it, and would then write every type with its whole path.
    """
    return arguments and UNREADABLE.sub(r"\1...", arguments), result


def shorten_values(app: Any, tree: nodes.Node, page: str) -> None:
    """Called by Sphinx with a page: the values of tables are not shown, those of numbers are."""
    for value in list(tree.findall(addnodes.desc_annotation)):
        text = value.astext()
        if text.startswith(" = ") and (len(text) > LONGEST_VALUE or UNREADABLE.search(text)):
            value.parent.remove(value)


def skip(app: Any, what: str, name: str, thing: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out what only says that a named tuple has fields, and what Matplotlib adds."""
    of_a_field = (getattr(thing, "__doc__", None) or "").startswith("Alias for field number")
    of_matplotlib = str(getattr(thing, "__module__", "")).startswith("matplotlib")
    return True if of_a_field or of_matplotlib else None


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx asks of an extension."""
    app.connect("autodoc-process-docstring", rewrite)
    app.connect("autodoc-process-signature", shorten_defaults)
    app.connect("autodoc-skip-member", skip)
    app.connect("doctree-resolved", shorten_values)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
