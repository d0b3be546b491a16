"""Checks the answers to the notebooks' exercises: right, or which mistake was made.

The words and numbers of a lesson's exercises stand in its ``exercises.toml``; where a function is
asked for, right and wrong ones stand in its ``exercises.py``, and every check calls them on inputs
that are drawn anew.

>>> import fedlora_lab as fl
>>> fl.course.exercises.show("00.1")
Exercise 00.1: Rank 1, one input, one output: every factor is a single number. ...
>>> bool(fl.course.exercises.check("00.1", -2))
True
>>> fl.course.exercises.check("00.1", 8)
Not yet: 8 is what the server holds; subtract what it should hold.
"""

import ast
import copy
import dis
import inspect
import json
import math
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fedlora_lab._utils.validation import check as _check
from fedlora_lab._utils.validation import check_one_of, check_whole
from fedlora_lab.course.predictions import (
    PREDICTION,
    SOLVED,
    TRIED,
    all_predictions,
    entries,
    predict,
    progress,
    reveal,
    save_result,
    split_code,
    to_html,
    unwrap,
)

__all__ = [
    "all_exercises",
    "all_predictions",
    "check",
    "export",
    "predict",
    "progress",
    "reveal",
    "show",
]

_FIELDS = ("question", "hint", "solution", "right")


@dataclass(frozen=True)
class Feedback:
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

    def fresh(self) -> "Numbers":
        return self

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

    def same(self, found: np.ndarray, wanted: np.ndarray) -> bool:
        return _close(found, wanted, self.within)

    def difference(self, found: np.ndarray, wanted: np.ndarray) -> str:
        return ""


class Letters:
    """Reads an answer as a set of letters: "ac", ["a", "c"] and "a, c" are the same.

    Args:
        why: letter -> why its option is wrong, or right; may be empty.
    """

    def __init__(self, why: Mapping[str, str] | None = None) -> None:
        self.why = why or {}

    def fresh(self) -> "Letters":
        return self

    def read(self, answer: Any) -> frozenset[str]:
        readable = isinstance(answer, str | list | tuple | set | frozenset)
        words = readable and all(isinstance(part, str) for part in answer)
        _require(words, 'letters such as "a, b" are expected')
        return frozenset(letter for letter in "".join(answer).lower() if letter.isalpha())

    def same(self, found: frozenset[str], wanted: frozenset[str]) -> bool:
        return found == wanted

    def difference(self, found: frozenset[str], wanted: frozenset[str]) -> str:
        """Says which letters are wrong, and why; "" where nothing is known of them."""
        known = sorted((found - wanted) & {*self.why})
        if not known and self.why and found < wanted:
            return "what you chose is right, but it is not all"
        return "; ".join(f"{one} is wrong: {self.why[one]}" for one in known)


class Calls:
    """Reads a function by what it gives when it is called with copies of some inputs.

    Args:
        words: the function's arguments, as the question names them.
        cases: the arguments of calls whose inputs are always the same.
        draw: makes the arguments of one call from a NumPy generator; they are drawn anew at every
            check, from the operating system's entropy.
        times: how many calls are drawn at a check.
        within: slack of a comparison, relative to the largest number of a result, or to one.
        standard: brings arrays that count as equal to one form, such as vectors to length 1.
    """

    def __init__(
        self,
        words: str,
        *cases: tuple,
        draw: Callable[[np.random.Generator], tuple] | None = None,
        times: int = 5,
        within: float = 1e-6,
        standard: Callable[[Any], Any] = np.asarray,
    ) -> None:
        _check(bool(cases) or draw is not None, "cases", cases, "arguments, or draw=")
        self.words, self.cases, self.draw, self.times = words, cases, draw, times
        self.within, self.standard = within, standard

    def fresh(self, generator: np.random.Generator | None = None) -> "Calls":
        """Returns a copy with newly drawn inputs, the same for all answers that it reads."""
        drawn = copy.copy(self)
        if self.draw is not None:
            generator = generator or np.random.default_rng()
            drawn.cases = (*self.cases, *(self.draw(generator) for _ in range(self.times)))
            drawn.draw = None
        return drawn

    def read(self, answer: Any) -> list[Any]:
        """Returns what a reader's function gives in every call: an array, or a list of them."""
        _require(callable(answer), f"a function of {self.words} is expected")
        one = self if self.draw is None else self.fresh()
        results = []
        for case in one.cases:
            try:
                with np.errstate(all="ignore"):  # a result that blows up is wrong, not an error
                    given = answer(*copy.deepcopy(case))
            except Exception as error:  # whatever a reader's function does wrong, it gets one line
                problem = f"your function of {self.words} stops with {_first_line(error, answer)}"
                raise ValueError(problem) from error
            _require(given is not None, "your function returns nothing; let it end with `return`")
            results.append(_map(self.standard, _arrays(given)))
        return results

    def same(self, found: list[Any], wanted: list[Any]) -> bool:
        return _close(found, wanted, self.within)

    def difference(self, found: list[Any], wanted: list[Any]) -> str:
        """Says in one line how the results differ in form; "" where they do not."""
        lines = (_difference(one, other) for one, other in zip(found, wanted, strict=True))
        return next(filter(None, lines), "")


