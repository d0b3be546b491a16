"""Your own Hugging Face model on your own data, as a task."""

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.tasks import architectures, partition
from fedlora_lab.tasks import task as tasks
from fedlora_lab.tasks.metrics import (
    IGNORED,
    Metric,
    cross_entropy,
    next_token_loss,
    select_metrics,
)

if TYPE_CHECKING:
    from pandas import DataFrame

OWN_HEAD = "the model's classifier"
DATASET_KINDS = (
    "a pandas DataFrame, a list of dicts, a `datasets` Dataset or DatasetDict, a CSV or JSONL "
    "file, or a folder with a folder for each class"
)
MOST_CLASSES = 1000
"""From here on a largest whole number must be near how many there are: it may be an identifier."""
EMPTY_CELLS = "; in a CSV file NA, None and null count as empty cells"
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


def hub(
    model: Any,
    dataset: Any,
    *,
    text: str | Sequence[str] | None = None,
    image: str | None = None,
    label: str | None = None,
    clients: int | None = None,
    by: str | None = None,
    person: str | None = None,
    alpha: float | None = None,
    shares: Sequence[Sequence[float]] | None = None,
    seed: int = 0,
    min_size: int = 1,
    test: Any = 0.2,
    targets: Sequence[str] | None = None,
    head: str | Sequence[str] | None = OWN_HEAD,
    tokenizer: Any = None,
    max_length: int | None = None,
    limit: int | None = None,
    metrics: Sequence[str] | Mapping[str, Metric] = ("accuracy",),
    public_test: bool = False,
    name: str = "hub",
) -> tasks.Task:
    """Builds a task of a Hugging Face model and a data set of texts or images.

    ``text=`` and ``label=`` train a sequence classifier, ``image=`` and ``label=`` an image
    classifier, ``text=`` alone a decoder, whose loss is the mean over each text's own tokens.
    In a private run accuracy and loss are NaN unless the test examples are declared public: they
    are exact numbers that no budget covers.

    Args:
        model: a name, a local folder, or a module, which is copied. Read from safetensors, never
            with code from the repository.
        dataset: a DataFrame, a list of dicts, a `datasets` Dataset or DatasetDict, a CSV or JSONL
            file, or a folder with a folder of images for each class (columns ``image`` and
            ``label``). Of several splits ``train`` is the private one.
        text: column of the texts, or two columns of pairs.
        image: column of the images.
        label: column of the classes, whole numbers or words.
        clients: number of clients without ``by``; 10 by default.
        by: column with the owner of each example: one client for each value.
        person: column with the person of each example, for ``Privacy(unit="person")``. Without
            ``by`` all examples of a person go to one client, as their first label says; a share
            for ``test`` holds out whole persons.
        alpha: without ``by``: concentration of the split by label, > 0; ``None``: at random.
        shares: in place of ``alpha``: a row for each client of its share of each class, in sorted
            order, see `partition.label_shares`.
        seed: of the split, the limit and a new classifier; a whole number >= 0.
        min_size: smallest number of examples of a client.
        test: share held out at random, in (0, 0.5]; the name of a split; or another data set or
            file.
        targets: linear maps that get adapters; default: the attention's query and value maps.
        head: names of modules trained in full, or ``None``; default: the classifier, which is all
            that Transformers puts behind the base.
        tokenizer: where there is none beside the model.
        max_length: tokens kept of a text; ``None`` keeps all that the model can hold.
        limit: private examples used, drawn at random; ``None``: all.
        metrics: names in `fl.tasks.METRICS`, ``["accuracy", "f1", "auc"]`` of classes or
            ``["perplexity"]`` of a decoder, or a mapping; the loss is reported in any case.
        public_test: the test examples are public, so private runs may report their metrics.
        name: short name of the task.
    Raises: ``ValueError`` in one line for what does not fit: columns, labels, targets, texts that
        are too long, a model that cannot be read or that mixes the examples of a batch.
    Guarantees: tests/lora/test_gradients.py::test_equals_batches_of_one,
        tests/tasks/test_hub.py::test_bad_calls_are_one_line.
    """
    check_whole("seed", seed)
    for option, value in {"min_size": min_size, "limit": limit, "clients": clients}.items():
        check_whole(option, 1 if value is None else value, 1)
    one = (text is None) != (image is None)
    check(one, "text, image", (text, image), "one of them, a column's name")
    labelled = image is None or label is not None
    check(labelled, "label", label, "a column's name: images are classified")
    kind = "image" if image is not None else "text" if label is not None else "causal"
    private, held_out, both = split_rows(dataset, test, limit, seed, person)
    people = people_of(private, held_out, person, public_test)
    count, places = len(private), row_names(private, held_out, both)

    ys, names, classes = [], None, 0
    if label is not None:
        # All rows decide the classes, also those that a limit leaves out.
        values = [value for frame in both for value in column_of(frame, "label", label)]
        numbers, names = class_numbers(values, both[0].attrs.get(label), label)
        classes = int(numbers.max()) + 1 if names is None else len(names)
        rows = private.index, held_out.index + len(both[0])
        ys = [torch.from_numpy(numbers[np.asarray(part)]) for part in rows]
    base, new = architectures.load(model, kind, classes, seed)
    if kind == "image":
        parts = [(column_of(private, "image", image), places[:count])]
        parts += [(column_of(held_out, "image", image), places[count:])]
        inputs = [architectures.scale_images(part, base, model, where) for part, where in parts]
        cut = 0
    else:
        columns = [text] if isinstance(text, str) else list(text or ())
        check(1 <= len(columns) <= 2, "text", text, "the name of a column, or two of them")
        code = architectures.prepare_tokenizer(model, tokenizer, base)
        # One call for both parts: they must have one width.
        texts = [column_of(private, "text", c) + column_of(held_out, "text", c) for c in columns]
        x, cut = architectures.tokenize(code, texts, base, max_length, places)
        inputs = [tasks.take(x, part) for part in (slice(count), slice(count, None))]
    ys = ys or [_next_tokens(inputs[0], places), _next_tokens(inputs[1], places[count:])]

    client_names: tuple[str, ...] = ()
    if by is None:
        expected = "none without label=: the examples are dealt by label"
        for option, value in (("alpha", alpha), ("shares", shares)):
            check(value is None or label is not None, option, value, expected)
        # A person is dealt like an example with the label of the person's first one.
        first, number = first_rows(people, len(private))
        labels = ys[0][torch.from_numpy(first)]
        if shares is None:
            split = partition.dirichlet(labels, clients or 10, alpha, seed, min_size)
        else:
            check(alpha is None, "alpha", alpha, "none with shares=")
            fits = clients in (None, len(shares))
            check(fits, "clients", clients, f"None or {len(shares)}, as shares= has rows")
            split = partition.label_shares(labels, shares, seed, min_size)
        split = rows_of(split, number)
    else:
        expected = "none with by=, which names the owner of each example"
        check(clients is None and alpha is None, "clients, alpha", (clients, alpha), expected)
        check(shares is None, "shares", shares, expected)
        split, client_names = split_by(private, both[0], by, min_size)
    causal = kind == "causal"
    own_head = None if causal else architectures.default_head(base)
    task = tasks.Task(
        name=name,
        model=base,
        targets=architectures.default_targets(base) if targets is None else tuple(targets),
        clients=tuple((tasks.take(inputs[0], i), ys[0][i]) for i in map(torch.from_numpy, split)),
        test=(inputs[1], ys[1]),
        head=own_head if head == OWN_HEAD else head,
        loss=next_token_loss if causal else cross_entropy,
        metrics=select_metrics(metrics, "causal" if causal else "classification"),
        labels=names,
        client_names=client_names,
        prepare=architectures.trim_padding if kind != "image" else None,
        info={"task": name, "model": type(base).__name__, "kind": kind, "texts cut": cut}
        | {"new": None if isinstance(model, nn.Module) else list(new)},
        public_test=public_test,
        new_modules=new,
        persons=None if people is None else tuple(people[part].tolist() for part in split),
    )
    return task if causal else tasks.check_classes(task)


