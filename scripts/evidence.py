"""Write the page of evidence of every lesson: python scripts/evidence.py"""

from pathlib import Path

from fedlora_course import evidence

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "evidence"


def main() -> None:
    """Write what stands in the lessons' files of claims into docs/evidence."""
    FOLDER.mkdir(exist_ok=True)
    for number in evidence.lessons():
        path = FOLDER / f"{number:02}.md"
        path.write_text(evidence.page(number), encoding="utf-8")


if __name__ == "__main__":
    main()
