"""Every sharp edge runs: its broken form crosses the line, its sound form does not, the page says what they give."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedlora_lab import edges

ROOT = Path(__file__).resolve().parent.parent
CASES = [pytest.param(one, id=f"{one.number}") for one in edges.ALL.values()]


@pytest.fixture(scope="module")
def script() -> Any:
    """scripts/edges.py, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        spec: Any = importlib.util.spec_from_file_location("page_of_edges", ROOT / "scripts" / "edges.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("one", CASES)
def test_the_line_lies_between_broken_and_sound(one):
    told = one.told()
    assert not one.keeps(told.broken), f"{one}: {told} does not cross {one.line}"
    assert one.keeps(told.sound), f"{one}: {told} crosses {one.line}"
    assert one.told() == told, "the same numbers every time"


def test_the_page_is_that_of_a_new_run(script):
    assert script.page() == script.PAGE.read_text(encoding="utf-8"), "run: python scripts/edges.py"


def test_all_are_there_and_their_tests_exist():
    assert list(edges.ALL) == list(range(1, 30))
    assert {one.severity for one in edges.ALL.values() if one.number in (1, 2, 3, 4, 5, 6, 15, 25)} == {"fatal"}
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    for one in edges.ALL.values():
        assert one.tests or one.answer == "Tells", one
        assert [name for name in one.tests if f"def {name}(" not in tests] == []
        assert one.wrong.endswith((".", ". ")), one


def test_links_of_the_page_lead_to_its_sections(script):
    page = script.PAGE.read_text(encoding="utf-8")
    sections = re.findall(r"^### (.*)$", page, re.M)
    places = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in sections}
    links = re.findall(r"\]\(#(.*?)\)", page)
    assert set(links) == places
    assert len(links) == len(sections) == 29


def test_nothing_of_the_library_imports_this_room():
    for path in (ROOT / "fedlora_lab").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        inside = path.parent.name == "edges" or path.name.startswith("lesson_") or "plots" in path.parts
        assert inside or "fedlora_lab.edges" not in text, path


def test_the_table_measures_what_it_is_asked_for():
    found = edges.table([7, 12])
    assert list(found.index) == [7, 12]
    assert found.loc[7, "broken"] == pytest.approx(2)
    assert found.loc[12, "broken"] == pytest.approx(3)
    assert found["sound"].tolist() == pytest.approx([1, 1])
    with pytest.raises(KeyError):
        edges.table([30])


@pytest.mark.parametrize(
    ("field", "value"),
    [("severity", "mild"), ("group", "Else"), ("side", "above"), ("number", 0), ("library", "Nothing.")],
)
def test_bad_edges_are_refused(field, value):
    with pytest.raises(ValueError, match="expected"):
        replace(edges.ALL[1], **{field: value})
