"""Every exercise accepts its solution and equal ones, and tells plausible mistakes apart; guesses
and progress are kept."""

import inspect
import json
import math
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.course import exercises, predictions
from fedlora_lab.course.exercises import Calls, Exercise, Letters, Numbers, all_exercises, check
from fedlora_lab.course.predictions import (
    STRIP,
    Prediction,
    all_predictions,
    split_code,
    to_html,
    unwrap,
)
from fedlora_lab.plots import style

ALL = all_exercises().values()
CASES = [pytest.param(one, id=one.key) for one in ALL]
CALLS = [pytest.param(one, id=one.key) for one in ALL if isinstance(one.reader, Calls)]
PREDICTIONS = [pytest.param(one, id=one.key) for one in all_predictions().values()]


@pytest.fixture
def progress_file(tmp_path, monkeypatch):
    path = tmp_path / "reader" / "progress.json"
    monkeypatch.setenv("FEDLORA_PROGRESS", str(path))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("one", CASES)
def test_the_solution_is_accepted(one):
    for answer in one.answers:
        verdict = check(one.key, answer)
        assert verdict, answer
        assert repr(verdict) == f"Right: {one.words['right']}"


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
    code = "\n\n".join(part for is_code, part in split_code(one.words["solution"]) if is_code)
    room = {"np": np, "torch": torch, "fl": fl, "math": math, "pd": pd}
    exec(code, room)  # nothing, where the solution is in words
    given = [value for name, value in room.items() if inspect.isfunction(value)]
    if code:
        assert given, "the block of code defines no function"
        assert check(one.key, given[-1]), check(one.key, given[-1]).message


@pytest.mark.parametrize("one", CASES)
def test_an_exercise_says_what_it_costs_and_hides_its_solution(one):
    page = fl.course.exercises.show(one.key)._repr_html_()
    assert re.fullmatch(r"\d\d\.\d", one.key)
    difficulty, minutes = one.effort
    assert f"about {minutes} min" in page
    assert one.hints and all(hint.strip() for hint in one.hints)
    assert page.count("<details>") == page.count("<summary>") == 1 + len(one.hints)
    assert one.words["solution"] not in repr(one)
    assert "●" * difficulty + "○" * (5 - difficulty) in page


@pytest.mark.parametrize("one", PREDICTIONS)
def test_a_prediction_is_whole(one):
    assert len(set(one.options)) == len(one.options), "two options are the same"
    assert one.question and one.after, "a question or its explanation is empty"
    assert all(option in repr(one) for option in map(one.option, one.letters))


