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
"""Of what takes many calls so many are tried."""
MOST_ROWS = 256
"""Examples of which each is left out and made loud; of more, so many over classes and sizes."""


# ---- examples


def map_leaves(change: Callable[[Example], Example], example: Example) -> Example:
    """Changes every number, array and text of an example."""
    if isinstance(example, Mapping):
        mapped = {name: map_leaves(change, value) for name, value in example.items()}
        return type(example)(mapped)  # type: ignore[call-arg]
    if isinstance(example, (tuple, list)):
        changed = [map_leaves(change, value) for value in example]
        return type(example)(*changed) if hasattr(example, "_fields") else type(example)(changed)
    return change(example)


def is_float(leaf: Example) -> bool:
    """Whether a leaf is a floating-point number or an array of them."""
    return "float" in str(getattr(leaf, "dtype", type(leaf).__name__))


def scale(example: Example, factor: float) -> Example:
    """Multiplies every floating-point number and array of an example.

    What is finite stays finite: less of the factor is taken where a number would overflow.

    >>> scale(([1.5], 3), 2)
    ([3.0], 3)
    """

    def change(x: Example) -> Example:
        if not is_float(x):
            return x
        with np.errstate(all="ignore"):
            scaled = x * factor
            part = factor
            if math.isfinite(factor) and np.isfinite(to_array(x)).all():
                while not np.isfinite(to_array(scaled)).all():
                    part /= 10
                    scaled = x * part
        return scaled

    # What is not changed can be named: it is still the example of the data.
    return example if factor == 1 else map_leaves(change, example)


def holds_floats(example: Example) -> bool:
    """Whether an example holds floating-point numbers; tokens alone cannot be scaled."""
    return any(map(is_float, leaves(example)))


def to_array(value: Example) -> np.ndarray:
    """An array of float64 from an array or tensor of any library, or a number."""
    # NumPy would read the one as NaN, and drop the other's imaginary part.
    if value is None or "complex" in str(getattr(value, "dtype", "")):
        raise TypeError("no real number")
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.double().numpy() if hasattr(value, "double") else value
    return np.asarray(value, dtype=np.float64)


# ---- the order of examples


class Description(NamedTuple):
    """What an example shows without a step, and what orders it among others.

    Args: label: its single whole numbers and texts. size: norm of its floating-point numbers.
    content: all of its numbers.
    """

    label: str
    size: float
    content: bytes


def leaves(example: Example) -> Iterator[Example]:
    """The numbers, arrays and texts of an example."""
    if isinstance(example, Mapping):
        example = [*example.values()]
    if isinstance(example, (tuple, list)):
        for value in example:
            yield from leaves(value)
    else:
        yield example


def describe(example: Example) -> Description:
    """Describes an example; what is neither a number nor a text is passed over."""
    labels: list[str] = []
    square = 0.0
    content = b""
    for leaf in leaves(example):
        if isinstance(leaf, str):
            labels.append(leaf)
            continue
        try:
            numbers = to_array(leaf)
        except (TypeError, ValueError):
            continue
        content += numbers.tobytes()
        if numbers.size == 1 and float(numbers.ravel()[0]).is_integer():
            labels.append(str(int(numbers.ravel()[0])))
        else:
            with np.errstate(all="ignore"):
                square += float(np.square(numbers).sum())
    # Of tokens, which have no norm, the number tells short from long.
    size = np.nan_to_num(square, nan=math.inf) if square else len(labels)
    return Description(" ".join(labels), float(size), content)


def spread_order(data: Sequence[Example]) -> list[int]:
    """Places of the examples, one of each label in turn, and of each label sizes far apart first.

    The first of them stand for all, and the order in which they were given changes nothing.

    >>> spread_order([(1.5, 0), (2.5, 0), (3.5, 0), (4.5, 0), (9.5, 1)])
    [0, 4, 2, 1, 3]
    """
    described = [describe(example) for example in data]
    labelled = len({label for label, _, _ in described}) <= len(data) / 2
    by_label: dict[str, list[int]] = {}
    for place in sorted(range(len(data)), key=lambda i: described[i][1:] + described[i][:1]):
        by_label.setdefault(described[place].label if labelled else "", []).append(place)
    order = []
    for label, places in by_label.items():
        # Ranks with their digits reversed: the first few lie far apart, however many there are.
        ranks = sorted(range(len(places)), key=lambda rank: f"{rank:032b}"[::-1])
        order += [(turn, label, places[rank]) for turn, rank in enumerate(ranks)]
    return [place for _, _, place in sorted(order)]


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


def row_change(batch: Batch, i: int, row: Example, words: str) -> Neighbours:
    """One example, in the batch or outside of it, against its absence.

    Args: batch: of examples. i: its place in the data. row: the example, changed or not. words: say
    what was done.
    """
    place = i % len(batch)
    without = batch if i >= len(batch) else batch[:place] + batch[place + 1 :]
    return Neighbours(words, without, [row], place=place)
