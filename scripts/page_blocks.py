"""Tables of the project's Markdown pages."""

from collections.abc import Iterable, Mapping
from typing import Any


def markdown_table(rows: Iterable[Iterable[Any]]) -> str:
    """Writes a Markdown table; the first row is its head, a bar in a cell becomes a stroke."""
    cells = [[str(cell).replace("|", "/") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def fill_blocks(page: str, blocks: Mapping[str, str]) -> str:
    """Replaces the text between ``<!-- name -->`` and ``<!-- /name -->``, both of which exist.

    Args: page: Markdown. blocks: name -> what is to stand there.
    """
    for name, content in blocks.items():
        first = f"<!-- {name} -->\n"
        last = f"<!-- /{name} -->"
        before, _, block = page.partition(first)
        _, mark, after = block.partition(last)
        assert mark, f"expected the lines {first.strip()} and {last}"
        page = f"{before}{first}{content}\n{last}{after}"
    return page
