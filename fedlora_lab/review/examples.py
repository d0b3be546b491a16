"""What is tried on a step: examples that are changed, and batches that differ in one of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

LOUD = 1e6
"""Factor of an example whose gradient is to exceed any clip."""
OVERFLOWS = 1e12, 1e24, 1e36, 1e150, 1e300
"""Factors of finite examples that overflow in one precision or another, or whose squares do."""
COPIES = 16
"""How often an example is repeated to show a direction through the noise."""


class Neighbours(NamedTuple):
    """Two batches that differ in one example. ``far`` and ``away`` differ in many copies of it, to
    show the direction where it drowns in the noise by itself."""

    words: str
    one: list[Any]
    other: list[Any]
    far: list[Any]
    away: list[Any]


def neighbours(
    words: str, rest: list[Any], ones: list[Any], stand: Sequence[Any] = (), copies: int = COPIES
) -> Neighbours:
    """Makes two batches of ``rest``: one with ``ones``, the other with ``stand`` in their place.

    Args: words: what was done. rest, ones, stand: examples. copies: of what differs, to learn from.
    """

    def batch(units: Sequence[Any]) -> list[Any]:
        # In second place: a step that cuts its batch into pieces puts it beside another example.
        return [*rest[:1], *units, *rest[1:]]

    stand = [*stand]
    return Neighbours(words, batch(ones), batch(stand), batch(ones * copies), batch(stand * copies))


def map_floats(change: Callable[[Any], Any], example: Any) -> Any:
    """Changes every floating-point number and array of an example; all else stays.

    Args:
        change: of an array, tensor or number.
        example: arrays, tensors and numbers, in tuples, lists and mappings of any depth.
    """
    if isinstance(example, Mapping):
        kind: Any = type(example)
        return kind({name: map_floats(change, value) for name, value in example.items()})
    if isinstance(example, (tuple, list)):
        parts = [map_floats(change, value) for value in example]
        named = hasattr(example, "_fields")
        return type(example)(*parts) if named else type(example)(parts)
    kind = str(getattr(example, "dtype", type(example).__name__))
    return change(example) if "float" in kind else example


def scale(example: Any, factor: float) -> Any:
    """Multiplies every floating-point number and array of an example; what is finite stays finite.

    Args: example: see `map_floats`. factor: less of it is taken where a number would overflow.

    >>> scale(([1.5], 3), 2)
    ([3.0], 3)
    """

    def change(x: Any) -> Any:
        with np.errstate(all="ignore"):
            scaled, part = x * factor, factor
            if math.isfinite(factor) and np.isfinite(to_array(x)).all():
                while not np.isfinite(to_array(scaled)).all():
                    part /= 10
                    scaled = x * part
        return scaled

    return map_floats(change, example)


def only_largest(example: Any, spoilt: bool = False) -> Any:
    """Keeps the largest number of every floating-point array, others become zero.

    Args: example: see `map_floats`. spoilt: in its place NaN, and the others stay.
    """

    def change(x: Any) -> Any:
        if getattr(x, "ndim", 0) == 0:
            return x
        with np.errstate(all="ignore"):
            infinite = x / (x != x.max())
            return x + (infinite - infinite) if spoilt else x * (x == x.max())

    return map_floats(change, example)


def same_numbers(one: Any, other: Any) -> bool:
    """Whether two examples hold the same numbers, NaN included."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same_numbers(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same_numbers, one, other))
    try:
        a, b = to_array(one), to_array(other)
    except (TypeError, ValueError):
        return bool(one == other)
    return a.shape == b.shape and bool(np.allclose(a, b, 1e-6, 1e-12, equal_nan=True))


def to_array(value: Any) -> np.ndarray:
    """An array of float64 from an array or tensor of any library, or a number."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.double().numpy() if hasattr(value, "double") else value
    if value is None:  # NumPy would read it as NaN
        raise TypeError("None is no number")
    return np.asarray(value, dtype=np.float64)
