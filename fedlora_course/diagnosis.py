"""Says how a wrong function differs from the right one, where it makes no mistake that is known.

It looks for the plainest description that holds in every call of a check: the right result up to a
little, times a number, or times one of the arguments; moved or in another order; one of several
results right; an argument that has no part in it; what the right function gives for another
argument, such as sigma / C in place of sigma; right in a special case, such as without noise or
with one client. Where no description says the whole, it shows the smallest call that fails.
"""

import contextlib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Function = Callable[..., Any]
Case = tuple[Any, ...]
"""The arguments of one call."""
Result = Any
"""What came out of a call: an array, or a list of arrays."""
Run = Callable[[Function, Sequence[Case]], list[Result]]
"""Calls a function with copies of the arguments; raises ``ValueError`` where it stops."""

CLOSE = 1e-5
"""Relative slack: single precision counts as equal."""
NEAR = 1e-3
"""Relative slack of results that may be rounded."""
CONSTANTS = {
    "−1": -1.0,
    "2": 2.0,
    "½": 0.5,
    "√2": math.sqrt(2),
    "1/√2": math.sqrt(0.5),
    "3": 3.0,
    "1/3": 1 / 3,
    "4": 4.0,
    "¼": 0.25,
    "π": math.pi,
    "100": 100.0,
    "1/100": 0.01,
}
POWERS = {"{}": 1.0, "1/{}": -1.0, "√{}": 0.5, "1/√{}": -0.5, "{}²": 2.0, "1/{}²": -2.0}
MOST_NUMBERS = 12
"""A call of more numbers than these is described by its shapes."""


@dataclass(frozen=True)
class Calls:
    """The calls of one check.

    Args:
        names: of the arguments.
        cases: the arguments of each call.
        given, right: the result of each call, of the reader's function and of the solution.
    """

    names: tuple[str, ...]
    cases: Sequence[Case]
    given: list[Result]
    right: list[Result]


@np.errstate(all="ignore")  # results may be infinite, and some other arguments make no sense
def differs(
    run: Run, answer: Function, solution: Function, cases: Sequence[Case], several: bool = False
) -> str:
    """Describes in a sentence or two how a wrong function differs from the right one.

    Args:
        run: calls a function on cases.
        answer, solution: the wrong function, and the right one, whose arguments have names.
        cases: on which they differ, with results of equal shapes.
        several: whether the right function returns several results, and not one array.
    """
    # A function of a library may have more arguments than the cases give it.
    names = tuple(inspect.signature(solution).parameters)[: len(cases[0])]
    calls = Calls(names, cases, run(answer, cases), run(solution, cases))
    found = _not_a_number(calls)
    wrong = -1
    if several and not found:
        found, wrong = _one_part(calls)
    if wrong >= 0:
        # Of several results only the wrong one is looked at further.
        def run_part(function: Function, cases: Sequence[Case]) -> list[Result]:
            return [_piece(result, wrong) for result in run(function, cases)]

        part = Calls(names, cases, *(run_part(f, cases) for f in (answer, solution)))
        return f"{found}: {_plainest(run_part, answer, solution, part)}"
    return found or _plainest(run, answer, solution, calls)


def _plainest(run: Run, answer: Function, solution: Function, calls: Calls) -> str:
    """The plainest description that holds in every call."""
    looks: tuple[Callable[[], str], ...] = (
        lambda: _nearly(calls),
        lambda: _multiple(calls),
        lambda: _moved(calls),
        lambda: _order(calls),
        lambda: _unused(run, answer, solution, calls),
        lambda: _other_argument(run, solution, calls),
        lambda: _special_case(run, answer, solution, calls),
        lambda: _smallest_call(calls),
    )
    return next(filter(None, (look() for look in looks)))


# ---- results


def _parts(result: Result) -> list[np.ndarray]:
    """All arrays of a result, one after the other."""
    if isinstance(result, list):
        return [array for part in result for array in _parts(part)]
    return [np.asarray(result, float)]


def _flat(result: Result) -> np.ndarray:
    return np.concatenate([array.ravel() for array in _parts(result)])


