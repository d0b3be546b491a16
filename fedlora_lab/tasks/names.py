"""The names of clients and persons: one person under two spellings would be protected by half.

A text is what is written, and never the number that it resembles. Numbers are compared by value. A
column that has both is refused, and so are names that differ only in how they are written.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal
from numbers import Integral
from typing import Any
from uuid import UUID

import numpy as np

from fedlora_lab._utils.validation import check, check_rows

Identifier = int | str
"""A text, a whole number, or a boolean, which Python counts among the numbers."""
MISSING = ("", "nan", "NaT", "<NA>", "None")
"""What an empty cell becomes that is turned into text."""
NAME_OWNERS = (
    "if they are several, give them names that differ in more than case, blanks, zeros and "
    "letters that look alike, or numbers, such as pandas.factorize makes of texts"
)
"""What to do about sites or persons that differ only in how they are written."""
_LOOK_ALIKES = {
    ord(other): plain
    for plain, others in {
        "'": "‘’‛ʹʻʼˈ`′‵",
        "-": "‐‒–—―−⁃",
        '"': "“”„‟«»",
        "/": "⁄∕",
        ",": "‚",
        # Small letters: A and a are one already, so what looks like a capital counts as both.
        "a": "аα",
        "b": "вβ",
        "c": "с",
        "d": "ԁ",
        "e": "еε",
        "h": "нһη",
        "i": "іι",
        "j": "ј",
        "k": "кκ",
        "l": "ӏ",
        "m": "мμ",
        "n": "ν",
        "o": "оο",
        "p": "рρ",
        "q": "ԛ",
        "s": "ѕ",
        "t": "тτ",
        "w": "ԝ",
        "x": "хχ",
        "y": "уυ",
        "z": "ζ",
    }.items()
    for other in others
}
"""Cyrillic and Greek letters, and marks, that look like those of ASCII."""
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
_EXPONENT = re.compile(_DECIMAL.pattern + r"(e[+-]?\d{1,3})?")
_LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")


def to_identifier(cell: object) -> Identifier | None:
    """What a cell names: a text as it is written, or the whole number that a number equals.

    ``None`` for anything else, and for a floating number so large that its neighbours may have been
    rounded to it: two persons would count as one, or one as two.

    >>> [to_identifier(cell) for cell in (7, 7.0, "7.0", " 7", 0.5)]
    [7, 7, '7.0', ' 7', None]
    """
    if isinstance(cell, (bool, np.bool_)):
        return bool(cell)
    if isinstance(cell, (str, UUID)):
        return str(cell)
    if isinstance(cell, Integral) and not isinstance(cell, np.timedelta64):
        return int(cell)
    if isinstance(cell, (float, np.floating)) and np.isfinite(cell):
        limit = 2 ** (np.finfo(type(cell)).nmant + 1)
        if abs(cell) < limit and cell == int(cell):
            return int(cell)
    return None


def to_identifiers(name: str, cells: Iterable[object], rows: Sequence[str]) -> list[Identifier]:
    """What each cell of a column names.

    Args:
        name: of the argument, for messages.
        cells: as the table keeps them: its own numbers know how exact they are.
        rows: what messages call each row.
    Raises: ``ValueError`` naming the rows of empty cells, or of something else.
    """
    values: list[Any] = [to_identifier(cell) for cell in cells]
    absent = {*MISSING}
    bad = {
        row: cell
        for row, cell, value in zip(rows, cells, values, strict=True)
        if value is None
        or (isinstance(value, str) and not {value, value.strip()}.isdisjoint(absent))
    }
    expected = (
        "a text or a whole number in every row; NA, None and null count as empty cells, "
        ".astype(str) makes texts of dates, and pandas reads codes such as 401.9 with dtype=str"
    )
    check_rows(name, bad, expected)
    return values


def owners(name: str, values: Iterable[Identifier]) -> list[Identifier]:
    """The sites or persons of these names; equal letters are one, whatever their encoding.

    Args: name: of the argument, for messages. values: of `to_identifiers`.
    Raises: ``ValueError`` for names that differ in case, blanks or zeros alone, or that look
        alike: one person who counts as two is protected by half.
    """
    tidy = [
        unicodedata.normalize("NFKC", value).strip() if isinstance(value, str) else value
        for value in values
    ]
    check_spelling(name, tidy)
    return tidy


def check_spelling(name: str, values: Iterable[Identifier]) -> None:
    """Refuses texts beside numbers, and texts that differ in how they are written only.

    Args:
        name: of the argument.
        values: all that are compared with each other.
    """
    # By type first: to Python True equals 1.
    kinds: dict[type, dict[Identifier, None]] = {}
    for value in values:
        kinds.setdefault(type(value), {})[value] = None
    examples = [next(iter(distinct)) for distinct in kinds.values()]
    expected = f"texts throughout or numbers throughout, in all tables; {NAME_OWNERS}"
    check(len(kinds) < 2, name, examples, expected)
    spelled: dict[str, Identifier] = {}
    lengths: dict[str, tuple[int, Identifier]] = {}
    for value in kinds.get(str, ()):
        text = _plain(str(value))
        text = text.translate(_LOOK_ALIKES)
        first = spelled.setdefault(_by_value(text, _DECIMAL), value)
        # Codes of one length, such as digests, differ by more than zeros before a number.
        near = _LEADING_ZEROS.sub("", _by_value(text, _EXPONENT))
        length, other = lengths.setdefault(near, (len(text), value))
        if length != len(text):
            first = other
        check(first == value, name, [first, value], f"each written in one way; {NAME_OWNERS}")


def _plain(text: str) -> str:
    """A text in small letters, without blanks and what nobody sees."""
    if text.isascii():  # a hundred thousand persons are compared in a second
        return "".join(text.lower().split())
    letters = unicodedata.normalize("NFKC", text).casefold()
    # That is what becomes of an acute accent that stands alone, in place of an apostrophe.
    letters = letters.replace(" \u0301", "'")
    # Letters that nobody sees are formats, such as a blank of no width.
    seen = (x for x in letters if not x.isspace() and unicodedata.category(x) != "Cf")
    return "".join(str(unicodedata.decimal(x, x)) for x in seen)


def _by_value(text: str, number: re.Pattern[str]) -> str:
    """One text for all that are the same number, if the pattern takes them for one."""
    if not number.fullmatch(text):
        return text
    value = Decimal(text).normalize()
    return str(value if value else Decimal())


def in_order(values: Iterable[Identifier]) -> list[Identifier]:
    """Different values, sorted: numbers by size, also those that are texts, and then words."""

    def key(value: Identifier) -> tuple[bool, Decimal, str]:
        text = str(value)
        is_number = text.isascii() and _DECIMAL.fullmatch(text) is not None
        return not is_number, Decimal(text) if is_number else Decimal(), text

    return sorted(values, key=key)


def number_in_order(values: Sequence[Identifier]) -> list[int]:
    """The place of each value among the different ones, as `in_order` sorts them."""
    place = {value: number for number, value in enumerate(in_order({*values}))}
    return [place[value] for value in values]


def names_of(argument: str, rows: Any, given: str | Sequence[Any]) -> list[str]:
    """The name of each row's client or person, as it is written.

    Args:
        argument: for messages, "by" or "person".
        rows: a data set.
        given: a column of it, or a name for each row.
    Raises: ``ValueError`` as `to_identifiers` and `owners`, and for a column that is not there.
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
    return [str(name) for name in owners(argument, to_identifiers(argument, given, places))]
