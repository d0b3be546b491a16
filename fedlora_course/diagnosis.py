"""Says how a wrong function differs from the right one, where it makes no mistake that is known.

It looks for the plainest description that holds in every call of a check: the right result times a
number, or times one of the arguments; rounded, moved, turned or in another order; one of several
results right; an argument that has no part in it; what the right function gives for another
argument, such as sigma / C in place of sigma; right in a special case, such as without noise or
with one client. Where no description says the whole, it shows the smallest call that fails.
"""

import inspect
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
MOST_DECIMALS = 10
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
    "9": 9.0,
    "1/9": 1 / 9,
    "16": 16.0,
    "1/16": 1 / 16,
    "π": math.pi,
    "√π": math.sqrt(math.pi),
    "√(2π)": math.sqrt(2 * math.pi),
    "100": 100.0,
    "1/100": 0.01,
    "ln 2": math.log(2),
    "1/ln 2": 1 / math.log(2),
    "ln 10": math.log(10),
    "1/ln 10": 1 / math.log(10),
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
        lambda: _rounded(calls),
        lambda: _multiple(calls),
        lambda: _moved(calls),
        lambda: _order(calls),
        lambda: _unused(run, answer, solution, calls),
        lambda: _other_argument(run, solution, calls),
        lambda: _nearly(calls),
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
    for case, given, right in zip(calls.cases, calls.given, calls.right, strict=True):
        odd = ~np.isfinite(_flat(given))
        if not odd.any() or not np.isfinite(_flat(right)).all():
            continue
        what = "a NaN" if np.isnan(_flat(given)).any() else "infinite"
        share = "" if odd.all() else f" at {odd.sum()} of {odd.size} places"
        empty = [name for name, value in zip(calls.names, case, strict=True) if _has_empty(value)]
        zero = [name for name, value in zip(calls.names, case, strict=True) if _has_zero(value)]
        cause = "it divides by zero, or takes a logarithm or root of what is not positive"
        if empty:
            cause = f"{_list(empty)} may be empty, and a mean over nothing is 0 / 0"
        elif zero:
            cause = f"{_list(zero)} may be 0, and your function divides by it or takes its log"
        return f"your result is {what}{share} where a number is right: {cause}"
    return ""


def _has_empty(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_has_empty, value))
    return _is_empty(value)


def _has_zero(value: Any) -> bool:
    return _is_number(value) and value == 0


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


def _rounded(calls: Calls) -> str:
    """The right result with fewer digits."""
    pairs = _pairs(calls)
    for decimals in range(1, MOST_DECIMALS):
        if all(np.allclose(g, np.round(r, decimals), rtol=0, atol=1e-12) for g, r in pairs):
            return f"your result is right, but rounded to {decimals} decimals: do not round it"
    if _all_same(calls.given, calls.right):
        return (
            "your result is right to about five digits: compute in double precision, and with all "
            "digits of each constant"
        )
    return ""


def _nearly(calls: Calls) -> str:
    """A result that no description explains and that is within `NEAR` of the right one."""
    for numbers, goal in _pairs(calls):
        known = np.isfinite(goal)
        if not np.array_equal(numbers[~known], goal[~known], equal_nan=True):
            return ""
        size = abs(goal[known]).max(initial=0.0)
        if not size or not abs((numbers - goal)[known]).max(initial=0.0) <= NEAR * size:
            return ""
    return (
        "your result is within 0.1 % of the right one in every call: it may be rounded, a constant "
        f"may have few digits, or a small term may be missing. {_example(calls)}"
    )


def _ratios(calls: Calls) -> list[float] | None:
    """In each call the one ratio of all numbers to the right ones; ``None`` where there is none."""
    ratios = []
    for numbers, goal in _pairs(calls):
        size = abs(goal).max(initial=0.0)
        if not np.isfinite(goal).all() or size == 0:
            continue  # a result of zero tells nothing of a factor
        ratio = float(numbers @ goal / (goal @ goal))
        if not math.isfinite(ratio):
            return None
        slack = _close_enough(numbers, goal) * size
        if not np.allclose(numbers, ratio * goal, rtol=0, atol=slack * max(abs(ratio), 1)):
            return None
        ratios.append(ratio)
    return ratios or None