def same(one: Result, other: Result) -> bool:
    """Whether two results agree up to the rounding of single precision."""
    pair = _parts(one), _parts(other)
    if [x.shape for x in pair[0]] != [x.shape for x in pair[1]]:
        return False
    given, right = _flat(one), _flat(other)
    slack = _close_enough(given, right) * max(1e-12, abs(right[np.isfinite(right)]).max(initial=0))
    return bool(np.allclose(given, right, rtol=0, atol=slack, equal_nan=True))


def _close_enough(given: np.ndarray, right: np.ndarray) -> float:
    """The relative slack of two results: whole numbers are equal or not."""
    whole = all(np.array_equal(numbers, np.rint(numbers)) for numbers in (given, right))
    return 1e-12 if whole else CLOSE


def _all_same(given: Sequence[Result], right: Sequence[Result]) -> bool:
    return len(given) == len(right) and all(same(*pair) for pair in zip(given, right, strict=True))


# ---- what may be said of a result


def _not_a_number(calls: Calls) -> str:
    """Where a result is not finite and the right one is."""
    for given, right in zip(calls.given, calls.right, strict=True):
        odd = ~np.isfinite(_flat(given))
        if odd.any() and np.isfinite(_flat(right)).all():
            what = "a NaN" if np.isnan(_flat(given)).any() else "infinite"
            return (
                f"your result is {what} where a number is right: it divides by zero, takes the "
                f"mean of nothing, or the logarithm or root of what is not positive. "
                f"{_example(calls)}"
            )
    return ""


def _one_part(calls: Calls) -> tuple[str, int]:
    """Which of several results are right in every call, and the place of the first that is not."""
    lengths = {len(right) for right in calls.right}
    count = lengths.pop() if len(lengths) == 1 else 0
    if not 2 <= count <= 4:
        return "", -1
    correct = []
    for i in range(count):
        given, right = ([_piece(x, i) for x in results] for results in (calls.given, calls.right))
        correct.append(_all_same(given, right))
    if not any(correct) or all(correct):
        return "", -1
    ordinals = ("first", "second", "third", "fourth")
    good = _list([f"the {ordinals[i]}" for i in range(count) if correct[i]])
    verb = "is" if correct.count(True) == 1 else "are"
    wrong = correct.index(False)
    words = f"of your {count} results {good} {verb} right; look at the {ordinals[wrong]}"
    return words, wrong


def _piece(result: Result, i: int) -> Result:
    """One of several results; raises ``ValueError`` where there are fewer."""
    if (not isinstance(result, list) and not np.ndim(result)) or len(result) <= i:
        raise ValueError("fewer results than those of the right function")
    return result[i]


def _pairs(calls: Calls) -> list[tuple[np.ndarray, np.ndarray]]:
    """The numbers and the right ones of each call, without those that are rightly infinite."""
    pairs = []
    for given, right in zip(calls.given, calls.right, strict=True):
        numbers, goal = _flat(given), _flat(right)
        kept = np.isfinite(goal) | (numbers != goal)
        pairs.append((numbers[kept], goal[kept]))
    return pairs


def _nearly(calls: Calls) -> str:
    """A result within `NEAR` of the right one; a whole number is equal or not."""
    for numbers, goal in _pairs(calls):
        known = np.isfinite(goal)
        if not np.array_equal(numbers[~known], goal[~known], equal_nan=True):
            return ""
        size = abs(goal[known]).max(initial=0.0)
        close = abs((numbers - goal)[known]).max(initial=0.0) <= NEAR * size
        if not size or not close or _close_enough(numbers, goal) < CLOSE:
            return ""
    return (
        "your result is within 0.1 % of the right one in every call: it may be rounded, a constant "
        f"may have few digits, or a small term may be missing. {_example(calls)}"
    )


def _ratios(calls: Calls) -> tuple[list[float], list[Case]]:
    """In each call the one ratio of all numbers to the right ones, and these calls' arguments;
    nothing where there is none."""
    ratios = []
    cases = []
    for case, (numbers, goal) in zip(calls.cases, _pairs(calls), strict=True):
        size = abs(goal).max(initial=0.0)
        if not np.isfinite(goal).all() or size == 0:
            continue  # a result of zero tells nothing of a factor
        ratio = float(numbers @ goal / (goal @ goal))
        slack = _close_enough(numbers, goal) * size
        if not np.allclose(numbers, ratio * goal, rtol=0, atol=slack * max(abs(ratio), 1)):
            return [], []
        ratios.append(ratio)
        cases.append(case)
    return ratios, cases


