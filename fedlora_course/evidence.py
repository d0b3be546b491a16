"""What a lesson claims: beside the reader's own run, and as a page for a referee.

A lesson's ``evidence.toml`` has a ``title``, a table ``sections`` (anchor -> heading) and a table
``claims`` with one entry a claim:

    section   the anchor under which the claim stands
    says      the sentence, with its number, as in the lesson
    rests     what it rests on: "3 seeds of this notebook", "20 seeds, stored", "a closed form"
    value     an expression of the notebook's own names; ``frame("updates")`` reads a stored study
    stated    the number that the lesson says; ``form`` and ``unit`` say how it is written
    low, high what a run finds on any processor: the test's tolerance, which is no interval
    interval  the confidence interval, in words
    except    where the claim does not hold
    source    how a number of others was read
    shown     true for the six or so rows that the reader sees at the lesson's end

A claim without ``value`` is a number of others, or a fact that no run can check.
"""

import os
import re
import tomllib
from html import escape
from pathlib import Path
from typing import Any

import fedlora_lab as fl
from fedlora_course.texts import inline_html

Claim = dict[str, Any]
HEADINGS = ("the lesson says", "stated", "your run", "interval", "rests on")
ANCHORS = {"interval": "Interval", "except": "Except", "source": "Source"}
FILES = "lesson_*/evidence.toml"


def read(number: int) -> dict[str, Any]:
    """Reads the evidence of one lesson: its title, sections and claims."""
    path = Path(__file__).parent / f"lesson_{number:02}" / "evidence.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def lessons() -> list[int]:
    """The numbers of the lessons that have a file of claims."""
    return [int(path.parent.name[-2:]) for path in sorted(Path(__file__).parent.glob(FILES))]


def frame(name: str) -> Any:
    """Reads a stored study, from the folder in which the notebooks stand."""
    import pandas as pd

    return pd.read_csv(f"../results/{name}.csv")


def written(claim: Claim, value: float) -> str:
    """Writes a value as its claim is stated."""
    number = claim.get("form", "{:.2f}").format(value).replace("-", "−")
    return f"{number} {claim.get('unit', '')}".rstrip()


def value_of(claim: Claim, names: dict[str, Any]) -> float:
    """Computes a claim's value from the names of a notebook that has run."""
    import scipy.stats

    names = {**names, "fl": fl, "frame": frame, "scipy": scipy}
    return float(eval(claim["value"], names))  # noqa: S307  # an expression of our own file


def holds(claim: Claim, value: float) -> bool:
    """Whether a run's value lies where a run's value may lie; a NaN does not."""
    return claim["low"] <= value <= claim["high"]


class Evidence:
    """The table "How sure?" at the end of a lesson, which calls it with its names.

    Args: number: of the lesson.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, names: dict[str, Any]) -> None:
        """Shows the lesson's main claims beside the values of this run.

        Args: names: ``globals()`` of the notebook.
        Raises: ``AssertionError`` under a test runner, with every claim, shown or not, whose value
            left its range. A reader, who may have changed the notebook, sees a mark instead.
        """
        from IPython.display import HTML, display

        rows, left = [], []
        for key, claim in read(self.number)["claims"].items():
            if "value" not in claim:
                continue
            value = value_of(claim, names)
            if not holds(claim, value):
                ends = f"[{claim['low']}, {claim['high']}]"
                left.append(f"{key}: {value:.4g} is not in {ends}: {claim['says']}")
            if claim.get("shown"):
                mark = "" if holds(claim, value) else " (another outcome than ours)"
                cells = (written(claim, claim["stated"]), written(claim, value) + mark)
                cells += (claim.get("interval", ""), claim["rests"])
                rows.append((inline_html(claim["says"]), *map(escape, cells)))
        display(HTML(html_table(rows)))
        if left and ("PYTEST_CURRENT_TEST" in os.environ or "FEDLORA_TESTED" in os.environ):
            raise AssertionError("this run does not bear out the lesson:\n" + "\n".join(left))


def html_table(rows: list[tuple[str, ...]]) -> str:
    """Lays out the rows of "How sure?"."""
    style = 'style="text-align: left; vertical-align: top; white-space: normal"'
    head = "".join(f"<th {style}>{name}</th>" for name in HEADINGS)
    body = "".join(
        f"<tr>{''.join(f'<td {style}>{cell}</td>' for cell in row)}</tr>\n" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def page(number: int) -> str:
    """Writes the page of a lesson's evidence in Markdown: every claim under its section."""
    evidence = read(number)
    lines = [f"# {number:02} {evidence['title']}: how sure?"]
    for anchor, heading in evidence["sections"].items():
        lines += ["", f'<a id="{anchor}"></a>', f"## {heading}"]
        for claim in evidence["claims"].values():
            if claim["section"] != anchor:
                continue
            lines += ["", f"**{one_line(claim['says'])}**", ""]
            if "stated" in claim:
                lines.append(f"- Value: {written(claim, claim['stated'])}")
            lines.append(f"- Rests on: {one_line(claim['rests'])}")
            lines += [
                f"- {name}: {one_line(claim[field])}"
                for field, name in ANCHORS.items()
                if field in claim
            ]
    return "\n".join(lines) + "\n"


def one_line(text: str) -> str:
    """Joins the lines of a text that is wrapped in its file."""
    return re.sub(r"\s+", " ", text).strip()