def vary(
    function: Callable[..., Any], then: Callable[[Any], Any] = lambda result: result, **changes: Any
) -> Callable[..., Any]:
    """Makes a mistake of a right function: other arguments, or something more done to its result.

    Args: function: such as a solution; then: result -> the mistake's; changes: argument -> a value
        in its place, or a function of what was given.

    >>> vary(pow, exp=lambda exp: exp + 1)(2, 3)
    16
    """
    signature = inspect.signature(function)

    def varied(*given: Any) -> Any:
        arguments = signature.bind(*given).arguments
        for name, change in changes.items():
            arguments[name] = change(arguments[name]) if callable(change) else change
        return then(function(*arguments.values()))

    return varied


def _first_line(error: Exception, function: Any) -> str:
    """Describes an error in one line, with the line of the function in which it came up."""
    text = textwrap.shorten(str(error), 200, placeholder=" …")
    code: Any = getattr(function, "__code__", None)
    frames = traceback.walk_tb(error.__traceback__)
    inside = [line - code.co_firstlineno + 1 for frame, line in frames if frame.f_code is code]
    where = f" in its line {inside[-1]}" if inside else ""
    return f"{type(error).__name__}{where}{': ' if text else ''}{text}"


def _arrays(given: Any) -> Any:
    """Converts a result to an array, or to a list of them where its parts differ in shape."""
    if isinstance(given, tuple | list):
        parts = [_arrays(part) for part in given]
        alike = all(isinstance(part, np.ndarray) for part in parts)
        if alike and len({part.shape for part in parts}) == 1:
            return np.stack(parts).squeeze()
        return parts
    try:
        if hasattr(given, "detach"):
            found = given.detach().cpu()
            given = (found if found.dtype.itemsize == 4 else found.double()).numpy()
        found = np.array(given)
        single = found.dtype == np.float32
        return found.astype(np.float32 if single else float).squeeze()
    except (TypeError, ValueError, RuntimeError):
        problem = f"numbers should come out of your function, not {type(given).__name__}"
        raise ValueError(problem) from None


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    return [_map(change, part) for part in value] if isinstance(value, list) else change(value)


def _form(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} parts ({'; '.join(map(_form, value))})"
    return f"numbers of shape {value.shape}" if value.shape else "a number"


def _difference(found: Any, wanted: Any) -> str:
    """Says in one line how two results differ in structure or shape."""
    differ = _form(found) != _form(wanted)
    words = f"{_form(wanted)} should come out of your function, not {_form(found)}"
    return words if differ else ""


def _close(found: Any, wanted: Any, within: float) -> bool:
    """Tells whether two results agree, part by part; single precision is compared as such."""
    if isinstance(found, list) or isinstance(wanted, list):
        alike = isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted)
        return alike and all(map(partial(_close, within=within), found, wanted))
    if np.float32 in (found.dtype, wanted.dtype):
        within = max(within, 1e-5)
    slack = within * max(1.0, abs(wanted[np.isfinite(wanted)]).max(initial=0.0))
    return found.shape == wanted.shape and np.allclose(found, wanted, rtol=0, atol=slack)


def _require(ok: bool, problem: str) -> None:
    if not ok:
        raise ValueError(problem)