def _multiple(calls: Calls) -> str:
    """The right result times a constant, or times what follows from the arguments."""
    ratios, cases = _ratios(calls)
    if not ratios or np.allclose(ratios, 1, rtol=CLOSE):
        return ""
    if max(map(abs, ratios)) < 1e-9:
        return "in every call your result is 0, where another number is right"
    words = "in every call your result is {} times the right one"
    for name, constant in CONSTANTS.items():
        if np.allclose(ratios, constant, rtol=CLOSE):
            return words.format(name)
    for name, series in _quantities(calls.names, cases).items():
        for form, power in POWERS.items():
            for sign, prefix in ((1, ""), (-1, "−")):
                if np.allclose(ratios, sign * series**power, rtol=CLOSE):
                    return words.format(f"{prefix}{form.format(name)}")
    if np.allclose(ratios, ratios[0], rtol=CLOSE):
        return f"{words.format(f'{ratios[0]:.4g}')}. {_example(calls)}"
    return ""


def _quantities(names: Sequence[str], cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """Positive numbers that belong to a call, by name: scalar arguments, and sizes of the others.

    Args: names: of the arguments. cases: the arguments of each call.
    """
    rows = [
        dict(pair for name, value in zip(names, case, strict=True) for pair in _sizes(name, value))
        for case in cases
    ]
    quantities = {}
    for name in rows[0]:
        series = np.array([row.get(name, math.nan) for row in rows])
        if (series > 0).all() and np.isfinite(series).all():
            quantities[name] = series
    # A mean square with one degree of freedom less.
    for name, n in list(quantities.items()):
        if name.startswith("(") and (n > 1).all():
            quantities[f"(n/(n − 1) for n = {name[1:-1]})"] = n / (n - 1)
    return quantities


def _sizes(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """A number by its name; of any other argument its sizes, such as ("(the rows of A)", 2)."""
    if _is_number(value):
        yield name, float(value)
    elif isinstance(value, (list, tuple)):
        yield f"(the length of {name})", len(value)
    elif isinstance(value, np.ndarray):
        for axis, size in enumerate(value.shape):
            axes = ("rows", "columns")[axis] if value.ndim == 2 else f"length of axis {axis}"
            what = f"the {axes} of {name}" if value.ndim > 1 else f"the length of {name}"
            yield f"({what})", size


FORMS: dict[str, Callable[[Any], Any]] = {
    "one minus": lambda x: 1 - x,
    "the square of": np.square,
    "the root of": np.sqrt,
    "one over": lambda x: 1 / x,
    "the logarithm of": np.log,
    "the exponential of": np.exp,
}


def _moved(calls: Calls) -> str:
    """The right result with a number added, or what is easily computed from it."""
    pairs = _pairs(calls)
    shift = pairs[0][0].flat[0] - pairs[0][1].flat[0] if pairs[0][0].size else 0.0
    if shift and all(np.allclose(g, r + shift, rtol=CLOSE, atol=1e-9) for g, r in pairs):
        side = "above" if shift > 0 else "below"
        return f"in every call your result is {abs(shift):.4g} {side} the right one"
    for words, form in FORMS.items():
        formed = [(g, form(r)) for g, r in pairs]
        if all(np.isfinite(x).all() and np.allclose(g, x, rtol=CLOSE) for g, x in formed):
            return f"in every call your result is {words} the right one"
    return ""


def _order(calls: Calls) -> str:
    """The right numbers at other places."""
    pairs = [(_flat(g), _flat(r)) for g, r in zip(calls.given, calls.right, strict=True)]
    # Of numbers that are mostly alike, such as zeros and ones, an order says nothing.
    distinct = all(len(np.unique(r)) > r.size / 2 for _, r in pairs)
    if distinct and all(same(np.sort(g), np.sort(r)) for g, r in pairs):
        return "your numbers are right and stand in another order"
    return ""


# ---- other arguments


def _unused(run: Run, answer: Function, solution: Function, calls: Calls) -> str:
    """Arguments on which the right result depends, and the wrong one does not."""
    if all(np.array_equal(numbers, np.rint(numbers)) for numbers, _ in _pairs(calls)):
        return ""  # a whole number stays what it is where an argument changes a little
    needed = _used(run, solution, calls.cases)
    missing = sorted(needed - _used(run, answer, calls.cases))
    if not missing or len(missing) == len(needed):
        return ""
    verb, them = ("has", "it") if len(missing) == 1 else ("have", "them")
    words = f"{_list([calls.names[i] for i in missing])} {verb} no part in your result"
    return f"{words}, and the right one depends on {them}. {_example(calls)}"


OTHERS: dict[str, Callable[[Any], Any]] = {
    "{} + 1": lambda x: x + 1,
    "{} − 1": lambda x: x - 1,
    "−{}": lambda x: -x,
    "{}²": lambda x: x * x,
    "√{}": lambda x: x**0.5,
    "1/{}": lambda x: 1 / x,
}
SCALED = {"{}/{}": -1.0, "{} · {}": 1.0, "{} · √{}": 0.5, "{}/√{}": -0.5}
"""A number, and another one or a size, such as sigma/C or sigma · √(the length of rows)."""


def _other_argument(run: Run, solution: Function, calls: Calls) -> str:
    """What stands in an argument's place, where the right function then gives the same."""
    numbers = np.concatenate([_flat(result) for result in calls.given])
    if np.allclose(numbers, numbers[0], rtol=CLOSE):
        return ""  # one number in every call, such as a bound's 1, does not say what it comes from
    for words, cases in _substitutions(calls):
        try:
            changed = run(solution, cases)
        except (ValueError, ArithmeticError):  # an argument that makes no sense to it
            continue
        if not _all_same(changed, calls.right) and _all_same(calls.given, changed):
            return f"your function gives what the right one gives for {words}"
    return ""


def _substitutions(calls: Calls) -> Iterator[tuple[str, list[Case]]]:
    """The calls with another number in place of one, and its words."""
    quantities = _quantities(calls.names, calls.cases)
    for i, column in enumerate(zip(*calls.cases, strict=True)):
        if not all(map(_is_number, column)):
            continue
        name = calls.names[i]
        series = {}
        for form, change in OTHERS.items():
            with contextlib.suppress(ArithmeticError):  # one over zero
                series[form.format(name)] = [change(x) for x in column]
        for form, power in SCALED.items():
            for other, size in quantities.items():
                if other != name:
                    series[form.format(name, other)] = [*(column * size**power)]
        for words, numbers in series.items():
            pairs = zip(calls.cases, numbers, strict=True)
            yield (
                f"{words} in place of {name}",
                [(*case[:i], number, *case[i + 1 :]) for case, number in pairs],
            )


# ---- special cases


def _special_case(run: Run, answer: Function, solution: Function, calls: Calls) -> str:
    """Where a change of the arguments makes the function right, and so what it treats wrongly."""
    best = ""
    # Where little else still counts, as at a learning rate of zero, any function would be right.
    most = len(_used(run, solution, calls.cases)) / 2
    for where, look, cases in _changes(calls):
        try:
            right = run(solution, cases)
            given = run(answer, cases)
        except (ValueError, ArithmeticError):  # a case that makes no sense to one of them
            continue
        finite = all(np.isfinite(_flat(result)).all() for result in right)
        # Of one row, or of nothing, many a wrong function gives the right 0.
        trivial = not any(_flat(result).any() for result in right)
        if not finite or trivial or _all_same(right, calls.right) or not _all_same(given, right):
            continue
        used = len(_used(run, solution, cases))
        if used > most or (used == most and not best):
            most = used
            best = f"your function is right {where}: {look}. {_example(calls)}"
    return best


def _used(run: Run, solution: Function, cases: Sequence[Case]) -> set[int]:
    """The places of the arguments on which the right result depends."""
    before = run(solution, cases)
    used = set()
    for i in range(len(cases[0])):
        try:
            after = run(solution, [(*x[:i], _other(x[i]), *x[i + 1 :]) for x in cases])
        except (ValueError, ArithmeticError):
            after = []
        if len(after) != len(before) or not _all_same(after, before):
            used.add(i)
    return used


def _other(value: Any) -> Any:
    """Another value of the same kind, near the first where it may be."""
    if isinstance(value, (list, tuple)):
        return [_other(part) for part in value]
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value * (1 + 0.3 * np.cos(np.arange(value.size))).reshape(value.shape)
    if isinstance(value, np.ndarray) or not _is_number(value):
        return value
    return value + 1 if isinstance(value, (int, np.integer)) else value * 1.07


def _changes(calls: Calls) -> Iterator[tuple[str, str, list[Case]]]:
    """Simpler calls: where they are, what to look at if the function is right there, and they."""

    def changed(i: int, change: Callable[[Any], Any]) -> list[Case]:
        return [(*case[:i], change(case[i]), *case[i + 1 :]) for case in calls.cases]

    columns = list(zip(calls.names, zip(*calls.cases, strict=True), strict=True))
    for i, (name, column) in enumerate(columns):
        if all(isinstance(x, (int, np.integer)) and x > 1 for x in column):
            look = f"look at how {name} counts"
            yield f"where {name} = 1", look, changed(i, lambda x: type(x)(1))
    cut = [_first_of_many(case) for case in calls.cases]
    # What is cut in some calls alone has as many by chance.
    shorter = set(calls.names)
    for case, short in zip(calls.cases, cut, strict=True):
        pairs = zip(calls.names, case, short, strict=True)
        shorter &= {name for name, x, y in pairs if x is not y}
    if shorter:
        names = _list([name for name in calls.names if name in shorter])
        yield f"with the first of {names} alone", "look at how several are combined", cut
    # A whole number is a count: of nothing everything is right.
    for i, (name, column) in enumerate(columns):
        if all(map(_is_float, column)):
            yield f"where {name} = 0", f"look at how {name} enters", changed(i, lambda x: 0.0)
        elif all(map(_is_floats, column)):
            yield f"where all of {name} is 0", "look at how it enters", changed(i, _zeros)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _is_float(value: Any) -> bool:
    return isinstance(value, (float, np.floating))


def _is_floats(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_is_floats, value))
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _zeros(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_zeros(part) for part in value]
    return np.zeros_like(value)


def _first_of_many(case: Case) -> Case:
    """The case with the first element of its lists, or else of its arrays' common first axis."""
    lists = [len(value) for value in case if isinstance(value, (list, tuple))]
    arrays = [len(value) for value in case if isinstance(value, np.ndarray) and value.ndim]
    counts = lists or arrays

    def first(value: Any) -> Any:
        listed = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim)
        return value[:1] if listed and len(value) == counts[0] else value

    return tuple(map(first, case)) if counts and counts[0] else case


