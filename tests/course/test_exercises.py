"""Every exercise accepts its solution and equal ones, and tells plausible mistakes apart."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.audit import bounds
from fedlora_lab.course.exercise import Calls, Exercise, Letters, Numbers, all_exercises, check

CASES = [pytest.param(one, id=one.key) for one in all_exercises().values()]


@pytest.mark.parametrize("one", CASES)
def test_the_solution_is_accepted(one):
    for answer in one.answers:
        verdict = check(one.key, answer)
        assert verdict, answer
        assert repr(verdict) == f"Right: {one.words['right']}"


@pytest.mark.parametrize("one", CASES)
def test_every_mistake_has_a_message_of_its_own(one):
    """Also an answer that nobody foresaw, none at all, and one that cannot be read."""
    messages = [message for _, message in one.wrong]
    assert [check(one.key, example).message for example, _ in one.wrong] == messages
    others = [check(one.key, answer) for answer in (12345.678, ..., object())]
    assert not any(others)
    assert "no answer so far" in others[1].message
    messages += [verdict.message for verdict in others]
    assert len(set(messages)) == len(messages)


@pytest.mark.parametrize("one", CASES)
def test_an_exercise_says_what_it_costs_and_hides_its_solution(one):
    page = fl.exercises.show(one.key)._repr_html_()
    assert re.fullmatch(r"\d\d\.\d", one.key)
    difficulty, minutes = one.effort
    assert f"about {minutes} min" in page
    assert page.count("<details>") == page.count("<summary>") == 2
    assert one.words["solution"] not in repr(one)
    assert "●" * difficulty + "○" * (5 - difficulty) in page


ZERO_B = np.zeros((64, 4))
COMPUTED = {
    "03.3": lambda: theory.membership_bound(np.array([0.01]), 1.0, 0.001).item(),
    "04.2": lambda: theory.crossover(1024) * math.sqrt(3),
    "06.1": lambda: theory.noise_terms(ZERO_B, np.eye(4, 64) / 3**0.5, 0.05, 0.05, 2.0).total,
    "06.2": lambda: theory.regulated_multiplier(np.diag([2.0, 0.5]), 1.5),
    "06.3": lambda: theory.gdp_epsilon(theory.gaussian_mu(1.12, 100), 1 / 12),
    "07.2": lambda: theory.filter_gain(3),
    "08.3": lambda: 32 / theory.bits_per_number(4, 64),
    "11.1": lambda: theory.vanishing_noise(8, 768, 16),
    "12.2": lambda: bounds.one_run_lower_bound(100, 100, 100, 0.0, 0.05),
    "12.3": lambda: bounds.threshold_lower_bound(25, 500, 200, 500, 1e-5, 0.05),
    "13.3": lambda: theory.gdp_epsilon(2.5, 1e-5),
}


@pytest.mark.parametrize("key", COMPUTED)
def test_the_answers_written_down_are_the_librarys(key):
    assert all_exercises()[key].answers[0] == pytest.approx(COMPUTED[key](), rel=1e-8)


def test_a_function_of_three_dots_is_no_answer_yet():
    def used(g, clip):
        return g[..., 0]

    assert check("03.1", lambda g, clip: ...).message == check("03.1").message
    assert check("03.1", used).message != check("03.1").message
    assert "not function" not in check("07.1", used).message


def test_numbers_and_letters_are_read_from_many_things():
    one, row = Numbers(2.0), Numbers([3, 12, 30])
    for answer in (2, "2", np.float64(2), np.array([2.0]), torch.tensor(2.0, requires_grad=True)):
        assert one.same(one.read(answer), 2.0)
    for bad in ("two", None, [1, 2], ..., math.nan):
        with pytest.raises(ValueError, match=r"^a number is expected$"):
            one.read(bad)
    for answer in ([3, 12, 30], [[3, 12, 30]], np.array([3.0, 12.0, 30.0])):
        assert row.same(row.read(answer), [3, 12, 30])
    assert not row.same(row.read([[3], [12], [30]]), [3, 12, 30])
    with pytest.raises(ValueError, match=r"^numbers such as \[3, 12, 30\] are expected$"):
        row.read("many")
    letters = Letters()
    for answer in ("c, a", ["a", "c"], {"A", "C"}, "AC"):
        assert letters.same(letters.read(answer), "ac")


def test_a_function_that_changes_its_arguments_spoils_no_later_call():
    """Nor the right answer, which is computed from the same inputs before and after it."""
    one = Calls("x and y", (np.ones(3), [1.0]), (np.zeros(3), [2.0]))

    def spoils(x, y):
        x *= 5
        y.append(2.0)
        return x.sum() + len(y)

    assert one.read(spoils).tolist() == one.read(spoils).tolist() == [17.0, 2.0]
    honest = lambda x, y: x.sum() + len(y)  # noqa: E731
    assert one.same(one.read(honest), honest)


SHAPE = "a number should come out of your function, not shape (2,)"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (3, "a function of x is expected"),
        (lambda x: x if x < 2 else [x, x], SHAPE),
        (lambda x, y: x, "your function of x stops with TypeError"),
        (lambda x: "many", "your function of x stops with ValueError"),
        (lambda x: {}["one\ntwo"], "your function of x stops with KeyError"),
    ],
)
def test_a_function_that_cannot_be_read_gets_one_line(answer, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Calls("x", (1.0,), (2.0,)).read(answer)


def test_functions_are_compared_in_every_call():
    one, pair = Calls("x", (1.0,), (2.0,)), Calls("x", (1.0,), (2.0,), shape=(2,), within=0.1)

    def square(x):
        return x * x

    assert one.same(one.read(lambda x: [[x**2 + 1e-9]]), square), "shape (1, 1) is a number too"
    for wrong in (lambda x: x, lambda x: 4.0, lambda x: x * x + 1e-3, lambda x: float("nan")):
        assert not one.same(one.read(wrong), square)
    assert pair.same(pair.read(lambda x: np.array([x, 2.1 * x])), lambda x: [x, 2 * x])


def test_bad_exercises_and_keys_are_refused():
    with pytest.raises(ValueError, match=r"^key='9': expected one of 00.1"):
        check("9", 1)
    words = dict.fromkeys(("question", "hint", "solution", "right"), "?")
    wrong = ((1, "one"), (2, "two"), (3, "three"))
    good: Any = {"key": "99.1", "effort": (1, 1), "words": words, "wrong": wrong}
    good |= {"answers": (0.0,), "reader": Numbers(0.0)}
    for changed, message in (
        ({"wrong": wrong[:1]}, r"^wrong=1: expected at least three"),
        ({"effort": (9, 1)}, r"^difficulty=9: expected .*5"),
        ({"words": {"hint": "?"}}, r"^words=\['hint'\]: expected question, hint"),
    ):
        with pytest.raises(ValueError, match=message):
            Exercise(**good | changed)
