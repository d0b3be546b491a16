"""Checks the answers to the notebooks' exercises: right, or which mistake was made.

The words and numbers of a lesson's exercises stand in its ``exercises.toml``; where a function is
asked for, right and wrong ones stand in its ``exercises.py``.

>>> import fedlora_lab as fl
>>> fl.exercises.show("00.1")
Exercise 00.1: Rank 1, one input, one output: every factor is a single number. ...
>>> bool(fl.exercises.check("00.1", -2))
True
>>> fl.exercises.check("00.1", 8)
Not yet: 8 is what the server holds; subtract what it should hold.
"""

import copy
import dis
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fedlora_lab._utils.validation import check as _check
from fedlora_lab._utils.validation import check_whole

_FIELDS = ("question", "hint", "solution", "right")


@dataclass(frozen=True)
class Verdict:
    """Says whether an answer is right, with one line on it; true when right."""

    right: bool
    message: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return f"{'Right' if self.right else 'Not yet'}: {self.message}"


class Numbers:
    """Reads numbers (one, or an array of them) and compares them up to ``within``, relative."""

    def __init__(self, example: Any, within: float = 1e-6) -> None:
        self.one, self.within = not np.ndim(example), within
        self.wanted = "a number is" if self.one else f"numbers such as {example} are"

    def read(self, answer: Any) -> np.ndarray:
        """Returns the answer with at least two axes: one row needs no second pair of brackets."""
        try:
            answer = answer.detach() if hasattr(answer, "detach") else answer
            found = np.atleast_2d(np.asarray(answer, float))
        except (TypeError, ValueError, RuntimeError):
            found = np.array(math.nan)
        wrong = np.isnan(found).any() or (self.one and found.size != 1)
        _require(not wrong, f"{self.wanted} expected")
        return found.reshape(1, 1) if self.one else found

    def same(self, found: np.ndarray, example: Any) -> bool:
        wanted = np.atleast_2d(np.asarray(example, float))
        slack = self.within * np.maximum(1.0, abs(wanted[np.isfinite(wanted)]).max(initial=0.0))
        return found.shape == wanted.shape and np.allclose(found, wanted, rtol=0, atol=slack)


class Letters:
    """Reads an answer as a set of letters: "ac", ["a", "c"] and "a, c" are the same."""

    def read(self, answer: Any) -> frozenset[str]:
        readable = isinstance(answer, str | list | tuple | set | frozenset)
        words = readable and all(isinstance(part, str) for part in answer)
        _require(words, 'letters such as "a, b" are expected')
        return frozenset(letter for letter in "".join(answer).lower() if letter.isalpha())

    def same(self, found: frozenset[str], example: str) -> bool:
        return found == frozenset(example)


class Calls:
    """Reads a function by what it gives when it is called with fresh copies of some inputs.

    Args:
        words: the function's arguments, as the question names them.
        cases: the arguments of each call; what all calls give is read together.
        shape: of what one call gives; () is a number, ``None`` whatever comes.
        within: relative and absolute slack of a comparison.
        standard: brings results that count as equal to one form, such as vectors to length 1.
    """

    def __init__(
        self,
        words: str,
        *cases: tuple,
        shape: tuple[int, ...] | None = (),
        within: float = 1e-6,
        standard: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ) -> None:
        self.words, self.cases, self.shape = words, cases, shape
        self.within, self.standard = within, standard

    def read(self, answer: Any) -> np.ndarray:
        """Returns what a reader's function gives, (cases, ...)."""
        _require(callable(answer), f"a function of {self.words} is expected")
        try:
            values = [
                np.asarray(answer(*copy.deepcopy(case)), float).squeeze() for case in self.cases
            ]
        except Exception as error:  # whatever a reader's function does wrong, it gets one line
            problem = f"your function of {self.words} stops with {type(error).__name__}"
            raise ValueError(problem) from error
        wanted = f"numbers of shape {self.shape}" if self.shape else "a number"
        for value in values:
            problem = f"{wanted} should come out of your function, not shape {value.shape}"
            _require(self.shape in (None, value.shape), problem)
        return np.stack([self.standard(value) for value in values])

    def same(self, found: np.ndarray, example: Callable[..., Any]) -> bool:
        wanted, slack = self.read(example), self.within
        return found.shape == wanted.shape and np.allclose(found, wanted, rtol=slack, atol=slack)


def _require(ok: bool, problem: str) -> None:
    if not ok:
        raise ValueError(problem)


