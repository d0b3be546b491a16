"""What a site does before a federation, and what everybody may see while it runs.

All parties sign off one schema: columns, labels in their order, lengths, tokenizer, encoding. Each
site turns its own table into tensors by it (`prepare`), or is told by line what does not fit. A
cell of the table is private: no message holds one, unless the site itself asks for it.

`status` reads a running federation from what its coordinator may publish, and `status_page` writes
it as a page.
"""

import codecs
import csv
import hashlib
import io
import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from html import escape
from pathlib import Path
from string import Template
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from fedlora_lab._utils.files import parse_json, write_atomically
from fedlora_lab._utils.validation import (
    check,
    check_keys,
    check_one_of,
    check_whole,
)
from fedlora_lab.federated import checkpoint
from fedlora_lab.flower.deployment import write_examples
from fedlora_lab.flower.server import PRESENCE, PRESENCE_KEYS
from fedlora_lab.privacy.ledger import Ledger, Uncertified
from fedlora_lab.tasks import architectures
from fedlora_lab.tasks.metrics import IGNORED
from fedlora_lab.tasks.prompts import Generation, encode_pairs

SCHEMA_FORMAT, SITE_FORMAT = "fedlora-lab schema 1", "fedlora-lab site 1"
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")
"""Cells that hold nothing, unless the schema names others."""
COUNTED_UNITS = ("examples", "persons")
"""What the size of a site is a number of: persons where the schema has a column of them."""
MAX_CELL = 131_072
"""Characters of a cell: the limit of Python's csv module, which is one for the whole process."""


# ---- the schema


@dataclass(frozen=True, kw_only=True)
class Schema:
    """How a table becomes examples: the same for all sites, signed off by all.

    Args:
        text: columns of the texts, one or two (a pair).
        answer: column of what a decoder learns to answer to the one text, its prompt.
        features: in place of ``text``: columns of numbers.
        label: column of the class; ``None`` with one text trains a decoder.
        labels: the allowed labels as they are written; the first is class 0.
        person: column of whom a row is about; identifiers are replaced by numbers of this site.
        split: column that says what a row is for. splits: its allowed values; rows of the first
            are trained on, those of the others go to files of their own.
        tokenizer: a folder beside the schema, or a name. tokenizer_digest: `tokenizer_digest`.
        max_length: tokens of every text; shorter ones are padded.
        too_long: "cut" or "refuse" texts of more tokens.
        encoding, separator, decimal: of the CSV file.
        missing: cells that hold nothing; blanks around a cell do not count.
        on_missing: "refuse" a row with such a cell, or "drop" it and count it.

    >>> Schema(features=("age", "dose"), label="outcome", labels=("no", "yes")).columns
    ('age', 'dose', 'outcome')
    """

    text: tuple[str, ...] = ()
    answer: str | None = None
    features: tuple[str, ...] = ()
    label: str | None = None
    labels: tuple[str, ...] = ()
    person: str | None = None
    split: str | None = None
    splits: tuple[str, ...] = ()
    tokenizer: str | None = None
    tokenizer_digest: str | None = None
    max_length: int | None = None
    too_long: str = "cut"
    encoding: str = "utf-8"
    separator: str = ","
    decimal: str = "."
    missing: tuple[str, ...] = MISSING
    on_missing: str = "refuse"

    def __post_init__(self) -> None:
        for name in ("text", "features", "labels", "splits", "missing"):
            given = getattr(self, name)
            listed = isinstance(given, (list, tuple)) and all(isinstance(x, str) for x in given)
            check(
                listed and len(set(given)) == len(given), name, given, "different texts in a list"
            )
            object.__setattr__(self, name, tuple(given))
        for name in ("answer", "label", "person", "split", "tokenizer", "tokenizer_digest"):
            given = getattr(self, name)
            some = given is None or (isinstance(given, str) and bool(given))
            check(some, name, given, "a name, or nothing")
        one = bool(self.text) != bool(self.features)
        check(one, "text, features", (self.text, self.features), "one of them, columns' names")
        check(len(self.text) <= 2, "text", self.text, "one column, or two of a pair")
        twice = [name for name, count in Counter(self.columns).items() if count > 1]
        check(
            not twice and "" not in self.columns, "columns", twice, "a part for each, by its name"
        )
        decodes = self.label is None and len(self.text) == 1
        without = "none, unless there is one text and no label"
        check(self.answer is None or decodes, "answer", self.answer, without)
        check(decodes or self.label is not None, "label", self.label, "the column of the class")
        enough = len(self.labels) >= 2 if self.label else not self.labels
        check(enough, "labels", self.labels, "two or more where there is a label, else none")
        enough = len(self.splits) >= 1 if self.split else not self.splits
        check(enough, "splits", self.splits, "the values of split, of training first; else none")
        for name in self.splits:
            plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) is not None
            check(plain, "splits", name, "letters, digits and _.- since files are named by it")
        for name in ("labels", "splits"):
            lost = [word for word in getattr(self, name) if self.is_missing(word)]
            check(not lost, name, lost, "none that counts as a missing cell")
        if self.text:
            check(self.tokenizer is not None, "tokenizer", None, "a folder or a name")
            check(self.tokenizer_digest is not None, "tokenizer_digest", None, "its digest")
            check_whole("max_length", self.max_length, 2)
        else:
            free = self.tokenizer is None and self.max_length is None
            check(free, "tokenizer, max_length", self.tokenizer, "none without text")
        check_one_of("too_long", self.too_long, ("cut", "refuse"))
        check_one_of("on_missing", self.on_missing, ("refuse", "drop"))
        check_one_of("separator", self.separator, tuple(SEPARATORS))
        check_one_of("decimal", self.decimal, (".", ","))
        try:
            "a".encode(self.encoding)
        except (LookupError, TypeError, ValueError):
            expected = "one that Python knows, such as utf-8, latin-1 or cp1252"
            check(False, "encoding", self.encoding, expected)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        single = (self.answer, self.label, self.person, self.split)
        return (*self.text, *self.features, *(name for name in single if name is not None))

    @property
    def digest(self) -> str:
        """SHA-256 of all that is said, which parties compare by another way than the file came."""
        said = {one.name: getattr(self, one.name) for one in fields(self)}
        # A field that a later version adds changes no digest while it has its default.
        usual = {one.name: one.default for one in fields(self)}
        content = json.dumps({k: v for k, v in said.items() if v != usual[k]}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def is_missing(self, cell: str) -> bool:
        """Whether a cell holds nothing."""
        return cell.strip() in ("", *self.missing)


def write_schema(path: "str | Path", schema: Schema) -> Path:
    """Writes a schema as JSON; it is public, and its mode follows the umask."""
    content = {"format": SCHEMA_FORMAT, **asdict(schema)}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, text, shared=True)
    return Path(path)


