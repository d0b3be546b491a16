"""Your own Hugging Face model on your own data, as a task."""

import hashlib
import json
import os
import warnings
from collections import Counter
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
from fedlora_lab.tasks.labels import (
    EMPTY_CELLS,
    MISSING,
    OF_THE_TEST,
    class_names,
    column_of,
    describe_classes,
    in_model_order,
    read_labels,
    to_identifier,
)
from fedlora_lab.tasks.metrics import (
    IGNORED,
    Metric,
    cross_entropy,
    next_token_loss,
    select_metrics,
)
from fedlora_lab.tasks.task import whole_numbers

if TYPE_CHECKING:
    from pandas import DataFrame

OWN_HEAD = "the model's classifier"
DATASET_KINDS = (
    "a pandas DataFrame, a list of dicts, a `datasets` Dataset or DatasetDict, a CSV or JSONL "
    "file, or a folder with a folder for each class"
)
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


def hub(
    model: Any,
    dataset: Any,
    *,
    text: str | Sequence[str] | None = None,
    image: str | None = None,
    label: str | None = None,
    labels: Sequence[Any] | None = None,
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
        labels: the classes in order, names or numbers; rows with another label are refused.
            ``None``: those of the rows. The set of classes then follows from private rows, and no
            epsilon covers that.
        clients: number of clients without ``by``; 10 by default.
        by: column with the owner of each example: one client for each value.
        person: column with the person of each example, for ``Privacy(unit="person")``: whole
            numbers. All examples of a person go to one client, as their first label says or
            ``by``. Persons are held out, left out and counted whole.
        alpha: without ``by``: concentration of the split by label, > 0; ``None``: at random.
        shares: in place of ``alpha``: a row for each client of its share of each class, in sorted
            order, see `partition.label_shares`.
        seed: of the split, the limit and a new classifier; a whole number >= 0.
        min_size: smallest number of examples of a client; of persons with ``person``.
        test: share held out at random, in (0, 0.5], of persons with ``person``; the name of a
            split; or another data set or file.
        targets: linear maps that get adapters; default: the attention's query and value maps.
        head: names of modules trained in full, or ``None``; default: the classifier, which is all
            that Transformers puts behind the base.
        tokenizer: where there is none beside the model.
        max_length: tokens kept of a text; ``None`` keeps all that the model can hold.
        limit: private examples used, drawn at random, with ``person`` persons; ``None``: all.
        metrics: names in `fl.tasks.METRICS`, such as ``["perplexity"]`` of a decoder, or a mapping
            from names to metrics of your own; the loss is reported in any case.
        public_test: the test examples are public, so private runs may report their metrics.
            Private rows given as public ones are refused, see `check_public_test`.
        name: short name of the task.
    Raises: ``ValueError`` in one line for what does not fit: columns, labels, targets, texts that
        are too long, a model that cannot be read or that mixes the examples of a batch.
    Guarantees: tests/lora/test_gradients.py::test_equals_batches_of_one,
        tests/tasks/test_hub.py::test_bad_calls_are_one_line,
        ::test_who_is_drawn_does_not_depend_on_how_many_rows_a_person_has,
        ::test_declared_labels_are_the_classes.
    """
    check_whole("seed", seed)
    for option, value in {"min_size": min_size, "limit": limit, "clients": clients}.items():
        check_whole(option, 1 if value is None else value, 1)
    either = (text is None) != (image is None)
    check(either, "text, image", (text, image), "one of them, a column's name")
    labelled = image is None or label is not None
    check(labelled, "label", label, "a column's name: images are classified")
    kind = "image" if image is not None else "text" if label is not None else "causal"
    private, held_out, both = split_rows(dataset, test, limit, seed, person)
    people = people_of(private, held_out, person, public_test)
    count = len(private)
    places = row_names(private, held_out, both)

    ys: list[torch.Tensor] = []
    names: tuple[Any, ...] = ()
    check(labels is None or label is not None, "labels", labels, "none without label=")
    columns: list[np.ndarray] = []
    if label is not None:
        columns, names = read_labels(both, label, labels)
    base, new = architectures.load(model, kind, len(names), seed)
    if label is not None:
        columns, names = in_model_order(columns, names, base.config, labels is not None)
        pairs = zip(columns, (private, held_out), strict=True)
        ys = [torch.from_numpy(column[rows.index.to_numpy()]) for column, rows in pairs]
    if kind == "image":
        parts = [(column_of(private, "image", image), places[:count])]
        parts += [(column_of(held_out, "image", image), places[count:])]
        inputs = [architectures.scale_images(part, base, model, where) for part, where in parts]
        cut = 0
    else:
        sources = [text] if isinstance(text, str) else list(text or ())
        check(1 <= len(sources) <= 2, "text", text, "the name of a column, or two of them")
        code = architectures.prepare_tokenizer(model, tokenizer, base)
        # One call for both parts: they must have one width.
        texts = [column_of(private, "text", c) + column_of(held_out, "text", c) for c in sources]
        x, cut = architectures.tokenize(code, texts, base, max_length, places)
        inputs = [tasks.take(x, part) for part in (slice(count), slice(count, None))]
    ys = ys or [_next_tokens(inputs[0], places), _next_tokens(inputs[1], places[count:])]

    for option, value in (("alpha", alpha), ("shares", shares)):
        expected = "none without label=: the examples are dealt by label"
        check(by is not None or value is None or label is not None, option, value, expected)
    split, client_names = split_clients(
        private,
        both[0],
        people,
        by=by,
        clients=clients,
        seed=seed,
        min_size=min_size,
        labels=ys[0] if label is not None else None,
        alpha=alpha,
        shares=shares,
    )
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
        labels=None if label is None else class_names(names),
        client_names=client_names,
        prepare=architectures.trim_padding if kind != "image" else None,
        info={"task": name, "model": type(base).__name__, "kind": kind, "texts cut": cut}
        | {"new": None if isinstance(model, nn.Module) else list(new)}
        | ({} if label is None else describe_classes(names, labels)),
        public_test=public_test,
        new_modules=new,
        persons=None if people is None else tuple(people[part] for part in split),
    )
    check_public_test(task, both)
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
        expected = f"a file that exists; there is none in {path.parent.resolve()}"
        check(not gone, "dataset", str(path), expected)
        check(path.is_file() and kind in (".csv", ".jsonl"), "dataset", str(path), DATASET_KINDS)
        return {"train": _frame(_csv(path) if kind == ".csv" else _json_lines(path))}
    folders = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    has_splits = any(part.name == "train" for part in folders)
    return {p.name: _images(p) for p in folders} if has_splits else {"train": _images(path)}


def _csv(path: Path) -> "DataFrame":
    """The table of a CSV file."""
    import pandas as pd

    expected = "a CSV file in UTF-8, with a header and as many cells in each row"
    try:
        header = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0].dropna()
        frame = pd.read_csv(path)
    except ValueError as error:  # those of pandas' parser and of UTF-8 are ValueErrors
        reason = " ".join(str(error).split())
        raise ValueError(f"dataset={str(path)!r}: expected {expected} ({reason})") from error
    # pandas renames a column that is there twice, and takes the first column for the rows' names
    # where every row has a cell more than the header: the others would stand under wrong names.
    check(not header.duplicated().any(), "columns", header.tolist(), "each name once")
    shifted = not isinstance(frame.index, pd.RangeIndex)
    check(
        not shifted, "dataset", str(path), f"{expected}; here rows have more cells than the header"
    )
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
    classes = {name: getattr(feature, "names", None) for name, feature in features.items()}
    frame.attrs = {name: tuple(words) for name, words in classes.items() if words}
    return frame


def split_clients(
    private: "DataFrame",
    train: "DataFrame",
    people: np.ndarray | None,
    *,
    by: str | None,
    clients: int | None,
    seed: int,
    min_size: int,
    labels: torch.Tensor | None = None,
    alpha: float | None = None,
    shares: Sequence[Sequence[float]] | None = None,
) -> tuple[partition.Split, tuple[str, ...]]:
    """Each client's places in ``private``, and the clients' names, if they have some.

    All rows of a person go to one client, unless ``by`` says where they are.

    Args:
        private: the rows to train on.
        train: all rows that they come from.
        people: the person of each private row, as `people_of` gives them; ``None``: not known.
        by, clients, seed, min_size, alpha, shares: as of `hub`.
        labels: (rows,) numbers, by which ``alpha`` and ``shares`` deal.
    """
    if by is not None:
        expected = "none with by=, which names the owner of each example"
        for option, value in (("clients", clients), ("alpha", alpha), ("shares", shares)):
            check(value is None, option, value, expected)
        return _split_by(private, train, by, min_size, people)
    # A person is dealt like an example with the label of the person's first one.
    owner = np.arange(len(private)) if people is None else people
    _, first = np.unique(owner, return_index=True)
    dealt = first if labels is None else labels[torch.from_numpy(first)]
    if shares is None:
        split = partition.dirichlet(dealt, clients or 10, alpha, seed, min_size)
    else:
        check(alpha is None, "alpha", alpha, "none with shares=")
        fits = clients in (None, len(shares))
        check(fits, "clients", clients, f"None or {len(shares)}, as shares= has rows")
        split = partition.label_shares(dealt, shares, seed, min_size)
    return [np.flatnonzero(np.isin(owner, part)) for part in split], ()


def _split_by(
    private: "DataFrame",
    train: "DataFrame",
    by: str,
    min_size: int,
    people: np.ndarray | None,
) -> tuple[partition.Split, tuple[str, ...]]:
    """One client for each value of a column: places in ``private``, and the values in order.

    Warns of owners all of whose rows were held out or left out: they are no clients.

    Args:
        private, train, by, min_size, people: as of `split_clients`.
    Guarantees: tests/tasks/test_hub.py::test_a_site_that_is_left_without_rows_is_named,
        ::test_owners_are_compared_by_value.
    """
    everyone = _owner_names(train, by)
    owners = [everyone[row] for row in private.index]
    names = sorted(set(owners))
    split = partition.by_group(owners)
    if gone := sorted(set(everyone) - set(names)):
        rest = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
        words = "no client, since test= held all rows of theirs out, or limit= left them out"
        warnings.warn(f"by={by!r}: {', '.join(gone[:5])}{rest}: {words}", stacklevel=4)
    units = split if people is None else [np.unique(people[part]) for part in split]
    smallest = min(map(len, units))
    room = f"at most {smallest}, the smallest client's of by="
    check(smallest >= min_size, "min_size", min_size, room)
    return split, tuple(names)


def people_of(
    private: "DataFrame", held_out: "DataFrame", person: str | None, public_test: bool
) -> np.ndarray | None:
    """The person of each private row, numbers from 0; ``None`` without a column.

    Args:
        private, held_out: the rows to train on, and those to test on.
        person: the column.
        public_test: of the task; refused where persons of the test rows have private rows too.
    Guarantees: tests/tasks/test_hub.py::test_persons_of_both_tables_are_found.
    """
    if person is None:
        return None
    people = _persons(private, person)
    if public_test and person in held_out.columns:
        twice = len({*people} & {*_persons(held_out, person, OF_THE_TEST)})
        shown = f"{twice} persons of the public test rows have private rows as well"
        check(not twice, f"person {person!r}", shown, "public rows of others, in test=")
    return np.unique(people, return_inverse=True)[1]


def owners_of(table: "DataFrame", person: str | None) -> tuple[np.ndarray, int]:
    """Whose each row is, numbers from 0, and how many there are: persons, or rows without them.

    Args:
        table: the rows.
        person: the column of persons.
    """
    if person is None:
        return np.arange(len(table)), len(table)
    names, numbers = np.unique(_persons(table, person), return_inverse=True)
    return numbers, len(names)


def _persons(table: "DataFrame", column: str, suffix: str = "") -> list[int]:
    """The persons in a column of whole numbers; refuses rows without one."""
    column_of(table, "person", column)
    rows = [f"row {row}{suffix}" for row in table.index]
    # As the table keeps them: its own numbers know how exact they are.
    return whole_numbers(f"person {column!r}", table[column].to_numpy(), rows.__getitem__)


def _owner_names(table: "DataFrame", column: str) -> list[str]:
    """The owner of each row: texts without the blanks around them, or whole numbers.

    Raises: ``ValueError`` for an empty cell, and for two that differ in case or blanks only.
    """
    names = []
    spelled = dict[str, str]()
    for row, cell in enumerate(column_of(table, "by", column)):
        key = to_identifier(cell)
        empty = key is None or key in (*MISSING, "None")
        words = "an owner in every row, a text or a whole number" + EMPTY_CELLS
        check(not empty, f"by {column!r}", f"nothing in row {row}", words)
        name = str(key)
        like = spelled.setdefault("".join(name.casefold().split()), name)
        words = f"each owner written in one way, as {like!r} in an earlier row"
        check(like == name, f"by {column!r}", f"{name} in row {row}", words)
        names.append(name)
    return names


def row_names(
    private: "DataFrame", held_out: "DataFrame", both: tuple["DataFrame", "DataFrame"]
) -> list[str]:
    """What messages call each row: its place, from 0, in the table that it was given in.

    Args: private, held_out, both: as `split_rows` returns them.
    """
    suffix = "" if both[0] is both[1] else OF_THE_TEST
    return [*map(str, private.index), *(f"{row}{suffix}" for row in held_out.index)]


def split_rows(
    dataset: Any, test: Any, limit: int | None, seed: int, person: str | None = None
) -> tuple["DataFrame", "DataFrame", tuple["DataFrame", "DataFrame"]]:
    """The private rows, those to test on, and the whole tables that both come from.

    Args:
        dataset, test, limit, seed: as of `hub`.
        person: the column of persons, who are then drawn with all their rows.
    Guarantees: tests/tasks/test_hub.py::
        test_who_is_drawn_does_not_depend_on_how_many_rows_a_person_has.
    """
    splits = read_splits(dataset)
    check("train" in splits, "dataset", sorted(splits), "a split called train")
    train = splits["train"]
    owner, count = owners_of(train, person)
    # Of persons, not of their rows: with the rows that one person has others would change sides.
    order = Streams(seed).numpy("hub split").permutation(count)

    def rows_of_these(chosen: np.ndarray) -> "DataFrame":
        return train.iloc[np.flatnonzero(np.isin(owner, chosen)).tolist()]

    if isinstance(test, (int, float)):
        check_number("test", test, 0, 0.5, open_low=True)
        held_count = max(1, round(test * count))
        counted = "rows" if person is None else "persons"
        expected = f"a share that leaves some of {count} {counted} to train on"
        check(held_count < count, "test", test, expected)
        remaining = order[held_count:][:limit]
        return rows_of_these(remaining), rows_of_these(order[:held_count]), (train, train)
    table = _test_table(test, splits)
    return rows_of_these(order[:limit]), table, (train, table)


def _test_table(test: Any, splits: Mapping[str, "DataFrame"]) -> "DataFrame":
    """The split, data set or file that a task is tested on."""
    if isinstance(test, (str, os.PathLike)) and test not in splits:
        file = Path(test).suffix.lower() in (".csv", ".jsonl") or Path(test).exists()
        test = Path(test) if file else test
    if isinstance(test, str):
        others = ", ".join(name for name in splits if name != "train") or "none here"
        expected = f"a share, a data set, a file, or the name of a split: {others}"
        check(test in splits, "test", test, expected)
        return splits[test]
    tables = read_splits(test)
    single = "one table; of several splits name one, as test=data['validation']"
    check(len(tables) == 1, "test", sorted(tables), single)
    return next(iter(tables.values()))


# ---- public test rows


MANY_ROWS = 20
"""Distinct rows of which honest tables do not share half."""


def check_public_test(task: tasks.Task, both: tuple["DataFrame", "DataFrame"]) -> None:
    """Refuses public test rows that are plainly private rows.

    Scores of public rows are exact, and no epsilon counts them. Two rows are equal if all that the
    model reads is, and the label. Honest tables share rows too, such as short texts: a public row
    has a twin among the private rows about as often as a private row has one among the others, say
    for a share r of the rows. Refused are a test table that has the same rows as the private one,
    and twins of more than (1 + r) / 2 of the rows of either table, that is of more than half of
    those that should have none. Where most private rows stand several times, tables of
    `MANY_ROWS` or more distinct rows are compared by these: more than half of them are refused.
    Fewer, but more than r, are warned of. How many they are is told in a refusal only: it is a
    number about private rows. Rows that were written differently, such as images that were encoded
    again, are not found.

    Args:
        task: with its rows.
        both: the tables that private rows and test rows come from. Of one table a share is held
            out, and nothing is compared.
    Guarantees: tests/tasks/test_hub.py::test_private_rows_are_no_public_test,
        ::test_public_rows_that_are_private_are_warned_of_without_their_number,
        ::test_the_private_table_is_known_from_any_place.
    """
    if not task.public_test or both[0] is both[1]:
        return
    private = Counter(_digests(tasks.concatenate(task.clients)))
    public = Counter(_digests(task.test))
    repeated = sum(count for count in private.values() if count > 1) / private.total()
    twins = sum(count for row, count in public.items() if row in private)
    copies = sum(count for row, count in private.items() if row in public)
    share = max(twins / public.total(), copies / private.total())
    expected = "public rows of their own, without those that are private"
    value = f"{twins} of {public.total()} rows equal private rows"
    distinct = len(private.keys() & public.keys())
    copied = len(private) >= MANY_ROWS and 2 * distinct > min(len(private), len(public))
    distinct_tables = public != private and share <= (1 + repeated) / 2 and not copied
    check(distinct_tables, "test", value, expected)
    if twins / public.total() > repeated:
        words = "some rows equal private rows, and their scores would be exact and not protected"
        warnings.warn(f"test: {words}: expected {expected}", stacklevel=3)


def _digests(examples: tasks.Examples) -> list[bytes]:
    """A digest of each example: its inputs and its label."""
    tensors = tasks.named_tensors(examples).values()
    columns = [x.detach().contiguous().reshape(len(x), -1).view(torch.uint8) for x in tensors]
    rows = zip(*(column.numpy() for column in columns), strict=True)
    return [hashlib.blake2b(b"".join(map(bytes, row)), digest_size=16).digest() for row in rows]
