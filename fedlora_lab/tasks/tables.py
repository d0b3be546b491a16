"""The rows of a user's table: read, split into private rows and test rows, dealt to clients."""

import codecs
import csv
import gzip
import io
import json
import os
import re
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedlora_lab._utils.files import unique_keys
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import (
    check,
    check_number,
    check_rows,
    check_whole,
    error_text,
    is_number,
    refuse,
    warn,
)
from fedlora_lab.tasks import partition
from fedlora_lab.tasks.labels import (
    EMPTY_KEY,
    HINT_KEY,
    NAME_OWNERS,
    OF_THE_TEST,
    Identifier,
    check_filled,
    check_spelling,
    column_of,
    identifiers,
    number_in_order,
    owners,
    row_names,
)
from fedlora_lab.tasks.public_rows import FEW_PEOPLE
from fedlora_lab.tasks.task import PUBLIC_ROWS, Inputs, Task, take

if TYPE_CHECKING:
    from pandas import DataFrame

DATASET_KINDS = (
    "a pandas DataFrame, a list of dicts, a `datasets` Dataset or DatasetDict, a file that ends in "
    ".csv, .tsv, .jsonl, .json or .parquet, perhaps packed as .gz, or a folder with a folder for "
    "each class"
)
SEPARATORS = ",;\t|"
"""What may stand between the cells of a CSV file: the one its header has most, outside quotes."""
NO_UTF_8 = re.compile("[\udc80-\udcff]")
BEYOND_ASCII = re.compile("[\x80-\ud7ff\ue000-\U0010ffff]")
EXCEL_SEPARATOR = re.compile(r'\A"?sep=(.)"?\r?\n')
"""A first line by which Excel is told what stands between cells; no header."""
_CSV_LIMIT = threading.Lock()
SEPARATOR_KEY = ("separator",)
"""Key in a frame's ``attrs`` of what stands between the cells of its file; no name of a column."""
FOLDER_KEY = ("folder",)
"""Key in a frame's ``attrs`` of where its file lies."""
EMPTY = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "None", "NULL", "null")
"""What stands in an empty cell of a CSV file."""
LEAST_SHARE = 0.01
"""Share of the public rows that are private ones, below which nothing is told."""
SPLITS = {"train", "validation", "valid", "val", "dev", "test"}
"""Names of splits; a folder whose folders have such names has no classes of these names."""
HIDDEN = re.compile(r"(^|[/\\])(\.|__MACOSX)")
"""Places of files that a system hides, or adds to what it packs."""
IMAGES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
IMAGES |= {".avif", ".dcm", ".heic", ".heif", ".jp2", ".pgm", ".ppm", ".tga"}
"""Endings of files that hold a picture; one that Pillow cannot read is refused by its name."""


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
        classes: Sequence[Identifier] = (),
    ) -> "Rows":
        """Reads a data set, splits it and deals it.

        Args:
            dataset, test, seed, by, person, clients, public_test: as of `hub`. All rows of a person
                are held out together, and go to one client unless ``by`` says where they are.
                Public test rows of persons with private rows are refused.
            columns: argument -> a further column that has to be filled, or something else.
            classes: declared ones, whose names are no empty cells.
        Guarantees: tests/tasks/test_hub.py::test_persons_of_both_tables_are_found,
            ::test_rows_of_one_person_move_nobody_else,
            ::test_a_site_or_person_is_one_name_or_refused.
        """
        check_whole("seed", seed)
        expected = "none with by=, which names the owner of each example"
        check(by is None or clients is None, "clients", clients, expected)
        splits = read_splits(dataset)
        check("train" in splits, "dataset", sorted(splits), "a split called train")
        train = splits["train"]
        check_filled(train, {"person": person, "by": by, **columns}, "", classes)
        persons = [*range(len(train))] if person is None else _owners(train, "person", person)
        # Rows count as persons of one row each where persons are not known.
        owner = np.array(number_in_order(persons))
        is_held = np.zeros(len(train), dtype=bool)
        if isinstance(test, (int, float)):
            is_held = _hold_out(owner, test, seed, "rows" if person is None else "persons")
            held_out = train[is_held]
            sources = train, train
        else:
            held_out = _test_table(test, splits)
            check_filled(held_out, columns, OF_THE_TEST, classes)
            sources = train, held_out
        private = train[~is_held]
        # A score of a person's public row is exact, and tells of the private ones.
        if person is not None and public_test and person in held_out.columns:
            others = _owners(held_out, "person", person, OF_THE_TEST)
            check_spelling(f"person {person!r}", (*persons, *others), NAME_OWNERS)
            private_persons = {persons[place] for place in np.flatnonzero(~is_held)}
            shared = len(private_persons.intersection(others))
            shown = f"{shared} persons of the public test rows have private rows as well"
            expected = (
                "public rows of others, in test=; or, where each table counts its persons from 1, "
                "numbers that differ"
            )
            check(not shared, f"person {person!r}", shown, expected)
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
        return [value for table in tables for value in values_of(table, argument, name)]

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
    everyone = [str(site) for site in _owners(table, "by", by)]
    sites = [everyone[place] for place in table.index.get_indexer(private.index)]
    names = sorted(set(sites))
    # They take part in nothing, which nobody would see from the clients that there are.
    absent = sorted(set(everyone) - set(names))
    if absent:
        event = f"test= holds out all rows of {', '.join(absent)}"
        warn(f"by={by!r}: {event}, so there is no such client")
    return [np.flatnonzero(np.array(sites) == name) for name in names], tuple(names)


