"""Made-up notes of patients, which stand in for public ones and for the private ones of two sites.

    python -m flower_app.notes FOLDER

writes FOLDER/site-0.csv and FOLDER/site-1.csv.
"""

import csv
import sys
from pathlib import Path
from random import Random

GOOD = ("kind", "gentle", "patient", "friendly", "careful", "warm", "helpful", "honest")
BAD = ("rude", "harsh", "careless", "cold", "impatient", "dismissive", "rough", "loud")
WHO = ("nurse", "doctor", "receptionist", "surgeon", "porter", "midwife", "dentist")
WHEN = ("this morning", "on monday", "at night", "at my last visit", "after the operation")
FORMS = {
    "harsh": ("the {who} was {bad} {when}", "{when} the {who} was very {bad}"),
    "kind": ("the {who} was {good} {when}", "a {good} and {other} {who} {when}"),
    "mixed": ("the {who} was {good} but {bad} {when}", "a {bad} yet {good} {who} {when}"),
}


def made_up(count: int, seed: int) -> list[dict[str, str]]:
    """Notes with a text and one of three labels."""
    draw = Random(seed)
    rows = []
    for _ in range(count):
        label = draw.choice([*FORMS])
        words = {"good": GOOD, "other": GOOD, "bad": BAD, "who": WHO, "when": WHEN}
        chosen = {name: draw.choice(part) for name, part in words.items()}
        rows.append({"text": draw.choice(FORMS[label]).format(**chosen), "label": label})
    return rows


def read(file: str) -> list[dict[str, str]]:
    """A site's own notes."""
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def write(folder: Path) -> None:
    """Writes the made-up private notes of both sites."""
    for site in range(2):
        with open(folder / f"site-{site}.csv", "w", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, ("text", "label"))
            writer.writeheader()
            writer.writerows(made_up(600, seed=site))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
