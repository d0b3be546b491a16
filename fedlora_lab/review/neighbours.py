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

    # What is not changed can be named: it is still the example of the data.
    return example if factor == 1 else map_floats(change, example)


def holds_floats(example: Example) -> bool:
    """Whether an example holds floating-point numbers; tokens alone cannot be scaled."""
    numbers: list[Example] = []
    map_floats(numbers.append, example)
    return bool(numbers)


def to_array(value: Example) -> np.ndarray:
    """An array of float64 from an array or tensor of any library, or a number."""
    # NumPy would read the one as NaN, and drop the other's imaginary part.
    if value is None or "complex" in str(getattr(value, "dtype", "")):
        raise TypeError("no real number")
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.double().numpy() if hasattr(value, "double") else value
    return np.asarray(value, dtype=np.float64)


# ---- batches


class Neighbours(NamedTuple):
    """Two batches that differ in what stands beside the examples that both hold.

    Args: words: say what was done. shared: what both hold. ones, others: what only one of them
    does. place: where in the batch this stands.
    """

    words: str
    shared: Batch
    ones: Batch
    others: Sequence[Example] = ()
    place: int = 1

    def batches(self, copies: int = 1) -> tuple[Batch, Batch]:
        """The two batches; with copies of what differs they lie far apart in its direction."""

        def batch(units: Sequence[Example]) -> Batch:
            # Not at the end: a step that cuts its batch into pieces puts it beside another one.
            return [*self.shared[: self.place], *[*units] * copies, *self.shared[self.place :]]

        return batch(self.ones), batch(self.others)


def single_changes(batch: Batch, replaced: bool, count: int) -> Iterator[Neighbours]:
    """What is done to one example of a batch.

    Args: batch: of examples. replaced: batches have one size. count: of examples that are changed.
    """
    for i, example in enumerate(batch[:count]):
        without = batch[:i] + batch[i + 1 :]
        loud = scale(example, LOUD)
        stand = [batch[(i + 1) % len(batch)]] if replaced else []
        action = "replaced" if replaced else "left out"
        yield Neighbours(f"example {i} {action}", without, [example], stand, i)
        if i < TRIED and holds_floats(example):
            yield Neighbours(f"example {i} scaled by 1e6", without, [loud], stand, i)
            if replaced:
                turned = [scale(example, -LOUD)]
                yield Neighbours(f"example {i} scaled by 1e6, turned", without, [loud], turned, i)
    if not replaced:
        loud = scale(batch[0], LOUD)
        yield Neighbours("example 0 twice", batch, batch[:1])
        yield Neighbours("example 0 scaled by 1e6, in a batch of two", batch[1:2], [loud])
