"""Checks the answers to the notebooks' exercises: right, or which mistake was made.

The words and numbers of a lesson's exercises stand in its ``exercises.toml``; where a function is
asked for, the right one stands in its ``exercises.py``. A mistake is what the solution's source has
in another place, {right text = wrong text}, or the name of another function. Every check calls them
on inputs that are drawn anew.

>>> import fedlora_course as course
>>> import fedlora_lab as fl
>>> course.exercises.show("00.1")
Exercise 00.1: Rank 1, one input, one output: every factor is a single number. ...
>>> bool(course.exercises.check("00.1", -2))
True
>>> course.exercises.check("00.1", 8)
Not yet: 8 is what the server holds; subtract what it should hold.
"""

import copy
import dis
import functools
import inspect
import math
import re
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape
from importlib import import_module
from typing import Any

import numpy as np

from fedlora_course import diagnosis
from fedlora_course.predictions import all_predictions, predict, reveal
from fedlora_course.texts import PREDICTION_KEY, Entry, entries, question_html, to_html, unwrap
from fedlora_lab._utils.validation import check as check_value

__all__ = [
    "all_exercises",
    "all_predictions",
    "check",
    "predict",
    "reveal",
    "show",
    "use",
]

Result = Any
"""What a reader of answers makes of one: an array, a set of letters, or a list of arrays."""
Answer = Any
"""What a reader of the notebook gives: anything at all."""
Function = Callable[..., Any]
"""A reader's or a lesson's."""
UNSTEADY = (
    "called again with the same inputs, your function gives another result: it keeps something "
    "between the calls, or draws random numbers that its arguments do not seed."
)


@dataclass(frozen=True)
class Feedback:
    """Says whether an answer is right, with one line on it; true when right."""

    right: bool
    message: str

    def __bool__(self) -> bool:
        return self.right

    @property
    def _verdict(self) -> str:
        return "Right" if self.right else "Not yet"

    def __repr__(self) -> str:
        return f"{self._verdict}: {self.message}"

    def _repr_html_(self) -> str:
        return to_html(f"{self._verdict}: {self.message}").replace(
            f"{self._verdict}:", f"<b>{self._verdict}:</b>", 1
        )


# ---- how an answer is read and compared


class Reader:
    """Reads answers: `read` brings one into a form of its own, or raises ``ValueError`` in a line.

    Args: within: slack of a comparison, relative to the largest number of a result, or to one.
    """

    within = 0.0

    def fresh(self, generator: np.random.Generator | None = None) -> "Reader":
        """Returns the reader of one check, whose inputs are the same for all answers."""
        return self

    def same(self, result: Result, other: Result) -> bool:
        return _close(result, other, self.within)

    def is_mistake(self, result: Result, mistake: Result, right: Result) -> bool:
        """Tells whether a wrong result is that of a known mistake."""
        return self.same(result, mistake)

    def distance(self, result: Result, mistake: Result) -> float:
        """Tells how far a result is from a mistake that it may be; the nearest one is told."""
        return 0.0

    def difference(self, result: Result, right: Result) -> str:
        """Says in one line how a result differs from the right one, "" where it cannot tell."""
        return ""

    def diagnosis(self, answer: Answer, solution: Answer) -> str:
        """Says more of a wrong answer that makes no known mistake, "" where it cannot tell."""
        return ""