def _next_tokens(x: Any, places: Sequence[str]) -> torch.Tensor:
    """Targets of a causal model, (n, tokens): the token itself, `IGNORED` for padding."""
    short = x["attention_mask"].sum(1) < 2
    value = f"row {places[int(short.int().argmax())]} has one token"
    check(not bool(short.any()), "text", value, "at least two in every row")
    return torch.where(x["attention_mask"].bool(), x["input_ids"], IGNORED)


# ---- tables of any kind


def read_splits(dataset: Any) -> dict[str, "DataFrame"]:
    """Reads the splits of a data set by name; one called ``train`` where it has none.

    Names of classes that the data set knows stand in the frame's ``attrs``, by column.

    Raises: ``ValueError`` for an empty data set, or something else.
    Guarantees: tests/tasks/test_hub.py::test_files_and_folders_equal_the_frame.
    """

    if isinstance(dataset, Mapping):
        return {str(name): _frame(split) for name, split in dataset.items()}
    if not isinstance(dataset, (str, os.PathLike)):
        return {"train": _frame(dataset)}
    path = Path(dataset)
    if not path.is_dir():
        kind = path.suffix.lower()
        gone = kind in (".csv", ".jsonl") and not path.exists()
        words = f"a file that exists; there is none in {path.parent.resolve()}"
        check(not gone, "dataset", str(path), words)
        check(path.is_file() and kind in (".csv", ".jsonl"), "dataset", str(path), DATASET_KINDS)
        return {"train": _frame(_csv(path) if kind == ".csv" else _json_lines(path))}
    parts = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    has_splits = any(part.name == "train" for part in parts)
    return {p.name: _images(p) for p in parts} if has_splits else {"train": _images(path)}


