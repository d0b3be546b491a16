"""The labels of a table as numbers of classes, and the classes that there are."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from string import Formatter
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlora_lab._utils.validation import check, check_rows, few, in_one_line, warn

if TYPE_CHECKING:
    from pandas import DataFrame

Identifier = int | str
_WHOLE_NUMBER = re.compile(r"([+-]?(0|[1-9][0-9]{0,18}))(\.0+)?")
MISSING = ("", "nan", "NaT", "<NA>", "None")
"""What an empty cell becomes that is turned into text."""
ZERO_WIDTH = "\u200b"
"""A blank that nobody sees."""
OF_THE_TEST = " of the test data"
"""What tells rows of the test table from private ones in messages."""


def to_identifier(value: object) -> Identifier | None:
    """A value that equals another one where both name the same: 7, 7.0, "7" and " 7 " are one.

    ``None`` for what is neither a text nor a whole number.

    >>> [to_identifier(value) for value in (7, 7.0, " 7 ", "P7 ", 0.5)]
    [7, 7, 7, 'P7', None]
    """
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)
    if not isinstance(value, (str, Integral, np.bool_)):
        return None
    text = str(value).strip()
    number = _WHOLE_NUMBER.fullmatch(text)
    return int(number[1]) if number else text


def column_of(frame: "DataFrame", argument: str, name: object) -> list[Any]:
    """The values of a column.

    Args:
        frame, name: the table and the column.
        argument: where its name was given.
    Raises: ``ValueError`` with the columns that there are.
    """
    exists = isinstance(name, str) and name in frame.columns
    check(exists, argument, name, "a column: " + ", ".join(map(str, frame.columns)))
    return frame[name].tolist()  # type: ignore[index]


def row_names(frame: "DataFrame", suffix: str = "") -> list[str]:
    """What messages call the rows of a table: by its index, such as "row 0" or "line 2"."""
    return [f"{frame.index.name or 'row'} {i}{suffix}" for i in frame.index]


def template_fields(frame: "DataFrame", argument: str, source: object) -> list[str]:
    """The columns that a template names; none where ``source`` is a column or no text.

    Raises: ``ValueError`` for braces that do not match.
    """
    if not isinstance(source, str) or source in frame.columns:
        return []
    with in_one_line(f"{argument}={source!r}: expected a template"):
        return [name for _, name, _, _ in Formatter().parse(source) if name is not None]


def check_filled(frame: "DataFrame", columns: Mapping[str, object], suffix: str = "") -> None:
    """Refuses empty cells, those of all columns at once.

    Blank texts are empty too, but for those that fill a place of a template.

    Args:
        frame, columns: the table; argument -> what it was given: a column, a template, or neither.
        suffix: what messages call the table's rows.
    """
    bad = {}
    for argument, source in columns.items():
        fields = template_fields(frame, argument, source)
        for column in fields or [source]:
            if not isinstance(column, str) or column not in frame.columns:
                continue
            gaps = frame[column].isna()
            if not fields:
                gaps |= frame[column].map(lambda cell: isinstance(cell, str) and not cell.strip())
            for row, is_gap in zip(row_names(frame, suffix), gaps):
                if is_gap:
                    bad[f"{row} ({argument})"] = "nothing"
    check_rows("cells", bad, "a value in every row; NA, None and null count as empty cells")


def identifiers(
    frame: "DataFrame", argument: str, column: str, suffix: str = ""
) -> list[Identifier]:
    """The cells of a column of texts or whole numbers, as values that can be compared.

    Args:
        frame, argument, column: the table, and the column with the argument that names it.
        suffix: what messages call the table's rows.
    Raises: ``ValueError`` naming the rows of empty cells, or of something else.
    """
    cells = column_of(frame, argument, column)
    values: list[Any] = [to_identifier(cell) for cell in cells]
    rows = zip(row_names(frame, suffix), cells, values)
    bad = {row: cell for row, cell, value in rows if value is None or value in MISSING}
    expected = "a text or a whole number in every row; NA, None and null count as empty cells"
    check_rows(f"{argument} {column!r}", bad, expected)
    return values


def check_spelling(name: str, values: Iterable[Identifier]) -> None:
    """Refuses two values that differ in how they are written only: they would count as two."""
    spelled: dict[str, Identifier] = {}
    for value in values:
        first = spelled.setdefault(_spelling(value), value)
        check(first == value, name, [first, value], "each written in one way")


def _spelling(value: object) -> str:
    """What two ways of writing one name have in common: 01 and 1.0, A and a."""
    text = "".join(
        unicodedata.normalize("NFC", str(value)).lower().replace(ZERO_WIDTH, " ").split()
    )
    number = re.fullmatch(r"0*(\d+)(\.0*)?", text)
    return number[1] if number else text


def read_labels(
    both: tuple["DataFrame", "DataFrame"], label: str, declared: Sequence[object] | None = None
) -> tuple[list[np.ndarray], tuple[Identifier, ...]]:
    """The labels of two tables as numbers of classes, and the classes in order.

    Labels are compared by value, as identifiers are. Without ``declared`` all rows of both tables
    decide: whole numbers by size, then words in sorted order.

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
    private = identifiers(both[0], "label", label)
    test = private
    if both[0] is not both[1]:
        test = identifiers(both[1], "label", label, OF_THE_TEST)
    given = () if declared is None else _declared_classes(declared)
    check_spelling(name, (*given, *private, *test))
    classes = given or _classes(name, private, test)
    check(len(classes) > 1, name, list(classes), "at least two classes")
    order = {value: number for number, value in enumerate(classes)}
    for table, column, suffix in zip(both, (private, test), ("", OF_THE_TEST)):
        pairs = zip(row_names(table, suffix), column)
        bad = {row: value for row, value in pairs if value not in order}
        check_rows(name, bad, f"one of the classes that labels= has: {_listed(classes)}")
    numbers = [np.array([order[value] for value in column], np.int64) for column in (private, test)]
    return numbers, classes


