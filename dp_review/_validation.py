"""Errors that name the argument, its value and the expected range, in one line."""

import math
from collections.abc import Iterable
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from typing import Any

MOST_SHOWN = 120
"""Characters of a value in an error."""


def check(ok: bool, name: str, value: object, expected: str) -> None:
    """Raises ``ValueError("name=value: expected ...")`` unless ``ok``.

    Args: ok: whether the value is allowed. name, value: of the argument. expected: the range.
    """
    if not ok:
        text = printable(repr(value))
        shown = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
        raise ValueError(f"{name}={shown}: expected {expected}")


def check_number(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raises unless a value is a number in (low, high]. Args: name, value: of the argument."""
    real = isinstance(value, (int, float)) or getattr(value, "ndim", None) == 0
    expected = f"a number > {low:g}" if high == math.inf else f"a number in ({low:g}, {high:.9g}]"
    # NaN is in no range, and True is meant as no number.
    ok = real and not isinstance(value, bool) and low < value <= high
    check(ok, name, value, expected)


def check_whole(name: str, value: Any, low: int, high: float = math.inf) -> None:
    """Raises unless a value is a whole number in [low, high]. Args: as in `check_number`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    ends = f">= {low}" if high == math.inf else f"in [{low}, {high}]"
    check(whole and low <= value <= high, name, value, f"a whole number {ends}")


def printable(text: str) -> str:
    """A foreign text in one line, without characters that move a terminal's cursor."""
    line = " ".join(text.split())
    return "".join(x if x.isprintable() else repr(x)[1:-1] for x in line)


def first_of(names: Iterable[str], most: int) -> str:
    """The first of some names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(map(printable, listed[:most])) + more


def round_up(value: float, spec: str) -> str:
    """Formats an upper bound, such as a spent epsilon: the text never says less than the value.

    Args: spec: a format of numbers.

    >>> round_up(0.0105, ".2f"), round_up(8.0, ".4g")
    ('0.02', '8')
    """
    return _rounded(value, spec, ROUND_CEILING)


def round_down(value: float, spec: str) -> str:
    """Formats a lower bound: the text never says more. Args: as in `round_up`."""
    return _rounded(value, spec, ROUND_FLOOR)


def _rounded(value: float, spec: str, rounding: str) -> str:
    with localcontext() as context:
        context.rounding = rounding
        # Of the shortest text of the number: in binary 0.1 lies above a tenth.
        return format(float(format(Decimal(repr(float(value))), spec)), spec)
