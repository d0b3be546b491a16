"""A wrong answer that makes no known mistake is told how it differs from the right one. Of most
kinds of difference natural_mistakes.txt has an answer, see test_wrong_answers.py."""

import numpy as np
import pytest

from fedlora_course import diagnosis
from fedlora_course.exercises import FunctionAnswer, Letters, check


def plan_by_plan(batches, C):
    """A right answer that is 0 in some calls, and has an infinite entry in all of them."""
    return np.append(np.maximum(0, C - batches), np.inf)


def draw_plans(rng):
    return np.full(2, rng.choice([0.5, 5.0])), rng.uniform(1, 2)


OF_PLANS = {
    "is the square of the right one": lambda batches, C: plan_by_plan(batches, C) ** 2,
    "in every call your result is 0": lambda batches, C: np.append(0 * batches, np.inf),
    "calls your result differs": lambda batches, C: np.append(C - batches, np.inf),
}


@pytest.mark.parametrize("words", OF_PLANS)
def test_zeros_and_infinite_numbers_do_not_hide_a_difference(words):
    """Fault: a result that was right but for zeros was called 1 times the right one."""
    reader = FunctionAnswer("batches and C", draw=draw_plans).fresh(np.random.default_rng(0))
    told = reader.diagnosis(OF_PLANS[words], plan_by_plan)
    assert words in told, told


def test_large_whole_numbers_are_equal_or_not():
    """Fault: remainders modulo m − 1 passed for the right ones, in another order."""

    def remainder(x, m):
        return x % m

    reader = FunctionAnswer(
        "x and m", draw=lambda rng: (rng.integers(10**6, 5 * 10**6, 6), 10**6 + 3)
    )
    told = reader.fresh(np.random.default_rng(0)).diagnosis(lambda x, m: x % (m - 1), remainder)
    assert "gives what the right one gives for m − 1 in place of m" in told


@pytest.mark.parametrize(
    ("given", "right", "words"),
    [
        ([2.0], [4.0], "that is ½ times what is right"),
        ([16.0], [4.0], "that is 4 times what is right"),
        ([25.0], [5.0], "that is the square of what is right"),
        ([5.1], [5.0], "close, within 5 %"),
        ([3.7], [5.0], "too small"),
        ([4276225.0], [4276224.0], "that is one more than what is right"),
        ([1.0, 2.0, 7.0], [1.0, 2.0, 3.0], "2 of your 3 numbers are right; look at number 3"),
        ([3.0, 1.0, 2.0], [1.0, 2.0, 3.0], "another order"),
        ([7.0, 8.5], [1.0, 2.0], "none of your numbers is right"),
    ],
)
def test_wrong_numbers_are_told_how_they_differ(given, right, words):
    assert words in diagnosis.number_differs(np.array([given]), np.array([right]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "at least one is right"),
        ("a", "not all"),
        ("ac", "one letter that you chose is wrong and another is missing"),
        ("abc", "one letter that you chose is wrong"),
        ("cd", "2 of the letters that you chose are wrong"),
    ],
)
def test_wrong_letters_are_counted_and_not_named(given, words):
    told = Letters("abcd").difference(frozenset(given), frozenset("ab"))
    assert words in told and " c " not in told


def test_a_wrong_letter_that_is_explained_ends_with_one_full_stop():
    told = check("15.2", "abce").message
    assert told.startswith("b is wrong: ") and told.endswith(".") and not told.endswith("..")


def test_what_is_said_of_an_answer_is_also_a_page_of_html():
    """Fault: a notebook broke the line in the middle of a word."""
    told = check("00.1", 8)
    assert told._repr_html_().startswith("<p><b>Not yet:</b> 8 is what the server holds")