def read_schema(path: "str | Path") -> Schema:
    """Reads a schema. Raises ``ValueError`` in one line that names the file."""
    content = parse_json(_bytes(path, "schema"), f"schema={str(path)!r}")
    known = isinstance(content, dict) and content.pop("format", None) == SCHEMA_FORMAT
    words = f'a file that `fedlora-lab site schema` wrote, with "format": {SCHEMA_FORMAT!r}'
    check(known, "schema", str(path), words)
    names = tuple(one.name for one in fields(Schema))
    try:
        check_keys("schema", content, names)
        return Schema(**content)
    except ValueError as error:
        raise ValueError(f"schema={str(path)!r}: {error}") from None


def _bytes(path: "str | Path", name: str) -> bytes:
    here = Path(path)
    there = f"a file that exists; there is none in {here.parent.resolve()}"
    check(here.exists(), name, str(path), there)
    check(here.is_file(), name, str(path), "a file, this is a folder")
    return here.read_bytes()


def make_schema(sample: "str | Path | None" = None, **options: Any) -> Schema:
    """Makes a schema from its fields and a sample that is public.

    From the sample come, where they are not given, the labels in sorted order, the values of the
    split in order of their first use, and ``max_length``, the longest text's.

    Args:
        sample: a table as of `prepare`. Never a private one: its labels and its longest text
            would stand in a file that everybody gets.
        options: fields of `Schema`.
    Raises: as `prepare`, with cells of the sample in the message.
    """
    options = {name: value for name, value in options.items() if value not in (None, ())}
    wanted = {"labels": "label", "splits": "split", "max_length": "text"}
    open_ones = [new for new, of in wanted.items() if of in options and new not in options]
    if open_ones and sample is None:
        given = f"given, or a public sample to take it from ({', '.join(open_ones)})"
        check(False, open_ones[0], None, given)
    # Two labels and the least length stand for those that the sample is asked for.
    stand_ins: dict[str, Any] = {"labels": ("0", "1"), "splits": ("train",), "max_length": 2}
    tokenizer: Any = None
    bare: Any = None
    if "text" in options:
        check("tokenizer" in options, "tokenizer", None, "a folder or a name, for the texts")
        tokenizer, bare = load_tokenizer(options["tokenizer"], Path())
        options["tokenizer_digest"] = tokenizer_digest(tokenizer)
    draft = Schema(**{name: stand_ins[name] for name in open_ones}, **options)
    if sample is not None:
        problems = _Problems(20, True)
        rows = [row for _, row in _rows(Path(sample), draft, problems)]
        problems.raise_if_any(Path(sample))
        rows = [row for row in rows if not any(map(draft.is_missing, row.values()))]
        check(bool(rows), "sample", str(sample), "a row without missing cells")
        found: dict[str, Any] = {}
        if draft.label:
            found["labels"] = tuple(sorted({row[draft.label] for row in rows}))
        if draft.split:
            found["splits"] = tuple(dict.fromkeys(row[draft.split] for row in rows))
        if draft.text:
            texts = [[row[column] for row in rows] for column in draft.text]
            answers = None if draft.answer is None else [row[draft.answer] for row in rows]
            counts = [count for _, count in _lengths(tokenizer, texts, answers)]
            found["max_length"] = max(2, *counts)
        options |= {name: found[name] for name in open_ones}
    if "text" in options:  # the model may hold fewer tokens
        words = [["word"]] * len(options["text"])
        architectures.tokenize(tokenizer, words, bare, options["max_length"])
    return Schema(**options)


