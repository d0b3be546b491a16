"""The labels of a table as numbers of classes, and the classes that there are."""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlora_lab._utils.validation import check

if TYPE_CHECKING:
    from pandas import DataFrame

Identifier = int | str
_WHOLE_NUMBER = re.compile("-?(0|[1-9][0-9]{0,18})")
MISSING = ("", "nan", "NaT", "<NA>")
"""What pandas makes of an empty cell that is turned into text."""
MOST_CLASSES = 1000
"""From here on a largest whole number must be near how many there are: it may be an identifier."""
EMPTY_CELLS = "; in a CSV file NA, None and null count as empty cells"
OF_THE_TEST = " of the test data"
"""What tells rows of the test table from private ones in messages."""


def to_identifier(value: Any) -> Identifier | None:
    """A value that equals another one where both name the same: 7, 7.0, "7" and " 7 " are one.

    ``None`` for what is neither a text nor a whole number.

    >>> [to_identifier(value) for value in (7, 7.0, " 7 ", "P7 ", 0.5)]
    [7, 7, 7, 'P7', None]
    """
    if isinstance(value, str):
        text = value.strip()
        return int(text) if _WHOLE_NUMBER.fullmatch(text) else text
    if isinstance(value, (bool, np.bool_)):
        return str(value)
    if isinstance(value, Integral) and not isinstance(value, np.timedelta64):
        return int(value)
    floating = isinstance(value, (float, np.floating)) and math.isfinite(value)
    return int(value) if floating and value == int(value) else None


def column_of(frame: "DataFrame", argument: str, name: Any) -> list[Any]:
    """The values of a column.

    Args:
        frame, name: the table and the column.
        argument: where its name was given.
    Raises: ``ValueError`` with the columns that there are.
    """
    exists = isinstance(name, str) and name in frame.columns
    check(exists, argument, name, "a column: " + ", ".join(map(str, frame.columns)))
    return frame[name].tolist()


def read_labels(
    both: tuple["DataFrame", "DataFrame"], label: str, declared: Sequence[Any] | None = None
) -> tuple[list[np.ndarray], tuple[Identifier, ...]]:
    """The labels of two tables as numbers of classes, and the classes in order.

    Labels are compared by value, as identifiers are. Without ``declared`` whole numbers are classes
    counted from 0, and words are classes in sorted order, or in that of the data set where it knows
    one. All rows decide, also those that a limit leaves out.

    Args:
        both: the tables that private rows and test rows come from; perhaps one table.
        label: the column.
        declared: the classes in order.
    Returns: numbers (rows,) int64 of each table, and the classes.
    Raises: ``ValueError`` for an empty cell, what is neither a word nor a whole number, a label
        that was not declared, classes that differ only in how they are written, fewer than two
        classes, and a test table none of whose labels a private row has. One that has some labels
        of its own is warned of.
    Guarantees: test_hub.py::test_declared_labels_are_the_classes,
        ::test_labels_of_two_tables_are_one_set_of_classes_or_refused.
    """
    name = f"label {label!r}"
    known = both[0].attrs.get(label)
    tables = [_cells(both[0], label, known, "")]
    if both[0] is not both[1]:
        # Both by the names of their own table: class 0 of one may be class 1 of the other.
        named = known or any(isinstance(value, str) for value in tables[0])
        theirs = both[1].attrs.get(label) if named else None
        tables.append(_cells(both[1], label, theirs or known, OF_THE_TEST))
    written: dict[Identifier, Identifier] = {}
    keys = [[_key(value) for value in table] for table in tables]
    for column, table in zip(keys, tables, strict=True):
        for key, value in zip(column, table, strict=True):
            written.setdefault(key, value)
    if declared is not None:
        classes = _check_declared(name, declared, keys, tables)
    else:
        classes = _classes(name, written, tables[0], known)
        if len(tables) == 2:
            private = {*keys[0], *map(_key, known or ())}
            _compare(name, private, {*keys[1]}, written)
    check(len(classes) > 1, name, list(classes), "at least two classes")
    order = {_key(value): i for i, value in enumerate(classes)}
    numbers = [np.array([order[key] for key in column], dtype=np.int64) for column in keys]
    return [numbers[0], numbers[-1]], classes


def in_model_order(
    columns: list[np.ndarray], classes: tuple[Identifier, ...], config: Any, declared: Any
) -> tuple[list[np.ndarray], tuple[Identifier, ...]]:
    """The classes in the order in which the model's own classifier has them, if it knows them.

    A classifier that was trained on the same classes may have them in another order: its outputs
    would stand under each other's names.

    Args:
        columns: numbers of classes, (rows,) each.
        classes: the classes in the order of these numbers.
        config: of the model, with ``id2label``.
        declared: whether the caller gave the order.
    Raises: ``ValueError`` for a declared order that is not the model's.
    Guarantees: test_hub.py::test_classes_stand_in_the_order_of_the_model_s_classifier.
    """
    names = getattr(config, "id2label", None) or {}
    theirs = tuple(str(names.get(i)) for i in range(len(classes)))
    ours = tuple(map(str, classes))
    if theirs == ours or set(theirs) != set(ours):
        return columns, classes
    expected = f"the order of the model's own classes: {', '.join(theirs)}"
    check(not declared, "labels", list(classes), expected)
    places = [ours.index(name) for name in theirs]
    numbers = np.argsort(places)
    return [numbers[column] for column in columns], tuple(classes[i] for i in places)