class NumberAnswer(Reader):
    """Reads numbers (one, or an array of them) and compares them up to ``within``, relative.

    Args:
        example: the right answer. Where it is a whole number, its neighbours are wrong.
        within: slack of a comparison; ``None``: 1e-6, and only rounding for a whole number.
    """

    def __init__(self, example: Answer, within: float | None = None) -> None:
        self.single = not np.ndim(example)
        some = f"numbers such as {example} are"
        self.expected = "a plain number, such as 1234.5, is" if self.single else some
        self.within = within or (1e-9 if isinstance(example, int) else 1e-6)

    def read(self, answer: Answer) -> np.ndarray:
        """Returns the answer with at least two axes: one row needs no second pair of brackets."""
        try:
            plain = answer.detach() if hasattr(answer, "detach") else answer
            # As texts and this course write it.
            plain = plain.replace("−", "-") if isinstance(plain, str) else plain
            numbers = np.atleast_2d(np.asarray(plain, float))
        except (TypeError, ValueError, RuntimeError):
            numbers = np.array([[math.nan]])
        if np.isnan(numbers).any() or (self.single and numbers.size != 1):
            # To Python 4,276,224 are three numbers.
            commas = numbers.size > 1 or (isinstance(answer, str) and "," in answer)
            how = "; write it without commas" if self.single and commas else ""
            raise ValueError(f"{self.expected} expected{how}")
        return numbers.reshape(1, 1) if self.single else numbers

    def is_mistake(self, result: np.ndarray, mistake: np.ndarray, right: np.ndarray) -> bool:
        """A mistake that is no whole number is typed with few digits, such as −4.67 for −14/3."""
        few = result.shape == mistake.shape and (mistake != np.rint(mistake)).any()
        return self.same(result, mistake) or bool(few and np.allclose(result, mistake, rtol=5e-3))

    def distance(self, result: np.ndarray, mistake: np.ndarray) -> float:
        return float(abs(result - mistake).max())

    def difference(self, result: np.ndarray, right: np.ndarray) -> str:
        """Says which numbers are wrong, or how a number differs."""
        if result.shape != right.shape:
            return f"{_form(right)} are expected, not {_form(result)}"
        return diagnosis.number_differs(result, right)


class Letters(Reader):
    """Reads an answer as a set of letters: "ac", ["a", "c"] and "only a and c" are the same.

    Args:
        options: the letters from which to choose.
        why: letter -> why its option is wrong, or right; may be empty.
    """

    def __init__(self, options: Iterable[str], why: Mapping[str, str] | None = None) -> None:
        self.options = frozenset(options)
        self.why = why or {}

    def read(self, answer: Answer) -> frozenset[str]:
        collection = isinstance(answer, str | list | tuple | set | frozenset)
        if not collection or not all(isinstance(part, str) for part in answer):
            raise ValueError('letters such as "a, b" are expected')
        text = answer if isinstance(answer, str) else " ".join(answer)
        words = set(re.findall(r"[^\W\d_]+", text.lower())) - {"and", "both", "only", "none"}
        letters = frozenset("".join(words))
        # "all but c" and "b-e" are refused in place of being guessed at.
        if not letters <= self.options or re.search(r"\w\s*[-–]\s*\w", text):
            *most, last = sorted(self.options)
            raise ValueError(f"letters among {', '.join(most)} and {last} are expected")
        return letters

    def same(self, result: frozenset[str], other: frozenset[str]) -> bool:
        return result == other

    def difference(self, result: frozenset[str], right: frozenset[str]) -> str:
        """Says which letters are wrong, and why; an option that is missing is not named."""
        explained = sorted((result - right) & set(self.why))
        if explained:
            reasons = (f"{letter} is wrong: {self.why[letter].rstrip('.')}" for letter in explained)
            return "; ".join(reasons)
        if not result:
            return "at least one is right: look at each by itself"
        if result < right:
            return "what you chose is right, but it is not all"
        wrong = len(result - right)
        count = "one letter" if wrong == 1 else f"{wrong} of the letters"
        missing = " and another is missing" if right - result else ""
        return f"{count} that you chose {'is' if wrong == 1 else 'are'} wrong{missing}"


