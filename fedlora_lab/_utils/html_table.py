"""A small table as notebooks show one."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

CELL = 'style="text-align:left;vertical-align:top"'


def html_table(rows: Iterable[Sequence[Any]], head: Sequence[Any] = ()) -> str:
    """HTML of rows of cells, which are escaped, below a row of column names.

    Args: rows, head: cells of any kind; no ``head``: no such row.

    >>> html_table([("ε", 3)])[-20:]
    '>3</td></tr></table>'
    """

    def line(cells: Sequence[Any], tag: str) -> str:
        row = "".join(f"<{tag} {CELL}>{escape(str(cell))}</{tag}>" for cell in cells)
        return f"<tr>{row}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<table style="max-width:980px">{line(head, "th") if head else ""}{body}</table>'
