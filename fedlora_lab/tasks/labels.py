"""What cells name: classes, sites and persons; and the labels of a table as numbers of classes.

A text is what is written, and never the number that it resembles. Numbers are compared by value. A
column that has both is refused. So are names of sites and persons that differ only in how they are
written, and classes that differ only in case or blanks.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Integral
from string import Formatter
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from fedlora_lab._utils.validation import check, check_rows, few, in_one_line, warn

if TYPE_CHECKING:
    from pandas import DataFrame

Identifier = int | str
"""A text, a whole number, or a boolean, which Python counts among the numbers."""
MISSING = ("", "nan", "NaT", "<NA>", "None")
"""What an empty cell becomes that is turned into text."""
EMPTY_KEY = ("empty",)
"""Key in a frame's ``attrs`` of further texts that stand for an empty cell in its file."""
HINT_KEY = ("hint",)
"""Key in a frame's ``attrs`` of what to do where a column is sought that it lacks."""
OF_THE_TEST = " of the test data"
"""What tells rows of the test table from private ones in messages."""
NAME_OWNERS = (
    "if they are several, give them names that differ in more than case, blanks, zeros and "
    "letters that look alike, or numbers, such as pandas.factorize makes of texts"
)
"""What to do about sites or persons that differ only in how they are written."""
NAME_CLASSES = "if they are several classes, name all: labels=[...]"
"""What to do about such classes."""
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


def to_identifiers(
    name: str, cells: Iterable[object], rows: Sequence[str], empty: Iterable[str] = MISSING
) -> list[Identifier]:
    """What each cell of a column names.

    Args:
        name: of the argument, for messages.
        cells: as the table keeps them: its own numbers know how exact they are.
        rows: what messages call each row.
        empty: texts that stand for an empty cell.
    Raises: ``ValueError`` naming the rows of empty cells, or of something else.
    """
    values: list[Any] = [to_identifier(cell) for cell in cells]
    absent = {*empty}
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
    check_spelling(name, tidy, NAME_OWNERS)
    return tidy


def check_spelling(name: str, values: Iterable[Identifier], cure: str, codes: bool = False) -> None:
    """Refuses texts beside numbers, and texts that differ in how they are written only.

    Args:
        name: of the argument.
        values: all that are compared with each other, from one table or several.
        cure: what else to do.
        codes: texts that are one number, such as 250 and 250.0, are told of and not refused:
            classes are codes as often as numbers, and each stays as it is written. Those that look
            alike, such as a and the Greek alpha, are several.
    """
    # By type first: to Python True equals 1.
    kinds: dict[type, dict[Identifier, None]] = {}
    for value in values:
        kinds.setdefault(type(value), {})[value] = None
    examples = [next(iter(distinct)) for distinct in kinds.values()]
    expected = f"texts throughout or numbers throughout, in all tables; {cure}"
    check(len(kinds) < 2, name, examples, expected)
    spelled: dict[str, Identifier] = {}
    number = None if codes else _DECIMAL
    lengths: dict[str, tuple[int, Identifier]] = {}
    for value in kinds.get(str, ()):
        text = _plain(str(value))
        if not codes:
            text = text.translate(_LOOK_ALIKES)
        first = spelled.setdefault(_by_value(text, number), value)
        # Codes of one length, such as digests, differ by more than zeros before a number.
        near = _LEADING_ZEROS.sub("", _by_value(text, _EXPONENT))
        length, other = lengths.setdefault(near, (len(text), value))
        if codes and first == value and other != value:
            warn(
                f"{name}: {other!r} and {value!r} are two classes, as they are written; if they "
                "are one, write them alike"
            )
        elif length != len(text):
            first = other
        check(first == value, name, [first, value], f"each written in one way; {cure}")


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


def _by_value(text: str, number: re.Pattern[str] | None) -> str:
    """One text for all that are the same number, if the pattern takes them for one."""
    if number is None or not number.fullmatch(text):
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


