"""The rows of a user's table: read, split into private rows and test rows, dealt to clients."""

import codecs
import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import (
    check,
    check_number,
    check_rows,
    check_whole,
    error_text,
    refuse,
    warn,
)
from fedlora_lab.tasks import partition
from fedlora_lab.tasks.labels import (
    OF_THE_TEST,
    check_filled,
    check_spelling,
    column_of,
    identifiers,
    row_names,
)
from fedlora_lab.tasks.task import (
    Examples,
    Inputs,
    Task,
    concatenate,
    named_tensors,
    take,
    whole_numbers,
)

if TYPE_CHECKING:
    from pandas import DataFrame

DATASET_KINDS = (
    "a pandas DataFrame, a list of dicts, a `datasets` Dataset or DatasetDict, a file that ends in "
    ".csv, .tsv, .jsonl or .parquet, or a folder with a folder for each class"
)
SEPARATORS = ",;\t|"
"""What may stand between the cells of a CSV file: the one its header has most, outside quotes."""
SEPARATOR_KEY = ("separator",)
"""Key in a frame's ``attrs`` of what stands between the cells of its file; no name of a column."""
EMPTY = ["", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "None", "NULL", "null"]
"""What stands in an empty cell of a CSV file."""
SPLITS = {"train", "validation", "valid", "val", "dev", "test"}
"""Names of splits; a folder whose folders have such names has no classes of these names."""
HIDDEN = re.compile(r"(^|[/\\])(\.|__MACOSX)")
"""Places of files that a system hides, or adds to what it packs."""
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Rows:
    """The rows of a data set: those to test on, and private ones, dealt to clients.

    Args:
        private, held_out: the rows of each; their index names rows of the table they come from.
        sources: the tables that both come from; one and the same where a share is held out.
        places: each client's places among the private rows.
        clients: names of the clients, if they have some.
        people: the person of each private row, numbers from 0; ``None``: not known.
    """

    private: "DataFrame"
    held_out: "DataFrame"
    sources: "tuple[DataFrame, DataFrame]"
    places: partition.Split
    clients: tuple[str, ...] = ()
    people: np.ndarray | None = None

    @classmethod
    def read(
        cls,
        dataset: object,
        test: object,
        seed: int,
        by: str | None = None,
        person: str | None = None,
        clients: int | None = None,
        public_test: bool = False,
        columns: Mapping[str, object] = MappingProxyType({}),
    ) -> "Rows":
        """Reads a data set, splits it and deals it.

        Args:
            dataset, test, seed, by, person, clients, public_test: as of `hub`. All rows of a person
                are held out together, and go to one client unless ``by`` says where they are.
                Public test rows of persons with private rows are refused.
            columns: argument -> a further column that has to be filled, or something else.
        Guarantees: tests/tasks/test_hub.py::test_persons_of_both_tables_are_found,
            ::test_rows_of_one_person_move_nobody_else,
            ::test_owners_are_compared_by_value.
        """
        check_whole("seed", seed)
        expected = "none with by=, which names the owner of each example"
        check(by is None or clients is None, "clients", clients, expected)
        splits = read_splits(dataset)
        check("train" in splits, "dataset", sorted(splits), "a split called train")
        train = splits["train"]
        check_filled(train, {"person": person, "by": by, **columns})
        # Rows count as persons of one row each where persons are not known.
        owner = np.arange(len(train)) if person is None else _persons(train, person)
        is_held = np.zeros(len(train), dtype=bool)
        if isinstance(test, (int, float)):
            is_held = _hold_out(owner, test, seed, "rows" if person is None else "persons")
            held_out = train[is_held]
            sources = train, train
        else:
            held_out = _test_table(test, splits)
            check_filled(held_out, columns, OF_THE_TEST)
            sources = train, held_out
        private = train[~is_held]
        # A score of a person's public row is exact, and tells of the private ones.
        if person is not None and public_test and person in held_out.columns:
            shared = len({*owner[~is_held]} & {*_persons(held_out, person, OF_THE_TEST)})
            shown = f"{shared} persons of the public test rows have private rows as well"
            check(not shared, f"person {person!r}", shown, "public rows of others, in test=")
        people = np.unique(owner[~is_held], return_inverse=True)[1]
        if by is None:
            # Persons are dealt, not their rows: else rows of one would say where others are.
            split = partition.iid(int(people.max()) + 1, 10 if clients is None else clients, seed)
            places = [np.flatnonzero(np.isin(people, part)) for part in split]
            names: tuple[str, ...] = ()
        else:
            places, names = _split_by_owner(train, private, by)
        return cls(private, held_out, sources, places, names, None if person is None else people)

    @property
    def names(self) -> list[str]:
        """What messages call each row, private ones first: its place in the given table."""
        suffix = "" if self.sources[0] is self.sources[1] else OF_THE_TEST
        return row_names(self.private) + row_names(self.held_out, suffix)

    def column(self, argument: str, name: object) -> list[Any]:
        """The values of a column, of private rows first."""
        tables = (self.private, self.held_out)
        return [value for table in tables for value in column_of(table, argument, name)]

    def labels(self, numbers: list[np.ndarray]) -> Tensor:
        """The classes of all rows, private ones first.

        Args: numbers: of all rows of both sources, from `read_labels`.
        """
        # Numbers stand for whole tables: an index picks those of the rows that were kept.
        parts = [
            column[table.index.get_indexer(kept.index)]
            for column, table, kept in zip(numbers, self.sources, (self.private, self.held_out))
        ]
        return torch.from_numpy(np.concatenate(parts))

    def make_task(self, x: Inputs, y: Tensor, **fields: Any) -> Task:
        """The task of these rows.

        Args:
            x, y: their inputs and targets, private ones first.
            fields: of the task, but for its examples.
        """
        count = len(self.private)
        indices = [torch.from_numpy(part) for part in self.places]
        people = self.people
        task = Task(
            clients=tuple((take(x, index), y[index]) for index in indices),
            test=(take(x, slice(count, None)), y[count:]),
            client_names=self.clients,
            persons=None if people is None else tuple(people[part] for part in self.places),
            **fields,
        )
        # Of one table a share is held out, and nothing is compared.
        if task.public_test and self.sources[0] is not self.sources[1]:
            check_public_test(task)
        return task