# ---- the tokenizer


def load_tokenizer(source: str, beside: Path) -> tuple[Any, Any]:
    """Reads a tokenizer, and the configuration of the model that lies with it.

    Args:
        source: a folder, from ``beside`` or from here, or a name.
        beside: folder of the schema.
    Returns: the tokenizer and a stand-in for a model that has its configuration and no weights.
    """
    from transformers import AutoConfig

    folders = [folder for folder in (beside / source, Path(source)) if folder.is_dir()]
    place: Any = folders[0] if folders else source
    try:
        with architectures.quiet():
            here = architectures.cached_only(place)
            config: Any = AutoConfig.from_pretrained(place, local_files_only=here)
    except Exception:  # a tokenizer may stand alone; then no model sets a limit
        config = SimpleNamespace()
    bare: Any = SimpleNamespace(config=config)
    return architectures.prepare_tokenizer(place, None, bare), bare


def tokenizer_digest(tokenizer: Any) -> str:
    """Digests all that decides a text's tokens; where its files lie does not count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab()
    if backend is not None:
        every_call = {"truncation": None, "padding": None}  # what a call sets
        rules = {**json.loads(backend.to_str()), **every_call}
    whole = json.dumps([rules, tokenizer.special_tokens_map], sort_keys=True, default=str)
    return hashlib.sha256(whole.encode()).hexdigest()


def _lengths(
    tokenizer: Any, texts: Sequence[list[str]], answers: list[str] | None
) -> list[tuple[int, int]]:
    """Tokens of each row's prompt, 0 without answers, and of all of it."""
    with architectures.ignore_warnings():  # beyond the tokenizer's own limit
        if answers is None:
            return [(0, len(ids)) for ids in tokenizer(*texts, verbose=False)["input_ids"]]
        own = Generation(tokenizer, "", 1)
        pairs = zip(own.encode(texts[0]), own.encode_answers(answers), strict=True)
        return [(len(head), len(head) + len(tail)) for head, tail in pairs]


# ---- a table, line by line


class InvalidTable(ValueError):
    """A table that does not fit its schema.

    Args: path: of the table. lines: the first problems. count: of all problems.
    """

    def __init__(self, path: Path, lines: tuple[str, ...], count: int) -> None:
        more = "" if count == len(lines) else f"; {count - len(lines)} more"
        problems = "1 problem" if count == 1 else f"{count} problems"
        self.head = f"{path.name}: {problems}, nothing is written"
        self.lines, self.count = lines, count
        super().__init__(f"{self.head}: " + "; ".join(lines) + more)


@dataclass
class _Problems:
    """Collects the first problems of a table and counts the others."""

    most: int
    show: bool
    lines: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, place: str, what: str, cell: str | None = None) -> None:
        self.count += 1
        if len(self.lines) < self.most:
            shown = ""
            if self.show and cell is not None:
                shown = f": {cell!r}" if len(cell) <= 40 else f": {cell[:37]!r}..."
            self.lines.append(f"{place}: {what}{shown}")

    def raise_if_any(self, path: Path) -> None:
        if self.count:
            raise InvalidTable(path, tuple(self.lines), self.count)

    def stop(self, path: Path, place: str, what: str) -> NoReturn:
        self.add(place, what)
        raise InvalidTable(path, tuple(self.lines), self.count)


