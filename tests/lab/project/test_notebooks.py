"""The rules of the course, held over every notebook."""

import ast
import itertools
import re
import runpy
from pathlib import Path
from typing import Any

import nbformat
import pytest
from places import ROOT

from fedlora_course import exercises, predictions
from fedlora_course.texts import entries

TOOL = runpy.run_path(str(ROOT / "scripts" / "notebooks.py"))
cleaned, learner_copy, titled = (TOOL[name] for name in ("cleaned", "learner_copy", "titled"))
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
IMPORTS = ("import fedlora_course as course", "import fedlora_lab as fl")
LIBRARIES = ("numpy as np", "pandas as pd", "scipy.stats", "torch", "peft", "opacus", "copy")
LIBRARIES += ("dp_review", "dataclasses", "datasets", "tempfile", "transformers", "warnings")


def read(path) -> Any:
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(params=PATHS, ids=[path.stem for path in PATHS])
def path(request):
    return request.param


def test_asks_in_its_first_line_and_answers_in_its_last(path):
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)
    notebook = read(path)
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# .+\?\n", first.source)
    assert re.search(r"(?s)You will be able to.*Time:.*minutes.*Assumes:", first.source)
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    texts = [text for text in texts if not text.startswith(TOOL["APPENDIX"])]
    # After the answer of the last notebook stands a cell that ends the course.
    assert texts[-2 if path == PATHS[-1] else -1].startswith("## The answer")


def test_keeps_to_the_library(path):
    cells = code(read(path))
    assert {*IMPORTS} <= {*cells[0].source.splitlines()}
    allowed = (*IMPORTS, *(f"import {name}" for name in LIBRARIES))
    for cell in cells:
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.ClassDef)
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert cell is cells[0] and ast.unparse(node) in allowed


def test_every_widget_is_followed_by_a_still_figure(path):
    cells = code(read(path))
    for cell, after in itertools.zip_longest(cells, cells[1:]):
        if "widgets." in cell.source:
            assert after is not None and "image/png" in str(after.outputs)
        if "widgets.playground" in cell.source:  # Fault: a run took it from the site
            assert "data-fedlora-playground" in str(cell.outputs)


def test_predictions_are_asked_before_they_are_revealed(path):
    """And nobody's guess stands in the pages."""
    begins = {"predict": "Predict {}: ", "reveal": "You have not chosen an option in {}"}
    asked = []
    for cell in code(read(path)):
        for verb, key in re.findall(r'exercises\.(predict|reveal)\("(\d\d\.[a-z])"', cell.source):
            asked.append((key, verb))
            texts = [output.get("data", {}).get("text/plain", "") for output in cell.outputs]
            assert any(text.startswith(begins[verb].format(key)) for text in texts), (key, verb)
            if verb == "reveal":
                (answer,) = cell.outputs
                folded_away = answer.data["text/html"].startswith("<details><summary>You have not")
                assert folded_away, f"{key}: the page shows what is to be predicted"
    expected = {key for key in predictions.all_predictions() if key.startswith(path.stem[:2])}
    assert sorted(asked) == sorted(itertools.product(expected, begins))
    for key in expected:
        assert asked.index((key, "predict")) < asked.index((key, "reveal"))


def folded(cell):
    return bool(cell.metadata.get("jupyter", {}).get("source_hidden"))


def names_of(cell) -> tuple[set[str], set[str]]:
    """The names that a cell uses, and those that it gives a value."""
    used, given = set(), set()
    for node in ast.walk(ast.parse(cell.source)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else given).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.arg):
            given.add(node.name if isinstance(node, ast.FunctionDef) else node.arg)
        elif isinstance(node, ast.Import):
            given |= {alias.asname or alias.name for alias in node.names}
    return used, given


def test_a_visible_cell_uses_nothing_that_is_folded_away(path):
    """Fault: a reader met names whose values stood in the folded code of a figure or an answer."""
    shown: set[str] = set()
    hidden: set[str] = set()
    for cell in code(read(path)):
        used, given = names_of(cell)
        if folded(cell):
            hidden |= given
        else:
            assert not (used & hidden) - shown - given, cell.source
            shown |= given


def readable(cells):
    """All that a reader sees of cells: text, code that is not folded, and what was printed."""
    texts = []
    for cell in cells:
        if cell.cell_type == "markdown" or not folded(cell):
            texts.append(cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts += [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
    return "\n".join(texts)


def test_a_prediction_can_be_made(path):
    """Nothing before the choice says what comes out; what would is declared with each question."""
    original = read(path)
    copied = learner_copy(original)
    for key, prediction in predictions.all_predictions().items():
        if not key.startswith(path.stem[:2]):
            continue
        call = f'exercises.reveal("{key}"'
        place = next(i for i, cell in enumerate(original.cells) if call in cell.source)
        before = readable(copied.cells[: place + 1])
        later = prediction.after + original.cells[place].source + readable(original.cells[place:])
        spoilers = entries()[key][1]["gives_away"]
        assert spoilers, key
        for spoiler in spoilers:
            assert re.search(spoiler, later), (key, spoiler)
            assert not re.search(spoiler, before), (key, spoiler)


def test_exercises_are_left_to_the_reader(path):
    cells = code(read(path))
    source = "\n".join(cell.source for cell in cells)
    expected = {key for key in exercises.all_exercises() if key.startswith(path.stem[:2])}
    assert expected
    for verb in ("show", "check"):
        assert set(re.findall(rf'exercises\.{verb}\("(\d\d\.\d)"', source)) == expected
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
    for output in (output for several in outputs for output in several):
        assert output.output_type != "error" and output.get("name") != "stderr"
    assert sum(map(bool, outputs)) >= len(outputs) / 2
    text = path.read_text(encoding="utf-8")
    assert str(Path.home()) not in text and str(ROOT) not in text
    first = notebook.cells[0].source
    assert titled(first, path.name) == first, "links to the address in CITATION.cff, or none"
    last = TOOL["last_text"](notebook).source
    assert TOOL["with_neighbours"](last, path.name) == last, "links along the path of the course"


def test_links_to_an_address_come_and_go_with_it():
    linked = titled("# Why?\n\nText.", "00.ipynb", "me/mine")
    assert "gh/me/mine/HEAD?urlpath=lab/tree/notebooks/00.ipynb" in linked
    assert titled(linked, "00.ipynb", "") == "# Why?\n\nText."


def test_the_teachers_page_names_predictions_that_exist():
    named = re.findall(r"\b\d\d\.[a-z]\b", (ROOT / "docs" / "teaching.md").read_text("utf-8"))
    assert named and {*named} <= {*predictions.all_predictions()}
