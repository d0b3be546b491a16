"""One way to refuse bad input: name, value and the range that was expected, in one line."""

import math
from collections.abc import Mapping
from typing import Any


def check(ok: bool, name: str, value: Any, expected: str) -> None:
    """Raise ``ValueError("name=value: expected ...")`` unless ``ok``."""
    if not ok:
        text = " ".join(repr(value).split())
        raise ValueError(f"{name}={text if len(text) <= 120 else text[:117] + '...'}: expected {expected}")


def is_number(value: Any) -> bool:
    """A real number that is not NaN; booleans, complex numbers and strings are none."""
    if isinstance(value, bool):
        return False
    try:
        return not math.isnan(float(value)) and not isinstance(value, (str, bytes))
    except (TypeError, ValueError, OverflowError):
        return False


def check_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False
) -> None:
    """Raise unless ``low <= value <= high`` (``low <`` when ``open_low``); says the range."""
    words = (
        f"a number {'>' if open_low else '>='} {low:g}"
        if high == math.inf
        else (f"a number in {'(' if open_low else '['}{low:g}, {high:g}]")
    )
    ok = is_number(value) and (value > low if open_low else value >= low) and value <= high
    check(ok, name, value, words)


def check_whole(name: str, value: Any, low: int = 0, high: int | None = None) -> None:
    """Raise unless ``value`` is a whole number in ``[low, high]``."""
    words = f"a whole number >= {low}" if high is None else f"a whole number in [{low}, {high}]"
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high)
    check(ok, name, value, words)


def check_one_of(name: str, value: Any, allowed: tuple) -> None:
    """Raise unless ``value`` is one of ``allowed``."""
    check(value in allowed, name, value, "one of " + ", ".join(repr(a) for a in allowed))


def check_keys(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise unless ``value`` is a mapping whose keys are all in ``allowed``."""
    check(isinstance(value, Mapping), name, value, "a mapping")
    check(set(value) <= set(allowed), name, dict(value), "keys among " + ", ".join(allowed))
