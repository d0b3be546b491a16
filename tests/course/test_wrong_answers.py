"""No wrong answer passes an exercise, and a right one works in the notebook however it is written.

Natural mistakes that no exercise explains by name: none of them passes, and each is answered.
"""

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedlora_course as course
from fedlora_course.exercises import FunctionAnswer, all_exercises

FUNCTIONS: dict[str, Any] = {
    key: one for key, one in all_exercises().items() if isinstance(one.reader, FunctionAnswer)
}
ANY_SIZE = ("11.1",)
"""Asked for a direction: size and sign do not count."""


def solution(key):
    return all_exercises()[key].answers[0]


def change_parts(result, change):
    """Changes every number of a result: an array, a number, a list, or parts in a tuple."""
    if isinstance(result, tuple | list):
        return [change_parts(part, change) for part in result]
    return change(np.asarray(result, float))


def with_results_changed(key, change):
    """The solution, something more done to its result."""
    return lambda *given: change(solution(key)(*given))


# ---- mistakes of any exercise

OF_ANY = {
    "the opposite sign": lambda x: -x,
    "squared": np.square,
    "the root": lambda x: np.sqrt(np.abs(x)),
    "nothing": np.zeros_like,
    "the first numbers": lambda x: x[:-1] if x.ndim else x / 2,
    "an axis more": lambda x: x[None],
    "in another order": lambda x: x[::-1] if x.ndim else x + 2,
    "a thousandth more": lambda x: x + 1e-3 * np.abs(x).max(initial=0),
}
EXACT_NUMBERS = {"09.3": (4276223, 4276225), "00.1": (-2.0001,), "01.4": (15.999, 16.001)}


def fresh(key, seed=0):
    """Returns an exercise's reader with inputs drawn from a seed."""
    return FUNCTIONS[key].reader.fresh(np.random.default_rng(seed))


def passing(key, answers):
    """Names the answers that an exercise accepts, on whatever is drawn.

    Args: answers: name -> function; each is read, also where its numbers are no numbers.
    """
    accepted = set()
    for seed in range(3):
        reader = fresh(key, seed)
        rights = [reader.read(right) for right in FUNCTIONS[key].answers]
        for name, answer in answers.items():
            result = reader.read(answer)
            if any(reader.same(result, right) for right in rights):
                accepted.add(name)
    return accepted


@pytest.mark.slow
@pytest.mark.parametrize("key", FUNCTIONS)
def test_a_result_that_was_changed_in_any_way_is_wrong(key):
    names = set(OF_ANY) - ({"the opposite sign"} if key in ANY_SIZE else set())
    changed = {
        name: with_results_changed(key, partial(change_parts, change=OF_ANY[name]))
        for name in names
    }
    assert not passing(key, changed)


@pytest.mark.parametrize("key", EXACT_NUMBERS)
def test_a_whole_number_has_wrong_neighbours(key):
    """Fault: 4276223 passed for 4276224, as one of a million is within rounding."""
    assert all_exercises()[key].judge(solution(key))
    assert not any(all_exercises()[key].judge(near) for near in EXACT_NUMBERS[key])


# ---- mistakes of one exercise


def written_answers():
    """Answers of natural_mistakes.txt: key -> (how what is told begins, the answer's code)."""
    text = Path(__file__).with_name("natural_mistakes.txt").read_text(encoding="utf-8")
    answers: dict[str, list[tuple[str, str]]] = {}
    for block in text.split("### ")[1:]:
        head, code = block.split("\n", 1)
        key, told = head.split(" | ")
        answers.setdefault(key, []).append((told, code))
    return answers


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("key", written_answers())
def test_an_answer_that_a_student_wrote_is_told_what_is_wrong(key):
    """Fault: 60 of 270 got a failing call only, and one that uses masks it must not know passed."""
    for told, code in written_answers()[key]:
        names: dict[str, Any] = {}
        exec(code, names)
        *_, answer = (value for name, value in names.items() if not name.startswith("__"))
        verdict = repr(all_exercises()[key].judge(answer, np.random.default_rng(0)))
        as_told = told in verdict and verdict.startswith("Right") == (told == "Right")
        assert as_told, f"{verdict}\n\n{code}"


