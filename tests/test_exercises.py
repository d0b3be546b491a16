"""Every exercise accepts its solution and equal ones, and tells plausible mistakes apart."""

import re

import numpy as np
import pytest

import fedlora_lab as fl
from fedlora_lab.exercises import ALL, check
from fedlora_lab.exercises.exercise import Calls, Exercise, Mistake, near, number

CASES = [pytest.param(one, id=one.key) for one in ALL.values()]


@pytest.mark.parametrize("one", CASES)
def test_the_solution_is_accepted(one):
    for answer in (one.answer(), *one.others):
        verdict = check(one.key, answer)
        assert verdict, answer
        assert verdict.message == one.why
        assert repr(verdict).startswith("Right: ")


@pytest.mark.parametrize("one", CASES)
def test_every_mistake_has_a_message_of_its_own(one):
    said = [check(one.key, mistake.example) for mistake in one.mistakes]
    assert not any(said)
    assert [verdict.message for verdict in said] == [mistake.say for mistake in one.mistakes]
    assert len({verdict.message for verdict in said}) == len(one.mistakes) >= 3


@pytest.mark.parametrize("one", CASES)
def test_other_answers_are_refused_in_words(one):
    general = check(one.key, 12345.678)
    nothing, unreadable = check(one.key), check(one.key, object())
    assert not general
    assert not nothing
    assert not unreadable
    assert len({general.message, nothing.message, unreadable.message}) == 3
    assert "no answer yet" in nothing.message


@pytest.mark.parametrize("one", CASES)
def test_an_exercise_says_what_it_costs_and_hides_its_solution(one):
    page = fl.exercises.show(one.key)._repr_html_()
    assert re.fullmatch(r"\d\d\.\d", one.key)
    assert f"about {one.minutes} min" in page
    assert page.count("<details>") == page.count("<summary>") == 2
    assert one.solution not in repr(fl.exercises.show(one.key))
    assert "●" * one.difficulty + "○" * (5 - one.difficulty) in page


def test_a_function_of_three_dots_is_no_answer_yet():
    """As the notebooks leave it to the reader; a function that uses three dots for something else is an answer."""

    def empty(g, clip):
        return ...

    def used(g, clip):
        return g[..., 0]

    assert check("03.1", empty).message == check("03.1").message
    assert check("03.1", used).message != check("03.1").message
    assert "not function" not in check("07.1", used).message


def test_numbers_are_read_from_many_things():
    import torch

    assert [number(x) for x in (2, "2", np.float64(2), np.array([2.0]), torch.tensor(2.0))] == [2.0] * 5
    for bad in ("two", None, [1, 2], ...):
        with pytest.raises(ValueError, match="a number is expected"):
            number(bad)


def test_a_function_that_changes_its_arguments_spoils_no_later_call():
    """Nor the right answer, which is computed from the same inputs before and after it."""
    one = Calls("x and y", (np.ones(3), [1.0]), (np.zeros(3), [2.0]))

    def honest(x, y):
        return x.sum() + len(y)

    def spoils(x, y):
        x *= 5
        y.append(2.0)
        return x.sum() + len(y)

    assert one(spoils).tolist() == one(spoils).tolist() == [17.0, 2.0]
    assert one(honest).tolist() == [4.0, 1.0]
    assert one.gives(honest)(one(honest))


WRONG = {
    "no function": (3, "a function of x is expected"),
    "two numbers": (lambda x: [x, x], "a number should come out of your function, not shape (2,)"),
    "two numbers in the end": (lambda x: x if x < 2 else [x, x], "a number should come out of your function"),
    "two arguments": (lambda x, y: x, "your function of x stops with TypeError"),
    "text": (lambda x: "many", "your function of x stops with ValueError"),
    "an error of two lines": (lambda x: {}["one\ntwo"], "your function of x stops with KeyError"),
    "a division": (lambda x: x / 0, "your function of x stops with ZeroDivisionError"),
}


@pytest.mark.parametrize(("answer", "message"), WRONG.values(), ids=WRONG)
def test_a_function_that_cannot_be_read_gets_one_line(answer, message):
    with pytest.raises(ValueError) as caught:
        Calls("x", (1.0,), (2.0,))(answer)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_functions_are_compared_in_every_call():
    one, pair = Calls("x", (1.0,), (2.0,)), Calls("x", (1.0,), (2.0,), shape=(2,), within=0.1)
    square = one.gives(lambda x: x * x)
    assert square(one(lambda x: [[x**2 + 1e-9]])), "shape (1, 1) is a number too"
    for wrong in (lambda x: x, lambda x: 4.0, lambda x: x * x + 1e-3, lambda x: float("nan")):
        assert not square(one(wrong))
    assert pair.gives(lambda x: [x, 2 * x])(pair(lambda x: np.array([x, 2.1 * x])))
    with pytest.raises(ValueError, match=r"^numbers of shape \(2,\) should come out of your function, not shape \(\)$"):
        pair(lambda x: x)
    with pytest.raises(ValueError, match=r"^a number should come out of your function, not shape \(2,\)$"):
        Calls("x", (1.0,))(lambda x: [x, x])


def test_bad_exercises_and_keys_are_refused():
    with pytest.raises(ValueError, match=r"^key='9': expected one of 00.1"):
        check("9", 1)
    wrong = Mistake(1, near(1), "one")
    fields = {"key": "99.1", "question": "", "hint": "", "solution": "", "answer": float, "read": number, "why": ""}
    with pytest.raises(ValueError, match=r"^mistakes=2: expected at least three"):
        Exercise(**fields, right=near(0), mistakes=(wrong, wrong))
    with pytest.raises(ValueError, match=r"^difficulty=9: expected"):
        Exercise(**fields, right=near(0), mistakes=(wrong,) * 3, difficulty=9)
