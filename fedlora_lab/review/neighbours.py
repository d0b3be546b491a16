"""What is tried on a step: examples that are changed, and batches that differ in one of them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Example: TypeAlias = Any
"""Arrays, tensors and numbers, in tuples, lists and mappings of any depth."""
Batch = list[Example]

LOUD = 1e6
"""Factor of an example whose gradient is to exceed any clip."""
OVERFLOWS = (1e12, 1e24, 1e36, 1e150, 1e300)
"""Factors of finite examples that overflow in one precision or another, or whose squares do."""
COPIES = 16
"""How often an example is repeated to show a direction through the noise."""
TRIED = 4
"""Examples that are scaled."""


# ---- examples


def map_floats(change: Callable[[Example], Example], example: Example) -> Example:
    """Changes every floating-point number and array of an example; all else stays."""
    if isinstance(example, Mapping):
        mapped = {name: map_floats(change, value) for name, value in example.items()}
        return type(example)(mapped)  # type: ignore[call-arg]
    if isinstance(example, (tuple, list)):
        changed = [map_floats(change, value) for value in example]
        return type(example)(*changed) if hasattr(example, "_fields") else type(example)(changed)
    kind = str(getattr(example, "dtype", type(example).__name__))
    return change(example) if "float" in kind else example


def scale(example: Example, factor: float) -> Example:
    """Multiplies every floating-point number and array of an example.

    What is finite stays finite: less of the factor is taken where a number would overflow.

    >>> scale(([1.5], 3), 2)
    ([3.0], 3)
    """

    def change(x: Example) -> Example:
        with np.errstate(all="ignore"):
            scaled = x * factor
            part = factor
            if math.isfinite(factor) and np.isfinite(to_array(x)).all():
                while not np.isfinite(to_array(scaled)).all():
                    part /= 10
                    scaled = x * part
        return scaled

    return map_floats(change, example)


def same_numbers(one: Example, other: Example) -> bool:
    """Whether two examples hold the same numbers, NaN included."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same_numbers(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same_numbers, one, other))
    try:
        a = to_array(one)
        b = to_array(other)
    except (TypeError, ValueError):
        return bool(one == other)
    return a.shape == b.shape and bool(np.allclose(a, b, 1e-6, 1e-12, equal_nan=True))


def to_array(value: Example) -> np.ndarray:
    """An array of float64 from an array or tensor of any library, or a number."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.double().numpy() if hasattr(value, "double") else value
    if value is None:  # NumPy would read it as NaN
        raise TypeError("None is no number")
    return np.asarray(value, dtype=np.float64)


# ---- batches


class Neighbours(NamedTuple):
    """Two batches that differ in one example. ``far`` and ``away`` differ in many copies of it, to
    show the direction where it drowns in the noise by itself."""

    words: str
    one: Batch
    other: Batch
    far: Batch
    away: Batch


def neighbours(
    words: str, rest: Batch, ones: Batch, stand: Sequence[Example] = (), copies: int = COPIES
) -> Neighbours:
    """Makes two batches of ``rest``: one with ``ones``, the other with ``stand`` in their place.

    Args: words: what was done. rest, ones, stand: examples. copies: of what differs, to learn from.
    """

    def batch(units: Batch) -> Batch:
        # In second place: a step that cuts its batch into pieces puts it beside another example.
        return [*rest[:1], *units, *rest[1:]]

    stand = [*stand]
    return Neighbours(words, batch(ones), batch(stand), batch(ones * copies), batch(stand * copies))


def single_changes(batch: Batch, replaced: bool, count: int) -> Iterator[Neighbours]:
    """What is done to one example of a batch.

    Args: batch: of examples. replaced: batches have one size. count: of examples that are changed.
    """
    for i, example in enumerate(batch[:count]):
        without = batch[:i] + batch[i + 1 :]
        loud = scale(example, LOUD)
        stand = [batch[(i + 1) % len(batch)]] if replaced else []
        yield neighbours(
            f"example {i} {'replaced' if replaced else 'left out'}", without, [example], stand
        )
        if i < TRIED and not same_numbers(loud, example):
            yield neighbours(f"example {i} scaled by 1e6", without, [loud], stand)
            if replaced:
                turned = [scale(example, -LOUD)]
                yield neighbours(f"example {i} scaled by 1e6 and turned", without, [loud], turned)
    if not replaced:
        loud = scale(batch[0], LOUD)
        yield neighbours("example 0 twice", batch, batch[:1])
        yield neighbours("example 0 scaled by 1e6, in a batch of two", batch[1:2], [loud])