def _multiple(calls: Calls) -> str:
    """The right result times a constant, or times what follows from the arguments."""
    ratios = _ratios(calls)
    if ratios is None:
        return ""
    if max(map(abs, ratios)) < 1e-9:
        return "in every call your result is 0, where another number is right"
    if np.allclose(ratios, 1, rtol=CLOSE):
        pairs = zip(calls.given, calls.right, strict=True)
        wrong = [_flat(right) for given, right in pairs if not same(given, right)]
        words = "your result is right where the right one is not 0, and wrong where it is"
        all_zero = wrong and not any(goal[np.isfinite(goal)].any() for goal in wrong)
        return f"{words}. {_example(calls)}" if all_zero else ""
    constant = bool(np.allclose(ratios, ratios[0], rtol=CLOSE))
    quantities = _quantities(calls)
    names = [name for name, x in CONSTANTS.items() if math.isclose(x, ratios[0], rel_tol=CLOSE)]
    if constant and names:
        equal = [
            form.format(name)
            for name, x in quantities.items()
            for form, power in POWERS.items()
            if np.allclose(x**power, ratios, rtol=CLOSE)
        ]
        also = f"; {names[0]} is also {_bare(equal[0])}" if equal else ""
        return f"in every call your result is {names[0]} times the right one{also}"
    # One quantity before two: the plainest description is the likeliest.
    # Two that never change explain any number.
    pairs = () if constant else itertools.combinations(quantities, 2)
    for names in [*((q,) for q in quantities), *pairs]:
        for forms in itertools.product(POWERS, repeat=len(names)):
            powers = zip(names, forms, strict=True)
            product = np.prod([quantities[name] ** POWERS[form] for name, form in powers], axis=0)
            for sign, prefix in ((1, ""), (-1, "−")):
                if np.allclose(ratios, sign * product, rtol=CLOSE):
                    words = _product(names, forms)
                    words = f"in every call your result is {prefix}{words} times the right one"
                    return words + _degrees(names, [POWERS[form] for form in forms])
    digits = 4 if abs(ratios[0] - 1) > NEAR else 7
    ratio = f"{ratios[0]:.{digits}g}"
    words = f"in every call your result is {ratio} times the right one"
    return f"{words}. {_example(calls)}" if constant else ""


def _bare(name: str) -> str:
    """A name without the brackets that stand around all of it."""
    return name[1:-1] if name.startswith("(") and name.find(")") == len(name) - 1 else name


def _product(names: Sequence[str], forms: Sequence[str]) -> str:
    """Powers of names, such as "C/sigma" or "(C/sigma)²"."""
    ratios = {("{}", "1/{}"): "{}/{}", ("{}²", "1/{}²"): "({}/{})²", ("√{}", "1/√{}"): "√({}/{})"}
    for (above, below), text in ratios.items():
        if tuple(forms) == (above, below):
            return text.format(*names)
        if tuple(forms) == (below, above):
            return text.format(*reversed(names))
    return " · ".join(form.format(name) for name, form in zip(names, forms, strict=True))


def _degrees(names: Sequence[str], powers: Sequence[float]) -> str:
    """What a factor such as n / (n − 1) means."""
    if len(names) < 2 or sum(powers):
        return ""
    for words, sign in (("less", "−"), ("plus", "+")):
        if names[1] == f"{names[0][:-1]} {words} one)":
            other = f"n {sign} 1"
            given, right = (other, "n") if powers[0] > 0 else ("n", other)
            return f": you divide by {given} where {right} is right"
    return ""


def _quantities(calls: Calls) -> dict[str, np.ndarray]:
    """Positive numbers that belong to a call, by name: scalar arguments, and sizes of the others.

    Only of calls whose right result is not zero, as `_ratios` has them; one of each series.
    """
    rows: list[dict[str, float]] = []
    for case, (_, goal) in zip(calls.cases, _pairs(calls), strict=True):
        if not np.isfinite(goal).all() or not abs(goal).max(initial=0.0):
            continue
        row: dict[str, float] = {}
        for name, value in zip(calls.names, case, strict=True):
            if _is_number(value):
                row[name] = float(value)
            row.update(_sizes_of(name, value))
        rows.append(row)
    everywhere = set(rows[0]).intersection(*rows[1:]) if rows else set()
    quantities: dict[str, np.ndarray] = {}
    for name in rows[0] if rows else ():
        if name in everywhere:
            series = np.array([row[name] for row in rows])
            known = any(np.array_equal(series, other) for other in quantities.values())
            if (series > 0).all() and np.isfinite(series).all() and not known:
                quantities[name] = series
    # A mean square with one degree of freedom less, or more.
    for name, series in list(quantities.items()):
        if name.startswith("(") and (series > 1).all():
            quantities[f"{name[:-1]} less one)"] = series - 1
            quantities[f"{name[:-1]} plus one)"] = series + 1
    return quantities


