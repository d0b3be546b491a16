"""The rules of the course, held over every notebook."""

import ast
import json
import re
import runpy
from pathlib import Path
from typing import Any

import nbformat
import pytest

from fedlora_lab.course import exercise

ROOT = Path(__file__).resolve().parents[2]
TOOL = runpy.run_path(str(ROOT / "scripts" / "notebooks.py"))
VIEW, cleaned = TOOL["VIEW"], TOOL["cleaned"]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
IMPORT = "import fedlora_lab as fl"
LIBRARIES = ("numpy as np", "pandas as pd", "torch", "peft", "copy", "tempfile")
NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?:\s?%)?")


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def lines(cell: Any) -> int:
    return sum(bool(line.strip()) for line in cell.source.splitlines())


@pytest.fixture(params=PATHS, ids=[path.stem for path in PATHS])
def path(request):
    return request.param


def test_asks_in_its_first_line_and_answers_in_its_last(path):
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)
    notebook = read(path)
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# .+\?\n", first.source)
    for promise in ("You will be able to", "Time:", "minutes", "Assumes:"):
        assert promise in first.source
    last = notebook.cells[-1]
    assert last.cell_type == "code"
    assert NUMBER.search(last.outputs[-1].text), "the answer holds numbers of this run"


def test_is_thin_and_asserts_its_numbers(path):
    notebook = read(path)
    cells = code(notebook)
    assert sum(cell.source.count("assert ") for cell in cells) >= 2
    assert max(map(lines, cells)) <= 12
    assert sum(map(lines, cells)) <= 100
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    outside = "\n".join(line for line in prose.splitlines() if not line.startswith("|"))
    words = re.findall(r"[^\W\d_]{2,}", outside)
    assert 4 <= len(words) / sum(map(lines, cells)) <= 14


def test_keeps_to_the_library(path):
    cells = code(read(path))
    assert IMPORT in cells[0].source.splitlines()
    for node in ast.walk(ast.parse(cells[0].source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            allowed = (IMPORT, *(f"import {name}" for name in LIBRARIES))
            assert ast.unparse(node) in allowed
    for cell in cells:
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.ClassDef)
            assert not isinstance(node, ast.Import | ast.ImportFrom) or cell is cells[0]
            assert not isinstance(node, ast.FunctionDef) or "exercises.check" in cell.source


def test_every_widget_is_followed_by_a_still_figure(path):
    cells = code(read(path))
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        if "fl.widgets." in cell.source:
            assert after is not None
            assert any("image/png" in output.get("data", {}) for output in after.outputs)


def test_exercises_are_left_to_the_reader(path):
    cells = code(read(path))
    expected = {key for key in exercise.all_exercises() if key.startswith(path.stem[:2] + ".")}
    assert expected
    source = "\n".join(cell.source for cell in cells)
    assert set(re.findall(r'exercises\.show\("(\d\d\.\d)"', source)) == expected
    assert set(re.findall(r'exercises\.check\("(\d\d\.\d)"', source)) == expected
    for cell in cells:
        if "exercises.check" in cell.source:
            assert "..." in cell.source
            assert cell.outputs[-1].data["text/plain"].startswith("Not yet")


def test_outputs_are_kept_clean_and_small(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size <= 500_000
    assert cleaned(notebook) == notebook, "run: python scripts/notebooks.py clean notebooks/*.ipynb"
    outputs = [cell.outputs for cell in code(notebook)]
    kinds = {(x.output_type, x.get("name")) for output in outputs for x in output}
    assert not {"error", "stderr"} & {word for kind in kinds for word in kind}
    assert sum(map(bool, outputs)) >= len(outputs) / 2
    text = path.read_text(encoding="utf-8")
    assert str(Path.home()) not in text and str(ROOT) not in text


def test_cleaning_removes_what_differs_from_run_to_run(path):
    notebook = read(path)
    dirty: Any = nbformat.from_dict(json.loads(json.dumps(notebook)))
    dirty.metadata["widgets"] = {"state": {}}
    dirty.metadata["kernelspec"] = {"name": "mine", "display_name": "mine"}
    for cell in dirty.cells:
        cell.id, cell.metadata["collapsed"] = f"x{cell.id}", True
        if cell.cell_type == "code":
            cell.execution_count = 7
            data = {VIEW: {"model_id": "x"}, "text/plain": "x"}
            cell.outputs.append(nbformat.v4.new_output("display_data", data=data))
    assert cleaned(dirty) == notebook