def _split_by_owner(
    table: "DataFrame", private: "DataFrame", by: str
) -> tuple[partition.Split, tuple[str, ...]]:
    """One client for each value of a column; warns of owners all of whose rows were held out.

    Args:
        table, private, by: the whole table, its private rows, and the column.
    Guarantees: tests/tasks/test_hub.py::test_a_site_that_is_left_without_rows_is_named.
    """
    everyone = [str(owner) for owner in identifiers(table, "by", by)]
    check_spelling(f"by {by!r}", everyone)
    owners = [everyone[place] for place in table.index.get_indexer(private.index)]
    names = sorted(set(owners))
    # They take part in nothing, which nobody would see from the clients that there are.
    absent = sorted(set(everyone) - set(names))
    if absent:
        reason = "no client, since test= held all rows of theirs out"
        warn(f"by={by!r}: {', '.join(absent)}: {reason}")
    return [np.flatnonzero(np.array(owners) == name) for name in names], tuple(names)


def _persons(table: "DataFrame", column: str, suffix: str = "") -> np.ndarray:
    """The persons in a column of whole numbers; refuses rows without one."""
    import pandas as pd

    column_of(table, "person", column)
    cells = table[column]
    # Of a CSV file all cells are texts; words are refused below.
    if pd.api.types.is_string_dtype(cells):
        with suppress(ValueError):
            cells = pd.to_numeric(cells)
    # As the table keeps them: its own numbers know how exact they are.
    numbers = whole_numbers(f"person {column!r}", cells.to_numpy(), row_names(table, suffix))
    return np.array(numbers, dtype=object)


def _hold_out(owner: np.ndarray, share: float, seed: int, counted: str) -> np.ndarray:
    """Whose rows are tested on: (rows,), true for those of a share of the owners.

    Args:
        owner: (rows,) the person of each row, or its number.
        share, seed: of the owners, and of the draw.
        counted: what messages call the owners.
    """
    check_number("test", share, 0, 0.5, open_low=True)
    names, numbers = np.unique(owner, return_inverse=True)
    held_count = max(1, round(share * len(names)))
    expected = f"a share that leaves some of {len(names)} {counted} to train on"
    check(held_count < len(names), "test", share, expected)
    # Of persons, not of their rows: with the rows that one person has others would change sides.
    order = Streams(seed).numpy("hub split").permutation(len(names))
    return np.isin(numbers, order[:held_count])


def _test_table(test: object, splits: "Mapping[str, DataFrame]") -> "DataFrame":
    """The split, data set or file that a task is tested on."""
    # The name of a split comes first: a file of that name may lie anywhere.
    if isinstance(test, str) and test in splits:
        return splits[test]
    is_file = (
        not isinstance(test, str) or Path(test).suffix.lower() in READERS or Path(test).exists()
    )
    names = ", ".join(name for name in splits if name != "train") or "none here"
    expected = f"a share, a data set, a file, or the name of a split: {names}"
    check(is_file, "test", test, expected)
    return read_table(test, "test")


# ---- tables of any kind


