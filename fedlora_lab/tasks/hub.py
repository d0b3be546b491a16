"""Your own Hugging Face model on your own data, as a task."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.tasks import architectures, partition
from fedlora_lab.tasks import task as tasks
from fedlora_lab.tasks.metrics import (
    IGNORED,
    cross_entropy,
    next_token_loss,
    select_metrics,
)

if TYPE_CHECKING:
    from pandas import DataFrame

OWN_HEAD = "the model's classifier"
KINDS = (
    "a pandas DataFrame, a `datasets` Dataset or DatasetDict, a CSV file, or a folder with a "
    "folder for each class"
)
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
    alpha: float | None = None,
    shares: Sequence[Sequence[float]] | None = None,
    seed: int = 0,
    min_size: int = 1,
    test: Any = 0.2,
    targets: Sequence[str] | None = None,
    head: str | None = OWN_HEAD,
    tokenizer: Any = None,
    max_length: int | None = None,
    limit: int | None = None,
    metrics: Sequence[str] | Mapping[str, tasks.Metric] = ("accuracy",),
    public_test: bool = False,
    name: str = "hub",
) -> tasks.Task:
    """Build a task of a Hugging Face model and a data set of texts or images.

    ``text=`` and ``label=`` train a sequence classifier, ``image=`` and ``label=`` an image
    classifier, ``text=`` alone a decoder, whose loss is the mean over each text's own tokens.
    In a private run accuracy and loss are NaN unless the test examples are declared public: they
    are exact numbers that no budget covers.

    Args:
        model: a name, a local folder, or a module, which is copied. Read from safetensors, never
            with code from the repository.
        dataset: a DataFrame, a `datasets` Dataset or DatasetDict, a CSV file, or a folder with a
            folder of images for each class (columns ``image`` and ``label``). Of several splits
            ``train`` is the private one.
        text: column of the texts, or two columns of pairs.
        image: column of the images.
        label: column of the classes, whole numbers or words.
        clients: number of clients without ``by``; 10 by default.
        by: column with the owner of each example: one client for each value.
        alpha: without ``by``: concentration of the split by label, > 0; ``None``: at random.
        shares: in place of ``alpha``: a row for each client of its share of each class, in sorted
            order, see `partition.label_shares`.
        seed: of the split, the limit and a new classifier; a whole number >= 0.
        min_size: smallest number of examples of a client.
        test: share held out at random, in (0, 0.5]; the name of a split; or another data set.
        targets: linear maps that get adapters; default: the attention's query and value maps.
        head: name of a module trained in full, or ``None``; default: the classifier.
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
    private, held_out, both = _rows(dataset, test, limit, seed)

    ys, names, classes = [], None, 0
    if label is not None:
        # All rows decide the classes, also those that a limit leaves out.
        values = [value for frame in both for value in _column(frame, "label", label)]
        numbers, names = _class_numbers(values, both[0].attrs.get(label), label)
        classes = int(numbers.max()) + 1 if names is None else len(names)
        rows = private.index, held_out.index + len(both[0])
        ys = [torch.from_numpy(numbers[np.asarray(part)]) for part in rows]
    base = architectures.load(model, kind, classes, seed)
    if kind == "image":
        images = [_column(part, "image", image) for part in (private, held_out)]
        inputs, cut = [architectures.scale_images(part, base, model) for part in images], 0
    else:
        columns = [text] if isinstance(text, str) else list(text or ())
        check(1 <= len(columns) <= 2, "text", text, "the name of a column, or two of them")
        code = architectures.prepare_tokenizer(model, tokenizer, base)
        # One call for both parts: they must have one width.
        texts = [_column(private, "text", c) + _column(held_out, "text", c) for c in columns]
        x, cut = architectures.tokenize(code, texts, base, max_length)
        count = len(private)
        inputs = [tasks.take(x, part) for part in (slice(count), slice(count, None))]
    ys = ys or [_next_tokens(x) for x in inputs]

    client_names: tuple[str, ...] = ()
    if by is None:
        expected = "none without label=: the examples are dealt by label"
        for option, value in (("alpha", alpha), ("shares", shares)):
            check(value is None or label is not None, option, value, expected)
        if shares is None:
            split = partition.dirichlet(ys[0], clients or 10, alpha, seed, min_size)
        else:
            check(alpha is None, "alpha", alpha, "none with shares=")
            fits = clients in (None, len(shares))
            check(fits, "clients", clients, f"None or {len(shares)}, as shares= has rows")
            split = partition.label_shares(ys[0], shares, seed, min_size)
    else:
        owners = np.asarray([str(value) for value in _column(private, "by", by)])
        expected = "none with by=, which names the owner of each example"
        check(clients is None and alpha is None, "clients, alpha", (clients, alpha), expected)
        check(shares is None, "shares", shares, expected)
        split, client_names = partition.by_group(owners, 1, seed), tuple(np.unique(owners).tolist())
        smallest = min(len(part) for part in split)
        room = f"at most {smallest}, the smallest client's of by="
        check(smallest >= min_size, "min_size", min_size, room)
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
        info={"task": name, "model": type(base).__name__, "kind": kind, "texts cut": cut},
        public_test=public_test,
    )
    return task if causal else tasks.check_classes(task)