def column_of(frame: "DataFrame", argument: str, name: object) -> list[Any]:
    """The values of a column.

    Args:
        frame, name: the table and the column.
        argument: where its name was given.
    Raises: ``ValueError`` with the columns that there are.
    """
    exists = isinstance(name, str) and name in frame.columns
    expected = "a column: " + ", ".join(map(str, frame.columns)) + frame.attrs.get(HINT_KEY, "")
    check(exists, argument, name, expected)
    return frame[name].tolist()  # type: ignore[index]


def row_names(frame: "DataFrame", suffix: str = "") -> list[str]:
    """What messages call the rows of a table: by its index, such as "row 0" or "line 2"."""
    kind = frame.index.name or "row"
    # Names of files may have bytes that no page or terminal shows.
    names = (str(i).encode(errors="backslashreplace").decode() for i in frame.index)
    return [f"{kind} {name}{suffix}" for name in names]


def template_fields(frame: "DataFrame", argument: str, source: object) -> list[str]:
    """The columns that a template names; none where ``source`` is a column or no text.

    Raises: ``ValueError`` for braces that do not match.
    """
    if not isinstance(source, str) or source in frame.columns:
        return []
    with in_one_line(f"{argument}={source!r}: expected a template"):
        return [name for _, name, _, _ in Formatter().parse(source) if name is not None]


def check_filled(
    frame: "DataFrame",
    columns: Mapping[str, object],
    suffix: str = "",
    classes: Iterable[object] = (),
) -> None:
    """Refuses empty cells and broken letters, those of all columns at once.

    Blank texts are empty too, but for those that fill a place of a template.

    Args:
        frame, columns: the table; argument -> what it was given: a column, a template, or neither.
        suffix: what messages call the table's rows.
        classes: declared ones; their names are no empty cells in the column of the label.
    """
    gaps = {}
    halves = {}
    for argument, source in columns.items():
        fields = template_fields(frame, argument, source)
        empty = {*frame.attrs.get(EMPTY_KEY, ())}
        if argument == "label":
            empty -= {*map(str, classes)}
        for column in fields or [source]:
            if not isinstance(column, str) or column not in frame.columns:
                continue
            cells = frame[column]
            for row, is_gap, cell in zip(row_names(frame, suffix), cells.isna(), cells):
                is_text = isinstance(cell, str)
                is_blank = is_text and not fields and not cell.strip()
                if is_gap or is_blank or (is_text and cell in empty):
                    gaps[f"{row} ({argument})"] = "nothing"
                elif is_text and argument != "image" and not is_unicode(cell):  # names of files
                    halves[f"{row} ({argument})"] = f"a broken letter, {cell!r},"
    expected = "a value in every row; NA, None and null count as empty cells"
    if any(place.endswith("(label)") for place in gaps):
        expected += " unless labels= has them, and the -1 of a ClassLabel is no class"
    check_rows("cells", gaps, expected)
    expected = "whole letters: no half of a pair of surrogates, and names of folders in UTF-8"
    check_rows("cells", halves, expected)


def is_filled(text: object) -> bool:
    """Whether a value is a text of whole letters that is more than blanks."""
    return isinstance(text, str) and bool(text.strip()) and is_unicode(text)


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: half a pair of surrogates cannot, nor a byte of Latin-1."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def identifiers(
    frame: "DataFrame", argument: str, column: str, suffix: str = "", classes: Iterable[object] = ()
) -> list[Identifier]:
    """What each cell of a table's column names.

    Args:
        frame, argument, column: as of `column_of`.
        suffix: what messages call the table's rows.
        classes: declared ones; their names are no empty cells.
    """
    column_of(frame, argument, column)
    empty = {*MISSING, *frame.attrs.get(EMPTY_KEY, ())} - {*map(str, classes)}
    # As the table keeps them: its own numbers know how exact they are.
    cells = list(frame[column].to_numpy())
    return to_identifiers(f"{argument} {column!r}", cells, row_names(frame, suffix), empty)