def read_table(data: object, name: str, as_written: bool = False) -> "DataFrame":
    """Reads one table, as `read_splits` does; refuses several splits."""
    tables = read_splits(data, name, as_written)
    expected = f"one table; of several splits name one, as {name}=data['validation'] or its folder"
    check(len(tables) == 1, name, sorted(tables), expected)
    return next(iter(tables.values()))


def read_splits(
    dataset: object, name: str = "dataset", as_written: bool = False
) -> "dict[str, DataFrame]":
    """Reads the splits of a data set by name; one called ``train`` where it has none.

    Classes of a `datasets` ClassLabel stand there by name, all of them in the frame's ``attrs``.

    Args:
        dataset, name: what is read, and the argument that gave it.
        as_written: words for an empty cell of a CSV file stay, which differ from none.
    Raises: ``ValueError`` for an empty data set, or something else.
    Guarantees: tests/tasks/test_hub.py::test_files_and_folders_equal_the_frame.
    """
    if isinstance(dataset, Mapping):
        return {str(part): _frame(split, name) for part, split in dataset.items()}
    if not isinstance(dataset, (str, os.PathLike)):
        return {"train": _frame(dataset, name)}
    path = Path(dataset)
    if path.is_dir():
        folders = {part.name: part for part in path.glob("[!.]*/") if part.name != "__MACOSX"}
        splits = {name.lower(): place for name, place in folders.items()}
        is_split = "train" in splits and splits.keys() <= SPLITS
        parts = splits if is_split else {"train": path}
        return {part: _frame(_images(place, name), name) for part, place in parts.items()}
    reader = READERS.get(path.suffix.lower())
    check(reader is not None, name, str(path), DATASET_KINDS)
    expected = f"a file that exists; there is none in {path.parent.resolve()}"
    check(path.is_file(), name, str(path), expected)
    try:
        table = reader(path)  # type: ignore[misc]
    except ImportError:
        refuse(name, str(path), "pyarrow, which reads Parquet: pip install pyarrow")
    except ValueError as error:
        raise ValueError(f"{name}={str(path)!r}: expected a table ({error_text(error)})") from error
    if reader is _csv and not as_written:
        table = table.mask(table.isin(EMPTY))
    return {"train": _frame(table, name)}


def _text(path: Path) -> str:
    """The text of a file in UTF-8, in UTF-16 with its mark, or, with a warning, Windows-1252."""
    raw = path.read_bytes()
    is_wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return raw.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        action = "the file is read as Windows-1252; save it as UTF-8 if it is anything else"
        warn(f"{path}: line {line} is not UTF-8: {action}")
        return raw.decode("cp1252")