class FunctionAnswer(Reader):
    """Reads a function by what it gives when it is called with copies of some inputs.

    Args:
        words: the function's arguments, as the question names them.
        cases: the arguments of calls whose inputs are always the same.
        draw: makes the arguments of one call from a NumPy generator; they are drawn anew at every
            check, from the operating system's entropy.
        times: how many calls are drawn at a check.
        standard: brings arrays that count as equal to one form, such as vectors to length 1.
    """

    within = 1e-6

    def __init__(
        self,
        words: str,
        *cases: tuple,
        draw: Callable[[np.random.Generator], tuple] | None = None,
        times: int = 5,
        standard: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ) -> None:
        self.words = words
        self.cases = cases
        self.draw = draw
        self.times = times
        self.standard = standard

    def fresh(self, generator: np.random.Generator | None = None) -> "FunctionAnswer":
        """Returns a copy with newly drawn inputs, so that no answer can be learnt by heart."""
        drawn = copy.copy(self)
        if self.draw is not None:
            generator = generator or np.random.default_rng()
            drawn.cases = (*self.cases, *(self.draw(generator) for _ in range(self.times)))
            drawn.draw = None
        return drawn

    def read(self, answer: Answer) -> list[Result]:
        """Returns what a reader's function gives in every call: an array, or a list of them."""
        if not callable(answer):
            raise ValueError(f"a function of {self.words} is expected")
        return self.call(answer, self.fresh().cases)

    def call(self, function: Function, cases: Iterable[tuple]) -> list[Result]:
        """Returns what a function gives for each case; raises ``ValueError`` where it stops."""
        results = []
        for case in cases:
            try:
                # A result that blows up, or a mean over nothing, is wrong and not an error.
                with np.errstate(all="ignore"), warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)
                    returned = function(*_as_given(case))
            # Whatever a reader's function does wrong, it gets one line.
            except (Exception, SystemExit) as error:
                shapes = diagnosis.shapes_in_words(str(error))
                what = f"{_first_line(error, function)}, where {self.call_in_words(case)}"
                if shapes:
                    arguments = diagnosis.shapes_of_call(self.names, case)
                    what = f"a mismatch{_line(error, function)}: {shapes}. Shapes: {arguments}"
                raise ValueError(f"your function of {self.words} stops with {what}") from error
            if returned is None:
                where = f" where {self.call_in_words(case)}" if results else ""
                raise ValueError(f"your function returns nothing{where}; let it end with `return`")
            results.append(_map(self.standard, _to_arrays(returned)))
        return results

    def is_mistake(self, result: list[Result], mistake: list[Result], right: list[Result]) -> bool:
        """Leaves out calls in which the result alone is not finite, if they are fewer than half.

        Whoever takes a mean for a sum does so in every call, and divides by zero besides where a
        batch is empty.
        """
        triples = list(zip(result, mistake, right, strict=True))
        kept = [x for x in triples if _is_finite(x[0]) or not _is_finite(x[1])]
        if 2 * len(kept) <= len(triples):
            return False
        given, wrong, goal = map(list, zip(*kept, strict=True))
        return self.same(given, wrong) and not self.same(given, goal)

    def distance(self, result: list[Result], mistake: list[Result]) -> float:
        return sum(not self.same(*pair) for pair in zip(result, mistake, strict=True))

    def difference(self, result: list[Result], right: list[Result]) -> str:
        """Says how the results differ in structure or shape; "" where they do not."""
        pairs = list(zip(result, right, strict=True))
        if self.same([_transposed(given) for given in result], right):
            several = isinstance(right[0], list)
            what = "each of your results" if several else "your result"
            return f"{what} is the right one transposed"
        several = any(isinstance(part, list) for part in right)
        if several and all(self.reordered(*pair) for pair in pairs):
            return "your results are right, but stand in another order"
        forms = [tuple(map(_form, pair)) for pair in pairs]
        odd = [i for i, (returned, expected) in enumerate(forms) if returned != expected]
        if not odd:
            return ""
        # One of the fixed calls, which come first and are small, where all are wrong.
        place = odd[0] if len(odd) == len(forms) else odd[-1]
        returned, expected = forms[place]
        where = ""
        if len(odd) < len(forms) or len({expected for _, expected in forms}) > 1:
            where = f" where {self.call_in_words(self.cases[place])}"
        return f"{expected} should come out of your function, not {returned}{where}"

    def reordered(self, result: Result, right: Result) -> bool:
        """Tells whether a result has the parts of the right one and no others."""
        if _count(result) != _count(right):
            return False
        found = (any(self.same(part, other) for other in result) for part in right)
        known = (any(self.same(part, other) for other in right) for part in result)
        return all(found) and all(known)

    def call_in_words(self, case: tuple) -> str:
        """Names the arguments of a call, such as "n = 3 and C = 0.5"."""
        return diagnosis.call_in_words(self.names, case)

    @property
    def names(self) -> list[str]:
        """The function's arguments."""
        return re.split(r", | and ", self.words)

    def diagnosis(self, answer: Answer, solution: Answer) -> str:
        """Says what is wrong with a function, by calling it on these and on simpler inputs."""
        with np.errstate(all="ignore"):
            several = isinstance(solution(*_as_given(self.cases[0])), tuple | list)
        return diagnosis.differs(self.call, answer, solution, self.cases, several)


class Spoken:
    """A function among the arguments of a call, with the words that stand for it in an answer."""

    def __init__(self, function: Callable[..., Any], in_words: str) -> None:
        self.function = function
        self.in_words = in_words

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self.function(*given, **named)


