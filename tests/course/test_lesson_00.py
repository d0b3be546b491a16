"""Lesson 00: what noise costs and couples."""

import pytest

import fedlora_course as course


@pytest.mark.parametrize("answer", [-4, -1, 4])
def test_a_wrong_number_does_not_give_the_answer_away(answer):
    """Fault: −4 was told to be twice what is right, and −1 half of it."""
    told = course.exercises.check("00.1", answer).message
    assert "mean" in told and "what is right" not in told
