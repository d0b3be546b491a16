"""Your own Hugging Face model on your own data, as a task."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedlora_lab._utils.torch_state import in_usual_torch
from fedlora_lab._utils.validation import check
from fedlora_lab.tasks import architectures
from fedlora_lab.tasks.labels import check_order, declared_classes, read_labels
from fedlora_lab.tasks.metrics import Metrics, select_metrics
from fedlora_lab.tasks.modules import Head
from fedlora_lab.tasks.tables import Rows
from fedlora_lab.tasks.task import Task, base_digest, check_classes

OWN_HEAD = "the model's classifier"


@in_usual_torch
def hub(
    model: architectures.ModelSource,
    dataset: object,
    *,
    text: str | None = None,
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
    head: Head = OWN_HEAD,
    tokenizer: Any = None,
    max_length: int | None = None,
    metrics: Metrics = ("accuracy",),
) -> Task:
    """Builds a task of a Hugging Face model and a data set of texts or images.

    ``text`` and ``label`` train a sequence classifier, ``image`` and ``label`` an image classifier.

    Args:
        model: a name, a folder, or a module, which is copied. Of files only safetensors are read.
        dataset: a DataFrame, a list of dicts, a `datasets` Dataset or DatasetDict, a CSV file,
            or a folder with a folder of images for each class.
        text, image, label: names of columns.
        labels: the classes in order, as the rows write them. ``None``: those of a `datasets`
            ClassLabel, else those of the rows, numbers by size and words in order, which no epsilon
            covers.
        by, person: columns of texts or whole numbers: the owner of each row (one client for each),
            and the person, for ``Privacy(unit="person")``: all rows of a person stay together.
        clients, seed: without ``by``: rows are dealt at random to so many (10), by this seed.
        test: share held out at random, in (0, 0.5], the name of a split, or another data set.
        public_test: private runs report metrics of the test rows, which are nobody's. Private rows
            given as public ones are refused, see `Task.check_public`.
        targets, head: as of `Task`; default: the query and value maps, and the classifier.
        tokenizer: or image processor, where none lies beside the model.
        max_length: tokens kept of a text; ``None``: all, as many as the model holds.
        metrics: names in `fl.tasks.METRICS`, or a mapping from names to metrics of your own.
    Raises: ``ValueError`` in one line for what does not fit, naming column and row.
    Guarantees: tests/lora/test_gradients.py::test_equals_batches_of_one,
        tests/tasks/test_hub.py::test_bad_calls_are_one_line.
    """
    expected = "one of them, a column's name; of pairs of texts join both in one column"
    check(isinstance(text, str) != isinstance(image, str), "text, image", (text, image), expected)
    expected = "a column's name; a decoder without classes learns by fl.tasks.prompts"
    check(label is not None, "label", None, expected)
    expected = "three different columns: text (or image), label, by"
    different = len({*map(repr, (text or image, label, by))}) == 3
    check(different, "label", label, expected)
    columns = {"text": text, "image": image, "label": label}
    classes = () if labels is None else declared_classes(labels)
    rows = Rows.read(dataset, test, seed, by, person, clients, public_test, columns, classes)
    # The names of a ClassLabel are no private rows'.
    declared = rows.sources[0].attrs.get(str(label)) if labels is None else labels
    # Classes first: a classifier is loaded for as many outputs.
    numbers, classes = read_labels(rows.sources, str(label), declared)
    kind = "text" if image is None else "image"
    base, new = architectures.load(model, kind, len(classes), seed)
    check_order(classes, base.config)
    head = architectures.default_head(base) if head == OWN_HEAD else head
    encode = architectures.input_reader(kind, model, tokenizer, base, max_length)
    values = rows.column(kind, text or image)
    if text:
        architectures.check_control_tokens(
            "text", encode.args[0], values, rows.names, rendered=True
        )
    x = encode(values, rows.names)
    cut = 0
    if text and max_length:
        # What the encoder cuts it does not count: its tokenizer tells how long each text was.
        every = encode.args[0](values, verbose=False)["input_ids"]
        cut = sum(len(ids) > max_length for ids in every)
    task = rows.make_task(
        x,
        rows.labels(numbers),
        name="hub",
        model=base,
        targets=architectures.default_targets(base, targets),
        head=head,
        metrics=select_metrics(metrics),
        labels=None if [*map(repr, classes)] == [*map(repr, range(len(classes)))] else classes,
        prepare=architectures.trim_padding if kind == "text" else None,
        encode=encode,
        info={
            "task": "hub",
            "model": type(base).__name__,
            "base": base_digest(base),
            "kind": kind,
            "classes": [*classes],
            "labels": "read from the rows" if declared is None else "declared",
            "column": text or image,
            "max_length": max_length,
            **(architectures.tokenizer_facts(encode.args[0]) if text else {}),
            "texts cut": cut,
        },
        public_test=public_test,
        new_modules=new,
        # Of a module in hand nobody knows what was drawn.
        drawn=() if isinstance(model, nn.Module) else new,
    )
    return check_classes(task)