def read_labels(
    both: tuple["DataFrame", "DataFrame"], label: str, declared: Sequence[object] | None = None
) -> tuple[list[np.ndarray], tuple[Identifier, ...]]:
    """The labels of two tables as numbers of classes, and the classes in order.

    Classes are named as the rows name them. Without ``declared`` all rows of both tables decide:
    numbers by size, then words in sorted order. With it a row has the class that is written alike,
    also where one is a number and the other a text.

    Args:
        both: the tables that private rows and test rows come from; perhaps one table.
        label: the column.
        declared: the classes in order.
    Returns: numbers (rows,) int64 of each table, and the classes.
    Raises: ``ValueError`` for an empty cell, what is neither a text nor a whole number, a label
        that was not declared, fewer than two classes, and a test table none of whose labels a
        private row has. One that has some labels of its own is warned of. Without ``declared`` also
        for texts beside numbers, and texts that differ only in case, blanks or letters nobody sees.
        Texts that are one number in several ways are several classes, and are warned of.
    Guarantees: test_hub.py::test_declared_labels_are_the_classes,
        ::test_labels_of_two_tables_are_one_set_of_classes_or_refused,
        ::test_a_code_is_kept_as_it_is_written_or_refused.
    """
    name = f"label {label!r}"
    classes = () if declared is None else declared_classes(declared)
    tables = both[:1] if both[0] is both[1] else both
    columns = [
        identifiers(table, "label", label, suffix, classes)
        for table, suffix in zip(tables, ("", OF_THE_TEST))
    ]
    private, test = columns[0], columns[-1]
    if not classes:
        check_spelling(name, (*private, *test), NAME_CLASSES, codes=True)
        classes = _classes(name, private, test)
    check(len(classes) > 1, name, list(classes), "at least two classes")
    # As written: a shell has texts only, where a table has numbers.
    order = {str(value): number for number, value in enumerate(classes)}
    for table, column, suffix in zip(both, (private, test), ("", OF_THE_TEST)):
        pairs = zip(row_names(table, suffix), column)
        bad = {row: repr(value) for row, value in pairs if str(value) not in order}
        expected = f"one of the classes that labels= has, as written there: {_listed(classes)}"
        check_rows(name, bad, expected)
    numbers = [
        np.array([order[str(value)] for value in column], np.int64) for column in (private, test)
    ]
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
    order, own_order = ([_plain(name) for name in names] for names in (of_task, of_model))
    is_same = order == own_order or set(order) != set(own_order)
    expected = f"the order of the model's own classes: {', '.join(of_model)}"
    check(is_same, "labels", of_task, expected)
    # Names that nobody gave are LABEL_0, LABEL_1, ...
    if order != own_order and len(names) == len(classes) and names.get(0) != "LABEL_0":
        event = f"{', '.join(of_task)} stand for the outputs that were {', '.join(of_model)}"
        warn(f"labels: {event} in the model's own classifier")


def declared_classes(declared: Any) -> tuple[Identifier, ...]:
    """The classes that the caller gave: texts as they are written, numbers by value.

    Raises: ``ValueError`` for fewer than two, and for two that are written alike but for blanks
        around them.
    """
    values = declared.tolist() if hasattr(declared, "tolist") else declared
    is_list = isinstance(values, (list, tuple, range)) and len(values) > 1
    check(is_list, "labels", values, "a list of two or more classes, in order")
    classes = tuple(to_identifier(value) for value in values)
    words = [str(value).strip() for value in classes if value is not None]
    # Blanks at the ends would be seen by nobody who reads the classes of an adapter.
    different = {word for word in words if word and is_unicode(word)}
    is_set = len(different) == len(classes)
    check(is_set, "labels", values, "words of whole letters or whole numbers, each class once")
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
    return tuple(in_order(usual | strange))


def _listed(labels: Iterable[Identifier]) -> str:
    """Some labels in words."""
    return few(sorted(map(str, labels)), 5)
