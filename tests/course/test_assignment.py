"""Exercises become assignments that nbgrader and Otter-Grader can read; neither is needed here."""

import json
import re

import nbformat
import pytest

import fedlora_lab as fl
from fedlora_lab.course.exercises import all_exercises

LESSONS = sorted({int(key[:2]) for key in all_exercises()})


def students(text, mark):
    """What a grader leaves of a cell: it replaces the solution."""
    pattern = rf"([ ]*){mark} BEGIN SOLUTION\n.*?{mark} END SOLUTION"
    return re.sub(pattern, r"\1raise NotImplementedError", text, flags=re.DOTALL)


@pytest.mark.parametrize("lesson", LESSONS)
def test_an_assignment_is_graded(lesson, tmp_path, monkeypatch):
    """Its solutions pass its checks, and what students get does not; one grader, then the other."""
    kind, mark = (("nbgrader", "###"), ("otter", "#"))[lesson % 2]
    monkeypatch.setenv("FEDLORA_PROGRESS", str(tmp_path / "progress.json"))
    path = fl.course.exercises.export(kind, lesson, tmp_path / "assignment.ipynb")
    nbformat.validate(nbformat.read(path, as_version=4))
    cells = json.loads(path.read_text("utf-8"))["cells"]
    marks = [x["source"].splitlines()[0] for x in cells if x["cell_type"] == "raw"]
    cells = [x for x in cells if x["cell_type"] == "code"]
    imports, *pairs = [cell["source"] for cell in cells]
    keys = [key for key in all_exercises() if int(key[:2]) == lesson]
    assert len(pairs) == 2 * len(keys)
    for key, answer, test in zip(keys, pairs[::2], pairs[1::2], strict=True):
        room: dict = {}
        exec(f"{imports}\n{answer}\n{test}", room)
        assert f'check("{key}"' in test
        with pytest.raises((NotImplementedError, AssertionError)):
            exec(f"{imports}\n{students(answer, mark)}\n{test}", {})
    if kind == "otter":
        one = ["BEGIN QUESTION", "BEGIN SOLUTION", "END SOLUTION", "BEGIN TESTS", "END TESTS"]
        one.append("END QUESTION")
        assert marks == [f"# {x}" for x in ["ASSIGNMENT CONFIG", *one * len(keys)]]
    else:
        marks = [cell["metadata"]["nbgrader"] for cell in cells[1:]]
        assert [x["solution"] for x in marks] == [True, False] * len(keys)
        assert all(x["points"] > 0 for x in marks if x["grade"])
        assert len({x["grade_id"] for x in marks}) == len(marks)
        assert all(re.fullmatch(r"[\w-]+", x["grade_id"]) for x in marks)


def test_a_wrong_call_is_refused():
    for given in (("moodle", 2, "a.ipynb"), ("otter", 77, "a.ipynb"), ("otter", 2, "a.txt")):
        with pytest.raises(ValueError, match="expected"):
            fl.course.exercises.export(*given)
