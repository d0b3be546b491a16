"""Writes exercises as the instructor's notebook of nbgrader or Otter-Grader, which read marks in
its cells and make the students' notebook of it; neither has to be installed here."""

import ast
import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedlora_lab.course.question import blocks

IMPORTS = (
    "import math\nimport numpy as np\nimport pandas as pd\nimport torch\nimport fedlora_lab as fl"
)


def write(exercises: Sequence[Any], kind: str, path: Path) -> None:
    """Writes a question, an answer and a check for each; see `fedlora_lab.exercises.export`.

    Args: exercises: in the order of the notebook. kind: "otter" or "nbgrader". path: of the file.
    """
    cells = [_cell("raw", "# ASSIGNMENT CONFIG\nfiles: []")] if kind == "otter" else []
    cells.append(_cell("code", IMPORTS))
    for one in exercises:
        cells += _otter(one) if kind == "otter" else _nbgrader(one)
    cells = [{"id": f"cell-{i}", **cell} for i, cell in enumerate(cells)]
    page = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(page, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _cell(kind: str, source: str, **metadata: Any) -> dict[str, Any]:
    code = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": metadata, "source": source, **code}


def _nbgrader(one: Any) -> Iterator[dict[str, Any]]:
    plain = {"schema_version": 3, "grade": False, "solution": False, "locked": True, "task": False}
    own = {"answer": {"solution": True, "locked": False}}
    own["check"] = {"grade": True, "points": one.effort[0]}
    for part, text in _texts(one, "### {} SOLUTION").items():
        name = f"exercise-{one.key}-{part}".replace(".", "-")
        marks = plain | {"grade_id": name} | own.get(part, {})
        yield _cell("markdown" if part == "question" else "code", text, nbgrader=marks)


def _otter(one: Any) -> Iterator[dict[str, Any]]:
    text = _texts(one, "# {} SOLUTION")
    name = f"name: q{one.key.replace('.', '_')}\npoints: {one.effort[0]}"
    yield from (_cell("raw", f"# BEGIN QUESTION\n{name}"), _cell("markdown", text["question"]))
    for mark, part in (("SOLUTION", "answer"), ("TESTS", "check")):
        yield from (_cell("raw", f"# BEGIN {mark}"), _cell("code", text[part]))
        yield _cell("raw", f"# END {mark}")
    yield _cell("raw", "# END QUESTION")


def _texts(one: Any, mark: str) -> dict[str, str]:
    """The question, the answer with marks around what students do not get, and the check."""
    name, lines, right = "answer", [], one.answers[0]
    hidden = [f"answer = {right!r}"]
    if callable(right):
        code = [part for is_code, part in blocks(one.words["solution"]) if is_code]
        hidden = ("\n\n".join(code) or inspect.getsource(right)).splitlines()
        function: Any = ast.parse("\n".join(hidden)).body[-1]
        name, body = function.name, function.body[0].lineno - 1
        lines, hidden = hidden[:body], hidden[body:]
    space = "    " if lines else ""
    lines += [space + mark.format("BEGIN"), *hidden, space + mark.format("END")]
    check = f'assert fl.exercises.check("{one.key}", {name})'
    question = f"**Exercise {one.key}.** {one.words['question']}"
    return {"question": question, "answer": "\n".join(lines), "check": check}
