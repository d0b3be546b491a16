"""Fill the generated parts of README.md: the links under its title, and the course.

    python scripts/readme.py

Links to Binder and Colab need the repository's address, which CITATION.cff may have.
"""

from pathlib import Path

from page_blocks import fill_blocks

from fedlora_lab._utils.files import write_atomically
from notebooks import CORE, core_hours, lesson_paths, question, titled

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


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
