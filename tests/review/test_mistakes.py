"""The catalogue: every mistake is found by its check, no sound form is blamed, and it has words."""

import re

import pytest
from places import ROOT

from dp_review.claims import CHECKS
from dp_review.mistakes import MISTAKES

pytestmark = pytest.mark.together  # each form is reviewed once


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_is_found_by_its_check(name):
    """Fault: a check that no longer sees what it was written for."""
    found = MISTAKES[name].review()
    assert {*MISTAKES[name].checks} <= found.broken | found.not_as_claimed


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_no_sound_form_is_blamed(name):
    """Fault: a check that blames a sound step for what only looks like a mistake."""
    review = MISTAKES[name].review(sound=True)
    assert review.sound, review


def test_every_mistake_has_words_and_a_source_that_can_be_opened():
    """Fault: an entry without its words, or an unknown check."""
    for mistake in MISTAKES.values():
        assert mistake.checks and {*mistake.checks} <= {*CHECKS}, mistake
        assert mistake.wrong.endswith("."), mistake
        assert mistake.source.startswith("https://") or not mistake.source, mistake


def test_nothing_else_of_the_package_imports_the_broken_forms():
    """Fault: a broken step that a review could call in place of the user's."""
    package = ROOT / "dp_review"
    allowed = {package / "__init__.py", *package.glob("mistakes/*.py")}
    for path in {*package.rglob("*.py")} - allowed:
        assert not re.search(r"^\s*(from|import) .*mistakes", path.read_text("utf-8"), re.M), path
