"""Every exercise accepts its solution and equal ones, and tells plausible mistakes apart; guesses
and progress are kept."""

import inspect
import json
import math
import re
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.course.exercises import (
    Calls,
    Exercise,
    all_exercises,
    check,
)
from fedlora_lab.course.predictions import Prediction, all_predictions
from fedlora_lab.course.texts import split_code

ALL = all_exercises().values()
CASES = [pytest.param(one, id=one.key) for one in ALL]
CALLS = [pytest.param(one, id=one.key) for one in ALL if isinstance(one.reader, Calls)]


@pytest.fixture
def progress_file(tmp_path, monkeypatch):
    path = tmp_path / "reader" / "progress.json"
    monkeypatch.setenv("FEDLORA_PROGRESS", str(path))
    return path


# ---- every exercise


@pytest.mark.slow
@pytest.mark.parametrize("one", CASES)
def test_the_solution_is_accepted(one):
    for answer in one.answers:
        verdict = check(one.key, answer)
        assert verdict, answer
        assert repr(verdict) == f"Right: {one.right}"


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("one", CALLS)
def test_right_and_wrong_functions_are_told_apart_on_every_draw(one):
    """A mistake that a lucky draw hides, or two that look alike on it."""
    for seed in range(20 if one.reader.draw else 1):
        reader = one.reader.fresh(np.random.default_rng(seed))
        right, *others = (reader.read(function) for function in one.answers)
        wrong = {message: reader.read(function) for function, message in one.wrong}
        for result in others:
            assert reader.same(result, right), f"seed {seed}: an equal function is refused"
        for name, result in wrong.items():
            assert not reader.same(result, right), f"seed {seed}: {name} passes as right"
        for (name, result), (other, second) in combinations(wrong.items(), 2):
            assert not reader.same(result, second), f"seed {seed}: {name} and {other} look alike"


@pytest.mark.parametrize("one", CALLS)
def test_the_solution_that_is_shown_is_right(one):
    """As a reader would paste it, with the imports of a notebook."""
    code = "\n\n".join(part for is_code, part in split_code(one.solution) if is_code)
    room = {"np": np, "torch": torch, "fl": fl, "math": math, "pd": pd}
    exec(code, room)  # nothing, where the solution is in words
    functions = [value for value in room.values() if inspect.isfunction(value)]
    if code:
        assert check(one.key, functions[-1]), check(one.key, functions[-1]).message


COMPUTED = {
    "06.4": lambda: theory.gdp_epsilon(theory.gaussian_mu(1.12, 100), 1 / 12),
    "08.3": lambda: 32 / (4 + 32 / 64),
    "13.4": lambda: theory.gdp_epsilon(2.5, 1e-5),
}


@pytest.mark.parametrize("key", COMPUTED)
def test_the_answers_written_down_are_the_librarys(key):
    assert all_exercises()[key].answers[0] == pytest.approx(COMPUTED[key](), rel=1e-8)


# ---- how answers are read


def test_a_function_of_three_dots_is_no_answer_yet():
    def used(g, clip):
        return g[..., 0]

    assert check("03.1", lambda g, clip: ...).message == check("03.1").message
    assert check("03.1", used).message != check("03.1").message