def change_source(function: Function, changes: Mapping[str, str]) -> Function:
    """Makes a mistake of a right function: its source with other texts in some places.

    Args: function: of a module; changes: text of the source -> what stands in its place.
    Raises: ``ValueError`` for a text that the source does not have.
    """
    source = inspect.getsource(function)
    for text, wrong in changes.items():
        check_value(text in source, "wrong", text, f"a text of {function.__name__}")
        source = source.replace(text, wrong)
    names = dict(function.__globals__)
    exec(compile(source, f"<mistake in {function.__name__}>", "exec"), names)  # noqa: S102  a text of ours
    return names[function.__name__]


def _first_line(error: BaseException, function: Function) -> str:
    """Describes an error in one line, with the line of the function in which it came up."""
    text = textwrap.shorten(str(error), 200, placeholder=" …").rstrip(".")
    if "empty sequence" in text or "zero-size array" in text:
        text += " (nothing is there: is a range empty?)"
    where = _line(error, function)
    return f"{type(error).__name__}{where}{': ' if text else ''}{text}"


def _line(error: BaseException, function: Function) -> str:
    """Names the line of the function in which an error came up."""
    code = getattr(function, "__code__", None)
    where = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_code is code:
            where = f" in its line {line - frame.f_code.co_firstlineno + 1}"
    return where


def _as_given(case: tuple) -> tuple:
    """Copies the arguments of a call, as every function of a reader gets them.

    Arrays are NumPy's, in double precision. A function that changes its arguments spoils no later
    call. A function among the arguments may be called with tensors or single precision.
    """
    return tuple(map(_plain, copy.deepcopy(case)))


def _plain(value: Any) -> Any:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    if isinstance(value, np.ndarray):
        return value.astype(float) if value.dtype.kind == "f" else value
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if callable(value):
        return lambda *given: value(*map(_plain, given))
    return value


def _to_arrays(returned: Answer) -> Result:
    """Converts a result to an array, or to a list of them where its parts differ in shape."""
    if isinstance(returned, np.ndarray) and returned.dtype == object and returned.ndim:
        returned = list(returned)
    if isinstance(returned, tuple | list):
        arrays = [_to_arrays(part) for part in returned]
        shapes = {array.shape if isinstance(array, np.ndarray) else None for array in arrays}
        if len(shapes) == 1 and None not in shapes:
            return np.stack(arrays)
        return arrays
    try:
        if hasattr(returned, "detach"):
            tensor = returned.detach().cpu()
            half = tensor.is_floating_point() and tensor.dtype.itemsize < 4
            returned = (tensor.double() if half else tensor).numpy()
        array = np.real_if_close(np.array(returned))
        if array.dtype.kind == "c":
            raise TypeError
        if array.dtype.kind in "biu":
            return array.astype(np.int64)
        # Single precision stays what it is: it is compared with more slack.
        return array.astype(np.float32 if array.dtype == np.float32 else float)
    except (TypeError, ValueError, RuntimeError):
        kind = "complex ones" if np.iscomplexobj(returned) else type(returned).__name__
        if isinstance(returned, np.ndarray) and returned.dtype.kind in "US":
            kind = "words"
        if isinstance(returned, Mapping):
            kind = "a dict: several results go into a list"
        raise ValueError(f"numbers should come out of your function, not {kind}") from None


def _map(change: Callable[[np.ndarray], np.ndarray], result: Result) -> Result:
    return [_map(change, part) for part in result] if isinstance(result, list) else change(result)


def _is_finite(result: Result) -> bool:
    if isinstance(result, list):
        return all(map(_is_finite, result))
    return bool(np.isfinite(result).all())


def _transposed(result: Result) -> Result:
    """Exchanges the last two axes of every array."""
    return _map(lambda x: x.swapaxes(-1, -2) if x.ndim > 1 else x, result)


def _count(result: Result) -> int:
    """How many parts a result has; a number has none."""
    return len(result) if isinstance(result, list) or result.ndim else 0


def _form(result: Result) -> str:
    if isinstance(result, list) and not result:
        return "an empty list"
    if isinstance(result, list):
        return f"{len(result)} parts ({'; '.join(map(_form, result))})"
    return f"numbers of shape {result.shape}" if result.shape else "a number"


