"""The catalogue: every mistake is found by its check, no sound form is blamed, and it has words."""

import pytest

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