Row = dict[str, str]
NUMBERS = {
    sign: re.compile(rf"[+-]?(\d+([{sign}]\d*)?|[{sign}]\d+)([eE][+-]?\d+)?", re.ASCII)
    for sign in ".,"
}
"""Decimal sign -> the numbers that are written with it."""


def _rows(path: Path, schema: Schema, problems: _Problems) -> Iterator[tuple[str, Row]]:
    """The place and the schema's cells of each row of a CSV or Parquet file."""
    content = _bytes(path, "table")
    if content[:4] == b"PAR1":
        yield from _parquet_rows(path, schema, problems)
        return
    text = _decoded(content, schema.encoding, path, problems)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=schema.separator, strict=True)
    header: list[str] | None = None
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:  # its text names the rule, never a cell
            words = "a quote that is never closed" if "end of data" in str(error) else None
            if "field limit" in str(error):
                words = f"a cell of more than {MAX_CELL:,} characters"
            rule = f"not CSV with the separator {SEPARATORS[schema.separator]} ({error})"
            problems.add(place, words or rule)
            return
        if not cells:
            continue  # an empty line
        if header is None:
            header = cells
            _check_header(path, header, schema, place, problems)
        elif len(cells) != len(header):
            problems.add(place, f"{len(cells)} cells, the header has {len(header)} columns")
        else:
            named = dict(zip(header, cells, strict=True))
            yield place, {name: named[name] for name in schema.columns}
    if header is None:
        problems.stop(path, "line 1", "the file is empty")


def _decoded(content: bytes, encoding: str, path: Path, problems: _Problems) -> str:
    """The text of a file, without the byte order mark that some programs put in front."""
    if content[:4] == b"PK\x03\x04":
        problems.stop(path, "line 1", "a spreadsheet or an archive; export the table as CSV")
    utf8 = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
    if content.startswith(b"\xef\xbb\xbf") and not utf8:
        problems.stop(path, "line 1", f"begins with the mark of utf-8, the schema says {encoding}")
    try:
        text, start = content.decode("utf-8-sig" if utf8 else encoding), None
    except UnicodeError as error:
        text, start = "", error.start if isinstance(error, UnicodeDecodeError) else 0
    if start is not None:  # outside of the handler: that error holds the whole file
        before = content[:start]
        line = before.count(b"\n") + before.replace(b"\r\n", b"\n").count(b"\r") + 1
        words = f"a character that is not {encoding}, the schema's encoding; export the table so"
        problems.stop(path, f"line {line}", words)
    return text


def _check_header(
    path: Path, header: Sequence[str], schema: Schema, place: str, problems: _Problems
) -> None:
    """Refuses a header that lacks a column or has one twice; names no column but the schema's."""
    if len(header) == 1 < len(schema.columns):
        for other, name in SEPARATORS.items():
            if other != schema.separator and other in header[0]:
                said = SEPARATORS[schema.separator]
                words = f"one column; the separator may be the {name}, the schema says {said}"
                problems.stop(path, place, words)
    for column in schema.columns:
        if column in header:
            if list(header).count(column) > 1:
                problems.add(place, f"column {column!r} stands there twice")
            continue
        near = [name for name in header if name.strip().casefold() == column.strip().casefold()]
        hint = "; one differs from it in case or blanks" if near else ""
        problems.add(place, f"no column {column!r} in the header{hint}")
    problems.raise_if_any(path)


def _parquet_rows(path: Path, schema: Schema, problems: _Problems) -> Iterator[tuple[str, Row]]:
    import pandas as pd

    try:
        # Whole numbers beside missing ones stay whole.
        frame: Any = pd.read_parquet(path, dtype_backend="numpy_nullable")
    except ImportError:
        expected = "pyarrow to read Parquet (`pip install pyarrow`), or a CSV file"
        raise ValueError(f"table={str(path)!r}: expected {expected}") from None
    except Exception as error:
        kind = type(error).__name__  # its text may hold cells
        raise ValueError(f"table={str(path)!r}: expected a whole Parquet file ({kind})") from None
    _check_header(path, [str(name) for name in frame.columns], schema, "columns", problems)
    columns = [[_as_cell(x, schema) for x in frame[name].tolist()] for name in schema.columns]
    for number, cells in enumerate(zip(*columns, strict=True), start=1):
        yield f"row {number}", dict(zip(schema.columns, cells, strict=True))