def test_a_function_that_changes_its_arguments_spoils_no_later_call():
    """Nor the right answer, which is computed from the same inputs before and after it."""
    reader = Calls("x and y", (np.ones(3), [1.0]), (np.zeros(3), [2.0]))

    def spoils(x, y):
        x *= 5
        y.append(2.0)
        return x.sum() + len(y)

    def honest(x, y):
        return x.sum() + len(y)

    assert reader.read(spoils) == reader.read(spoils) == [17.0, 2.0]
    assert reader.read(honest) == [4.0, 1.0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (3, "a function of x is expected"),
        (lambda x: None, "your function returns nothing; let it end with `return`"),
        (lambda x: "many", "numbers should come out of your function, not str"),
        (lambda x: {}["a\nb"], "your function of x stops with KeyError in its line 1: 'a\\nb'"),
    ],
)
def test_a_function_that_cannot_be_read_gets_one_line(answer, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Calls("x", (1.0,), (2.0,)).read(answer)


# ---- an exercise of our own


def made_up(**changes: Any) -> Exercise:
    """The sum of five numbers, with a wrong function that stops and one of another shape."""
    parts: dict[str, Any] = {
        "key": "99.1",
        "difficulty": 1,
        "minutes": 1,
        "question": "?",
        "hints": ("?",),
        "solution": "?",
        "right": "!",
        "answers": (np.sum,),
        "wrong": (
            (lambda x: {}[0], "stops"),
            (lambda x: x, "not summed"),
            (lambda x: x.mean(), "the mean"),
        ),
        "reader": Calls("x", draw=lambda rng: (rng.normal(1.0, 0.1, 5),), times=3),
    }
    return Exercise(**parts | changes)


def test_no_answer_can_be_learnt_by_heart():
    seen = []
    made_up().judge(lambda x: seen.append(float(x.sum())) or 5.0)
    made_up().judge(lambda x: seen.append(float(x.sum())) or 5.0)
    assert len(set(seen)) == 6, "inputs came twice"


def test_a_judgement_names_the_mistake_or_the_difference():
    one = made_up()
    assert one.judge(sum).right
    assert one.judge(lambda x: list(x)).message == "not summed"
    shape = "a number should come out of your function, not numbers of shape (4,)."
    assert one.judge(lambda x: x[1:]).message == shape
    assert "KeyError in its line 1: 0" in one.judge(lambda x: {}[0]).message


# ---- predictions, and what is kept of a reader


GUESS = Prediction("99.a", "Is $x < y$?", ("yes.", "no", "`both`"), "b", "It is not.")


def test_a_guess_is_kept_and_revealed(progress_file):
    none = "You have not chosen an option in 99.a. Measured: b) no. It is not."
    assert repr(GUESS.outcome()) == none
    start, folded = GUESS.outcome()._repr_html_().split("</summary>")
    assert start == "<details><summary>You have not chosen an option in 99.a."
    assert folded == "<p>Measured: b) no. It is not.</p></details>"
    control = GUESS.control()
    buttons, sentence = control.children
    buttons.value = "a"
    assert "Your guess is kept: a" in sentence.value and 'role="status"' in sentence.value
    assert repr(GUESS.outcome()) == "You guessed a) yes. Measured: b) no. It is not."
    assert "details" not in GUESS.outcome()._repr_html_()
    GUESS.choose("b")
    assert repr(GUESS.outcome()) == "You guessed b) no. So it is. It is not."
    assert GUESS.control().children[0].value == "b", "the cell run once more forgets the guess"
    assert json.loads(progress_file.read_text()) == {"99.a": "b"}
    with pytest.raises(ValueError, match=r"^letter='d': expected one of 'a', 'b', 'c'"):
        GUESS.choose("d")
    control.close_all()


@pytest.mark.parametrize("one", [GUESS, *all_predictions().values()], ids=lambda one: one.key)
def test_a_prediction_is_read_without_a_kernel(one, capsys, progress_file):
    """The buttons are an output of their own, which a page without a kernel leaves out."""
    page = one._repr_html_()
    assert f"<b>Predict {one.key}</b>" in page and page.count("<li>") == len(one.options)
    assert len(set(one.options)) == len(one.options) and one.question and one.after
    one._ipython_display_()
    first, second = capsys.readouterr().out.splitlines()
    assert "'text/html': '<p><b>Predict" in first and second.startswith("VBox(")


def test_progress_counts_what_was_tried_solved_and_predicted(progress_file):
    first = fl.course.exercises.progress()
    assert not first[["solved", "tried", "predicted"]].to_numpy().any()
    assert first.loc["all", "exercises"] == len(all_exercises()) == first["exercises"][:-1].sum()
    assert first.loc["all", "predictions"] == len(all_predictions())
    check("00.1", ...)
    assert not progress_file.exists(), "three dots are no answer"
    check("00.1", -2)
    for wrong in (8, -2, 8):
        check("00.1", wrong)
        check("01.1", None)
    fl.course.exercises.predict("02.a").choose("a")
    after = fl.course.exercises.progress()
    counts = after.loc[["00", "01", "all"], ["solved", "tried"]]
    assert counts.to_numpy().tolist() == [[1, 1], [0, 1], [1, 2]]
    assert after.loc["02", "predicted right"] == 1
    results = {"00.1": "solved", "01.1": "tried", "02.a": "a"}
    assert json.loads(progress_file.read_text()) == results


@pytest.mark.parametrize("fault", ["folder", "damaged"])
def test_progress_without_a_writable_file_is_one_line(tmp_path, monkeypatch, capsys, fault):
    path = tmp_path / "file"
    path.write_text("[1")
    monkeypatch.setenv("FEDLORA_PROGRESS", str(path / "x" if fault == "folder" else path))
    check("00.1", 8)
    check("00.1", -2)
    said = capsys.readouterr().out
    assert said.startswith("Your progress counts in this session only") and said.count("\n") == 1
    assert fl.course.exercises.progress().loc["00", "solved"] == 1
    assert path.read_text() == "[1", "a file of something else was overwritten"