def _csv(path: Path) -> "DataFrame":
    """The rows of a CSV file, named by the line on which an editor shows their beginning.

    Guarantees: test_hub.py::test_every_bad_row_of_a_file_is_named_by_its_line.
    """
    import pandas as pd

    text = _text(path)
    # In quotes all of them are letters of a name.
    header_line = re.sub('"[^"]*"', "", text).lstrip("\r\n").partition("\n")[0]
    separator = max(SEPARATORS, key=header_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: dict[int, list[str]] = {}
    last = 0
    try:
        for row in reader:
            if any(row) or (rows and row):
                rows[last + 1] = row
            last = reader.line_num  # a quoted cell may have several lines
    except csv.Error as error:
        raise ValueError(f"line {last + 1}: {error}") from error
    # Spreadsheets leave separators behind the last row.
    last = max((line for line, row in rows.items() if any(row)), default=0)
    if rows and max(rows) > last:
        warn(f"{path}: the rows after line {last} have no value, and are not read")
        rows = {line: row for line, row in rows.items() if line <= last}
    check(bool(rows), "file", "no line", "a header, and at least one row")
    header = [name.strip() for name in rows.pop(min(rows))]
    while header and not header[-1]:  # a separator at the end of each line
        header.pop()
    check(len({*header}) == len(header), "columns", header, "each name once")
    # With a cell more or less than the header all others would stand under wrong names.
    width = len(header)
    bad = {
        f"line {line}": f"{len(row)} cells"
        for line, row in rows.items()
        if len(row) < width or any(row[width:])
    }
    expected = f"{width} in each row, as in the header; quote what has a {separator!r}"
    check_rows("cells", bad, expected)
    # As written: 01 and 1 may be two codes, and 1.10 a version.
    cells = [row[:width] for row in rows.values()]
    frame = pd.DataFrame(cells, pd.Index(rows, name="line"), header, str)
    frame.attrs[SEPARATOR_KEY] = separator
    return frame


def _jsonl(path: Path) -> "DataFrame":
    """The rows of a file with one JSON object on each line, named by their lines."""
    import pandas as pd

    rows = {}
    bad = {}
    for line, text in enumerate(_text(path).split("\n"), 1):
        try:
            if text.strip():
                rows[line] = dict(json.loads(text))
        except (ValueError, TypeError):
            bad[f"line {line}"] = text
    check_rows("rows", bad, "a JSON object on each line")
    # As objects: beside a gap whole numbers would become floating ones, and large ones others.
    return pd.DataFrame(list(rows.values()), index=pd.Index(rows, name="line"), dtype=object)


def _parquet(path: Path) -> "DataFrame":
    import pandas as pd

    return pd.read_parquet(path)


READERS = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
"""Ending of a file's name -> what reads it."""


def _images(folder: Path, name: str) -> "DataFrame":
    """The files of a folder that has a folder of images for each class, named by their places."""
    import pandas as pd

    # Part by part: a folder of a class may be a link, which is followed here alone.
    everything = [f for part in folder.iterdir() for f in (part, *part.rglob("*"))]
    places = {f: str(f.relative_to(folder)) for f in everything if not f.is_dir()}
    files = {f for f in places if not HIDDEN.search(places[f])}
    images = {f for f in files if f.suffix.lower() in IMAGES and f.parent != folder}
    rows = sorted((f.relative_to(folder).parts[0], str(f), places[f]) for f in images)
    folders = {part.name for part in folder.glob("[!.]*/")} - {"__MACOSX"}
    expected = "a folder for each class, with images in it; none may be empty"
    filled = bool(rows) and folders == {label for label, *_ in rows}
    check(filled, name, str(folder), expected)
    if rest := files - images:
        warn(f"{len(rest)} files are no images of a class and are not read, such as {min(rest)}")
    frame = pd.DataFrame(rows, columns=pd.Index(["label", "image", "file"]))
    return frame.set_index("file")


def _frame(data: Any, name: str) -> "DataFrame":
    """A DataFrame, or what can be made one, with rows numbered from 0, or by line or file."""
    import pandas as pd

    frame = data.to_pandas() if hasattr(data, "to_pandas") else data
    if isinstance(data, list) and all(isinstance(row, Mapping) for row in data):
        frame = pd.DataFrame(data)
    check(isinstance(frame, pd.DataFrame), name, type(data).__name__, DATASET_KINDS)
    doubled = frame.columns[frame.columns.duplicated()].tolist()
    check(not doubled, "columns", doubled, "each name once")
    check(len(frame) > 0, name, "0 rows", "at least one row")
    # Messages name rows so; the user's own index may name several rows by one name.
    if frame.index.name not in ("line", "file") or not frame.index.is_unique:
        frame = frame.reset_index(drop=True)
    frame = frame.copy(deep=False)  # the user's own keeps its attributes
    frame.attrs = {SEPARATOR_KEY: frame.attrs.get(SEPARATOR_KEY, ",")}
    for column, feature in (getattr(data, "features", None) or {}).items():
        names = getattr(feature, "names", None)
        if names:  # a ClassLabel, whose numbers mean something in this table only
            frame[column] = frame[column].map(dict(enumerate(names)))
            frame.attrs[column] = tuple(names)
    return frame


# ---- public test rows


def check_public_test(task: Task) -> None:
    """Refuses public test rows that are plainly private rows.

    Scores of public rows are exact, and no epsilon counts them. Two rows are equal if all that the
    model reads is, and the label. Tables are refused where more than half of one are rows of the
    other. Fewer cause a warning without their number, which would tell of private rows. Rows that
    were written differently, such as images that were encoded again, are not found.

    Args: task: whose test rows are said to be public.
    Guarantees: tests/tasks/test_hub.py::test_private_rows_are_no_public_test,
        ::test_the_private_table_is_known_from_any_place.
    """
    # By content: the same rows may come from another file, a copy or a link.
    private = set(_digests(concatenate(task.clients)))
    public = _digests(task.test)
    twins = sum(row in private for row in public)
    shared = max(twins / len(public), len(private.intersection(public)) / len(private))
    expected = (
        "public rows of their own, without those that are private "
        "(texts are compared as the model's tokenizer encodes them)"
    )
    check(shared <= 0.5, "test", f"{twins} of {len(public)} rows equal private rows", expected)
    if twins:
        event = "some rows equal private rows, and their scores would be exact and not protected"
        warn(f"test: {event}: expected {expected}")


def _digests(examples: Examples) -> list[bytes]:
    """A digest of each example: its inputs and its label."""
    tensors = named_tensors(examples).values()
    columns = [x.detach().contiguous().reshape(len(x), -1).view(torch.uint8) for x in tensors]
    rows = zip(*(column.numpy() for column in columns), strict=True)
    return [hashlib.blake2b(b"".join(map(bytes, row)), digest_size=16).digest() for row in rows]
