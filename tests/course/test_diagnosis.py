"""A wrong answer that makes no known mistake is told how it differs from the right one."""

import numpy as np
import pytest

from fedlora_course import diagnosis
from fedlora_course.exercises import Calls, Letters, check


def round_of(B, A, w, C, sigma, rows):
    """A right answer with what the diagnosis looks at: a clip, noise, weights, a list."""
    sums = [np.clip(g, -C, C).sum(0) + sigma * C for g in rows]
    return B @ A + (w[:, None] * np.array(sums)).sum(0) / w.sum(), sigma * B


def plan_by_plan(batches, C):
    """A right answer that is 0 in some calls, and has an infinite entry in all of them."""
    return np.append(np.maximum(0, C - batches), np.inf)


def draw_plans(rng):
    return np.full(2, rng.choice([0.5, 5.0])), rng.uniform(1, 2)


def draw(rng):
    rows = [rng.standard_normal((n, 4)) for n in rng.permutation([0, 2, 3])]
    factors = rng.standard_normal((3, 2)), rng.standard_normal((2, 4))
    return *factors, rng.uniform(1, 9, 3), *rng.uniform(0.3, 2, 2), rows


def both(change):
    """A wrong answer: the same change of both of its results."""
    return lambda *given: [change(part) for part in round_of(*given)]


CASES = {
    "is −1 times the right one": both(np.negative),
    "is 0.7 times the right one": both(lambda x: 0.7 * x),
    "is sigma times the right one": lambda *x: [x[4] * part for part in round_of(*x)],
    "is 1/√C times the right one": lambda *x: [x[3] ** -0.5 * part for part in round_of(*x)],
    "is 2.5 above the right one": both(lambda x: x + 2.5),
    "is the square of the right one": both(np.square),
    "your numbers are right and stand in another order": both(lambda x: x[:, ::-1]),
    "the first is right; look at the second: in every call your result is 2 times": (
        lambda *x: [round_of(*x)[0], 2 * round_of(*x)[1]]
    ),
    "gives what the right one gives for sigma/C in place of sigma": (
        lambda B, A, w, C, sigma, rows: round_of(B, A, w, C, sigma / C, rows)
    ),
    "gives what the right one gives for sigma · (the rows of B) in place of sigma": (
        lambda B, A, w, C, sigma, rows: round_of(B, A, w, C, len(B) * sigma, rows)
    ),
    "C has no part in your result, and the right one depends on it. In every call": (
        lambda B, A, w, C, sigma, rows: round_of(B, A, w, sigma, sigma, rows)
    ),
    "is within 0.1 % of the right one in every call": both(lambda x: np.round(x, 4)),
    "is right where sigma = 0": (
        lambda B, A, w, C, sigma, rows: round_of(B, A, w, C, sigma * (1 + C), rows)
    ),
    "a NaN where a number is right": lambda B, A, w, C, sigma, rows: round_of(
        B, A, w, C, sigma, [g.sum(0)[None] / len(g) for g in rows]
    ),
    "numbers differ; at the first": both(np.cos),
}


@pytest.mark.parametrize("words", CASES)
def test_a_wrong_function_is_told_the_plainest_difference(words):
    reader = Calls("all of them", draw=draw).fresh(np.random.default_rng(0))
    results = reader.read(CASES[words]), reader.read(round_of)
    told = reader.difference(*results) or reader.diagnosis(CASES[words], round_of)
    assert words in told, told


OF_PLANS = {
    "is the square of the right one": lambda batches, C: plan_by_plan(batches, C) ** 2,
    "in every call your result is 0": lambda batches, C: np.append(0 * batches, np.inf),
    "calls your result differs": lambda batches, C: np.append(C - batches, np.inf),
}


@pytest.mark.parametrize("words", OF_PLANS)
def test_zeros_and_infinite_numbers_do_not_hide_a_difference(words):
    """Fault: a result that was right but for zeros was called 1 times the right one."""
    reader = Calls("batches and C", draw=draw_plans).fresh(np.random.default_rng(0))
    told = reader.diagnosis(OF_PLANS[words], plan_by_plan)
    assert words in told, told


def test_large_whole_numbers_are_equal_or_not():
    """Fault: remainders modulo m − 1 passed for the right ones, in another order."""

    def remainder(x, m):
        return x % m

    reader = Calls("x and m", draw=lambda rng: (rng.integers(10**6, 5 * 10**6, 6), 10**6 + 3))
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
    verdict = check("15.2", "abce")
    assert verdict.message == "b is wrong: sizes are public under the relation of the ledger."


def test_what_is_said_of_an_answer_is_also_a_page_of_html():
    """Fault: a notebook broke the line in the middle of a word."""
    told = check("00.1", 8)
    assert told._repr_html_().startswith("<p><b>Not yet:</b> 8 is what the server holds")