def class_names(classes: tuple[Identifier, ...]) -> tuple[Identifier, ...] | None:
    """The classes as `Task.labels` has them: ``None`` where they are numbers from 0."""
    return None if classes == tuple(range(len(classes))) else classes


def describe_classes(classes: tuple[Identifier, ...], declared: Any) -> dict[str, Any]:
    """What `Task.info` says of the classes: their number, and what they were read from."""
    return {
        "classes": len(classes),
        "labels": "read from the rows" if declared is None else "declared",
    }


def _key(label: Identifier) -> Identifier:
    key = to_identifier(label)
    assert key is not None
    return key


def _cells(
    table: "DataFrame", label: str, known: Sequence[str] | None, suffix: str
) -> list[Identifier]:
    """A table's labels: words without the blanks around them, or whole numbers.

    Args:
        table, label: the table and the column.
        known: names of the classes, for which whole numbers stand.
        suffix: what messages call the table's rows.
    """
    name = f"label {label!r}"
    values = []
    cells = column_of(table, "label", label)
    for i, (cell, gap) in enumerate(zip(cells, table[label].isna(), strict=True)):
        value = cell.strip() if isinstance(cell, str) else None if gap else to_identifier(cell)
        if gap or value in MISSING:
            nothing = f"nothing in row {i}{suffix}"
            check(False, name, nothing, "a label in every row" + EMPTY_CELLS)
        if isinstance(cell, (bool, np.bool_)):
            value = int(cell)
        check(value is not None, name, cell, "words, or whole numbers >= 0")
        assert value is not None
        if known is not None and isinstance(value, int):
            check(0 <= value < len(known), name, value, f"one of {len(known)} classes")
            value = known[value]
        values.append(value)
    truths = sum(isinstance(cell, (bool, np.bool_)) for cell in cells)
    expected = "truth values in every row, or in none: True and 'True' are two classes"
    check(truths in (0, len(cells)), name, f"{truths} truth values among other labels", expected)
    return values


def _check_declared(
    name: str,
    declared: Any,
    keys: Sequence[Sequence[Identifier]],
    tables: Sequence[Sequence[Identifier]],
) -> tuple[Identifier, ...]:
    """The declared classes; refuses rows that have another label.

    Args:
        name, declared: of the column, and the classes.
        keys, tables: labels of each table, as they are compared and as they are written.
    """
    declared = declared.tolist() if hasattr(declared, "tolist") else declared
    several = isinstance(declared, (list, tuple, range)) and len(declared) > 1
    check(several, "labels", declared, "two or more classes, in order")
    counted = [int(x) if isinstance(x, bool) else x for x in declared]
    plain = tuple(x.strip() if isinstance(x, str) else to_identifier(x) for x in counted)
    classes = tuple(x for x in plain if x is not None and x != "")
    check(len(classes) == len(plain), "labels", declared, "words or whole numbers")
    order = {*map(_key, classes)}
    check(len(order) == len(classes), "labels", declared, "each class once")
    for column, table, suffix in zip(keys, tables, ("", OF_THE_TEST), strict=False):
        row = next((i for i, key in enumerate(column) if key not in order), None)
        value = f"{table[row or 0]} in row {row}{suffix}"
        check(row is None, name, value, f"one of the classes that labels= has: {_list(classes)}")
    return classes


def _compare(
    name: str,
    private: set[Identifier],
    test: set[Identifier],
    written: Mapping[Identifier, Identifier],
) -> None:
    """Refuses a test table none of whose labels a private row has; warns of some of its own.

    Args:
        name: of the column, for messages.
        private, test: labels of both tables.
        written: label -> as it stands in its table.
    """
    strange = _list([written[key] for key in test - private])
    usual = _list([written.get(key, key) for key in private])
    expected = f"labels that private rows have: {usual}"
    check(bool(private & test), f"{name}{OF_THE_TEST}", strange, expected)
    if test - private:
        words = f"no private row has {strange}, which test rows have and which becomes a class"
        warnings.warn(f"{name}: {words}; private rows have {usual}", stacklevel=4)


def _classes(
    name: str,
    written: Mapping[Identifier, Identifier],
    private: Sequence[Identifier],
    known: Sequence[str] | None,
) -> tuple[Identifier, ...]:
    """The classes in order where none were declared.

    Args:
        name: of the column, for messages.
        written: label -> as it stands in its table.
        private: labels of the private table.
        known: names that the private table has for its classes.
    """
    numbers = [key for key in written if isinstance(key, int)]
    if len(numbers) == len(written) and not any(isinstance(value, str) for value in private):
        check(
            min(numbers) >= 0, name, min(numbers), "words, or whole numbers >= 0; or give labels="
        )
        words = f"classes counted from 0, of which {len(numbers)} have rows; or give labels="
        check(max(numbers) < max(MOST_CLASSES, 10 * len(numbers)), name, max(numbers), words)
        return tuple(range(max(numbers) + 1))
    alike: dict[str, Identifier] = {}
    for key, value in written.items():
        like = alike.setdefault("".join(str(key).casefold().split()), key)
        both = [written[like], value]
        check(like == key, name, both, "each class written in one way; or give both in labels=")
    first = {_key(value): value for value in known or ()}
    unnamed = [value for key, value in written.items() if key not in first]
    return (*first.values(), *sorted(unnamed, key=str))


def _list(labels: Sequence[Identifier]) -> str:
    """Some labels in words."""
    some = sorted(map(str, labels))
    return ", ".join(some[:5]) + (f" and {len(some) - 5} more" if len(some) > 5 else "")