def _as_cell(value: Any, schema: Schema) -> str:
    """A value of Parquet as a CSV file would hold it."""
    import pandas as pd

    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    number = isinstance(value, float)
    return str(value).replace(".", schema.decimal) if number else str(value)


# ---- from rows to examples


@dataclass(frozen=True)
class Prepared:
    """What `prepare` wrote, for the eyes of the site; only `counts` is for the others.

    Args:
        files: what was written. counts: the content of site.json.
        rows: how many are trained on; where the schema has persons, private as the others below.
        labels: label -> rows that are trained on. copies: rows equal to an earlier one.
        dropped: rows left out for a missing cell. cut: texts that were longer than max_length.
        most_of_one_person: the largest number of rows of one person.
    """

    files: tuple[Path, ...]
    counts: dict[str, Any]
    rows: int
    labels: dict[str, int]
    copies: int
    dropped: int
    cut: int
    most_of_one_person: int | None


def prepare(
    table: "str | Path",
    schema: "Schema | str | Path",
    out: "str | Path" = "site.safetensors",
    *,
    tokenizer: "str | Path | None" = None,
    show: bool = False,
    most: int = 20,
    replace: bool = False,
) -> Prepared:
    """Turns a site's own table into the examples that `deployment.client` reads.

    Everything is checked before anything is written. ``out`` gets the examples, and files beside it
    those of other splits. ``<out>.json``, written last, gets the one count that the terms need, and
    that is public by agreement: how many examples there are, or how many persons where the schema
    has a column of them. The number of rows is then private, as labels, copies and the rest are.

    Args:
        table: CSV, or Parquet where pandas can read it.
        schema: or its file, from whose folder the tokenizer is looked for.
        out: ends in .safetensors; all files have mode 0600.
        tokenizer: where its folder lies here; the schema's digest must fit.
        show: whether messages may hold cells, shortened. They are private.
        most: problems that are described; the others are counted.
        replace: whether files of an earlier call are written again.
    Raises: `InvalidTable` for a table that does not fit, ``ValueError`` for other arguments.
    Guarantees: tests/flower/test_site_files.py::test_a_refusal_writes_nothing_and_tells_no_cell,
        ::test_prepared_examples_are_those_of_the_hub,
        ::test_nothing_for_others_tells_how_many_rows_a_person_has.
    """
    table, out = Path(table), Path(out)
    check_whole("most", most, 1)
    check(out.suffix == ".safetensors", "out", str(out), "a name that ends in .safetensors")
    beside = Path() if isinstance(schema, Schema) else Path(schema).parent
    schema = schema if isinstance(schema, Schema) else read_schema(schema)
    parts = {name: out.with_name(f"{out.stem}-{name}.safetensors") for name in schema.splits[1:]}
    parts = {schema.splits[0] if schema.splits else "": out, **parts}
    about = out.with_suffix(".json")
    taken = [str(path) for path in (*parts.values(), about) if path.exists()]
    expected = "no such file; a federation may be running on it (--replace writes it again)"
    check(replace or not taken, "out", ", ".join(taken), expected)

    problems = _Problems(most, show)
    rows, dropped = _checked_rows(table, schema, problems)
    x, y, cut = _tensors(rows, schema, tokenizer or schema.tokenizer, beside, problems)
    _check_persons(rows, schema, problems)
    if not rows and not problems.count:
        problems.add("the table", f"no row to train on ({dropped} with a missing cell)")
    problems.raise_if_any(table)

    named = [row for _, row in rows]
    copies = len(named) - len({tuple(row.values()) for row in named})
    persons = None if schema.person is None else _codes(named, schema.person)
    of_split = {name: torch.arange(len(named)) for name in parts}
    if schema.split is not None:
        numbers = _codes(named, schema.split, schema.splits)
        of_split = {name: (numbers == k).nonzero()[:, 0] for k, name in enumerate(schema.splits)}
    first = next(iter(of_split.values()))
    if not len(first):
        problems.stop(table, "the table", f"no row of the split {schema.splits[0]!r} to train on")

    # Where persons are protected, how many rows one of them has is private, and so is the sum.
    counted, size = COUNTED_UNITS[0], len(first)
    if persons is not None:
        counted, size = COUNTED_UNITS[1], len(persons[first].unique())
    counts = {"format": SITE_FORMAT, "schema": schema.digest, counted: size}
    about.unlink(missing_ok=True)
    written: list[Path] = []
    try:
        for name, part in of_split.items():
            if len(part):
                own = None if persons is None else persons[part].unique(return_inverse=True)[1]
                write_examples(parts[name], (_rows_of(x, part), y[part]), own)
                written.append(parts[name])
        write_atomically(about, json.dumps(counts, indent=1) + "\n")
    except OSError:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    trained = Counter(named[i][schema.label] for i in first.tolist()) if schema.label else {}
    most_rows = None if persons is None else int(persons[first].bincount().max())
    labels = {name: trained.get(name, 0) for name in schema.labels}
    return Prepared((*written, about), counts, len(first), labels, copies, dropped, cut, most_rows)


