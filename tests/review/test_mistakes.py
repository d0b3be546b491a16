"""The catalogue: every mistake is found by its check, no sound form is blamed, and it has words."""

import re
import runpy

import pytest
from places import ROOT

from fedlora_lab.review.claims import CHECKS
from fedlora_lab.review.mistakes import EDGES, MISTAKES, reviewed

PAGE = (ROOT / "docs" / "sharp_edges.md").read_text(encoding="utf-8")
SEVERITIES = {"fatal", "serious", "bug", "bug and leak", "utility", "honesty", "note"}
ANSWERS = {"Not expressible", "Refuses", "Measures", "Tells"}
REVIEWED = [name for name, mistake in MISTAKES.items() if mistake.checks]
NUMBERED = [name for name, mistake in MISTAKES.items() if mistake.number]
pytestmark = pytest.mark.together  # each form is reviewed once, and three tests look at it


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("name", REVIEWED)
def test_every_mistake_is_found_by_its_check(name):
    """Fault: a check that no longer sees what it was written for."""
    found = reviewed(MISTAKES[name], sound=False)
    assert {*MISTAKES[name].checks} <= found.broken | found.not_as_claimed


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("name", REVIEWED)
def test_no_sound_form_is_blamed(name):
    """Fault: a check that blames a sound step for what only looks like a mistake."""
    review = reviewed(MISTAKES[name], sound=True)
    assert review.sound, review


@pytest.mark.slow
@pytest.mark.parametrize("name", NUMBERED)
def test_the_line_lies_between_broken_and_sound(name):
    """Fault: a number that does not tell the mistake from its sound form."""
    mistake = MISTAKES[name]
    sign = -1 if mistake.at_least else 1
    broken, sound = (sign * number for number in mistake.measure())
    assert sound <= sign * mistake.limit < broken


NUMERAL = re.compile(r"(?<![\w.])[<>]? ?-?\d[\d,.]*(?:e[+-]?\d+)?")


@pytest.mark.further
@pytest.mark.slow
def test_the_page_is_that_of_the_catalogue():
    """Fault: words that were changed in one of two places. Numbers may differ a little by machine:
    the line between broken and sound is held by other tests."""
    page = runpy.run_path(str(ROOT / "scripts" / "edges.py"))["page"]()
    masked = [NUMERAL.sub("#", text) for text in (page, PAGE)]
    assert masked[0] == masked[1], "run: python scripts/edges.py"


def test_every_mistake_has_words_and_a_form():
    """Fault: an entry without its step, its number or its source. That a test that is named exists:
    test_guarantees_name_tests_that_exist, on the page."""
    assert [*EDGES] == list(range(1, 32))
    for mistake in MISTAKES.values():
        assert {*mistake.checks} <= {*CHECKS} and mistake.wrong.endswith("."), mistake
        assert mistake.checks or mistake.number, mistake
        assert mistake.source.startswith("https://") or not mistake.source, mistake
        if mistake.edge:
            answer = re.match(r"\*\*(.*?)\.?\*\*", mistake.library)
            assert mistake.severity in SEVERITIES and answer and answer[1] in ANSWERS, mistake
            assert "`test_" in mistake.library or answer[1] == "Tells", mistake


def test_nothing_else_of_the_library_imports_the_broken_forms():
    """Fault: a broken clip or step that a run may call."""
    package = ROOT / "fedlora_lab"
    for path in {*package.rglob("*.py")} - {*package.glob("review/**/*.py")}:
        text = path.read_text("utf-8")
        assert not re.search(r"^\s*(from|import) .*review.*mistakes", text, re.M), path