# ---- an example


def _smallest_call(calls: Calls) -> str:
    """The smallest call that fails, with what came out and what is right."""
    wrong = [i for i, pair in enumerate(zip(calls.given, calls.right)) if not same(*pair)]
    i = min(wrong, key=lambda i: sum(map(_size, calls.cases[i])))
    case = calls.cases[i]
    arguments = call_in_words(calls.names, case)
    given, right = _flat(calls.given[i]), _flat(calls.right[i])
    slack = CLOSE * max(1e-12, abs(right[np.isfinite(right)]).max(initial=0.0))
    apart = ~np.isclose(given, right, rtol=0, atol=slack, equal_nan=True)
    first = int(np.flatnonzero(apart)[0])
    expected, returned = _unlike(right[first], given[first])
    values = f"{expected} is right and {returned} came out"
    if given.size > 1:
        values = f"{apart.sum()} of {apart.size} numbers differ; at the first {values}"
    every = len(wrong) == len(calls.cases)
    share = "every call" if every else f"{len(wrong)} of {len(calls.cases)} calls"
    return f"in {share} your result differs. For {arguments}: {values}"


def _example(calls: Calls) -> str:
    """The smallest call that fails, as a sentence of its own without its full stop."""
    text = _smallest_call(calls)
    return text[0].upper() + text[1:]