def _next_tokens(x: Any) -> torch.Tensor:
    """Targets of a causal model, (n, tokens): the token itself, `IGNORED` for padding."""
    short = x["attention_mask"].sum(1) < 2
    value = f"row {int(short.int().argmax())} has one token"
    check(not bool(short.any()), "text", value, "at least two in every row")
    return torch.where(x["attention_mask"].bool(), x["input_ids"], IGNORED)


# ---- tables of any kind


def read_splits(dataset: Any) -> dict[str, "DataFrame"]:
    """Read the splits of a data set by name; one called ``train`` where it has none.

    Names of classes that the data set knows stand in the frame's ``attrs``, by column.

    Raises: ``ValueError`` for an empty data set, or something else.
    Guarantees: tests/tasks/test_hub.py::test_files_and_folders_equal_the_frame.
    """
    import pandas as pd

    if isinstance(dataset, Mapping):
        return {str(name): _frame(split) for name, split in dataset.items()}
    if not isinstance(dataset, (str, os.PathLike)):
        return {"train": _frame(dataset)}
    path = Path(dataset)
    if not path.is_dir():
        gone = path.suffix.lower() == ".csv" and not path.exists()
        check(
            not gone,
            "dataset",
            str(path),
            f"a file that exists; there is none in {path.parent.resolve()}",
        )
        check(path.is_file() and path.suffix.lower() == ".csv", "dataset", str(path), KINDS)
        return {"train": _frame(pd.read_csv(path))}
    parts = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    has_splits = any(part.name == "train" for part in parts)
    return {p.name: _images(p) for p in parts} if has_splits else {"train": _images(path)}


def _images(folder: Path) -> "DataFrame":
    """The files of a folder that has a folder of images for each class."""
    import pandas as pd

    files = [f for f in folder.glob("[!.]*/**/*") if f.suffix.lower() in IMAGES]
    rows = sorted((f.relative_to(folder).parts[0], str(f)) for f in files)
    check(bool(rows), "dataset", str(folder), "a folder for each class, with images in it")
    return pd.DataFrame(rows, columns=pd.Index(["label", "image"]))


def _frame(data: Any) -> "DataFrame":
    """A DataFrame, or what can be made one, with rows numbered from 0."""
    frame = data.to_pandas() if hasattr(data, "to_pandas") else data
    check(hasattr(frame, "iloc"), "dataset", type(data).__name__, KINDS)
    check(len(frame) > 0, "dataset", "0 rows", "at least one row")
    frame = frame.reset_index(drop=True)
    features = getattr(data, "features", None) or {}
    known = {name: getattr(feature, "names", None) for name, feature in features.items()}
    frame.attrs = {name: tuple(words) for name, words in known.items() if words}
    return frame


def _column(frame: "DataFrame", argument: str, name: Any) -> list[Any]:
    known = isinstance(name, str) and name in frame.columns
    check(known, argument, name, "a column: " + ", ".join(map(str, frame.columns)))
    return frame[name].tolist()


def _rows(
    dataset: Any, test: Any, limit: int | None, seed: int
) -> tuple["DataFrame", "DataFrame", tuple["DataFrame", "DataFrame"]]:
    """The private rows, those to test on, and the whole tables that both come from."""
    splits = read_splits(dataset)
    check("train" in splits, "dataset", sorted(splits), "a split called train")
    train = splits["train"]
    order = Streams(seed).numpy("hub split").permutation(len(train))
    if isinstance(test, (int, float)):
        check_number("test", test, 0, 0.5, open_low=True)
        held = max(1, round(test * len(train)))
        expected = f"a share that leaves some of {len(train)} rows to train on"
        check(held < len(train), "test", test, expected)
        private, public = np.sort(order[held:][:limit]), np.sort(order[:held])
        return train.iloc[private], train.iloc[public], (train, train)
    if isinstance(test, str):
        others = ", ".join(name for name in splits if name != "train") or "none here"
        expected = f"a share, a data set, or the name of a split: {others}"
        check(test in splits, "test", test, expected)
    other = splits[test] if isinstance(test, str) else next(iter(read_splits(test).values()))
    return train.iloc[np.sort(order[:limit])], other, (train, other)


def _class_numbers(
    values: Sequence[Any], names: tuple[str, ...] | None, column: str
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels as whole numbers (n,) int64, and the classes' names where they have some.

    Whole numbers stay as they are; words become their place in ``names``, or in sorted order.
    """
    import pandas as pd

    series, where = pd.Series(values, dtype=object), f"label {column!r}"
    gap = int(series.isna().argmax())
    check(not series.isna().any(), where, f"nothing in row {gap}", "a label in every row")
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
    return numbers.astype(np.int64), names
