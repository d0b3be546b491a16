"""Your own Hugging Face model on your own data, as a task."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_lab import partition
from fedlora_lab.checks import check, check_number, check_whole
from fedlora_lab.streams import Streams
from fedlora_lab.tasks import encode, validate
from fedlora_lab.tasks.architectures import default_head, default_targets, load
from fedlora_lab.tasks.causal import CAUSAL, next_token_loss
from fedlora_lab.tasks.tables import Table, class_numbers, splits_of
from fedlora_lab.tasks.task import CLASSIFICATION, Examples, Task, cross_entropy, take
from fedlora_lab.tasks.tensors import checked

OWN_HEAD = "the model's classifier"


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
    seed: int = 0,
    min_size: int = 1,
    test: Any = 0.2,
    targets: Sequence[str] | None = None,
    head: str | None = OWN_HEAD,
    tokenizer: Any = None,
    max_length: int | None = None,
    limit: int | None = None,
    public_test: bool = False,
    name: str = "hub",
) -> Task:
    """A task of a Hugging Face model and a data set: classify texts, classify images, or model language.

    ``text=`` and ``label=`` train a sequence classifier, ``image=`` and ``label=`` an image classifier, ``text=`` alone
    a decoder, whose loss is the mean over each text's own tokens.

    In a private run accuracy and loss are NaN unless you declare the test examples public: they are exact numbers, and
    no budget covers them. ``hub(..., test=others, public_test=True)`` declares it; private rows held out stay private.

    Args:
        model: a name, a local folder, or a model already built, which is copied. Read from safetensors, never with
            code from the repository.
        dataset: a DataFrame, a `datasets` Dataset or DatasetDict, a CSV file, or a folder with a folder of images for
            each class (columns ``image`` and ``label``). Of several splits ``train`` is the private one.
        text: column of the texts, or two columns of pairs.
        image: column of the images.
        label: column of the classes, whole numbers or words.
        by: column that says who holds an example: one client for each value.
        clients: number of clients otherwise, 10 by default: dealt by label with Dirichlet(``alpha``), or at random.
        seed: of the split, the limit and a classifier that the model's file does not have; a whole number >= 0.
        min_size: examples that every client of a split holds at least.
        test: share held out at random, in (0, 0.5]; or the name of a split; or a data set of its own.
        targets: linear maps that get adapters; default: the attention's query and value maps.
        head: trained in full beside the adapters: the classifier, unless told ``None`` or another name.
        tokenizer: where it does not lie beside the model.
        max_length: tokens kept of a text; ``None`` keeps all, and refuses a text that the model cannot hold.
        limit: private examples used, drawn at random; ``None``: all.
        public_test: nobody's privacy hangs on the test examples, and their metrics may be seen.
        name: short name of the task.
    Raises: ``ValueError`` in one line for a missing column, an unknown target, labels that are no classes, texts that
        are too long, a model that cannot be read, or one in which examples touch each other.
    Guarantees: tests/test_hub.py::test_gradients_are_those_of_a_loop, ::test_bad_calls_are_one_line.
    """
    check_whole("seed", seed)
    for option, value in {"min_size": min_size, "limit": limit, "clients": clients}.items():
        check_whole(option, 1 if value is None else value, 1)
    check((text is None) != (image is None), "text, image", (text, image), "one of them, a column's name")
    check(image is None or label is not None, "label", label, "a column's name: images are classified")
    train, held = _splits(dataset, test, limit, seed)
    kind = "image" if image is not None else "text" if label is not None else "causal"
    labels, names, count = ([None, None], None, 0) if label is None else _labels(train[0], held[0], label)
    base = load(model, kind, count, seed)
    parts, cut = _inputs(kind, base, model, (train, held), text or image, tokenizer, max_length)
    data = [_pair(x, y, rows) for x, y, (_, rows) in zip(parts, labels, (train, held), strict=True)]
    held_by = None if by is None else np.asarray([str(v) for v in train[0].column("by", by)])[train[1]]
    split, client_names = _clients(data[0][1], held_by, clients, alpha, seed, min_size, label)
    pairs = tuple((take(data[0][0], index), data[0][1][index]) for index in map(torch.from_numpy, split))
    task = Task(
        name=name,
        model=base,
        targets=default_targets(base) if targets is None else validate.names(targets),
        clients=pairs,
        test=data[1],
        head=(default_head(base) if kind != "causal" else None) if head == OWN_HEAD else head,
        loss=next_token_loss if kind == "causal" else cross_entropy,
        metrics=dict(CAUSAL if kind == "causal" else CLASSIFICATION),
        labels=names,
        client_names=client_names,
        prepare=encode.trimmed if kind != "image" else None,
        info={"task": name, "model": type(base).__name__, "kind": kind, "texts cut": cut},
        public_test=public_test,
    )
    return task if kind == "causal" else checked(task)


Rows = tuple[Table, np.ndarray]


def _splits(dataset: Any, test: Any, limit: int | None, seed: int) -> tuple[Rows, Rows]:
    """The private rows and those to test on, each a table with the numbers of its rows."""
    splits = splits_of(dataset)
    check("train" in splits, "dataset", sorted(splits), "a split called train")
    train, count = splits["train"], len(splits["train"].column("dataset", splits["train"].names[0]))
    order = Streams(seed).numpy("hub split").permutation(count)
    if isinstance(test, str) and test in splits:
        other = splits[test]
    elif isinstance(test, (int, float)):
        check_number("test", test, 0, 0.5, open_low=True)
        held = max(1, round(test * count))
        check(held < count, "test", test, f"a share that leaves some of {count} rows to train on")
        return (train, np.sort(order[held:][:limit])), (train, np.sort(order[:held]))
    else:
        others = ", ".join(name for name in splits if name != "train") or "none here"
        check(not isinstance(test, str), "test", test, f"a share, a data set, or the name of a split: {others}")
        other = next(iter(splits_of(test).values()))
    size = len(other.column("test", other.names[0]))
    return (train, np.sort(order[:limit])), (other, np.arange(size))


def _labels(train: Table, held: Table, label: str) -> tuple[list[np.ndarray], tuple[str, ...] | None, int]:
    """Both parts' labels as numbers, the classes' names where they have some, and how many classes there are."""
    ours, theirs = train.column("label", label), held.column("label", label)
    both, names = class_numbers(ours + theirs, train.classes.get(label), label)
    return [both[: len(ours)], both[len(ours) :]], names, int(both.max()) + 1 if names is None else len(names)


def _inputs(
    kind: str, base: nn.Module, source: Any, parts: tuple[Rows, Rows], columns: Any, tokenizer: Any, length: int | None
) -> tuple[list[Any], int]:
    """The model's inputs of both parts' rows, and how many texts were cut."""
    if kind == "image":
        return [encode.pixels(_rows(table.column("image", columns), rows), base, source) for table, rows in parts], 0
    names = [columns] if isinstance(columns, str) else list(columns)
    check(1 <= len(names) <= 2, "text", columns, "the name of a column, or two of them")
    code = encode.tokenizer_of(source, tokenizer, base)
    texts = [[_rows(table.column("text", n), rows) for n in names] for table, rows in parts]
    # One call for both: they must have one width.
    count = len(parts[0][1])
    found, cut = encode.tokens(code, [a + b for a, b in zip(*texts, strict=True)], base, length)
    return [{k: v[:count] for k, v in found.items()}, {k: v[count:] for k, v in found.items()}], cut


def _rows(column: list[Any], rows: np.ndarray) -> list[Any]:
    return [column[i] for i in rows.tolist()]


def _pair(x: Any, labels: np.ndarray | None, rows: np.ndarray) -> Examples:
    y: Tensor = encode.next_tokens(x) if labels is None else torch.from_numpy(labels[rows])
    return x, y


def _clients(
    y: Tensor, by: np.ndarray | None, clients: int | None, alpha: float | None, seed: int, low: int, label: Any
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Who holds which example, and what the clients are called."""
    if by is not None:
        check(clients is None, "clients", clients, "none with by=, which says how many there are")
        check(alpha is None, "alpha", alpha, "none with by=, which says who holds what")
        split = partition.by_group(by, 1, seed)
        small = [len(part) for part in split if len(part) < low]
        check(not small, "min_size", low, f"at most {min(small, default=low)}, what the smallest client of by= holds")
        return split, tuple(np.unique(by).tolist())
    count = 10 if clients is None else clients
    if alpha is None:
        return partition.iid(len(y), count, seed, low), ()
    check(label is not None, "alpha", alpha, "none without label=: the examples are dealt by label")
    return partition.dirichlet(y, count, alpha, seed, low), ()