def call_in_words(names: Sequence[str], case: Case) -> str:
    """Names the arguments of a call: "n = 3, C = 0.5"; of functions those with ``in_words``."""
    said = [
        (name, getattr(value, "in_words", "") if callable(value) else _text(value))
        for name, value in zip(names, case, strict=True)
    ]
    return ", ".join(f"{name} = {text}" for name, text in said if text)


def shapes_of_call(names: Sequence[str], case: Case) -> str:
    """Names the arrays of a call with their shapes: "x (3, 2), A (4, 2)"."""
    pairs = zip(names, case, strict=True)
    return ", ".join(f"{name} {value.shape}" for name, value in pairs if hasattr(value, "shape"))


def _unlike(one: float, other: float) -> tuple[str, str]:
    """Two different numbers with so many digits that they read differently."""
    for digits in range(5, 17):
        texts = _digits(one, digits), _digits(other, digits)
        if texts[0] != texts[1]:
            break
    return texts


def _size(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return sum(map(_size, value))
    return int(np.size(value))


def _text(value: Any) -> str:
    """A value of few numbers in full, a longer one by its shape."""
    if isinstance(value, (list, tuple)):
        if _size(value) <= MOST_NUMBERS:
            return f"[{', '.join(map(_text, value))}]"
        return f"a list of {len(value)}"
    if isinstance(value, np.ndarray):
        if 0 < value.size <= MOST_NUMBERS:
            return np.array2string(value, precision=3, separator=", ").replace("\n", "")
        return f"numbers of shape {value.shape}"
    if _is_number(value):
        return _digits(value, 4)
    return repr(value)


def _digits(value: float, digits: int = 5) -> str:
    """A whole number in full, any other in a few digits."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.{digits}g}"


def _list(names: Sequence[str]) -> str:
    """The names as a phrase: "a", "a and b", "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


# ---- errors

PRODUCT = (
    "in a matrix product the left side needs as many columns as the right side has rows, and here "
    "{left} meet {right}: transpose one of them, or turn their order"
)
ENTRYWISE = (
    "arrays of the shapes {left} and {right} do not go together in a sum or in `*`, which "
    "multiplies entry by entry; `@` multiplies matrices"
)
SHAPE_ERRORS = {
    r"matmul: .*\(size (?P<right>\d+) is different from (?P<left>\d+)\)": PRODUCT,
    r"not aligned: (?P<left>\d+) \(dim -?\d+\) != (?P<right>\d+)": PRODUCT,
    r"mat1 and mat2 shapes .*\(\d+x(?P<left>\d+) and (?P<right>\d+)x\d+\)": PRODUCT,
    r"broadcast together with shapes (?P<left>\(.*?\)) (?P<right>\(.*?\))": ENTRYWISE,
}
"""What NumPy and PyTorch say of shapes that do not fit -> what it means."""


def shapes_in_words(error: str) -> str:
    """Says what an error on shapes means; "" for any other error."""
    for pattern, words in SHAPE_ERRORS.items():
        match = re.search(pattern, error)
        if match:
            return words.format(**match.groupdict())
    return ""


# ---- numbers


def number_differs(given: np.ndarray, right: np.ndarray) -> str:
    """Says how numbers differ from the right ones.

    Args: given, right: of equal shape, rows of numbers.
    """
    if right.size > 1:
        close = np.isclose(given, right, rtol=1e-6)
        if close.any():
            places = _list([str(i + 1) for i in np.flatnonzero(~close.ravel())])
            return f"{close.sum()} of your {close.size} numbers are right; look at number {places}"
        if same(np.sort(given.ravel()), np.sort(right.ravel())):
            return "your numbers are right and stand in another order"
    size = (given / right).ravel() if right.all() else np.array([math.nan])
    for name, factor in CONSTANTS.items():
        if "√" not in name and np.allclose(size, factor, rtol=1e-3):
            return f"that is {name} times what is right"
    if given.size > 1:
        return "none of your numbers is right"
    one, other = given.item(), right.item()
    forms = {"the square of": other**2, "one over": 1 / other if other else math.nan}
    if other > 0:
        forms |= {"the root of": other**0.5, "the logarithm of": math.log(other)}
    for words, value in forms.items():
        if math.isclose(one, value, rel_tol=1e-3):
            return f"that is {words} what is right"
    # Of large numbers all that are near would be one more.
    if math.isclose(abs(one - other), 1, rel_tol=1e-6):
        return f"that is one {'more' if one > other else 'less'} than what is right"
    if other and abs(one / other - 1) < 0.05:
        return "that is close, within 5 %: give more digits, or look for a small term"
    return f"that is too {'large' if one > other else 'small'}"