def _sizes(calls: Calls) -> dict[str, list[int]]:
    """How long the arguments of each call are, by name."""
    rows = [
        dict(size for pair in zip(calls.names, case, strict=True) for size in _sizes_of(*pair))
        for case in calls.cases
    ]
    everywhere = set(rows[0]).intersection(*rows[1:])
    found = {name: [row[name] for row in rows] for name in rows[0] if name in everywhere}
    return {name: series for name, series in found.items() if min(series) > 0 and max(series) > 1}


def _sizes_of(name: str, value: Any) -> Iterator[tuple[str, int]]:
    """The sizes of one argument, such as ("(the rows of A)", 2)."""
    if isinstance(value, (list, tuple)):
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
    "the absolute value of": np.abs,
}


def _moved(calls: Calls) -> str:
    """The right result with a number added, or up to multiples of an argument, or up to signs."""
    pairs = _pairs(calls)
    shift = pairs[0][0].flat[0] - pairs[0][1].flat[0] if pairs[0][0].size else 0.0
    size = max(abs(r[np.isfinite(r)]).max(initial=0.0) for _, r in pairs)
    if (
        abs(shift) > CLOSE * size
        and math.isfinite(shift)
        and all(np.allclose(g, r + shift, rtol=CLOSE, atol=1e-9) for g, r in pairs)
    ):
        side = "above" if shift > 0 else "below"
        return f"in every call your result is {abs(shift):.4g} {side} the right one"
    for name, column in zip(calls.names, zip(*calls.cases)):
        if all(isinstance(x, int) and x > 1 for x in column):
            apart = [(g - r) / x for (g, r), x in zip(pairs, column, strict=True)]
            if all(np.isfinite(x).all() and np.array_equal(x, np.rint(x)) for x in apart):
                return (
                    f"your result is right but for whole multiples of {name}: take it modulo {name}"
                )
    if all(np.allclose(abs(g), abs(r), rtol=CLOSE, atol=1e-9) for g, r in pairs):
        return "your result is right up to its sign, which is wrong at some places"
    for words, form in FORMS.items():
        with np.errstate(all="ignore"):
            formed = [(g, form(r)) for g, r in pairs]
        if all(np.isfinite(x).all() and np.allclose(g, x, rtol=CLOSE) for g, x in formed):
            return f"in every call your result is {words} the right one"
    return ""


TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the right one transposed": np.transpose,
    "the right one from its end to its beginning": np.flip,
    "the right one with its rows in reverse": lambda x: x[::-1],
    "the right one with its columns in reverse": lambda x: x[..., ::-1],
}


def _order(calls: Calls) -> str:
    """The right numbers at other places."""
    arrays = [(_parts(g), _parts(r)) for g, r in zip(calls.given, calls.right, strict=True)]
    pairs = [pair for given, right in arrays for pair in zip(given, right, strict=True)]
    if not any(right.size > 1 for _, right in pairs):
        return ""
    two = all(right.shape == (2,) for _, right in pairs)
    if two and all(same(given, right[::-1]) for given, right in pairs):
        return "your two numbers are right and stand in the opposite order"
    for words, turn in TURNS.items():
        if all(not right.ndim or same(given, turn(right)) for given, right in pairs):
            parts = all(right.ndim > 2 for _, right in pairs)
            return f"your result is {words.replace('rows', 'parts') if parts else words}"
    # Of numbers that are mostly alike, such as zeros and ones, an order says nothing.
    distinct = all(len(np.unique(_flat(r))) > _flat(r).size / 2 for _, r in arrays)
    if distinct and all(same(np.sort(_flat(g)), np.sort(_flat(r))) for g, r in arrays):
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


