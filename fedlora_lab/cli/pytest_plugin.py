"""A fixture for everybody's pytest, by which a private training step is one line of a test suite.

    def test_review(private_step):
        private_step(step, data, claims)

It is loaded in every run of pytest where this library is installed: nothing heavy is imported
before the fixture is used.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fedlora_lab.review import Review


@pytest.fixture
def private_step() -> "Callable[..., Review]":
    """A function that reviews a step as `fl.review.step` does, or takes a finished review.

    It fails the test where something is broken, or could not be looked at.

    Guarantees: test_the_fixture_fails_a_test_whose_step_is_not_private.
    """

    def look(subject: "Review | Callable[..., Any]", *args: Any, **options: Any) -> "Review":
        from fedlora_lab import review

        found = subject
        if not isinstance(subject, review.Review):
            found = review.step(subject, *args, **options)
        assert isinstance(found, review.Review)
        if found.exit_status:
            pytest.fail(str(found), pytrace=False)
        return found

    return look
