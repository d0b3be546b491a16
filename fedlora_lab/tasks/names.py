"""The names of clients and persons: one person under two spellings would be protected by half."""

import unicodedata
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from fedlora_lab._utils.validation import check

Identifier = int | str
MISSING = ("", "nan", "NaT", "<NA>", "None")
"""What an empty cell becomes that is turned into text."""
NAME_OWNERS = (
    "if they are several, give them names that differ in more than case, blanks and leading zeros"
)
"""What to do about sites or persons that differ only in how they are written."""


def to_identifiers(name: str, cells: Iterable[object], rows: Sequence[str]) -> list[Identifier]:
    """What each cell of a column names: a text as it is written, or a whole number.

    A floating number is neither: of large ones neighbours may have been rounded to it.

    Args:
        name: of the argument, for messages.
        cells: of the column.
        rows: what messages call each row.
    Raises: ``ValueError`` naming the row of an empty cell, or of something else; for texts beside
        numbers; and for names that differ in case, blanks or leading zeros alone.
    Guarantees: test_persons.py::test_persons_are_compared_by_value.
    """
    values = [_identifier(cell) for cell in cells]
    expected = (
        "a text or a whole number in every row; NA, None and null count as empty cells, "
        "and pandas reads codes such as 401.9 with dtype=str"
    )
    for row, cell, value in zip(rows, cells, values, strict=True):
        check(value is not None, name, f"{str(cell)[:80]} in {row}", expected)
    known: list[Any] = list(dict.fromkeys(values))
    kinds: dict[type, Any] = {}
    for value in known:
        kinds.setdefault(type(value), value)
    expected = f"texts throughout or numbers throughout; {NAME_OWNERS}"
    check(len(kinds) < 2, name, [*kinds.values()], expected)
    spelled: dict[str, str] = {}
    for value in known:
        if isinstance(value, str):
            first = spelled.setdefault("".join(value.casefold().split()).lstrip("0"), value)
            check(first == value, name, [first, value], f"each written in one way; {NAME_OWNERS}")
    return [value for value in values if value is not None]


def _identifier(cell: object) -> Identifier | None:
    if isinstance(cell, str):
        # Equal letters are one, whatever their encoding.
        text = unicodedata.normalize("NFKC", cell).strip()
        return None if text in MISSING else text
    is_whole = isinstance(cell, Integral) and not isinstance(cell, (bool, np.timedelta64))
    return int(cell) if is_whole else None


def names_of(argument: str, rows: Any, given: str | Sequence[Any]) -> list[str]:
    """The name of each row's client or person, as it is written.

    Args:
        argument: for messages, "by" or "person".
        rows: a data set.
        given: a column of it, or a name for each row.
    Raises: ``ValueError`` as `to_identifiers`, and for a column that is not there.
    """
    if isinstance(given, str):
        # Without a transform, which may drop the column.
        table = rows.with_format(None) if hasattr(rows, "with_format") else rows
        columns = sorted(table[0])
        check(given in columns, argument, given, f"a column: {', '.join(columns)}")
        given = [row[given] for row in table]
    count = f"{len(given)} names"
    check(len(given) == len(rows), argument, count, f"{len(rows)}, one for each row")
    places = [f"row {i}" for i in range(len(rows))]
    return [str(name) for name in to_identifiers(argument, given, places)]