OTHER_NUMBERS: dict[str, Callable[[Any], Any]] = {
    "{} + 1": lambda x: x + 1,
    "{} − 1": lambda x: x - 1,
    "−{}": lambda x: -x,
    "{}²": lambda x: x * x,
    "√{}": lambda x: x**0.5,
    "1/{}": lambda x: 1 / x,
    "2 · {}": lambda x: 2 * x,
    "{}/2": lambda x: x / 2,
    "1 − {}": lambda x: 1 - x,
    "1": lambda x: type(x)(1),
}
SCALED = {"{} · {}": 1.0, "{} / {}": -1.0, "{} · √{}": 0.5, "{} / √{}": -0.5}
"""A number, and a size of another argument, such as sigma · √(the length of rows)."""
OTHER_ARRAYS: dict[str, Callable[[Any], Any]] = {
    "−{}": lambda x: -x,
    "the squares of {}": np.square,
    "the absolute values of {}": np.abs,
    "{} transposed": np.transpose,
    "{} from its end": lambda x: x[::-1],
}


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
    """The calls with another argument each, and its words."""
    columns = list(zip(*calls.cases, strict=True))

    def cases(changed: Mapping[int, Sequence[Any]]) -> list[Case]:
        return list(zip(*(changed.get(i, column) for i, column in enumerate(columns)), strict=True))

    numbers = [i for i, column in enumerate(columns) if all(map(_is_number, column))]
    # Numbers first: they are the plainer explanation where −C and −A come to the same.
    for i in sorted(range(len(columns)), key=lambda i: i not in numbers):
        name, column = calls.names[i], columns[i]
        arrays = all(isinstance(x, np.ndarray) and x.dtype.kind == "f" for x in column)
        forms = OTHER_NUMBERS if i in numbers else OTHER_ARRAYS if arrays else {}
        for form, change in forms.items():
            try:
                yield f"{form.format(name)} in place of {name}", cases({i: [*map(change, column)]})
            except (ArithmeticError, ValueError):
                continue
    for i, (size, series) in itertools.product(numbers, _sizes(calls).items()):
        name = calls.names[i]
        for form, power in SCALED.items():
            product = [x * y**power for x, y in zip(columns[i], series, strict=True)]
            yield f"{form.format(name, size)} in place of {name}", cases({i: product})
    for i, j in itertools.permutations(numbers, 2):
        name, other = calls.names[i], calls.names[j]
        pairs = list(zip(columns[i], columns[j], strict=True))
        if all(y for _, y in pairs):
            yield f"{name}/{other} in place of {name}", cases({i: [x / y for x, y in pairs]})
        yield f"{name} · {other} in place of {name}", cases({i: [x * y for x, y in pairs]})
        yield f"{other} in place of {name}", cases({i: columns[j]})
    for i, j in itertools.combinations(range(len(columns)), 2):
        exchanged = cases({i: columns[j], j: columns[i]})
        yield f"{calls.names[i]} and {calls.names[j]} exchanged", exchanged


# ---- special cases


