"""A fixture for everybody's pytest, by which a private training step is one line of a test suite.

    def test_review(private_step):
        private_step(step, data, claims)

It is loaded in every run of pytest where this package is installed: nothing heavy is imported
before the fixture is used.
"""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def private_step() -> "Callable[..., Any]":
    """A function that reviews a step as `dp_review.step` does, or takes a finished review.

    It fails the test where something is broken, or could not be looked at.

    Guarantees: test_the_fixture_fails_a_test_whose_step_is_not_private.
    """

    def look(subject: Any, *args: Any, **options: Any) -> Any:
        import dp_review

        reviewed = isinstance(subject, dp_review.Review)
        found = subject if reviewed else dp_review.step(subject, *args, **options)
        if found.exit_status:
            pytest.fail(str(found), pytrace=False)
        return found

    return look
