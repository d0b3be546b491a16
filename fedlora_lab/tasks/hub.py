"""Your own Hugging Face model on your own data, as a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedlora_lab._utils.validation import check
from fedlora_lab.tasks import architectures
from fedlora_lab.tasks.labels import check_order, read_labels
from fedlora_lab.tasks.metrics import (
    IGNORED,
    Metric,
    cross_entropy,
    next_token_loss,
    select_metrics,
)
from fedlora_lab.tasks.tables import Deal, Rows, make_task
from fedlora_lab.tasks.task import Inputs, Task, check_classes

OWN_HEAD = "the model's classifier"


def hub(
    model: str | Path | nn.Module,
    dataset: object,
    *,
    text: str | Sequence[str] | None = None,
    image: str | None = None,
    label: str | None = None,
    labels: Sequence[int | str] | None = None,
    by: str | None = None,
    person: str | None = None,
    clients: int | None = None,
    seed: int = 0,
    test: object = 0.2,
    public_test: bool = False,
    targets: Sequence[str] | None = None,
    head: str | Sequence[str] | None = OWN_HEAD,
    tokenizer: Any = None,
    max_length: int | None = None,
    metrics: Sequence[str] | Mapping[str, Metric] = ("accuracy",),
) -> Task:
    """Builds a task of a Hugging Face model and a data set of texts or images.

    ``text`` and ``label`` train a sequence classifier, ``image`` and ``label`` an image classifier,
    ``text`` alone a decoder, whose loss is the mean over each text's own tokens.

    Args:
        model: a name, a folder, or a module, which is copied. Of files only safetensors are read.
        dataset: a DataFrame, a list of dicts, a `datasets` Dataset or DatasetDict, a CSV or JSONL
            file, or a folder with a folder of images for each class.
        text, image, label: names of columns; two of ``text`` are read as pairs.
        labels: the classes in order. ``None``: those of a `datasets` ClassLabel, else those of
            the rows, which no epsilon covers.
        by, person: columns with the owner of each row (one client for each) and the person, a
            whole number, for ``Privacy(unit="person")``: all rows of a person stay together.
        clients, seed: without ``by``: rows are dealt at random to so many (10), by this seed.
        test: share held out at random, in (0, 0.5], the name of a split, or another data set.
        public_test: private runs report metrics of the test rows, which are nobody's. Private rows
            given as public ones are refused, see `tables.check_public_test`.
        targets, head: as of `Task`; default: the query and value maps, and the classifier.
        tokenizer: or image processor, where none lies beside the model.
        max_length: tokens kept of a text; ``None``: all, as many as the model holds.
        metrics: names in `fl.tasks.METRICS`, or a mapping from names to metrics of your own.
    Raises: ``ValueError`` in one line for what does not fit, naming column and row.
    Guarantees: tests/lora/test_gradients.py::test_equals_batches_of_one,
        tests/tasks/test_hub.py::test_bad_calls_are_one_line.
    """
    columns = _Columns(text, image, label, labels)
    deal = Deal(by, clients, seed)
    rows = Rows.read(dataset, test, seed, person, public_test)
    fields = {"targets": targets, "head": head, "metrics": metrics, "public_test": public_test}
    return _build(model, rows, columns, deal, tokenizer, max_length, fields)


@dataclass(frozen=True)
class _Columns:
    """What the model reads, and what it learns: names of columns, and the classes if declared."""

    text: str | Sequence[str] | None
    image: str | None
    label: str | None
    labels: Sequence[int | str] | None

    def __post_init__(self) -> None:
        is_one = (self.text is None) != (self.image is None)
        check(is_one, "text, image", (self.text, self.image), "one of them, a column's name")
        is_labelled = self.image is None or self.label is not None
        check(is_labelled, "label", self.label, "a column's name: images are classified")
        is_declared = self.labels is not None and self.label is None
        check(not is_declared, "labels", self.labels, "none without label=")

    @property
    def kind(self) -> str:
        """The kind of model, as of `architectures.load`."""
        if self.image is not None:
            return "image"
        return "causal" if self.label is None else "text"


def _build(
    model: str | Path | nn.Module,
    rows: Rows,
    columns: _Columns,
    deal: Deal,
    tokenizer: Any,
    max_length: int | None,
    fields: dict[str, Any],
) -> Task:
    """The task of a model, rows, and their columns.

    Args:
        model, tokenizer, max_length: as of `hub`.
        rows, columns, deal: what is read, and how private rows are dealt.
        fields: of the task, where they are given.
    """
    is_causal = columns.kind == "causal"
    # Classes first: a classifier is loaded for as many outputs.
    numbers, classes = [], ()
    declared = columns.labels
    if declared is None:  # the names of a ClassLabel, which are no private rows'
        declared = rows.sources[0].attrs.get(str(columns.label))
    if columns.label is not None:
        numbers, classes = read_labels(rows.sources, columns.label, declared)
    base, new = architectures.load(model, columns.kind, len(classes), deal.seed)
    config: Any = base.config
    info: dict[str, Any] = {"task": "hub", "model": type(base).__name__, "kind": columns.kind}
    if columns.image is not None:
        processor = architectures.read_processor(model, tokenizer, "AutoImageProcessor")
        images = rows.column("image", columns.image)
        x: Inputs = architectures.encode_images(processor, images, rows.names)
    else:
        sources = [columns.text] if isinstance(columns.text, str) else list(columns.text or ())
        check(1 <= len(sources) <= 2, "text", columns.text, "the name of a column, or two of them")
        code = architectures.prepare_tokenizer(model, tokenizer, base)
        texts = [rows.column("text", source) for source in sources]
        # Both parts in one call: they must have one width.
        x = architectures.tokenize(code, texts, base, max_length, rows.names)
    if is_causal:
        y = _next_tokens(x, rows.names)
    else:
        check_order(classes, config)
        y = rows.labels(numbers)
        info["classes"] = len(classes)
        info["labels"] = "read from the rows" if declared is None else "declared"
    targets = fields["targets"]
    own_head = None if is_causal else architectures.default_head(base)
    fields |= {
        "name": "hub",
        "model": base,
        "targets": architectures.default_targets(base) if targets is None else tuple(targets),
        "head": own_head if fields["head"] == OWN_HEAD else fields["head"],
        "loss": next_token_loss if is_causal else cross_entropy,
        "metrics": select_metrics(fields["metrics"], "causal" if is_causal else "classification"),
        "labels": None if classes == tuple(range(len(classes))) else classes,
        "prepare": None if columns.kind == "image" else architectures.trim_padding,
        "info": info,
        "new_modules": new,
    }
    task = make_task(rows, x, y, deal, **fields)
    return task if is_causal else check_classes(task)


def _next_tokens(x: Any, names: Sequence[str]) -> Tensor:
    """Targets of a causal model, (n, tokens): the token itself, `IGNORED` for padding."""
    short = x["attention_mask"].sum(1) < 2
    value = f"row {names[int(short.int().argmax())]} has one token"
    check(not bool(short.any()), "text", value, "at least two in every row")
    return torch.where(x["attention_mask"].bool(), x["input_ids"], IGNORED)