def _special_case(run: Run, answer: Function, solution: Function, calls: Calls) -> str:
    """Where a change of the arguments makes the function right, and so what it treats wrongly."""
    best: list[tuple[str, str]] = []
    # Where little else still counts, as at a learning rate of zero, any function would be right.
    needed = len(_used(run, solution, calls.cases))
    most = needed / 2
    simpler = [(0, change) for change in _changes(calls)]
    simpler += [(needed, limit) for limit in _limits(calls)]  # all else must count there
    for least, (where, look, cases) in simpler:
        try:
            right = run(solution, cases)
            given = run(answer, cases)
        except (ValueError, ArithmeticError):  # a case that makes no sense to one of them
            continue
        finite = all(np.isfinite(_flat(result)).all() for result in right)
        # Of one row, or of nothing, many a wrong function gives the right 0.
        trivial = not any(_flat(result).any() for result in right)
        if finite and not trivial and not _all_same(right, calls.right) and _all_same(given, right):
            used = len(_used(run, solution, cases))
            if used < least:
                continue
            if used > most:
                best, most = [], used
            if used == most:
                best.append((where, look))
    if not best:
        return ""
    look = best[0][1] if len(best) == 1 else "look at what these have in common"
    places = _list([where for where, _ in best[:3]])
    return f"your function is right {places}: {look}. {_example(calls)}"


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
    columns = list(zip(*calls.cases, strict=True))

    def changed(i: int, change: Callable[[Any], Any]) -> list[Case]:
        return [(*case[:i], change(case[i]), *case[i + 1 :]) for case in calls.cases]

    for i, (name, column) in enumerate(zip(calls.names, columns, strict=True)):
        if any(map(_has_empty, column)):
            look = "look at what an empty one gives"
            kept = [case for case in calls.cases if not _is_empty(case[i])]
            is_list = len(kept) == len(calls.cases)
            where = f"where nothing in {name} is empty" if is_list else f"where {name} is not empty"
            yield where, look, [_without_empty(case) for case in kept]
        if all(isinstance(x, (int, np.integer)) and x > 1 for x in column):
            yield (
                f"where {name} = 1",
                f"look at how {name} counts",
                changed(i, lambda x: type(x)(1)),
            )
        # A whole number is a count: of nothing everything is right.
        if all(map(_is_float, column)):
            look = f"look at how {name} enters"
            yield f"where {name} = 0", look, changed(i, lambda x: 0.0)
            yield f"where {name} is infinite", _bound(name), changed(i, lambda x: math.inf)
        elif all(map(_is_floats, column)):
            yield f"where all of {name} is 0", "look at how it enters", changed(i, _zeros)
            if all(isinstance(x, np.ndarray) and x.ndim == 1 for x in column):
                look = "look at how their differences count"
                equal = changed(i, lambda x: np.full_like(x, x.mean()))
                yield f"where all of {name} are equal", look, equal
    cut = [_first_of_many(case) for case in calls.cases]
    # What is cut in some calls alone has as many by chance.
    shorter = set(calls.names)
    for case, short in zip(calls.cases, cut, strict=True):
        pairs = zip(calls.names, case, short, strict=True)
        shorter &= {name for name, x, y in pairs if x is not y}
    if shorter:
        where = (
            f"with the first of {_list([name for name in calls.names if name in shorter])} alone"
        )
        yield where, "look at how several are combined", cut


def _limits(calls: Calls) -> Iterator[tuple[str, str, list[Case]]]:
    """Calls in which a number bounds nothing, though its product with another is what it was: noise
    of sigma C is the same where C no longer clips."""
    columns = list(zip(*calls.cases, strict=True))
    numbers = [i for i, column in enumerate(columns) if all(map(_is_float, column))]
    for i, j in itertools.permutations(numbers, 2):
        factors = [{i: 1e6, j: 1e-6}.get(k) for k in range(len(columns))]
        cases = [
            tuple(x * y if y else x for x, y in zip(case, factors, strict=True))
            for case in calls.cases
        ]
        name, other = calls.names[i], calls.names[j]
        where = f"where {name} is huge and {other} as much smaller"
        yield where, _bound(name), cases


def _bound(name: str) -> str:
    """What to look at where a huge number makes a function right: the clip norm alone bounds."""
    return "look at what C limits" if name == "C" else f"look at what counts where {name} is small"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _is_float(value: Any) -> bool:
    return isinstance(value, (float, np.floating))


def _is_empty(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.size == 0


def _is_floats(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_is_floats, value))
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _zeros(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_zeros(part) for part in value]
    return np.zeros_like(value)


def _without_empty(case: Case) -> Case:
    """The case without the elements that are empty in any of its lists of equal length."""
    lists = [value for value in case if isinstance(value, (list, tuple)) and len(value)]
    if not lists:
        return case
    count = len(lists[0])
    kept = [i for i in range(count) if not any(_has_empty(x[i]) for x in lists if len(x) == count)]
    return tuple(_select(value, count, kept) for value in case)


def _first_of_many(case: Case) -> Case:
    """The case with the first element of its lists, or else of its arrays' common first axis."""
    lists = [len(value) for value in case if isinstance(value, (list, tuple))]
    arrays = [len(value) for value in case if isinstance(value, np.ndarray) and value.ndim]
    counts = lists or arrays
    return tuple(_select(value, counts[0], [0]) for value in case) if counts and counts[0] else case


def _select(value: Any, count: int, kept: list[int]) -> Any:
    """Some elements of a list or array that has ``count`` of them; anything else as it is."""
    if isinstance(value, (list, tuple)) and len(value) == count:
        return [value[i] for i in kept]
    if isinstance(value, np.ndarray) and value.ndim and len(value) == count:
        return value[kept]
    return value


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
    if np.allclose(size, size[0], rtol=1e-3):
        for name, factor in CONSTANTS.items():
            if "√" not in name and math.isclose(size[0], factor, rel_tol=1e-3):
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
