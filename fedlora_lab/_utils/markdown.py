"""Tables and checks of the project's Markdown pages."""

import re
from collections.abc import Iterable
from typing import Any

from fedlora_lab._utils.validation import check


def markdown_table(rows: Iterable[Iterable[Any]]) -> str:
    """Writes a Markdown table; the first row is its head, a bar in a cell becomes a stroke."""
    cells = [[str(cell).replace("|", "/") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def hidden_lines(page: str) -> list[str]:
    """Finds lines of a Markdown page that MyST would not show as text.
    It takes them, outside code, for a comment, the end of a block, a target or a directive, even
    within prose.
    """
    hidden = re.compile(r" {0,3}(%|\+\+\+|\([^()\s]+\)=\s*$|:::)")
    lines = []
    fence = ""
    for line in page.splitlines():
        mark = re.match(r" {0,3}(```+|~~~+)", line)
        if mark:
            fence = ("" if mark[1].startswith(fence) else fence) if fence else mark[1]
        elif not fence and hidden.match(line):
            lines.append(line)
    return lines


def require_visible(page: str) -> str:
    """Returns the page; raises ``ValueError`` if the site would not show one of its lines."""
    expected = "no line that MyST takes for a comment, a target or a directive: wrap it elsewhere"
    check(not hidden_lines(page), "page", hidden_lines(page), expected)
    return page