def _owners(table: "DataFrame", argument: str, column: str, suffix: str = "") -> list[Identifier]:
    """The sites or persons in a column; refuses rows without one."""
    return owners(f"{argument} {column!r}", identifiers(table, argument, column, suffix))


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
    is_file = not isinstance(test, str) or _kind(Path(test)) in READERS or Path(test).exists()
    names = ", ".join(name for name in splits if name != "train") or "none here"
    expected = f"a share, a data set, a file, or the name of a split: {names}"
    check(is_file, "test", test, expected)
    return read_table(test, "test")


# ---- tables of any kind


def read_table(data: object, name: str) -> "DataFrame":
    """Reads one table, as `read_splits` does; refuses several splits."""
    tables = read_splits(data, name)
    expected = f"one table; of several splits name one, as {name}=data['validation'] or its folder"
    check(len(tables) == 1, name, sorted(tables), expected)
    return next(iter(tables.values()))


def read_splits(dataset: object, name: str = "dataset") -> "dict[str, DataFrame]":
    """Reads the splits of a data set by name; one called ``train`` where it has none.

    Cells stay as they are written; what stands for an empty cell of a CSV file is in the frame's
    ``attrs``. Classes of a `datasets` ClassLabel stand there by name, all of them in the ``attrs``.

    Args: dataset, name: what is read, and the argument that gave it.
    Raises: ``ValueError`` for an empty data set, or something else.
    Guarantees: tests/tasks/test_hub.py::test_files_and_folders_equal_the_frame,
        ::test_a_reader_keeps_or_refuses_what_a_file_holds.
    """
    if isinstance(dataset, Mapping):
        return {str(part): _frame(split, name) for part, split in dataset.items()}
    if not isinstance(dataset, (str, os.PathLike)):
        return {"train": _frame(dataset, name)}
    path = Path(dataset)
    expected = f"a file that exists, or a folder; there is none in {path.parent.resolve()}"
    # An empty name would be the folder that the process works in.
    check(bool(str(dataset)) and os.path.lexists(path), name, str(dataset), expected)
    if path.is_dir():
        folders = {part.name: part for part in path.glob("[!.]*/") if part.name != "__MACOSX"}
        splits = {name.lower(): place for name, place in folders.items()}
        is_split = "train" in splits and splits.keys() <= SPLITS
        parts = splits if is_split else {"train": path}
        return {part: _frame(_images(place, name), name) for part, place in parts.items()}
    reader = READERS.get(_kind(path))
    check(reader is not None and path.is_file(), name, str(path), DATASET_KINDS)
    try:
        table = reader(path)  # type: ignore[misc]
    except ImportError:
        refuse(name, str(path), "pyarrow, which reads Parquet: pip install pyarrow")
    except (ValueError, EOFError, RecursionError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{name}={str(path)!r}: expected a table ({error_text(error)})") from error
    table.attrs[FOLDER_KEY] = str(path.parent)
    return {"train": _frame(table, name)}


def values_of(frame: "DataFrame", argument: str, name: object) -> list[Any]:
    """The values of a column; files of images are sought beside the file of their table first.

    Args: frame, argument, name: as of `column_of`; files are those of the argument "image".
    """
    values = column_of(frame, argument, name)
    folder = frame.attrs.get(FOLDER_KEY)
    if argument != "image" or folder is None:
        return values
    return [_beside(Path(folder), value) for value in values]


def _beside(folder: Path, value: Any) -> Any:
    """The file of an image in a folder, where it is there; else what was given."""
    if isinstance(value, Mapping) and not value.get("bytes"):  # an image column of `datasets`
        return {**value, "path": _beside(folder, value.get("path"))}
    is_there = isinstance(value, str) and value and (folder / value).is_file()
    return str(folder / value) if is_there else value


def _kind(path: Path) -> str:
    """The ending of a file's name that tells what is in it, packed or not."""
    inner = Path(path.stem) if path.suffix.lower() == ".gz" else path
    return inner.suffix.lower()


def _text(path: Path) -> str:
    """The text of a file in UTF-8, in UTF-16 with its mark, or, with a warning, Windows-1252.

    What is broken in it stays as half letters, whose rows are refused by name.

    Raises: ``ValueError`` for a text in UTF-16 without its mark, or for no text.
    """
    raw = path.read_bytes()
    if path.suffix.lower() == ".gz":
        raw = gzip.decompress(raw)
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = raw.decode("utf-16", errors="surrogatepass")
    else:
        text = raw.decode("utf-8-sig", errors="surrogateescape")
        # A file that has letters of UTF-8 as well is damaged, and in no older code.
        if NO_UTF_8.search(text) and not BEYOND_ASCII.search(text):
            # Without the line, which would tell of a private row.
            warn(f"{path} is not UTF-8: it is read as Windows-1252; save it as UTF-8 if it is not")
            text = raw.decode("cp1252")
    before, nothing, _ = text.partition("\0")
    line = before.count("\n") + 1
    expected = "a text in UTF-8, or in UTF-16 with its mark at the start: save the file as UTF-8"
    check(not nothing, "letter", f"NUL in line {line}", expected)
    return text


def _csv(path: Path) -> "DataFrame":
    """The rows of a CSV file, named by the line on which an editor shows their beginning.

    Guarantees: test_hub.py::test_every_bad_row_of_a_file_is_named_by_its_line.
    """
    import pandas as pd

    text = _text(path)
    separator = _separator(path, text)
    rows = _csv_rows(text, separator)
    # Spreadsheets leave separators behind the last row.
    last = max((line for line, row in rows.items() if any(row)), default=0)
    if rows and max(rows) > last:
        # Without their place, which would tell how many rows there are.
        warn(f"{path}: the rows at its end that have no value are not read")
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
    frame.attrs = {SEPARATOR_KEY: separator, EMPTY_KEY: EMPTY}
    return frame


def _separator(path: Path, text: str) -> str:
    """What stands between the cells of a file."""
    if declared := EXCEL_SEPARATOR.match(text):
        return declared[1]
    # In quotes all of them are letters of a name.
    header_line = re.sub('"[^"]*"', "", text).lstrip("\r\n").partition("\n")[0]
    allowed = "\t" if _kind(path) == ".tsv" else SEPARATORS
    return max(allowed, key=header_line.count)


def _csv_rows(text: str, separator: str) -> dict[int, list[str]]:
    """The cells of each row, by the line on which it begins."""
    # The first line stays as an empty one, so that all others have their numbers.
    text = EXCEL_SEPARATOR.sub("\n", text, count=1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: dict[int, list[str]] = {}
    last = 0
    # The limit of a cell is one of the whole process, which gets its own back.
    with _CSV_LIMIT:
        limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
        try:
            for row in reader:
                if any(row) or (rows and row):
                    rows[last + 1] = row
                last = reader.line_num  # a quoted cell may have several lines
        except csv.Error as error:
            raise ValueError(f"line {last + 1}: {error}") from error
        finally:
            csv.field_size_limit(limit)
    return rows


def _jsonl(path: Path) -> "DataFrame":
    """The rows of a file with one JSON object on each line, named by their lines."""
    rows: dict[int, object] = {}
    bad = {}
    for line, text in enumerate(_text(path).split("\n"), 1):
        try:
            if text.strip():
                rows[line] = json.loads(text, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            bad[f"line {line}"] = f"{text[:40]} ({error_text(error, 40)})"
    return _json_table(rows, "line", bad)


def _json(path: Path) -> "DataFrame":
    """The rows of a file with a JSON array of objects; else with one on each line."""
    text = _text(path)
    if not text.lstrip().startswith("["):
        return _jsonl(path)
    return _json_table(dict(enumerate(json.loads(text, object_pairs_hook=unique_keys))), "row", {})


def _json_table(rows: Mapping[int, object], name: str, bad: Mapping[str, object]) -> "DataFrame":
    """A table of JSON objects, in which lists and objects stay as they are.

    Args: rows: place -> what was read there. name: of the places. bad: what could not be read.
    """
    import pandas as pd

    no_object = {f"{name} {i}": row for i, row in rows.items() if not isinstance(row, dict)}
    check_rows("rows", {**bad, **no_object}, "a JSON object in each, with each key once")
    # As objects: beside a gap whole numbers would become floating ones, and large ones others.
    return pd.DataFrame(list(rows.values()), index=pd.Index(rows, name=name), dtype=object)


def _parquet(path: Path) -> "DataFrame":
    import pandas as pd

    return pd.read_parquet(path)


READERS = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
}
"""Ending of a file's name -> what reads it."""


def _images(folder: Path, name: str) -> "DataFrame":
    """The images of a folder, named by their places, with the folders that they lie in.

    One folder is the label. Of several, outermost first, somebody has to say which one it is.
    """
    import pandas as pd

    # Part by part: a folder of a class may be a link, which is followed here alone.
    everything = [f for part in folder.iterdir() for f in (part, *part.rglob("*"))]
    places = {f: f.relative_to(folder) for f in everything if not f.is_dir()}
    files = {f: place for f, place in places.items() if not HIDDEN.search(str(place))}
    pictures = {f: place for f, place in files.items() if f.suffix.lower() in IMAGES}
    folders = {part.name for part in folder.glob("[!.]*/")} - {"__MACOSX"}
    if folders:  # a picture beside the folders belongs to none
        pictures = {f: place for f, place in pictures.items() if len(place.parts) > 1}
    empty = folders - {place.parts[0] for place in pictures.values()}
    expected = "images, or a folder for each class with images in it; none may be empty"
    check(bool(pictures) and not empty, name, str(folder / min(empty, default="")), expected)
    if rest := files.keys() - pictures.keys():
        warn(f"{len(rest)} files are no images of a class and are not read, such as {min(rest)}")
    by_depth = {len(place.parts) - 1: str(place) for place in pictures.values()}
    expected = "all images equally deep in folders"
    check(len(by_depth) == 1, name, [*by_depth.values()], expected)
    (depth,) = by_depth
    names = ["label"] if depth == 1 else [f"folder_{level}" for level in range(1, depth + 1)]
    rows = sorted(
        (*map(str, place.parts[:-1]), str(file), str(place)) for file, place in pictures.items()
    )
    frame = pd.DataFrame(rows, columns=pd.Index([*names, "image", "file"])).set_index("file")
    if depth == 0:
        frame.attrs[HINT_KEY] = "; classes are folders here, with the images of each"
    if depth > 1:
        example = by_depth[depth]
        frame.attrs[HINT_KEY] = (
            f"; {example} lies in {depth} folders: label='folder_{depth}', by='folder_1' if the "
            "outer ones are sites, and label='folder_1' if they are the classes"
        )
    return frame


def _frame(data: Any, name: str) -> "DataFrame":
    """A DataFrame, or what can be made one, with rows numbered from 0, or by line or file."""
    import pandas as pd

    frame = _as_pandas(data)
    check(isinstance(frame, pd.DataFrame), name, type(data).__name__, DATASET_KINDS)
    doubled = frame.columns[frame.columns.duplicated()].tolist()
    check(not doubled, "columns", doubled, "each name once")
    check(len(frame) > 0, name, "0 rows", "at least one row")
    # Messages name rows so; the user's own index may name several rows by one name.
    if frame.index.name not in ("line", "file") or not frame.index.is_unique:
        frame = frame.reset_index(drop=True)
    frame = frame.copy(deep=False)  # the user's own keeps its attributes
    own = {key: frame.attrs[key] for key in (EMPTY_KEY, HINT_KEY, FOLDER_KEY) if key in frame.attrs}
    frame.attrs = {SEPARATOR_KEY: frame.attrs.get(SEPARATOR_KEY, ","), **own}
    # Arrow's lists come as arrays, such as the messages of a chat.
    for column, cells in frame.items():
        if cells.dtype == object:  # and stays so: whole numbers beside a gap would become floats
            lists: list[Any] = [_as_list(cell) for cell in cells]
            frame[column] = pd.Series(lists, cells.index, object)
    for column, feature in (getattr(data, "features", None) or {}).items():
        names = getattr(feature, "names", None)
        # A ClassLabel, whose numbers mean something in this table only; what a transform made of
        # them stays.
        if names and column in frame and frame[column].map(is_number).any():
            name_of: dict[float, str] = dict(enumerate(names))
            frame[column] = [name_of.get(float(x)) if is_number(x) else x for x in frame[column]]
            frame.attrs[column] = tuple(names)
    return frame


def _as_pandas(data: Any) -> Any:
    """A frame of what has rows; of `datasets` as the data set's own transform shows them."""
    import pandas as pd

    form = getattr(data, "format", None)
    features = getattr(data, "features", None) or {}
    is_custom = isinstance(form, Mapping) and form.get("type") == "custom"
    # A transform may leave names out, and a feature turn its images into grey.
    if is_custom or any(getattr(feature, "mode", None) for feature in features.values()):
        data = [*data]
    if isinstance(data, list) and all(isinstance(row, Mapping) for row in data):
        return pd.DataFrame(data, dtype=object)
    if not hasattr(data, "to_pandas"):
        return data
    frame = data.to_pandas()
    if isinstance(form, Mapping) and not form.get("output_all_columns"):
        return frame[form["columns"]]  # those that it hides stay hidden
    return frame


def _as_list(value: object) -> object:
    """A list in place of an array of objects, also of those inside."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [_as_list(part) for part in value]
    return value


# ---- public test rows


def check_public_test(task: Task) -> None:
    """Refuses public test rows that are plainly private rows, also few of them.

    See `Task.check_public`, which a private run of any task asks. Of a table fewer rows cause a
    warning without their number, which would tell of private rows.

    Args: task: whose test rows are said to be public.
    Guarantees: tests/tasks/test_hub.py::test_private_rows_are_no_public_test,
        ::test_the_private_table_is_known_from_any_place,
        ::test_nothing_tells_whether_one_person_s_rows_are_public.
    """
    task.check_public(least_people=2)
    shared = task.shared_rows["test"]
    if shared.twins > LEAST_SHARE * shared.rows and shared.people >= FEW_PEOPLE:
        event = "some rows equal private rows, and their scores would be exact and not protected"
        warn(f"test: {event}: expected {PUBLIC_ROWS}")