@dataclass(frozen=True)
class Exercise:
    """One exercise, with its solution and the wrong answers that it can explain.

    Args:
        key: notebook and number, such as "02.1".
        effort: difficulty, 1 to 5, and the minutes that it takes, about.
        words: question, hint (one, or several in steps), solution, and what is shown beside a right
            answer ("right").
        answers: right ones, the first of which is the solution's.
        wrong: at least three plausible wrong answers, each with what the reader is told.
        reader: `Numbers`, `Letters` or `Calls`: how an answer is read and compared.
    """

    key: str
    effort: tuple[int, int]
    words: Mapping[str, Any]
    answers: tuple[Any, ...]
    wrong: tuple[tuple[Any, str], ...]
    reader: Any

    def __post_init__(self) -> None:
        check_whole("difficulty", self.effort[0], 1, 5)
        check_whole("minutes", self.effort[1], 1, 120)
        _check(len(self.wrong) >= 3, "wrong", len(self.wrong), "at least three")
        _check(set(_FIELDS) <= set(self.words), "words", sorted(self.words), ", ".join(_FIELDS))

    @property
    def hints(self) -> Sequence[str]:
        """Lists the hints, from the faintest to the plainest."""
        hint = self.words["hint"]
        return (hint,) if isinstance(hint, str) else tuple(hint)

    def __repr__(self) -> str:
        return f"Exercise {self.key}: {self.words['question']}"

    def _repr_html_(self) -> str:
        difficulty, minutes = self.effort
        hard = "●" * difficulty + "○" * (5 - difficulty)
        steps = [f"Hint {i} of {len(self.hints)}" for i in range(1, len(self.hints) + 1)]
        folded = [*zip(steps if len(steps) > 1 else ["Hint"], self.hints, strict=True)]
        folded.append(("Solution", self.words["solution"]))
        return "\n".join(
            [
                f"<p><b>Exercise {escape(self.key)}</b> · difficulty {hard} · about {minutes} min"
                f"</p>\n{to_html(self.words['question'])}",
                *(
                    f"<details><summary>{title}</summary>{to_html(text)}</details>"
                    for title, text in folded
                ),
            ]
        )


def _parse(key: str, entry: dict[str, Any], folder: str) -> Exercise:
    """Builds an exercise from its entry in a lesson's ``exercises.toml``.

    Its answer decides how answers are read: numbers, a text of letters, or instead of an answer the
    name of a function in ``exercises.py``, whose ``CALLS`` says how it is called. The solution may
    then be left out: it is the source of that function.
    """
    first: Any = entry.get("answer")
    example: Callable[[Any], Any] = lambda given: given  # noqa: E731
    words: dict[str, Any] = {name: entry[name] for name in _FIELDS if name in entry}
    if "function" in entry:
        first, module = entry["function"], import_module(f"fedlora_lab.course.{folder}.exercises")
        reader, example = module.CALLS[key], partial(getattr, module)
        words.setdefault("solution", inspect.getsource(example(first)))
    elif isinstance(first, str):
        reader = Letters(entry.get("why"))
    else:
        reader = Numbers(first, entry.get("within", 1e-6))
    return Exercise(
        key=key,
        effort=tuple(entry["effort"]),
        words={
            name: unwrap(text) if isinstance(text, str) else tuple(map(unwrap, text))
            for name, text in words.items()
        },
        answers=tuple(map(example, (first, *entry.get("others", ())))),
        wrong=tuple((example(given), message) for given, message in entry["wrong"]),
        reader=reader,
    )


@cache
def all_exercises() -> dict[str, Exercise]:
    """Collects all exercises by key, in the order of the lessons."""
    found = entries().items()
    return {
        key: _parse(key, entry, folder)
        for key, (folder, entry) in found
        if not PREDICTION.fullmatch(key)
    }


def check(key: str, answer: Any = ...) -> Feedback:
    """Checks an answer to an exercise; a wrong one is told which mistake it is, if it is known.

    That an answer was tried or right is kept in the reader's `progress`.

    Args:
        key: such as "02.1".
        answer: yours; ``...``, or a function that returns it, stands for none yet.

    Raises:
        ValueError: for an unknown key; never for a wrong answer.

    Guarantees: every solution is accepted (test_the_solution_is_accepted), every known mistake has
        a message of its own (test_every_mistake_has_a_message_of_its_own), on whatever is drawn
        (test_right_and_wrong_functions_are_told_apart_on_every_draw).
    """
    one = show(key)
    if answer is ... or _is_placeholder(answer):
        return Feedback(False, "no answer so far; replace the three dots with yours.")
    verdict = _judge(one, answer)
    save_result(key, SOLVED if verdict else TRIED)
    return verdict


def _judge(one: Exercise, answer: Any) -> Feedback:
    reader = one.reader.fresh()
    try:
        value = reader.read(answer)
    except ValueError as error:
        kind = "" if callable(answer) else f", not {type(answer).__name__}"
        return Feedback(False, f"{error}{kind}.")
    rights = [reader.read(right) for right in one.answers]
    if any(reader.same(value, right) for right in rights):
        return Feedback(True, one.words["right"])
    for example, message in one.wrong:
        try:
            if reader.same(value, reader.read(example)):
                return Feedback(False, message)
        except ValueError:  # a wrong function may stop on some of the inputs
            continue
    different = reader.difference(value, rights[0])
    unknown = "this is not one of the known mistakes; the hint may help."
    return Feedback(False, f"{different}." if different else unknown)


def _is_placeholder(answer: Any) -> bool:
    """Tells whether a function is still a placeholder: it only returns three dots."""
    code = getattr(answer, "__code__", None)
    steps = [step for step in dis.get_instructions(code) if step.opname != "RESUME"] if code else []
    return len(steps) <= 2 and any(step.argval is ... for step in steps)


