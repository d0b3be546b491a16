"""Identifiers of persons, owners and classes: compared by value, however a table stores them.

>>> from fedlora_lab.tasks.identifiers import to_identifier
>>> [to_identifier(value) for value in (7, 7.0, " 7 ", "P7 ", 0.5)]
[7, 7, 7, 'P7', None]
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from numbers import Integral
from typing import Any

import numpy as np

from fedlora_lab._utils.validation import check

Identifier = int | str
_WHOLE_NUMBER = re.compile("-?(0|[1-9][0-9]{0,999})")
MISSING = ("", "nan", "NaT", "<NA>")
"""What pandas makes of an empty cell that is turned into text."""
_LATIN = str.maketrans("авекмнорстхуіјѕαβεζηικμνορτυχ", "abekmhopctxyijsabezhikmnoptyx")
"""Cyrillic and Greek letters that look like Latin ones, in capitals or not."""


def to_identifier(value: Any) -> Identifier | None:
    """A value that equals another one where both name the same: 7, 7.0, "7" and " 7 " are one.

    ``None`` for what is neither a text nor a whole number, and for a floating number so large that
    its neighbours may have been rounded to it.
    """
    if isinstance(value, str):
        text = value.strip()
        return int(text) if _WHOLE_NUMBER.fullmatch(text) else text
    if isinstance(value, (bool, np.bool_)):
        return str(value)
    if isinstance(value, Integral) and not isinstance(value, np.timedelta64):
        return int(value)
    if not isinstance(value, (float, np.floating, Decimal)) or not math.isfinite(value):
        return None
    floating = not isinstance(value, Decimal)
    exact = not floating or abs(value) < 2 ** (np.finfo(type(value)).nmant + 1)
    return int(value) if exact and value == int(value) else None


def plain_form(identifier: Identifier) -> str:
    """What is left of an identifier without case, blanks, leading zeros and a trailing ".0".

    Letters of other alphabets that look like Latin ones are taken for these, and digits and dashes
    of all kinds for 0 to 9 and the hyphen.
    """
    text = unicodedata.normalize("NFKC", str(identifier)).casefold().translate(_LATIN)
    text = "".join(map(_plain_sign, text))
    text = re.sub(r"\.0+$", "", text)
    return re.sub("(?<![0-9.])0+(?=[0-9])", "", text)


def _plain_sign(sign: str) -> str:
    """A digit of any script as 0 to 9, a dash of any length as a hyphen, nothing for a blank."""
    if sign.isspace() or not sign.isprintable():
        return ""
    if unicodedata.category(sign) == "Pd":
        return "-"
    return str(unicodedata.decimal(sign, sign))


def identifiers(
    name: str, values: Sequence[Any], expected: str, place: Callable[[int], str]
) -> list[Identifier]:
    """The identifiers in a column, compared by value.

    Two that differ only in how they are written may be one person or two, and counting them wrongly
    would state an epsilon that does not hold: both are refused. Messages name rows and no
    identifier, since they may be sent on.

    Args:
        name: of the argument, for messages.
        values: the cells.
        expected: what stands in every row, for messages.
        place: number of a value -> what messages call its row.
    Raises: ``ValueError`` for an empty cell, one that is neither a text nor a whole number, and two
        that differ only in case, alphabet, blanks, leading zeros or a trailing ".0".
    Guarantees: test_persons.py::test_identifiers_are_compared_by_value,
        ::test_identifiers_that_may_be_one_are_refused.
    """
    keys: list[Identifier] = []
    for i, value in enumerate(values):
        empty = value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))
        key = "" if empty else to_identifier(value)
        if key is None:
            kind = f"{type(value).__name__} in {place(i)}"
            check(False, name, kind, "texts or whole numbers, and no float that may be rounded")
        else:
            keys.append(key)
    first: dict[Identifier, int] = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    seen: dict[str, Identifier] = {}
    differ = "each written in one way: these differ in case, alphabet, blanks, leading zeros or "
    differ += 'a trailing ".0" only'
    for key, i in first.items():
        plain = plain_form(key)
        nobody = plain == "" or key in (*MISSING, "None")
        check(not nobody, name, f"nothing in {place(i)}", expected)
        like = seen.setdefault(plain, key)
        check(like == key, name, f"{place(first[like])}, {place(i)}", differ)
    return keys


def number_identifiers(keys: Iterable[Identifier]) -> dict[Identifier, int]:
    """Identifier -> number from 0, in sorted order: no row's place and no count enters."""
    return {
        key: i for i, key in enumerate(sorted(set(keys), key=lambda x: (isinstance(x, str), x)))
    }