def _rows_of(x: Any, part: Tensor) -> Any:
    return {key: value[part] for key, value in x.items()} if isinstance(x, dict) else x[part]


def _codes(rows: Sequence[Row], column: str, order: Sequence[str] | None = None) -> Tensor:
    """Each row's place in ``order``, by default that of first appearance, (n,) int64."""
    cells = [row[column] for row in rows]
    places = {cell: k for k, cell in enumerate(order or dict.fromkeys(cells))}
    return torch.tensor([places[cell] for cell in cells], dtype=torch.int64)


def _checked_rows(
    path: Path, schema: Schema, problems: _Problems
) -> tuple[list[tuple[str, Row]], int]:
    """The rows whose cells fit, and how many were dropped; all others are problems."""
    allowed = {schema.label: schema.labels, schema.split: schema.splits}
    kept, dropped = [], 0
    for place, row in _rows(path, schema, problems):
        gaps = [name for name, cell in row.items() if schema.is_missing(cell)]
        if gaps and schema.on_missing == "drop":
            dropped += 1
            continue
        before = problems.count
        for name, cell in row.items():
            where = f"{place}, column {name!r}"
            if name in gaps:
                problems.add(where, "missing; the schema refuses rows with a missing cell")
            elif name in schema.features:
                if (wrong := _wrong_number(cell, schema.decimal)) is not None:
                    problems.add(where, wrong, cell)
            elif name in allowed and cell not in allowed[name]:
                same = cell.strip().casefold() in {one.casefold() for one in allowed[name]}
                hint = "; it differs from one in case or blanks" if same else ""
                problems.add(where, f"not among the {len(allowed[name])} allowed{hint}", cell)
        if problems.count == before:
            if schema.person:
                row[schema.person] = row[schema.person].strip()
            kept.append((place, row))
    return kept, dropped


def _wrong_number(cell: str, decimal: str) -> str | None:
    """Why a cell is no finite number in this notation, or ``None``."""
    if NUMBERS[decimal].fullmatch(cell.strip()) is None:
        other = {".": ",", ",": "."}[decimal]
        told = f"; it has a {other!r}, the schema's decimal sign is {decimal!r}"
        return f"not a number{told if other in cell else ''}"
    large = abs(_number(cell, decimal)) > torch.finfo(torch.float32).max
    return "a number beyond 3.4e38" if large else None


def _number(cell: str, decimal: str) -> float:
    return float(cell.strip().replace(decimal, "."))