def _close(result: Result, other: Result, within: float) -> bool:
    """Tells whether two results agree, part by part; single precision is compared as such."""
    if isinstance(result, list) and isinstance(other, list):
        pairs = zip(result, other, strict=False)
        return len(result) == len(other) and all(_close(*pair, within) for pair in pairs)
    if isinstance(result, list) or isinstance(other, list) or result.shape != other.shape:
        return False
    if np.float32 in (result.dtype, other.dtype):
        within = max(within, 1e-5)
    slack = within * max(1.0, abs(other[np.isfinite(other)]).max(initial=0.0))
    # A NaN is a mistake that may be told by name: no right result has one.
    return bool(np.allclose(result, other, rtol=0, atol=slack, equal_nan=True))


# ---- an exercise


@dataclass(frozen=True)
class Exercise:
    """One exercise, with its solution and the wrong answers that it can explain.

    Args:
        key: notebook and number, such as "02.1".
        difficulty: 1 to 5.
        importance: 1 to 5, where 5 is what other notebooks build on.
        minutes: that it takes, about.
        question: what is asked.
        hints: from the faintest to the plainest.
        solution: in words or in code.
        right: what is said of a right answer.
        answers: right ones, the first of which is the solution's.
        wrong: at least three plausible wrong answers, each with what the reader is told.
        reader: `NumberAnswer`, `Letters` or `FunctionAnswer`: how an answer is read and compared.
    """

    key: str
    difficulty: int
    importance: int
    minutes: int
    question: str
    hints: tuple[str, ...]
    solution: str
    right: str
    answers: tuple[Answer, ...]
    wrong: tuple[tuple[Answer, str], ...]
    reader: Reader

    def __post_init__(self) -> None:
        check_value(len(self.wrong) >= 3, "wrong", len(self.wrong), "at least three")

    def __repr__(self) -> str:
        return f"Exercise {self.key}: {self.question}"

    def _repr_html_(self) -> str:
        head = (
            f"<b>Exercise {escape(self.key)}</b> · difficulty {_dots(self.difficulty)}"
            f" · importance {_dots(self.importance)} · about {self.minutes} min"
        )
        blocks = [f"<p>{head}</p>", question_html(self.question)]
        for i, hint in enumerate(self.hints, 1):
            title = f"Hint {i} of {len(self.hints)}" if len(self.hints) > 1 else "Hint"
            blocks.append(_folded(title, hint))
        blocks.append(_folded("Solution", self.solution))
        return "\n".join(blocks)

    def judge(self, answer: Answer, generator: np.random.Generator | None = None) -> Feedback:
        """Judges an answer: right, which mistake, or how it differs.

        Args:
            answer: a reader's.
            generator: draws the inputs of a function; ``None``: inputs that nobody can foresee.
        """
        reader: Any = self.reader.fresh(generator)
        try:
            result = reader.read(answer)
        except ValueError as error:
            given = "" if callable(answer) else f", not {textwrap.shorten(repr(answer), 60)}"
            return Feedback(False, f"{error}{given}.")
        rights = [reader.read(right) for right in self.answers]
        if any(reader.same(result, right) for right in rights):
            return Feedback(True, self.right)
        known = []
        for example, message in self.wrong:
            try:
                mistake = reader.read(example)
            except ValueError:  # a wrong function may stop on some of the inputs
                continue
            if reader.is_mistake(result, mistake, rights[0]):
                known.append((reader.distance(result, mistake), message))
        if known:
            return Feedback(False, min(known, key=lambda one: one[0])[1])
        if not reader.same(reader.read(answer), result):
            return Feedback(False, UNSTEADY)
        difference = reader.difference(result, rights[0])
        return Feedback(False, f"{difference or reader.diagnosis(answer, self.answers[0])}.")


def _dots(mark: int) -> str:
    return "●" * mark + "○" * (5 - mark)


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>{to_html(text)}</details>"