# ---- what is no answer at all

NUMBERS = 3.0, np.array(2.0), [3.0]
NO_NUMBERS = None, "many", {"a": 1.0}, [], np.zeros(0), [None], [[], [1.0]], [[], {}], math.nan
TOLD = "should come out of your function, not ", "your function returns nothing", "is a NaN"


@pytest.mark.parametrize("key", FUNCTIONS)
def test_what_is_no_result_is_refused_in_a_line(key):
    """Fault: a number in place of several results was answered by a traceback."""
    for returned in (*NUMBERS, *NO_NUMBERS):
        generator = np.random.default_rng(0)
        verdict = all_exercises()[key].judge(lambda *given, r=returned: r, generator)
        assert not verdict and len(verdict.message) > 30
        if not any(returned is number for number in NUMBERS):
            assert any(words in verdict.message for words in TOLD), f"{returned}: {verdict}"


@pytest.mark.parametrize("key", FUNCTIONS)
def test_a_function_that_stops_is_told_its_own_error(key):
    """Fault: 10.1 told of a zip() in the course's code."""

    def stops(*given):
        raise NameError("name")

    told = all_exercises()[key].judge(stops).message
    words = FUNCTIONS[key].reader.words
    assert told.startswith(f"your function of {words} stops with NameError in its line 2: name,")


# ---- right answers, written otherwise


def styled(change):
    """Changes the numbers of a result, and keeps its parts together."""

    def change_all(result):
        if isinstance(result, tuple | list):
            return [change_all(part) for part in result]
        return change(np.asarray(result))

    return change_all


STYLES = {
    "PyTorch": styled(lambda x: torch.tensor(x, requires_grad=x.dtype.kind == "f")),
    "single precision": styled(lambda x: torch.tensor(x, dtype=torch.float32)),
    "NumPy's single precision": styled(np.float32),
    "lists": styled(np.ndarray.tolist),
    "fractional classes": styled(lambda x: x.astype(float)),
}
LARGE_WHOLE_NUMBERS = ("13.2", "13.3")


def kinds(result):
    """Collects how numbers are held, "f8" or "i8"; a tensor is not NumPy's."""
    if isinstance(result, tuple | list):
        return {kind for part in result for kind in kinds(part)}
    assert not torch.is_tensor(result)
    return {np.asarray(result).dtype.str[1:]}


@pytest.mark.slow
@pytest.mark.parametrize("key", FUNCTIONS)
def test_right_answers_in_another_style_pass_and_are_used(key):
    """Fault: an answer in PyTorch passed, and the cell that used it stopped."""
    reader = fresh(key)
    right = solution(key)
    for style, change in STYLES.items():
        if key in LARGE_WHOLE_NUMBERS and "single" in style:
            continue
        used = course.exercises.use(key, lambda *given, c=change: c(right(*given)))
        assert used is not right, f"{style}: refused"
        with np.errstate(all="ignore"):  # an exercise asks for the move of what is no number
            results = [used(*copy.deepcopy(case)) for case in reader.cases]
            expected = kinds([right(*copy.deepcopy(case)) for case in reader.cases])
        assert kinds(results) == ({"f8"} if "f8" in expected else expected), style


def test_a_function_is_used_with_the_types_that_the_check_gave_it():
    """Single precision, a whole number for a fraction, other names: all met in notebooks."""

    def by_torch(gradient, a, scale, eta):
        gradient, a = torch.tensor(gradient), torch.tensor(a)
        gradient *= scale  # changes its argument
        return -eta * scale * gradient @ a.T @ a

    G = np.ones((4, 5), np.float32)
    A = np.arange(10.0).reshape(2, 5)
    used = course.exercises.use("01.3", by_torch)
    move = used(G, A, gamma=3, lr=1)
    assert type(move) is np.ndarray and move.dtype == float
    assert move == pytest.approx(solution("01.3")(G, A, 3, 1)) and (G == 1).all()
    assert used(torch.tensor(G), A, 3, 1) == pytest.approx(move)