def _tensors(
    rows: list[tuple[str, Row]], schema: Schema, source: Any, beside: Path, problems: _Problems
) -> tuple[Any, Tensor, int]:
    """The rows' inputs and targets, and how many texts were cut; what does not fit is a problem.

    Texts have as many tokens at every site, whatever its longest is: `max_length`.
    """
    named, nothing = [row for _, row in rows], ({}, torch.empty(0, dtype=torch.int64), 0)
    y = nothing[1] if schema.label is None else _codes(named, schema.label, schema.labels)
    if schema.features:
        numbers = [[_number(row[c], schema.decimal) for c in schema.features] for row in named]
        return torch.tensor(numbers, dtype=torch.float32), y, 0
    assert schema.max_length is not None
    tokenizer, bare = load_tokenizer(str(source), beside)
    found = tokenizer_digest(tokenizer)
    words = f"{str(schema.tokenizer_digest)[:12]}..., the schema's: another tokenizer or version"
    check(found == schema.tokenizer_digest, "tokenizer", found[:12] + "...", words)
    if not rows:
        return nothing
    texts = [[row[column] for row in named] for column in schema.text]
    answers = None if schema.answer is None else [row[schema.answer] for row in named]
    least = 1 if schema.label is not None else 2
    for (place, _), (prompt, count) in zip(rows, _lengths(tokenizer, texts, answers), strict=True):
        where = f"{place}, column {schema.text[0]!r}"
        if count < least:
            problems.add(where, f"{count} tokens, needs {least}")
        elif count > schema.max_length and schema.too_long == "refuse":
            problems.add(where, f"{count} tokens, max_length is {schema.max_length}")
        elif prompt >= schema.max_length:
            problems.add(where, f"{prompt} tokens leave none of {schema.max_length} to the answer")
    if problems.count:
        return nothing
    try:
        if answers is None:
            x, cut = architectures.tokenize(tokenizer, texts, bare, schema.max_length)
        else:
            own = Generation(tokenizer, schema.text[0], 1)
            x, y, cut = encode_pairs(own, bare, texts[0], answers, schema.max_length)
    except ValueError:  # its text may hold a token of a row
        known = "one whose tokens the model beside it knows, and as many as it holds"
        raise ValueError(f"tokenizer={str(source)!r}: expected {known}") from None
    if schema.label is None and answers is None:  # each token is the next one's target
        y = torch.where(x["attention_mask"].bool(), x["input_ids"], IGNORED)
    width = schema.max_length - x["input_ids"].shape[1]
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    pad = torch.nn.functional.pad
    x = {key: pad(value, (0, width), value=fill.get(key, 0)) for key, value in x.items()}
    return x, y if schema.label is not None else pad(y, (0, width), value=IGNORED), cut


def _check_persons(rows: list[tuple[str, Row]], schema: Schema, problems: _Problems) -> None:
    """Refuses a person with rows in several splits: whoever is trained on is no test."""
    if schema.person is None or schema.split is None:
        return
    of: dict[str, str] = {}
    for place, row in rows:
        person, split = row[schema.person], row[schema.split]
        if of.setdefault(person, split) != split:
            problems.add(f"{place}, column {schema.split!r}", "this person has another split too")


def read_sizes(*paths: "str | Path", unit: str) -> list[int]:
    """The sizes of all sites for the terms, from their site.json files in this order.

    Args: paths: of the files. unit: "person" for numbers of persons, else of examples.
    Raises: ``ValueError`` for another file, and where the schema counts something else, or two
        sites used different schemas.
    """
    counted, sizes, schemas = COUNTED_UNITS[unit == "person"], [], []
    for path in paths:
        counts = parse_json(_bytes(path, "site"), f"site={str(path)!r}")
        known = isinstance(counts, dict) and counts.get("format") == SITE_FORMAT
        check(known, "site", str(path), "a file that `fedlora-lab site prepare` wrote")
        other = "'example' or 'client'" if "examples" in counts else "'person'"
        what = COUNTED_UNITS["examples" not in counts]
        check(counted in counts, "unit", unit, f"{other}: {path} holds a number of {what}")
        check_whole(f"{path}, {counted}", counts[counted], 1)
        schemas.append(counts.get("schema"))
        same = schemas[-1] == schemas[0]
        check(same, "schema", f"{path}: {str(schemas[-1])[:12]}", "that of the other sites")
        sizes.append(counts[counted])
    return sizes


# ---- a running federation, as everybody may see it


