"""The catalogue: every mistake is found by its check, and no sound form is blamed."""

import pytest

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