def _csv(path: Path) -> "DataFrame":
    """The table of a CSV file."""
    import pandas as pd

    words = "a CSV file in UTF-8, with a header and as many cells in each row"
    try:
        header = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0].dropna()
        frame = pd.read_csv(path)
    except ValueError as error:  # those of pandas' parser and of UTF-8 are ValueErrors
        reason = " ".join(str(error).split())
        raise ValueError(f"dataset={str(path)!r}: expected {words} ({reason})") from error
    # pandas renames a column that is there twice, and takes the first column for the rows' names
    # where every row has a cell more than the header: the others would stand under wrong names.
    check(not header.duplicated().any(), "columns", header.tolist(), "each name once")
    shifted = not isinstance(frame.index, pd.RangeIndex)
    check(not shifted, "dataset", str(path), f"{words}; here rows have more cells than the header")
    return frame


def _json_lines(path: Path) -> list[Any]:
    """The rows of a file that has one as JSON in each line; empty lines are none."""
    rows = []
    try:
        text = path.read_text(encoding="utf-8-sig")  # with the mark of order or without, as a CSV
    except UnicodeDecodeError as error:
        raise ValueError(f"dataset={str(path)!r}: expected JSONL in UTF-8 ({error})") from error
    for number, line in enumerate(text.split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            words = f"dataset={str(path)!r}: expected JSON in line {number}, but: {error}"
            raise ValueError(words) from error
    return rows


def _images(folder: Path) -> "DataFrame":
    """The files of a folder that has a folder of images for each class."""
    import pandas as pd

    files = [f for f in folder.glob("[!.]*/**/*") if f.suffix.lower() in IMAGES]
    rows = sorted((f.relative_to(folder).parts[0], str(f)) for f in files)
    check(bool(rows), "dataset", str(folder), "a folder for each class, with images in it")
    return pd.DataFrame(rows, columns=pd.Index(["label", "image"]))


def _frame(data: Any) -> "DataFrame":
    """A DataFrame, or what can be made one, with rows numbered from 0."""
    import pandas as pd

    frame = data.to_pandas() if hasattr(data, "to_pandas") else data
    if isinstance(data, list | tuple) and all(isinstance(row, Mapping) for row in data):
        frame = pd.DataFrame(list(data))
    check(hasattr(frame, "columns"), "dataset", type(data).__name__, DATASET_KINDS)
    levels = frame.columns.nlevels
    check(levels == 1, "columns", f"{levels} levels of names", "one name for each column")
    twice = frame.columns[frame.columns.duplicated()].tolist()
    check(not twice, "columns", twice, "each name once")
    check(len(frame) > 0, "dataset", "0 rows", "at least one row")
    frame = frame.reset_index(drop=True)
    features = getattr(data, "features", None) or {}
    known = {name: getattr(feature, "names", None) for name, feature in features.items()}
    frame.attrs = {name: tuple(words) for name, words in known.items() if words}
    return frame


def column_of(frame: "DataFrame", argument: str, name: Any) -> list[Any]:
    """The values of a column.

    Args:
        frame, name: the table and the column.
        argument: where its name was given.
    Raises: ``ValueError`` with the columns that there are.
    """
    known = isinstance(name, str) and name in frame.columns
    check(known, argument, name, "a column: " + ", ".join(map(str, frame.columns)))
    return frame[name].tolist()


def split_by(
    private: "DataFrame", train: "DataFrame", by: str, min_size: int
) -> tuple[partition.Split, tuple[str, ...]]:
    """One client for each value of a column: places in ``private``, and the values in order.

    Warns of owners all of whose rows were held out or left out: they are no clients.

    Args:
        private: the rows to train on.
        train: all rows that they come from.
        by: the column.
        min_size: smallest number of examples of a client.
    Guarantees: tests/tasks/test_hub.py::test_a_site_that_is_left_without_rows_is_named.
    """
    import pandas as pd

    owners, everyone = (column_of(rows, "by", by) for rows in (private, train))
    empty = np.asarray(pd.isna(pd.Series(everyone, dtype=object)))
    gap = f"nothing in row {int(empty.argmax())}"
    check(not empty.any(), f"by {by!r}", gap, "an owner in every row" + EMPTY_CELLS)
    owners = [str(value) for value in owners]
    names, split = sorted(set(owners)), partition.by_group(owners)
    if gone := sorted(set(map(str, everyone)) - set(names)):
        rest = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
        words = "no client, since test= held all rows of theirs out, or limit= left them out"
        warnings.warn(f"by={by!r}: {', '.join(gone[:5])}{rest}: {words}", stacklevel=3)
    smallest = min(len(part) for part in split)
    room = f"at most {smallest}, the smallest client's of by="
    check(smallest >= min_size, "min_size", min_size, room)
    return split, tuple(names)


def people_of(
    private: "DataFrame", held_out: "DataFrame", person: str | None, public_test: bool
) -> "np.ndarray | None":
    """The person of each private row, as words; ``None`` without a column.

    Args:
        private, held_out: the rows to train on, and those to test on.
        person: the column.
        public_test: of the task; refused where persons of the test rows have private rows too.
    """
    if person is None:
        return None
    people = _people(private, person)
    if public_test and person in held_out.columns:
        twice = len(set(people) & set(_people(held_out, person)))
        expected = f"False: {twice} persons of the test examples have private examples as well"
        check(not twice, "public_test", True, expected)
    return people


def _people(frame: "DataFrame", column: str) -> np.ndarray:
    """The person of each row, as words; refuses rows without one."""
    values = column_of(frame, "person", column)
    none = frame[column].isna().to_numpy()
    row = int(none.argmax())
    check(
        not none.any(),
        f"person {column!r}",
        f"nothing in row {row}",
        "a person in every row" + EMPTY_CELLS,
    )
    return np.asarray([str(value) for value in values])


def first_rows(people: "np.ndarray | None", count: int) -> "tuple[np.ndarray, np.ndarray]":
    """A row of each person, and the number of the person of each row; every row's own without.

    Args: people: as `people_of` gives them. count: of the rows.
    """
    own = np.arange(count) if people is None else people
    _, first, number = np.unique(own, return_index=True, return_inverse=True)
    return first, number


def rows_of(split: partition.Split, number: np.ndarray) -> partition.Split:
    """A split of persons as one of their rows.

    Args: split: numbers of persons. number: that of each row, as `first_rows` gives them.
    """
    return [np.flatnonzero(np.isin(number, part)) for part in split]


def row_names(
    private: "DataFrame", held_out: "DataFrame", both: tuple["DataFrame", "DataFrame"]
) -> list[str]:
    """What messages call each row: its place, from 0, in the table that it was given in.

    Args: private, held_out, both: as `split_rows` returns them.
    """
    suffix = "" if both[0] is both[1] else " of the test data"
    return [*map(str, private.index), *(f"{row}{suffix}" for row in held_out.index)]


def split_rows(
    dataset: Any, test: Any, limit: int | None, seed: int, person: str | None = None
) -> tuple["DataFrame", "DataFrame", tuple["DataFrame", "DataFrame"]]:
    """The private rows, those to test on, and the whole tables that both come from.

    Args:
        dataset, test, limit, seed, person: as of `hub`.
    """
    splits = read_splits(dataset)
    check("train" in splits, "dataset", sorted(splits), "a split called train")
    train = splits["train"]
    order = Streams(seed).numpy("hub split").permutation(len(train))
    if isinstance(test, (int, float)):
        check_number("test", test, 0, 0.5, open_low=True)
        held = max(1, round(test * len(train)))
        if person is not None:
            # Whole persons: those of the first rows in the random order, as the share says.
            people = _people(train, person)
            _, first, number = np.unique(people[order], return_index=True, return_inverse=True)
            order = order[np.lexsort((np.arange(len(order)), first[number]))]
            ends = np.flatnonzero(people[order][1:] != people[order][:-1]) + 1
            expected = "a column with at least two persons: some are held out"
            check(len(ends) > 0, f"person {person!r}", "one person", expected)
            held = int(ends[np.abs(ends - held).argmin()])
        expected = f"a share that leaves some of {len(train)} rows to train on"
        check(held < len(train), "test", test, expected)
        private, public = np.sort(order[held:][:limit]), np.sort(order[:held])
        return train.iloc[private], train.iloc[public], (train, train)
    named = isinstance(test, (str, os.PathLike)) and test not in splits
    if named and Path(test).suffix.lower() in (".csv", ".jsonl"):
        test = next(iter(read_splits(test).values()))
    if isinstance(test, str):
        others = ", ".join(name for name in splits if name != "train") or "none here"
        expected = f"a share, a data set, a file, or the name of a split: {others}"
        check(test in splits, "test", test, expected)
    other = splits[test] if isinstance(test, str) else next(iter(read_splits(test).values()))
    return train.iloc[np.sort(order[:limit])], other, (train, other)


def class_numbers(
    values: Sequence[Any], names: tuple[str, ...] | None, column: str
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels as whole numbers (n,) int64, and the classes' names where they have some.

    Whole numbers stay as they are; words become their place in ``names``, or in sorted order.

    Args: values: (n,), one a row. names: of the classes, where they are known. column: for errors.
    """
    import pandas as pd

    series, where = pd.Series(values, dtype=object), f"label {column!r}"
    gap = int(series.isna().argmax())
    check(
        not series.isna().any(),
        where,
        f"nothing in row {gap}",
        "a label in every row" + EMPTY_CELLS,
    )
    if any(isinstance(value, str) for value in values):
        order = names or tuple(sorted({str(value) for value in values}))
        codes = pd.Index(order).get_indexer(pd.Index(series.astype(str))).astype(np.int64)
        strange = sorted(set(series[codes < 0]))[:3]
        check(not strange, where, strange, "one of " + ", ".join(order))
        return codes, order
    numbers = np.asarray(pd.to_numeric(series, errors="coerce"), dtype=np.float64)
    whole = np.isfinite(numbers) & (numbers == np.rint(numbers)) & (numbers >= 0)
    check(bool(whole.all()), where, values[int(whole.argmin())], "words, or whole numbers >= 0")
    most, count = int(numbers.max()), math.inf if names is None else len(names)
    check(most < count, where, most, f"one of {count} classes")
    found = len({*numbers})
    words = f"classes counted from 0, of which {found} have rows; give numbers like these as words"
    check(most < max(MOST_CLASSES, 10 * found), where, most, words)
    return numbers.astype(np.int64), names