COMPUTED = {
    "06.4": lambda: theory.gdp_epsilon(theory.gaussian_mu(1.12, 100), 1 / 12),
    "08.3": lambda: 32 / (4 + 32 / 64),
    "13.4": lambda: theory.gdp_epsilon(2.5, 1e-5),
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
        assert one.same(one.read(answer), one.read(2.0))
    for bad in ("two", None, [1, 2], ..., math.nan):
        with pytest.raises(ValueError, match=r"^a number is expected$"):
            one.read(bad)
    for answer in ([3, 12, 30], [[3, 12, 30]], np.array([3.0, 12.0, 30.0])):
        assert row.same(row.read(answer), row.read([3, 12, 30]))
    assert not row.same(row.read([[3], [12], [30]]), row.read([3, 12, 30]))
    with pytest.raises(ValueError, match=r"^numbers such as \[3, 12, 30\] are expected$"):
        row.read("many")
    letters = Letters()
    for answer in ("c, a", ["a", "c"], {"A", "C"}, "AC"):
        assert letters.same(letters.read(answer), frozenset("ac"))


def test_a_function_that_changes_its_arguments_spoils_no_later_call():
    """Nor the right answer, which is computed from the same inputs before and after it."""
    one = Calls("x and y", (np.ones(3), [1.0]), (np.zeros(3), [2.0]))

    def spoils(x, y):
        x *= 5
        y.append(2.0)
        return x.sum() + len(y)

    assert one.read(spoils) == one.read(spoils) == [17.0, 2.0]
    honest = lambda x, y: x.sum() + len(y)  # noqa: E731
    assert one.read(honest) == [4.0, 1.0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (3, "a function of x is expected"),
        (lambda x, y: x, "your function of x stops with TypeError"),
        (lambda x: None, "your function returns nothing; let it end with `return`"),
        (lambda x: "many", "numbers should come out of your function, not str"),
        (lambda x: {}, "numbers should come out of your function, not dict"),
        (lambda x: {}["a\nb"], "your function of x stops with KeyError in its line 1: 'a\\nb'"),
    ],
)
def test_a_function_that_cannot_be_read_gets_one_line(answer, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        Calls("x", (1.0,), (2.0,)).read(answer)
    assert "\n" not in str(caught.value)


def test_numbers_that_blow_up_are_wrong_and_no_error():
    """NumPy warns of them on some processors, and a warning would hide whose mistake it is."""
    calls = Calls("x", (np.array(1e200),))
    assert not calls.same(calls.read(np.square), calls.read(np.sqrt))


def test_a_long_error_is_cut_between_words():
    def stops(x):
        raise ValueError("many words " * 40)

    with pytest.raises(ValueError, match=r"in its line 2: many words .* (many|words) …$") as caught:
        Calls("x", (1.0,)).read(stops)
    assert 230 < len(str(caught.value)) < 300


def test_letters_say_why_they_are_wrong():
    """Whatever else was chosen; an option that is missing is not named."""
    letters = Letters({"b": "it cancels", "d": "it meets"})
    for answer, words in (
        ("bd", "b is wrong: it cancels; d is wrong: it meets"),
        ("abc", "b is wrong: it cancels"),
        ("a", "what you chose is right, but it is not all"),
        ("acz", ""),
    ):
        assert letters.difference(letters.read(answer), frozenset("ac")) == words
    assert Letters().difference(frozenset("a"), frozenset("ac")) == ""
    assert "d is wrong: the gaps meet" in check("02.2", "bd").message


def test_functions_are_compared_in_every_call():
    one, pair = Calls("x", (1.0,), (2.0,)), Calls("x", (1.0,), (2.0,), within=0.1)

    def square(x):
        return x * x

    wanted = one.read(square)
    assert one.same(one.read(lambda x: [[x**2 + 1e-9]]), wanted), "shape (1, 1) is a number too"
    for wrong in (lambda x: x, lambda x: 4.0, lambda x: x * x + 1e-3, lambda x: float("nan")):
        assert not one.same(one.read(wrong), wanted)
    assert pair.same(pair.read(lambda x: np.array([x, 2.1 * x])), pair.read(lambda x: [x, 2 * x]))


def test_results_of_several_parts_are_compared_part_by_part():
    def factors(x):
        return x[:, None] * np.ones(2), x.sum()

    def with_torch(x):
        part = torch.tensor(x, requires_grad=True)
        return [part[:, None].expand(-1, 2), part.sum()]

    one = Calls("x", draw=lambda rng: (rng.standard_normal(3),)).fresh()
    wanted, found = one.read(factors), one.read(with_torch)
    assert one.same(found, wanted) and one.difference(found, wanted) == ""
    for wrong, words in (
        (lambda x: (factors(x)[1], factors(x)[0]), "2 parts (a number; numbers of shape (3, 2))"),
        (lambda x: factors(x)[0], "numbers of shape (3, 2)"),
        (lambda x: (*factors(x), x), "3 parts (numbers of shape (3, 2); a number; numbers of "),
    ):
        found = one.read(wrong)
        assert not one.same(found, wanted)
        line = one.difference(found, wanted)
        assert line.startswith("2 parts (numbers of shape (3, 2); a number) should come out of ")
        assert f"not {words}" in line
    assert not one.same(one.read(lambda x: (factors(x)[0], 0.0)), wanted), "one part is wrong"


def drawn(**more: Any) -> Exercise:
    """The sum of five numbers, with a wrong function that stops and one of another shape."""
    wrong: Any = (
        (lambda x: {}[0], "stops"),
        (lambda x: x, "not summed"),
        (lambda x: x.mean(), "the mean"),
    )
    reader = Calls("x", draw=lambda rng: (rng.normal(1.0, 0.1, 5),), times=3)
    words = dict.fromkeys(("question", "hint", "solution", "right"), "?")
    parts: Any = {"reader": reader, "answers": (np.sum,), "wrong": wrong, "words": words | more}
    return Exercise("99.1", (1, 1), **parts)


def test_no_answer_can_be_learnt_by_heart():
    one = drawn()
    seen, answers = [], iter([5.0] * 3)

    def by_heart(x):
        seen.append(x)
        return next(answers, 5.0)

    assert not exercises._judge(one, by_heart) and not exercises._judge(one, by_heart)
    assert len({float(x.sum()) for x in seen}) == 6, "inputs came twice"


def test_one_check_gives_everybody_the_same_inputs():
    one = drawn()
    assert exercises._judge(one, sum).right
    assert exercises._judge(one, lambda x: list(x)).message == "not summed"
    assert exercises._judge(one, lambda x: x.mean()).message == "the mean"
    shape = "a number should come out of your function, not numbers of shape (4,)."
    assert exercises._judge(one, lambda x: x[1:]).message == shape
    assert "KeyError in its line 1: 0" in exercises._judge(one, lambda x: {}[0]).message


def test_hints_fold_in_steps():
    page = drawn(hint=("use `np.sum`", "five < six"))._repr_html_()
    assert "<summary>Hint 1 of 2</summary><p>use <code>np.sum</code></p>" in page
    assert "<summary>Hint 2 of 2</summary><p>five &lt; six</p>" in page
    assert "<summary>Hint</summary>" in drawn()._repr_html_()


def test_words_hold_code_mathematics_and_functions():
    text = """
The `rank` of $B`A$ is
<r>:
def f(x):
    y = x < 1

    return y

def g(x):
    return f(x)
As in `a$b$c`.
```
import this
```"""
    assert to_html(unwrap(text)).splitlines() == [
        "<p>The <code>rank</code> of $B`A$ is &lt;r&gt;:</p>",
        "<pre><code>def f(x):",
        "    y = x &lt; 1",
        "",
        "    return y",
        "",
        "def g(x):",
        "    return f(x)</code></pre>",
        "<p>As in <code>a$b$c</code>.</p>",
        "<pre><code>import this</code></pre>",
    ]


GUESS = Prediction("99.a", "Is $x < y$?", ("yes.", "no", "`both`"), "b", "It is not.")


def test_a_guess_is_kept_and_revealed(progress_file):
    none = "You have not chosen an option in 99.a. Measured: b) no. It is not."
    assert repr(GUESS.reveal()) == none
    start, folded = GUESS.reveal()._repr_html_().split("</summary>")
    assert start == "<details><summary>You have not chosen an option in 99.a."
    assert folded == "<p>Measured: b) no. It is not.</p></details>"
    control = GUESS.control()
    buttons, sentence = control.children
    assert buttons.options == ("a", "b", "c") and buttons.tooltips == ("yes", "no", "`both`")
    buttons.value = "a"
    assert "Your guess is kept: a" in sentence.value and 'role="status"' in sentence.value
    assert repr(GUESS.reveal()) == "You guessed a) yes. Measured: b) no. It is not."
    assert "details" not in GUESS.reveal()._repr_html_()
    GUESS.choose("b")
    assert repr(GUESS.reveal()) == "You guessed b) no. So it is. It is not."
    assert GUESS.control().children[0].value == "b", "the cell run once more forgets the guess"
    assert json.loads(progress_file.read_text()) == {"99.a": "b"}
    with pytest.raises(ValueError, match=r"^letter='d': expected one of 'a', 'b', 'c'"):
        GUESS.choose("d")
    control.close_all()


def test_a_prediction_is_read_without_a_kernel(capsys):
    """The buttons are an output of their own, which a page without a kernel leaves out."""
    page = GUESS._repr_html_()
    assert "<p>Is $x &lt; y$?</p>" in page and "<b>c)</b> <code>both</code>" in page
    GUESS._ipython_display_()
    first, second = capsys.readouterr().out.splitlines()
    assert "'text/html': '<p><b>Predict 99.a" in first and second.startswith("VBox(")


def test_a_figure_carries_the_guess(progress_file, capsys):
    with style.paper():
        figure, (ax,) = style.panels(4, 2, (0.1, 0.2, 0.8, 0.5))
        figure.text(0.5, 0.0, "below")
    inches = ax.get_window_extent().size
    assert GUESS.reveal(figure) is figure and figure.get_size_inches()[1] == 2, "nothing to note"
    GUESS.choose("a")
    assert GUESS.reveal(figure) is figure
    assert figure.texts[-1].get_text() == "your guess: a, measured: b"
    assert ax.get_window_extent().size == pytest.approx(inches), "the axes were stretched"
    assert figure.get_size_inches()[1] == pytest.approx(2 + STRIP)
    assert figure.texts[0].get_window_extent().y0 > figure.texts[-1].get_window_extent().y1
    figure._ipython_display_()
    shown = capsys.readouterr().out
    assert "'text/plain': 'Picture: no title'}\nYou guessed a) yes." in shown


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
    after = fl.course.exercises.progress().loc[["00", "01", "all"], ["solved", "tried"]]
    assert after.to_numpy().tolist() == [[1, 1], [0, 1], [1, 2]]
    assert json.loads(progress_file.read_text()) == {"00.1": "solved", "01.1": "tried"}
    assert "<table" in fl.course.exercises.progress().to_html()


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


def test_progress_is_kept_where_the_reader_keeps_data(monkeypatch):
    monkeypatch.delenv("FEDLORA_PROGRESS")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert predictions.progress_file() == Path("/data/fedlora_lab/progress.json")
    monkeypatch.setenv("XDG_DATA_HOME", "")
    assert predictions.progress_file() == Path.home() / ".local/share/fedlora_lab/progress.json"


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
