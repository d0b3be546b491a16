"""Fill the generated parts of README.md: the links under its title, and the course.

    python scripts/readme.py

Links to Binder and Colab need the repository's address, which CITATION.cff may have.
"""

import re
from pathlib import Path
from typing import Any

from page_blocks import fill_blocks

from fedlora_lab._utils.files import write_atomically
from notebooks import CORE, core_hours, lesson_paths, question, titled

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MOVES = {"AB": "A and B", "BA": "A and B", "R": "the core R", "*": "A or B, chosen layer by layer"}


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


def course_table() -> str:
    """One line for each lesson: its question, linked; the core is bold."""
    lines = [f"Those in bold are the core, about {core_hours()} hours.\n"]
    for path in lesson_paths():
        number = path.name[:2]
        bold = "**" if number in CORE else ""
        lines.append(f"{number}. {bold}[{question(path)}](notebooks/{path.name}){bold}")
    return "\n".join(lines)


def main() -> None:
    readme = fill_blocks(README.read_text(encoding="utf-8"), {"course": course_table()})
    write_atomically(README, titled(readme, "00_why_is_it_hard.ipynb"), shared=True)


if __name__ == "__main__":
    main()
