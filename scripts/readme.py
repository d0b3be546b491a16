"""Fill the generated parts of README.md and studies/logbook.md: links, course, figure, results.

    python scripts/readme.py          from the numbers that are there; and the repository's address
    python scripts/readme.py train    trains the six methods again, two minutes

The figure goes to docs/figures/digits.png, the numbers beside it to docs/figures/digits.csv; the
test that compares studies/logbook.md with them reads that file. README.md's moving picture is
recorded by scripts/moving_picture.py.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from fedlora_lab import plots
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.markdown import fill_blocks, markdown_table
from fedlora_lab.plots.style import name, png
from fedlora_lab.report import display_rows, summary
from notebooks import ADDRESS, CORE, core_hours, lesson_paths, minutes, question, titled

ROOT = Path(__file__).resolve().parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "studies" / "logbook.md"
PROJECT, CONFIG = ROOT / "pyproject.toml", ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml"
NUMBERS = ROOT / "docs" / "figures" / "digits.csv"
FIGURE = ROOT / "docs" / "figures" / "digits.png"

SIX = ["fedlora", "ffa-lora", "rolora", "deer", "la-lora", "fedlpp"]
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
    """One line for each lesson: its question, linked, and its minutes; the core is bold."""
    rows = [["", "question", "minutes"]]
    for path in lesson_paths():
        number = path.name[:2]
        bold = "**" if number in CORE else ""
        link = f"{bold}[{question(path)}](notebooks/{path.name}){bold}"
        rows.append([number, link, str(minutes(path))])
    return f"Those in bold are the core, about {core_hours()} hours.\n\n{markdown_table(rows)}"


URLS = """
[project.urls]
Homepage = "https://github.com/{0}"
Changelog = "https://github.com/{0}/blob/main/CHANGELOG.md"
Issues = "https://github.com/{0}/issues"
Discussions = "https://github.com/{0}/discussions"
"""
CONTACT = """contact_links:
  - name: A question, or an idea
    url: https://github.com/{0}/discussions
    about: Ask and answer here what is no fault.
"""


def with_urls(project: str, address: str = ADDRESS) -> str:
    """pyproject.toml with the repository's addresses; without one, with none."""
    bare = re.sub(r'\n\[project\.urls\]\n(\w+ = ".*"\n)+', "", project)
    urls = URLS.format(address) if address else ""
    return bare.replace("\n[project.scripts]", f"{urls}\n[project.scripts]")


def with_contact(config: str, address: str = ADDRESS) -> str:
    """The choice of issue forms with a link to the discussions; without an address, with none."""
    return config.split("contact_links:")[0] + (CONTACT.format(address) if address else "")


def results_table(table: pd.DataFrame) -> str:
    """The summary of a comparison, as the report shows it."""
    rows = [["method", "accuracy", "deviation", "ε", "sent up", "sent down"]]
    keys = ("deviation", "epsilon", "up", "down")
    for row in display_rows(table):
        score = "; ".join(filter(None, (row["score"], row["collapsed"])))
        rows.append([name(row["method"]), score, *(row[key] for key in keys)])
    return markdown_table(rows)


def six_methods() -> pd.DataFrame:
    """Trains six methods on digits, each at the rate that the studies found for it."""
    import fedlora_lab as fl

    tuned = json.loads((ROOT / "studies" / "tuned_rates.json").read_text("utf-8"))["digits"]
    task = fl.tasks.digits()
    work = fl.Plan(**tuned["setting"]["plan"])
    privacy = fl.Privacy(**tuned["setting"]["privacy"])
    privacy = privacy.calibrate(epsilon=8, task=task, plan=work)
    plans = {slug: work.replace(lr=tuned["example"][slug]["8"]) for slug in SIX}
    lora = fl.Lora(**tuned["setting"]["lora"])
    return fl.compare(task, SIX, privacy, plans, range(3), lora=lora, jobs=-1)


def main() -> None:
    if sys.argv[1:] == ["train"]:
        frame = six_methods()
        FIGURE.write_bytes(png(plots.overview(frame)))
        write_atomically(NUMBERS, summary(frame).to_csv(index=False), shared=True)
    table = pd.read_csv(NUMBERS)
    pages = {README: {"course": course_table()}, RESULTS: {"results": results_table(table)}}
    for page, blocks in pages.items():
        text = fill_blocks(page.read_text(encoding="utf-8"), blocks)
        write_atomically(page, text, shared=True)
    readme = titled(README.read_text(encoding="utf-8"), "00_why_is_it_hard.ipynb")
    write_atomically(README, readme, shared=True)
    for path, addressed in ((PROJECT, with_urls), (CONFIG, with_contact)):
        write_atomically(path, addressed(path.read_text(encoding="utf-8")), shared=True)


if __name__ == "__main__":
    main()
