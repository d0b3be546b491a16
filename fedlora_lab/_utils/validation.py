"""Argument checks that name the argument, its value and the expected range, in one line."""

import math
import sys
import traceback
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

LONGEST_SHOWN = 120
"""Characters of a value in a message."""
MOST_SHOWN = 8
"""Entries of a list beyond which a message names only their number."""


def check(ok: bool, name: str, value: Any, expected: str) -> None:
    """Raises ``ValueError("name=value: expected ...")`` unless ``ok``.

    Args:
        ok: whether the value is allowed.
        name, value: of the argument, see `describe_value`.
        expected: the range, in words that follow "expected".
    """
    if not ok:
        refuse(name, value, expected)


def refuse(name: str, value: Any, expected: str) -> NoReturn:
    """Raises the error of `check`."""
    # A name may be that of a column, or of a file of somebody else's.
    raise ValueError(printable(f"{name}={describe_value(value)}: expected {expected}"))


def describe_value(value: object) -> str:
    """A value in one line of at most 120 characters; of data only their type and shape.

    Rows may be private, and a message goes into logs.

    >>> import numpy as np
    >>> describe_value({"x": np.zeros((60, 2)), "seeds": [0, 1], "rows": list(range(60))})
    "{'x': ndarray (60, 2), 'seeds': [0, 1], 'rows': list of 60}"
    """
    text = " ".join(_described(value).split())
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:  # of NumPy, torch, pandas, Polars and datasets
        return f"{type(value).__name__} {tuple(shape)}"
    # A class of one's own, such as a named tuple, prints its parts by name.
    if type(value) not in (list, tuple, dict):
        return repr(value)
    if len(value) > MOST_SHOWN or any(isinstance(x, dict) for x in value):  # rows of a table
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_described(x)}' for key, x in value.items())}}}"
    parts = ", ".join(map(_described, value))
    if isinstance(value, list):
        return f"[{parts}]"
    return f"({parts},)" if len(value) == 1 else f"({parts})"


def warn(text: str) -> None:
    """Warns at the line that called the package, in whatever depth of it."""
    package = Path(__file__).parents[1]
    frames = enumerate(traceback.walk_stack(sys._getframe()), 1)
    outside = (i for i, (x, _) in frames if package not in Path(x.f_code.co_filename).parents)
    warnings.warn(printable(text), stacklevel=next(outside))


def error_text(error: BaseException, limit: int = 10_000) -> str:
    """The message of an exception as `printable` text, cut to ``limit`` characters."""
    return printable(str(error))[:limit]


def printable(text: str) -> str:
    """A foreign text in one line that prints as it stands.

    Control characters are escaped: they could move a terminal's cursor, or turn the order of what
    is read.
    """
    line = " ".join(text.split())
    return "".join(x if x.isprintable() else repr(x)[1:-1] for x in line)


def first_line(error: Exception) -> str:
    """The first line of a foreign error's message, or its class."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0])


def few(names: Iterable[str], most: int = 3) -> str:
    """The first of some names, and how many there are more."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(map(printable, listed[:most])) + more


@contextmanager
def in_one_line(start: str) -> Iterator[None]:
    """Refuses whatever foreign code raises, which depends on its version, in one line.

    Args: start: of the line; what the error says follows.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{start}: {first_line(error)}") from error


def as_plain(value: Any) -> Any:
    """A single number of NumPy or torch as Python's; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def use_plain_numbers(settings: object) -> None:
    """Replaces single numbers of NumPy or torch in a dataclass by Python's: JSON takes no others.

    Args: settings: frozen or not; its fields are changed in place.
    """
    for name, value in vars(settings).items():
        object.__setattr__(settings, name, as_plain(value))


def is_number(value: Any) -> bool:
    """Whether a value is a real number: no NaN, boolean, complex number or text."""
    # `float` would take all three.
    if isinstance(value, (bool, str, bytes)):
        return False
    try:
        return not math.isnan(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def check_number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raises unless a value is a number in its range.

    Args:
        name, value: of the argument.
        low, high: the range's ends, both included.
        open_low, open_high: the end itself is not allowed.
    """
    expected = f"a number {'>' if open_low else '>='} {low:g}"
    if high < math.inf:
        ends = "(" if open_low else "[", ")" if open_high else "]"
        expected = f"a number in {ends[0]}{low:g}, {high:.9g}{ends[1]}"
    above = is_number(value) and (value > low if open_low else value >= low)
    check(above and (value < high if open_high else value <= high), name, value, expected)


def check_whole(name: str, value: Any, low: int = 0, high: int | None = None) -> None:
    """Raises unless a value is a whole number in its range.

    Args:
        name, value: of the argument.
        low, high: the range's ends, both included; ``None``: no upper end.
    """
    expected = f"a whole number >= {low}" if high is None else f"a whole number in [{low}, {high}]"
    # True is an int to Python, and never meant as one.
    countable = isinstance(value, int) and not isinstance(value, bool)
    in_range = countable and value >= low and (high is None or value <= high)
    check(in_range, name, value, expected)


def check_one_of(name: str, value: Any, allowed: tuple) -> None:
    """Raises unless a value is one of those allowed.

    Args:
        name, value: of the argument.
        allowed: the values.
    """
    expected = "one of " + ", ".join(map(repr, allowed))
    check(value in allowed, name, value, expected + did_you_mean(value, allowed))


def did_you_mean(value: object, allowed: Collection[object]) -> str:
    """Ends a message with the allowed name that a mistyped one is nearest to; "" for none."""
    if not isinstance(value, str) or value in allowed:
        return ""
    close = get_close_matches(value.lower(), map(str, allowed), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


_LEAST_COUNT = {"steps": 0, "draws": 2} | dict.fromkeys(
    (
        "d_out",
        "d_in",
        "rank",
        "clients",
        "participants",
        "releases",
        "block",
        "assumed_honest",
        "honest_clients",
    ),
    1,
)


def check_symbols(**values: float) -> None:
    """Raises unless each value lies in the range that a symbol of its name has in a closed form.

    Counts are whole and at least 1 (``steps`` 0, ``draws`` 2); a ``delta`` or ``level`` lies inside
    (0, 1), a ``sample_rate`` in [0, 1]; ``mu`` and ``alpha`` are > 0; all others are >= 0.
    """
    for name, value in values.items():
        if name in _LEAST_COUNT:
            check_whole(name, value, _LEAST_COUNT[name])
        elif name in ("delta", "level"):
            check(is_number(value) and 0 < value < 1, name, value, "a number in (0, 1)")
        elif name == "sample_rate":
            check_number(name, value, 0, 1)
        else:
            check_number(name, value, 0, open_low=name in ("mu", "alpha"))
