"""Every exercise accepts its solution and equal ones, and tells plausible mistakes apart; guesses
are kept."""

import math
import re
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

import fedlora_course as course
from fedlora_course.exercises import FunctionAnswer, all_exercises, change_source, check
from fedlora_course.predictions import Prediction
from fedlora_course.texts import split_code

# ---- every exercise


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("one", all_exercises().values(), ids=lambda one: one.key)
def test_right_answers_pass_and_each_mistake_is_told(one):
    """Also an answer that nobody foresaw, none at all, and one that cannot be read; and on every
    draw of a function's inputs, where luck could hide a mistake or make two look alike.
    """
    assert all(repr(check(one.key, answer)) == f"Right: {one.right}" for answer in one.answers)
    messages = [message for _, message in one.wrong]
    assert [check(one.key, example).message for example, _ in one.wrong] == messages
    unforeseen = [check(one.key, answer) for answer in (12345.678, ..., object())]
    assert not any(unforeseen) and "no answer so far" in unforeseen[1].message
    messages += [verdict.message for verdict in unforeseen]
    assert len(set(messages)) == len(messages)
    drawn = isinstance(one.reader, FunctionAnswer) and one.reader.draw
    for seed in range(20 if drawn else 0):
        reader = one.reader.fresh(np.random.default_rng(seed))
        right, *equal = (reader.read(function) for function in one.answers)
        wrong = [reader.read(function) for function, _ in one.wrong]
        assert all(reader.same(result, right) for result in equal), f"seed {seed}"
        for result, other in combinations([right, *wrong], 2):
            assert not reader.same(result, other), f"seed {seed}: two look alike"


@pytest.mark.parametrize("key", all_exercises())
def test_a_question_is_short(key):
    """Without its code."""
    prose = [part for is_code, part in split_code(all_exercises()[key].question) if not is_code]
    assert len(" ".join(prose).split()) <= 90


# ---- how answers are read


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("only b, c and e", "Right: "),
        ("(B), (C), (E)", "Right: "),
        (["b", "ce"], "Right: "),
        ("only b", "Not yet: what you chose is right, but it is not all"),
        ("none", "Not yet: at least one is right"),
        ("b, d", "Not yet: "),
        ("all but a", "Not yet: letters among "),
        ("b-e", "Not yet: letters among "),
        ("both c and e", "Not yet: what you chose is right, but it is not all"),
    ],
)
def test_letters_are_read_out_of_a_phrase(answer, message):
    """Fault: the letters of *only* or *and* counted as answers, or a phrase guessed at."""
    assert repr(check("05.4", answer)).startswith(message)


def test_a_mistake_is_recognised_by_its_first_digits():
    """Fault: only −14/3 with all its digits was told that clients count alike."""
    told = check("02.2", -14 / 3).message
    assert check("02.2", -4.67).message == told and "count alike" in told
    assert "count alike" not in check("02.2", -4.7).message


@pytest.mark.parametrize(
    ("key", "answer", "words"),
    [
        ("04.3", 0.0375, "either a root is missing"),
        ("04.3", 0.6 / 64 * 2, "the width counts by its root"),
        ("12.3", 524, "decimal logarithm"),
    ],
)
def test_of_two_mistakes_the_nearer_is_told(key, answer, words):
    """Fault: √N · σ in place of √N / σ was told that it was at another δ, 0.2 % away."""
    assert words in check(key, answer).message


@pytest.mark.parametrize(
    ("key", "answer", "verdict"),
    [
        ("09.3", " 4276224 ", "Right: "),
        (
            "09.3",
            "4,276,224",
            "Not yet: a plain number, such as 1234.5, is expected; write it with",
        ),
        ("12.3", "64/9", "Not yet: a plain number, such as 1234.5, is expected, not '64/9'"),
    ],
)
def test_a_number_may_be_a_text_without_commas(key, answer, verdict):
    """A comma may part thousands or stand for a point."""
    assert repr(check(key, answer)).startswith(verdict)


