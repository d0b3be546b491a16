"""Exercises become an assignment that nbgrader can read; it is not needed here."""

import json
import re

import nbformat
import pytest

import fedlora_lab as fl
from fedlora_lab.course.exercises import all_exercises

LESSONS = sorted({int(key[:2]) for key in all_exercises()})


def for_students(text):
    """What the grader leaves of a cell: it replaces the solution."""
    pattern = r"([ ]*)### BEGIN SOLUTION\n.*?### END SOLUTION"
    return re.sub(pattern, r"\1raise NotImplementedError", text, flags=re.DOTALL)


@pytest.mark.parametrize("lesson", LESSONS)
def test_an_assignment_is_graded(lesson, tmp_path, monkeypatch):
    """Its solutions pass its checks, and what students get does not."""
    monkeypatch.setenv("FEDLORA_PROGRESS", str(tmp_path / "progress.json"))
    path = fl.course.exercises.export(lesson, tmp_path / "assignment.ipynb")
    nbformat.validate(nbformat.read(path, as_version=4))
    cells = json.loads(path.read_text("utf-8"))["cells"]
    imports, *pairs = [cell for cell in cells if cell["cell_type"] == "code"]
    keys = [key for key in all_exercises() if int(key[:2]) == lesson]
    for key, answer, test in zip(keys, pairs[::2], pairs[1::2], strict=True):
        assert f'check("{key}"' in test["source"]
        exec("\n".join(cell["source"] for cell in (imports, answer, test)), {})
        with pytest.raises((NotImplementedError, AssertionError)):
            exec(f"{imports['source']}\n{for_students(answer['source'])}\n{test['source']}", {})
        marks = [cell["metadata"]["nbgrader"] for cell in (answer, test)]
        assert [mark["solution"] for mark in marks] == [True, False]
        assert [mark["grade"] for mark in marks] == [False, True] and marks[1]["points"] > 0


def test_a_wrong_call_is_refused():
    for given in ((77, "a.ipynb"), (2, "a.txt")):
        with pytest.raises(ValueError, match="expected"):
            fl.course.exercises.export(*given)