class Status(NamedTuple):
    """A running federation in public numbers.

    Args:
        method, unit: of the run; no unit without privacy.
        done, rounds: rounds that are done, and planned, where the coordinator's folder says so.
        sites: how many sites there are.
        present: numbers of the sites whose upload came in the last round (before the first round:
            that are connected); ``None`` where that is not published.
        epsilon, delta: spent so far; ``None`` without privacy.
        certified: whether epsilon is a promise.
        rehearsal: whether the noise comes from a known seed.
        updated: when the server last wrote, in seconds since 1970, by the time of its file.
    """

    method: str | None
    unit: str | None
    done: int
    rounds: int | None
    sites: int | None
    present: tuple[int, ...] | None
    epsilon: float | None
    delta: float | None
    certified: bool
    rehearsal: bool
    updated: float | None

    @property
    def finished(self) -> bool:
        """Whether all planned rounds are done."""
        return self.rounds is not None and self.done >= self.rounds

    def lines(self, now: float) -> list[tuple[str, str]]:
        """Names and values for people. Args: now: seconds since 1970."""
        whole = "" if self.rounds is None else f" of {self.rounds}"
        rows = [("rounds done", f"{self.done}{whole}")]
        if self.sites is not None:
            names = (
                "not published"
                if self.present is None
                else ", ".join(map(str, self.present)) or "none"
            )
            came = "" if self.present is None else f"{len(self.present)} of {self.sites}: "
            rows.append(
                ("sites in the last round" if self.done else "sites connected", came + names)
            )
        if self.epsilon is None:
            rows.append(("ε so far", "none, the run is without privacy"))
        elif not self.certified:
            rows.append(("ε so far", "none, the ledger is not certified"))
        else:
            said = f"{self.epsilon:.3g} at δ = {self.delta:g}, unit {self.unit}"
            note = "; a rehearsal, its noise protects nobody" if self.rehearsal else ""
            rows.append(("ε so far", said + note))
        if self.method is not None:
            rows.append(("method", self.method))
        if self.finished:
            rows.append(("time left", "none, finished"))
        if self.updated is not None:
            rows.append(("last update", f"{_duration(max(now - self.updated, 0))} ago"))
        return rows


def _duration(seconds: float) -> str:
    """A time in its largest unit of which there are two or more."""
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{seconds:.0f} s"


def read_status(out: "str | Path") -> Status:
    """Reads how far a federation is from its coordinator's folder.

    Read are the ledger, the released part of the newest checkpoint and `PRESENCE`; nothing below
    ``private/``, no frame, no score.

    Guarantees: tests/flower/test_site_files.py::test_the_page_holds_nothing_private.
    """
    folder = Path(out)
    check(folder.is_dir(), "out", str(folder), "the folder of a run")
    found: Any = {}
    if (folder / PRESENCE).exists():
        found = parse_json((folder / PRESENCE).read_bytes(), PRESENCE)
        _check_presence(found)
    stored, settings = checkpoint.rounds_in(folder), {}
    for done in reversed(stored):
        try:  # the newest may be on its way to the disk
            _, settings = checkpoint.read_released(folder, done)
            break
        except checkpoint.DamagedCheckpoint:
            continue
    book = folder / checkpoint.LEDGER
    known = bool(stored or found or book.exists())
    check(known, "out", str(folder), "the folder of a run; there is no checkpoint and no ledger")
    ledger = Ledger.load(book) if book.exists() else None
    epsilon, certified = None, True
    if ledger is not None:
        try:
            epsilon = ledger.epsilon()
        except Uncertified:
            epsilon, certified = math.inf, False
    done = max([found.get("done", 0), *stored])
    at, rounds = None, found.get("rounds")
    if found:
        at = (folder / PRESENCE).stat().st_mtime
    elif stored:
        at = (folder / f"round-{stored[-1]:06d}.json").stat().st_mtime
    return Status(
        method=settings.get("method", {}).get("name"),
        unit=None if ledger is None else ledger.unit,
        done=done,
        rounds=rounds,
        sites=found.get("sites"),
        present=None if found.get("there") is None else tuple(found["there"]),
        epsilon=epsilon,
        delta=None if ledger is None else ledger.delta,
        certified=certified,
        rehearsal=ledger is not None and ledger.reproducible,
        updated=at,
    )


def _check_presence(found: Any) -> None:
    """Raises ``ValueError`` for a content that no server wrote."""
    check_keys(PRESENCE, found, PRESENCE_KEYS)
    check(set(found) == set(PRESENCE_KEYS), PRESENCE, sorted(found), ", ".join(PRESENCE_KEYS))
    for name in ("done", "rounds", "sites"):
        check_whole(f"{PRESENCE}, {name}", found[name])
    there = found["there"]
    listed = there is None or (isinstance(there, list) and all(type(k) is int for k in there))
    check(listed, f"{PRESENCE}, there", there, "numbers of sites, or null")


def status_page(now: Status, every: int = 10) -> str:
    """A page without scripts that loads itself again.

    Args: now: what it says. every: seconds between loads; 0 or a finished run: never.
    """
    check_whole("every", every, 0)
    words = (Path(__file__).parent / "status.html").read_text(encoding="utf-8")
    share = 0 if not now.rounds else round(100 * min(now.done / now.rounds, 1))
    again = f'<meta http-equiv="refresh" content="{every}">' if every and not now.finished else ""
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in now.lines(time.time())
    )
    written = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return Template(words).substitute(again=again, share=share, rows=rows, written=written)