def _parse(key: str, entry: Entry, folder: str) -> Exercise:
    """Builds an exercise from its entry in a lesson's ``exercises.toml``.

    Its answer decides how answers are read: numbers, a text of letters, or instead of an answer the
    name of a function in ``exercises.py``, whose ``CALLS`` says how it is called. The solution may
    then be left out: it is the source of that function.
    """
    first = entry.get("answer")
    others = entry.get("others", ())
    examples = [first, *others]
    mistakes = [example for example, _ in entry["wrong"]]
    solution = entry.get("solution")
    reader: Reader
    if "function" in entry:
        module = import_module(f"fedlora_course.{folder}.exercises")
        reader = module.CALLS[key]
        examples = [getattr(module, name) for name in (entry["function"], *others)]
        mistakes = [
            getattr(module, one) if isinstance(one, str) else change_source(examples[0], one)
            for one in mistakes
        ]
        # Without its docstring: the question above says what is given.
        code = re.sub(r'\n    """.*?"""\n+', "\n", inspect.getsource(examples[0]), flags=re.DOTALL)
        solution = solution or f"```\n{code}```"
    elif isinstance(first, str):
        reader = Letters(re.findall(r"\(([a-z])\)", entry["question"]), entry.get("why"))
    else:
        reader = NumberAnswer(first, entry.get("within"))
    hints = [entry["hint"]] if isinstance(entry["hint"], str) else entry["hint"]
    messages = [message for _, message in entry["wrong"]]
    return Exercise(
        key,
        *entry["marks"],
        question=unwrap(entry["question"]),
        hints=tuple(map(unwrap, hints)),
        solution=unwrap(str(solution)),
        right=unwrap(entry["right"]),
        answers=tuple(examples),
        wrong=tuple(zip(mistakes, messages, strict=True)),
        reader=reader,
    )


@functools.cache
def all_exercises() -> dict[str, Exercise]:
    """Collects all exercises by key, in the order of the lessons."""
    return {
        key: _parse(key, entry, folder)
        for key, (folder, entry) in entries().items()
        if not PREDICTION_KEY.fullmatch(key)
    }


def show(key: str) -> Exercise:
    """Shows an exercise with its difficulty, importance and minutes; hints are folded away."""
    check_value(key in all_exercises(), "key", key, "one of " + ", ".join(all_exercises()))
    return all_exercises()[key]


def check(key: str, answer: Answer = ...) -> Feedback:
    """Checks an answer to an exercise; a wrong one is told which mistake it is, if it is known.

    Args:
        key: such as "02.1".
        answer: yours; ``...``, or a function that returns it, stands for none yet.

    Raises:
        ValueError: for an unknown key; never for a wrong answer.

    Guarantees: every solution is accepted, and every known mistake has a message of its own, on
        whatever is drawn (test_right_answers_pass_and_each_mistake_is_told).
    """
    exercise = show(key)
    if answer is ... or _is_placeholder(answer):
        return Feedback(False, "no answer so far; replace the three dots with yours.")
    return exercise.judge(answer)


def use(key: str, function: Function) -> Function:
    """Returns your function if it is right, and the solution's until then.

    Yours is called as the check calls it: by position, with copies of the arguments, arrays in
    double precision. What it returns becomes NumPy's, so that it works in the notebook whether it
    was written with lists, with PyTorch or in single precision.

    Args:
        key: of an exercise that asks for a function, such as "03.1".
        function: yours.

    Guarantees: test_what_a_reader_built_is_used_once_it_is_right,
        test_right_answers_in_another_style_pass_and_are_used.
    """
    exercise = show(key)
    solution = exercise.answers[0]
    check_value(callable(solution), "key", key, "an exercise that asks for a function")
    if _is_placeholder(function) or not exercise.judge(function):
        return solution
    reader: Any = exercise.reader.fresh()
    whole = all(map(_is_whole, reader.read(solution)))
    signature = inspect.signature(solution)

    @functools.wraps(function)
    def used(*given: Any, **named: Any) -> Any:
        arguments = signature.bind(*given, **named).args
        return _numbers(_to_arrays(function(*_as_given(arguments))), whole)

    return used


def _is_whole(result: Result) -> bool:
    if isinstance(result, list):
        return all(map(_is_whole, result))
    return result.dtype.kind == "i"


def _numbers(result: Result, whole: bool) -> Any:
    """Returns arrays as whole numbers or in double precision, and a single number as itself."""
    if isinstance(result, list):
        return [_numbers(part, whole) for part in result]
    array = np.rint(result).astype(np.int64) if whole else result.astype(float)
    return array if array.shape else array.item()


def _is_placeholder(answer: Answer) -> bool:
    """Tells whether a function is still a placeholder: it only returns three dots."""
    code = getattr(answer, "__code__", None)
    steps = [step for step in dis.get_instructions(code) if step.opname != "RESUME"] if code else []
    return len(steps) <= 2 and any(step.argval is ... for step in steps)