def export(kind: str, lesson: int, path: str | Path) -> Path:
    """Writes a lesson's exercises as an assignment: the instructor's notebook, with solutions.

    Args:
        kind: "nbgrader" or "otter"; of the grader that makes the students' notebook of it.
        lesson: number of the notebook.
        path: of the file to write, ending in .ipynb.
    Returns: the path.
    Guarantees: test_assignment.py::test_an_assignment_is_graded.

    >>> import fedlora_lab as fl, tempfile
    >>> fl.course.exercises.export("otter", 2, tempfile.mkdtemp() + "/week-2.ipynb").name
    'week-2.ipynb'
    """
    check_one_of("kind", kind, ("nbgrader", "otter"))
    one_of = [one for key, one in all_exercises().items() if key.startswith(f"{lesson:02}.")]
    _check(bool(one_of), "lesson", lesson, "the number of a notebook with exercises")
    _check(Path(path).suffix == ".ipynb", "path", str(path), "a name that ends in .ipynb")
    write_assignment(one_of, kind, Path(path))
    return Path(path)


def show(key: str) -> Exercise:
    """Shows an exercise with its difficulty and minutes; hint and solution are folded away."""
    _check(key in all_exercises(), "key", key, "one of " + ", ".join(all_exercises()))
    return all_exercises()[key]


# Assignments: an instructor's notebook for nbgrader or Otter-Grader, which read marks in its cells
# and make the students' notebook of it; neither has to be installed here.

IMPORTS = (
    "import math\nimport numpy as np\nimport pandas as pd\nimport torch\nimport fedlora_lab as fl"
)


def write_assignment(exercises: Sequence[Any], kind: str, path: Path) -> None:
    """Writes a question, an answer and a check for each; see `fedlora_lab.course.exercises.export`.

    Args: exercises: in the order of the notebook. kind: "otter" or "nbgrader". path: of the file.
    """
    cells = [_notebook_cell("raw", "# ASSIGNMENT CONFIG\nfiles: []")] if kind == "otter" else []
    cells.append(_notebook_cell("code", IMPORTS))
    for one in exercises:
        cells += _otter_cells(one) if kind == "otter" else _nbgrader_cells(one)
    cells = [{"id": f"cell-{i}", **cell} for i, cell in enumerate(cells)]
    page = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(page, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _notebook_cell(kind: str, source: str, **metadata: Any) -> dict[str, Any]:
    code = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": metadata, "source": source, **code}


def _nbgrader_cells(one: Any) -> Iterator[dict[str, Any]]:
    plain = {"schema_version": 3, "grade": False, "solution": False, "locked": True, "task": False}
    own = {"answer": {"solution": True, "locked": False}}
    own["check"] = {"grade": True, "points": one.effort[0]}
    for part, text in _assignment_texts(one, "### {} SOLUTION").items():
        name = f"exercise-{one.key}-{part}".replace(".", "-")
        marks = plain | {"grade_id": name} | own.get(part, {})
        yield _notebook_cell("markdown" if part == "question" else "code", text, nbgrader=marks)


def _otter_cells(one: Any) -> Iterator[dict[str, Any]]:
    text = _assignment_texts(one, "# {} SOLUTION")
    name = f"name: q{one.key.replace('.', '_')}\npoints: {one.effort[0]}"
    yield from (
        _notebook_cell("raw", f"# BEGIN QUESTION\n{name}"),
        _notebook_cell("markdown", text["question"]),
    )
    for mark, part in (("SOLUTION", "answer"), ("TESTS", "check")):
        yield from (_notebook_cell("raw", f"# BEGIN {mark}"), _notebook_cell("code", text[part]))
        yield _notebook_cell("raw", f"# END {mark}")
    yield _notebook_cell("raw", "# END QUESTION")


def _assignment_texts(one: Any, mark: str) -> dict[str, str]:
    """The question, the answer with marks around what students do not get, and the check."""
    name, lines, right = "answer", [], one.answers[0]
    hidden = [f"answer = {right!r}"]
    if callable(right):
        code = [part for is_code, part in split_code(one.words["solution"]) if is_code]
        hidden = ("\n\n".join(code) or inspect.getsource(right)).splitlines()
        function: Any = ast.parse("\n".join(hidden)).body[-1]
        name, body = function.name, function.body[0].lineno - 1
        lines, hidden = hidden[:body], hidden[body:]
    space = "    " if lines else ""
    lines += [space + mark.format("BEGIN"), *hidden, space + mark.format("END")]
    check = f'assert fl.course.exercises.check("{one.key}", {name})'
    question = f"**Exercise {one.key}.** {one.words['question']}"
    return {"question": question, "answer": "\n".join(lines), "check": check}