def test_what_a_reader_built_is_used_once_it_is_right():
    solution = all_exercises()["03.1"].answers[0]
    calls = []

    def built(*inputs):
        calls.append(inputs)
        return solution(*inputs)

    used = course.exercises.use("03.1", built)
    calls.clear()
    case = np.ones((2, 3)), 1.0, 1.0, 2.0, np.zeros(3)
    assert np.array_equal(used(*case), solution(*case)) and len(calls) == 1
    for unfinished in (lambda *inputs: ..., lambda *inputs: 0):
        assert course.exercises.use("03.1", unfinished) is solution
    with pytest.raises(ValueError, match=r"^key='00\.1': expected an exercise that asks for a fun"):
        course.exercises.use("00.1", solution)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (3, "a function of x is expected"),
        (
            lambda x: {}["a\nb"],
            "your function of x stops with KeyError in its line 1: 'a\\nb', where x = 1",
        ),
        (
            lambda x: np.max(np.zeros(0)),
            "your function of x stops with ValueError in its line 1: zero-size array to reduction "
            "operation maximum which has no identity (nothing is there: is a range empty?), "
            "where x = 1",
        ),
        (lambda x: x + 1j, "numbers should come out of your function, not complex ones"),
        (
            lambda x: sys.exit(1),
            "your function of x stops with SystemExit in its line 1: 1, where x = 1",
        ),
    ],
)
def test_a_function_that_cannot_be_read_gets_one_line(answer, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        FunctionAnswer("x", (1.0,), (2.0,)).read(answer)


# ---- an exercise of our own


def test_a_mistake_is_the_solution_with_another_text_somewhere():
    """Fault: a solution that is rewritten, and a mistake that is then the right answer."""
    tpr = all_exercises()["03.3"].answers[0]
    below = change_source(tpr, {"+ mu": "- mu"})
    assert below(0.1, 2.0, 4) < 0.1 < tpr(0.1, 2.0, 4)
    with pytest.raises(ValueError, match=r"^wrong='\+ nu': expected a text of tpr$"):
        change_source(tpr, {"+ nu": "- nu"})


def test_a_right_function_that_gives_a_nan_somewhere_makes_no_known_mistake():
    """Where calls without a number are left out it is both right and wrong."""
    batches = [(np.arange(1.0, n + 1),) for n in (0, 2, 3, 4)]
    wrong = ((lambda x: x.sum() if len(x) else -1.0, "silent on nothing"),) * 3
    one = replace(
        all_exercises()["03.1"],
        answers=(np.sum,),
        wrong=wrong,
        reader=FunctionAnswer("x", *batches),
    )
    told = one.judge(lambda x: x.sum() if len(x) else math.nan).message
    assert told.startswith("your result is a NaN where a number is right")


def test_an_answer_cannot_be_learnt_by_heart():
    """The sum of five numbers, which come only once."""
    reader = FunctionAnswer("x", draw=lambda rng: (rng.normal(1.0, 0.1, 5),), times=3)
    one = replace(all_exercises()["03.1"], answers=(np.sum,), reader=reader)
    seen: tuple[set[float], set[float]] = set(), set()
    for sums in seen:
        one.judge(lambda x, sums=sums: sums.add(float(x.sum())) or 5.0)
    assert len(seen[0]) > 3 and seen[0] & seen[1] <= {0.0}


# ---- predictions


GUESS = Prediction("99.a", "Is $x < y$?", ("yes.", "no", "`both`"), "b", "It is not.")


def test_a_guess_is_kept_and_revealed():
    none = "You have not chosen an option in 99.a. Measured: b) no. It is not."
    assert repr(GUESS.outcome()) == none
    control = GUESS.control()
    buttons, sentence = control.children
    buttons.value = "a"
    assert "Your guess is kept: a" in sentence.value
    assert repr(GUESS.outcome()) == "You guessed a) yes. Measured: b) no. It is not."
    GUESS.choose("b")
    assert repr(GUESS.outcome()) == "You guessed b) no. So it is. It is not."
    assert GUESS.control().children[0].value == "b", "the cell run once more forgets the guess"
    with pytest.raises(ValueError, match=r"^letter='d': expected one of 'a', 'b', 'c'"):
        GUESS.choose("d")
    control.close_all()


def test_options_stand_below_one_another_and_words_about_them_do_not():
    """Fault: five options to choose from stood in one paragraph of eight lines."""
    asked = all_exercises()["15.2"]
    question, _, folded = asked._repr_html_().partition("<details>")
    assert [f"<li>({letter}) " in question for letter in "abcdefg"] == [True] * 6 + [False]
    assert "<li>" not in folded and "(a) and (e) read" in folded
