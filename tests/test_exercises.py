"""Every exercise accepts its solution and equal ones, and tells plausible mistakes apart."""

import re

import numpy as np
import pytest

import fedlora_lab as fl
from fedlora_lab.exercises import ALL, check
from fedlora_lab.exercises.exercise import Exercise, Mistake, near, number

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


def test_bad_exercises_and_keys_are_refused():
    with pytest.raises(ValueError, match=r"^key='9': expected one of 00.1"):
        check("9", 1)
    wrong = Mistake(1, near(1), "one")
    fields = {"key": "99.1", "question": "", "hint": "", "solution": "", "answer": float, "read": number, "why": ""}
    with pytest.raises(ValueError, match=r"^mistakes=2: expected at least three"):
        Exercise(**fields, right=near(0), mistakes=(wrong, wrong))
    with pytest.raises(ValueError, match=r"^difficulty=9: expected"):
        Exercise(**fields, right=near(0), mistakes=(wrong,) * 3, difficulty=9)
