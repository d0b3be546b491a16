"""Checks for the notebooks' exercises: each says that an answer is right, or which mistake it is."""

import dis
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from fedlora_lab.checks import check as _check
from fedlora_lab.exercises.exercise import Card, Exercise, Verdict

_LESSONS = sorted(found.name for found in iter_modules(__path__) if found.name.startswith("lesson_"))
ALL: dict[str, Exercise] = {one.key: one for name in _LESSONS for one in import_module(f"{__name__}.{name}").EXERCISES}


def check(key: str, answer: Any = ...) -> Verdict:
    """Whether an answer to an exercise is right; if not, which mistake it is, as far as that can be told.

    Args: key: such as "02.1". answer: yours; ``...``, or a function that returns it, stands for none yet.
    Raises: ``ValueError`` for an unknown key; never for a wrong answer.
    Guarantees: every solution is accepted, every known mistake has a message of its own (tests/test_exercises.py).
    """
    one = _find(key)
    if answer is ... or _unwritten(answer):
        return Verdict(False, "no answer yet; put yours in the place of the three dots.")
    try:
        value = one.read(answer)
    except ValueError as error:
        return Verdict(False, f"{error}." if callable(answer) else f"{error}, not {type(answer).__name__}.")
    if one.right(value):
        return Verdict(True, one.why)
    for mistake in one.mistakes:
        if mistake.spot(value):
            return Verdict(False, mistake.say)
    return Verdict(False, "and it is none of the mistakes known here; the hint may help.")


def _unwritten(answer: Any) -> bool:
    """Whether a function still is three dots: it does nothing but return them."""
    code = getattr(answer, "__code__", None)
    steps = [] if code is None else [step for step in dis.get_instructions(code) if step.opname != "RESUME"]
    return len(steps) <= 2 and any(step.argval is ... for step in steps)


def show(key: str) -> Card:
    """The exercise with its difficulty and minutes, hint and solution folded away."""
    return Card(_find(key))


def _find(key: str) -> Exercise:
    _check(key in ALL, "key", key, "one of " + ", ".join(ALL))
    return ALL[key]
