"""What an exercise is: a question, its solution, and the mistakes one can tell apart."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from fedlora_lab.checks import check, check_whole


@dataclass(frozen=True)
class Mistake:
    """A plausible wrong answer: an ``example`` of it, how to ``spot`` it, and what to ``say``."""

    example: Any
    spot: Callable[[Any], bool]
    say: str


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Args:
        key: notebook and number, such as "02.1".
        question, hint: plain text; the hint does not give the answer away.
        solution: text that is shown when the reader asks for it.
        answer: gives the right answer. others: further right answers, written in another way.
        read: turns an answer into what ``right`` and the mistakes look at; ``ValueError`` says what was expected.
        right: whether a read answer is right. why: one sentence shown beside "right".
        mistakes: at least three. difficulty: 1 to 5. minutes: that it takes, about.
    """

    key: str
    question: str
    hint: str
    solution: str
    answer: Callable[[], Any]
    read: Callable[[Any], Any]
    right: Callable[[Any], bool]
    why: str
    mistakes: tuple[Mistake, ...]
    others: tuple[Any, ...] = ()
    difficulty: int = 1
    minutes: int = 5

    def __post_init__(self) -> None:
        check_whole("difficulty", self.difficulty, 1, 5)
        check_whole("minutes", self.minutes, 1, 120)
        check(len(self.mistakes) >= 3, "mistakes", len(self.mistakes), "at least three")


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and one line on it; true when right."""

    right: bool
    message: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return f"{'Right' if self.right else 'Not yet'}: {self.message}"


class Card:
    """An exercise as it stands in a notebook: the question, with hint and solution folded away."""

    def __init__(self, exercise: Exercise) -> None:
        self.exercise = exercise

    def __repr__(self) -> str:
        return f"Exercise {self.exercise.key}: {self.exercise.question}"

    def _repr_html_(self) -> str:
        one = self.exercise
        hard = "●" * one.difficulty + "○" * (5 - one.difficulty)
        parts = [
            f"<p><b>Exercise {escape(one.key)}</b> · difficulty {hard} · about {one.minutes} min</p>",
            f"<p>{escape(one.question)}</p>",
            f"<details><summary>Hint</summary><p>{escape(one.hint)}</p></details>",
            f"<details><summary>Solution</summary><p>{escape(one.solution)}</p></details>",
        ]
        return "\n".join(parts)


def number(answer: Any) -> float:
    """An answer as a float; anything that holds one number will do. Raises ``ValueError`` otherwise."""
    try:
        return float(answer.item() if hasattr(answer, "item") else answer)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError("a number is expected") from error


def near(expected: float, within: float = 1e-6) -> Callable[[float], bool]:
    """Whether a number equals this one up to rounding."""
    return lambda value: abs(value - expected) <= within * max(1.0, abs(expected))


class Calls:
    """How an answer that is a function is read: called with fresh copies of some inputs; `gives` compares what comes.

    Args:
        words: the function's arguments, as the question names them.
        cases: the arguments of each call; what all calls give is read together.
        shape: of what one call gives; () is a number, ``None`` whatever comes.
        within: relative and absolute slack of a comparison.
    """

    def __init__(self, words: str, *cases: tuple, shape: tuple[int, ...] | None = (), within: float = 1e-6) -> None:
        self.words, self.cases, self.shape, self.within = words, cases, shape, within

    def __call__(self, answer: Any) -> np.ndarray:
        """What a reader's function gives, (cases, ...). Raises ``ValueError`` in one line for everything else."""
        if not callable(answer):
            raise ValueError(f"a function of {self.words} is expected")
        try:
            found = [np.asarray(answer(*copy.deepcopy(case)), float).squeeze() for case in self.cases]
        except Exception as error:  # whatever a reader's function does wrong, it gets one line
            raise ValueError(f"your function of {self.words} stops with {type(error).__name__}") from error
        wrong = next((one.shape for one in found if self.shape is not None and one.shape != self.shape), None)
        if wrong is not None:
            wanted = f"numbers of shape {self.shape}" if self.shape else "a number"
            raise ValueError(f"{wanted} should come out of your function, not shape {wrong}")
        return np.stack(found)

    def gives(self, function: Callable[..., Any]) -> Callable[[np.ndarray], bool]:
        """Whether what was read is what this function gives."""
        expected = self(function)
        return lambda value: bool(np.allclose(value, expected, rtol=self.within, atol=self.within))