def check_order(classes: Sequence[Identifier], config: Any) -> None:
    """Refuses classes that the model's own classifier has in another order.

    Its outputs would stand under each other's names.

    Args:
        classes: in order.
        config: of the model, with ``id2label``.
    Guarantees: test_hub.py::test_classes_stand_in_the_order_of_the_model_s_classifier.
    """
    names = getattr(config, "id2label", None) or {}
    of_model = [str(names.get(number)) for number in range(len(classes))]
    of_task = [str(value) for value in classes]
    order, own_order = ([_spelling(value) for value in names] for names in (of_task, of_model))
    is_same = order == own_order or set(order) != set(own_order)
    expected = f"the order of the model's own classes: {', '.join(of_model)}"
    check(is_same, "labels", of_task, expected)
    # Names that nobody gave are LABEL_0, LABEL_1, ...
    if order != own_order and len(names) == len(classes) and names.get(0) != "LABEL_0":
        event = f"{', '.join(of_task)} stand for the outputs that were {', '.join(of_model)}"
        warn(f"labels: {event} in the model's own classifier")


def _declared_classes(declared: Any) -> tuple[Identifier, ...]:
    """The classes that the caller gave, as labels are compared."""
    values = declared.tolist() if hasattr(declared, "tolist") else declared
    is_list = isinstance(values, (list, tuple, range)) and len(values) > 1
    check(is_list, "labels", values, "a list of two or more classes, in order")
    classes = tuple(to_identifier(value) for value in values)
    is_set = len({*classes} - {None, ""}) == len(classes)
    check(is_set, "labels", values, "words or whole numbers, each class once")
    return classes  # type: ignore[return-value]


def _classes(
    name: str, private: list[Identifier], test: list[Identifier]
) -> tuple[Identifier, ...]:
    """The classes in order where none were declared.

    Args:
        name: of the column, for messages.
        private, test: labels of both tables.
    """
    usual = set(private)
    # Classes that are written otherwise would have no right answer among the private rows.
    strange = set(test) - usual
    expected = f"labels that private rows have: {_listed(usual)}"
    check(not usual.isdisjoint(test), f"{name}{OF_THE_TEST}", _listed(strange), expected)
    # Such a column is no class but a text, a name or a number, which the adapter would publish.
    expected = "at least two rows a class; or name the classes: labels=[...], --labels A,B"
    check(2 * len(usual) <= max(len(private), 6), name, f"{len(usual)} classes", expected)
    if strange:
        event = f"no private row has {_listed(strange)}, which test rows have and which becomes a"
        warn(f"{name}: {event} class; private rows have {_listed(usual)}")
    return tuple(sorted(usual | strange, key=lambda value: (isinstance(value, str), value)))


def _listed(labels: Iterable[Identifier]) -> str:
    """Some labels in words."""
    return few(sorted(map(str, labels)), 5)
