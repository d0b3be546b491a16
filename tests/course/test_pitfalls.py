"""Every pitfall runs: its broken form crosses the line, its sound form does not."""

import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from fedlora_lab.course import sharp_edges

ROOT = Path(__file__).resolve().parents[2]
PITFALLS = sharp_edges.PITFALLS
PAGE = (ROOT / "docs" / "sharp_edges.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_line_lies_between_broken_and_sound():
    """And every number is the same the second time, when it is measured for the page."""
    table = sharp_edges.measure_pitfalls()
    for number, one in PITFALLS.items():
        broken, sound = table.loc[[number], ["broken", "sound"]].to_numpy()[0]
        assert not one.is_sound(broken), f"{one}: {broken} does not cross {one.line}"
        assert one.is_sound(sound), f"{one}: {sound} crosses {one.line}"
    page = runpy.run_path(str(ROOT / "scripts" / "edges.py"))["page"]()
    assert page == PAGE, "run: python scripts/edges.py"


def test_all_are_there_and_their_tests_exist():
    assert list(PITFALLS) == list(range(1, 31))
    assert {PITFALLS[number].severity for number in (1, 2, 3, 4, 5, 6, 15, 25, 30)} == {"fatal"}
    tests = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py"))
    for one in PITFALLS.values():
        assert one.tests or one.answer == "Tells", one
        assert [name for name in one.tests if not re.search(rf"{name}( =|\()", tests)] == []
        assert one.wrong.endswith("."), one


def test_nothing_of_the_library_imports_the_broken_forms():
    """The package's front door aside, which only names the room."""
    package = ROOT / "fedlora_lab"
    apart = {*package.glob("course/**/*.py"), package / "__init__.py"}
    for path in set(package.rglob("*.py")) - apart:
        assert not re.search(r"^\s*(from|import) .*sharp_edges", path.read_text("utf-8"), re.M)


def test_the_table_measures_what_it_is_asked_for():
    table = sharp_edges.measure_pitfalls([7, 12])
    assert table["broken"].to_dict() == pytest.approx({7: 2, 12: 3})
    assert table["sound"].to_dict() == pytest.approx({7: 1, 12: 1})
    with pytest.raises(KeyError):
        sharp_edges.measure_pitfalls([31])


@pytest.mark.parametrize(
    ("field", "value"),
    [("severity", "mild"), ("group", "Else"), ("side", "above"), ("number", 0), ("library", "No.")],
)
def test_bad_pitfalls_are_refused(field, value):
    with pytest.raises(ValueError, match="expected"):
        replace(PITFALLS[1], **{field: value})