@dataclass(frozen=True)
class Exercise:
    """One exercise, with its solution and the wrong answers that it can explain.

    Args:
        key: notebook and number, such as "02.1".
        effort: difficulty, 1 to 5, and the minutes that it takes, about.
        words: question, hint, solution, and what is shown beside a right answer ("right").
        answers: right ones, the first of which is the solution's.
        wrong: at least three plausible wrong answers, each with what the reader is told.
        reader: `Numbers`, `Letters` or `Calls`: how an answer is read and compared.
    """

    key: str
    effort: tuple[int, int]
    words: Mapping[str, str]
    answers: tuple[Any, ...]
    wrong: tuple[tuple[Any, str], ...]
    reader: Any

    def __post_init__(self) -> None:
        check_whole("difficulty", self.effort[0], 1, 5)
        check_whole("minutes", self.effort[1], 1, 120)
        _check(len(self.wrong) >= 3, "wrong", len(self.wrong), "at least three")
        _check(set(_FIELDS) <= set(self.words), "words", sorted(self.words), ", ".join(_FIELDS))

    def __repr__(self) -> str:
        return f"Exercise {self.key}: {self.words['question']}"

    def _repr_html_(self) -> str:
        difficulty, minutes = self.effort
        hard = "●" * difficulty + "○" * (5 - difficulty)
        question, hint, solution, _ = (escape(self.words[name]) for name in _FIELDS)
        return (
            f"<p><b>Exercise {escape(self.key)}</b> · difficulty {hard} · about {minutes} min</p>\n"
            f"<p>{question}</p>\n<details><summary>Hint</summary><p>{hint}</p></details>\n"
            f"<details><summary>Solution</summary><p>{solution}</p></details>"
        )


def _parse(key: str, entry: dict[str, Any], folder: str) -> Exercise:
    """An exercise from its entry in a lesson's ``exercises.toml``.

    Its answer decides how answers are read: numbers, a text of letters, or instead of an answer the
    name of a function in ``exercises.py``, whose ``CALLS`` says how it is called.
    """
    first: Any = entry.get("answer")
    example: Callable[[Any], Any] = lambda given: given  # noqa: E731
    if "function" in entry:
        first, module = entry["function"], import_module(f"fedlora_lab.course.{folder}.exercises")
        reader, example = module.CALLS[key], partial(getattr, module)
    elif isinstance(first, str):
        reader = Letters()
    else:
        reader = Numbers(first, entry.get("within", 1e-6))
    return Exercise(
        key=key,
        effort=tuple(entry["effort"]),
        words={name: " ".join(entry[name].split()) for name in _FIELDS},
        answers=tuple(map(example, (first, *entry.get("others", ())))),
        wrong=tuple((example(given), message) for given, message in entry["wrong"]),
        reader=reader,
    )


@cache
def all_exercises() -> dict[str, Exercise]:
    """Collects all exercises by key, in the order of the lessons."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("lesson_*/exercises.toml")):
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
        found |= {key: _parse(key, entry, path.parent.name) for key, entry in entries.items()}
    return found


def check(key: str, answer: Any = ...) -> Verdict:
    """Checks an answer to an exercise; a wrong one is told which mistake it is, if it is known.

    Args:
        key: such as "02.1".
        answer: yours; ``...``, or a function that returns it, stands for none yet.

    Raises:
        ValueError: for an unknown key; never for a wrong answer.

    Guarantees: every solution is accepted (test_the_solution_is_accepted), every known mistake has
        a message of its own (test_every_mistake_has_a_message_of_its_own).
    """
    one = show(key)
    if answer is ... or _unwritten(answer):
        return Verdict(False, "no answer so far; replace the three dots with yours.")
    try:
        value = one.reader.read(answer)
    except ValueError as error:
        kind = "" if callable(answer) else f", not {type(answer).__name__}"
        return Verdict(False, f"{error}{kind}.")
    if any(one.reader.same(value, right) for right in one.answers):
        return Verdict(True, one.words["right"])
    for example, message in one.wrong:
        if one.reader.same(value, example):
            return Verdict(False, message)
    return Verdict(False, "this is not one of the known mistakes; the hint may help.")


def _unwritten(answer: Any) -> bool:
    """Whether a function still is three dots: it does nothing but return them."""
    code = getattr(answer, "__code__", None)
    steps = [step for step in dis.get_instructions(code) if step.opname != "RESUME"] if code else []
    return len(steps) <= 2 and any(step.argval is ... for step in steps)


def show(key: str) -> Exercise:
    """Shows an exercise with its difficulty and minutes; hint and solution are folded away."""
    _check(key in all_exercises(), "key", key, "one of " + ", ".join(all_exercises()))
    return all_exercises()[key]
