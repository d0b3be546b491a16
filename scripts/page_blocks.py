"""Tables of the project's Markdown pages, and words in them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

MOVES = {"AB": "A and B", "BA": "A and B", "R": "the core R", "*": "A or B, chosen layer by layer"}


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


def describe_schedule(row: Any) -> str:
    """Who moves when: "A and B", "B, then A, round by round", "…, step by step"."""
    rounds = [
        [MOVES.get(word, word) for word in part.split()] for part in str(row["schedule"]).split("|")
    ]
    if len(rounds) == 1:
        steps = rounds[0]
        return ", then ".join(steps) + (", step by step" if len(steps) > 1 else "")
    return ", then ".join(" and then ".join(steps) for steps in rounds) + ", round by round"


def linked(source: str) -> str:
    """arXiv ids as links."""
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", source)
