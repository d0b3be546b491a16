"""A task of what `transformers.Trainer` takes: a model, tokenised rows, a collator.

Files, tokens, templates and the order of classes are the caller's, by `datasets` and
`transformers`, whose documentation covers them.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedlora_lab._utils.torch_state import with_default_modes
from fedlora_lab._utils.validation import check, in_one_line, warn
from fedlora_lab.tasks.metrics import (
    IGNORED,
    OverAll,
    accuracy,
    cross_entropy,
    perplexity,
    token_loss,
)
from fedlora_lab.tasks.modules import (
    Head,
    check_model,
    frozen_copy,
    is_linear_head,
    is_within,
    linear_names,
    task_parts,
)
from fedlora_lab.tasks.names import names_of
from fedlora_lab.tasks.ragged import Ragged
from fedlora_lab.tasks.task import (
    Examples,
    HeldOut,
    Layers,
    Origin,
    Task,
    concatenate,
    forward,
    move_to_model,
    person_numbers,
    take,
)

ROWS = "expected a Dataset or a list of rows, at least one"
ROWS_AT_ONCE = 256
"""Rows that the collator gets at once."""
TRIED = 4
"""Public rows whose loss is compared with the model's own."""


@with_default_modes
def from_trainer(
    model: nn.Module,
    train_dataset: Any,
    *,
    by: str | Sequence[Any],
    person: str | Sequence[Any] | None = None,
    eval_dataset: Any = None,
    data_collator: Callable[[list[dict]], Mapping[str, Tensor]] | None = None,
    compute_metrics: Callable[[Any], Mapping[str, float]] | None = None,
    processing_class: Any = None,
    targets: Sequence[str] | None = None,
    head: Head = "classifier of the model",
) -> Task:
    """Builds a task of the arguments of `transformers.Trainer`.

    The loss of an example is the model's own of that row alone: cross entropy of its class, or a
    decoder's mean over the tokens whose label is not -100.

    Args:
        model: of Transformers, with its classes in ``config``; it is copied.
        train_dataset: private rows, as `Trainer` takes them, tokenised.
        by: a column, or a name for each row: the client that holds it. Clients are numbered in the
            order of these names.
        person: a column, or a name for each row: whose it is, for ``Privacy(unit="person")``.
        eval_dataset: public rows, which are scored after each round; ``None``: nothing is scored.
            ``{"test": rows, "validation": others}`` keeps others to choose a rate on, by
            `fl.rehearse`, so that the score is not of rows by which anything was chosen.
        data_collator: makes tensors of a list of rows; it must draw nothing at random.
        compute_metrics: see `Trainer`, of a classifier; by default its accuracy.
        processing_class: tokenizer or image processor, which is saved beside the adapter; by
            default the collator's tokenizer.
        targets, head: see `Layers`; by default PEFT's own of the architecture, and the classifier.
    Raises: ValueError in one line for a loss that is not the model's, tokens and labels that the
        model does not have, private rows among the public ones, a person at two clients, and names
        of clients or persons that differ in spelling only.
    Guarantees: test_trainer.py::test_a_loss_that_is_not_the_models_own_is_refused.

    >>> import fedlora_lab as fl
    >>> from transformers import AutoModelForSequenceClassification, AutoTokenizer
    >>> base = fl.tasks.shipped("sentences-bert")
    >>> code = AutoTokenizer.from_pretrained(base)
    >>> model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    >>> rows = [{**code(text), "label": i} for i, text in enumerate(("bad", "good"))] * 4
    >>> task = fl.tasks.from_trainer(model, rows, by=["north", "south"] * 4)
    >>> task.sizes
    (4, 4)
    """
    from transformers import default_data_collator  # slow to import

    base: Any = frozen_copy(model)
    check_model(base)
    public = _public_rows(eval_dataset)
    for rows in (train_dataset, *public.values()):
        with in_one_line(f"rows: {ROWS}, but"):
            dict(rows[len(rows) - 1])
    sites = names_of("by", train_dataset, by)
    persons = [] if person is None else names_of("person", train_dataset, person)
    for rows in public.values():
        if isinstance(person, str) and person in rows[0]:
            shared = {*persons} & {*names_of("person", rows, person)}
            held = f"{len(shared)} persons of private rows"
            check(not shared, "eval_dataset", held, "other persons")
    collator = data_collator or default_data_collator
    processing_class = processing_class or getattr(collator, "tokenizer", None)
    x, y = read_rows(base, train_dataset, collator, processing_class)
    writes = y.ndim > 1
    loss: Any = token_loss if writes else cross_entropy
    classes = _check_labels(base, train_dataset, y)
    _check_tokens(base, processing_class, x)
    if writes:
        _check_answers(x, y)
    for rows in () if writes else public.values():
        _check_class_names(classes, rows)
    read = {
        part: read_rows(base, rows, collator, processing_class) for part, rows in public.items()
    }
    test = read.get("test") or _made_up_rows(base, x, y)
    for inputs, _ in (test, *read.values()):
        _check_tokens(base, processing_class, inputs)
    _check_loss(base, test, loss)
    places: dict[str, list[int]] = {}
    for row, site in enumerate(sites):
        places.setdefault(site, []).append(row)
    names = sorted(places)
    rows = [torch.tensor(places[name]) for name in names]
    clients = [(take(x, mine), y[mine]) for mine in rows]
    whose = None
    if persons:
        sizes = tuple(map(len, rows))
        whose = person_numbers([[persons[i] for i in mine] for mine in rows], sizes, names)
    metrics: dict[str, Any] = {"perplexity": perplexity} if writes else {"accuracy": accuracy}
    if compute_metrics is not None and not writes:
        metrics = _metrics_of(compute_metrics, len(classes))
    trained = _classifiers(base) if head == "classifier of the model" else head
    task = Task(
        name="from_trainer",
        model=base,
        layers=Layers(_targets(base, targets), trained),
        clients=clients,
        held_out=HeldOut(test, read.get("validation"), public="test" in public),
        loss=loss,
        metrics=metrics | {"loss": loss} if "test" in public else {"loss": loss},
        persons=whose,
        origin=Origin(classes, processing_class, collator),
    )
    task.check_public()
    return task


def _public_rows(given: Any) -> dict[str, Any]:
    """The public rows by their part, "test" or "validation"; empty parts are left out."""
    parts = given if isinstance(given, Mapping) else {"test": given}
    expected = "rows, or {'test': rows, 'validation': rows}"
    check({*parts} <= {"test", "validation"}, "eval_dataset", sorted(parts), expected)
    with in_one_line(f"eval_dataset: {ROWS}, but"):
        return {part: rows for part, rows in parts.items() if rows is not None and len(rows)}


# ---- rows to tensors


def read_rows(model: nn.Module, rows: Any, collator: Any, processing_class: Any) -> Examples:
    """Makes inputs and labels of rows: tensors (n, ...), of texts `Ragged` columns.

    Args: model, processing_class: which know the token that fills up texts; rows, collator: see
        `from_trainer`.
    Raises: ValueError for a collator that fails, packs rows or draws at random.
    """
    pad = getattr(processing_class, "pad_token_id", None)
    pad = getattr(getattr(model, "config", None), "pad_token_id", None) if pad is None else pad
    read = {*inspect.signature(model.forward).parameters, "labels", "label", "label_ids"}
    parts = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        chosen = range(start, min(start + ROWS_AT_ONCE, len(rows)))
        kept = [{k: v for k, v in rows[i].items() if k in read} for i in chosen]
        x = _collated(rows[0], kept, collator)
        mask = x.get("attention_mask")
        if mask is not None and mask.ndim == 2:
            x = _without_padding(x, mask, pad or 0)
        y = x.pop("labels")
        parts.append((x, y))
    return concatenate(parts)


def _collated(first: Mapping[str, Any], kept: list[dict], collator: Any) -> dict[str, Any]:
    for name in {"label", "labels"} & {*first}:
        # The text itself may be a private row's.
        expected = "whole numbers: cast_column(name, ClassLabel(names=[...]))"
        check(not isinstance(first[name], str), name, "texts", expected)
        unlabelled = sum(_is_missing(row[name]) for row in kept)
        check(not unlabelled, name, f"none in {unlabelled} rows", "a label in every row")
    with in_one_line("data_collator: expected one that makes tensors of such rows, but"):
        batch, again = (dict(collator([dict(row) for row in kept])) for _ in range(2))
    expected = "one named label, as rows.rename_column(yours, 'label') makes it"
    check("labels" in batch, "columns", ", ".join(sorted(first)), expected)
    sizes = {name: len(column) for name, column in batch.items()}
    fits = {*sizes.values()} == {len(kept)}
    fits = fits and all(torch.equal(batch[name], again[name]) for name in batch)
    expected = f"labels, and {len(kept)} rows of each: not packed, and nothing drawn at random"
    check(fits, "data_collator", sizes, expected)
    return batch


def _is_missing(label: Any) -> bool:
    return label is None or (isinstance(label, float) and math.isnan(label))


def _without_padding(batch: dict[str, Tensor], mask: Tensor, pad: int) -> dict[str, Any]:
    """Keeps of each text what is attended to: positions then begin at its first token."""
    first = mask.bool().int().argmax(1, keepdim=True)
    order = (torch.arange(mask.shape[1]) + first) % mask.shape[1]
    width = torch.arange(1, mask.shape[1] + 1)
    lengths = (mask.gather(1, order).bool() * width).amax(1).clamp(min=1)
    fill = {"input_ids": pad, "labels": IGNORED}
    return {
        name: Ragged.of_padded(column.gather(1, order), lengths, fill.get(name, 0))
        if column.shape == mask.shape
        else column
        for name, column in batch.items()
    }


# ---- scores


def _metrics_of(compute_metrics: Callable[[Any], Mapping[str, float]], classes: int) -> dict:
    """Makes a metric of each score that a function of `Trainer`'s states."""
    from transformers import EvalPrediction

    def scores(outputs: Tensor, y: Tensor) -> Mapping[str, float]:
        return compute_metrics(EvalPrediction(outputs.float().numpy(), y.numpy()))

    names = scores(torch.eye(classes), torch.arange(classes))
    return {
        name: OverAll(lambda outputs, y, name=name: float(scores(outputs, y)[name]))
        for name in names
    }


# ---- what is adapted


def _targets(model: nn.Module, given: Sequence[str] | None) -> Sequence[str]:
    """The names that PEFT adapts in such a model, where none are given."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL

    if isinstance(given, str):  # else each letter would be a name
        given = [given]
    names = given or USUAL.get(getattr(getattr(model, "config", None), "model_type", ""), ())
    check(bool(names), "targets", given, f"names of linear maps, such as {linear_names(model)}")
    return names


def _classifiers(model: nn.Module) -> list[str] | None:
    """The linear maps that Transformers puts behind the base: what classifies."""
    base = str(getattr(model, "base_model_prefix", ""))
    names: list[str] = []
    for part in task_parts(model):
        module = model.get_submodule(part)
        if is_within(part, base):  # such as a pooler
            continue
        if is_linear_head(module):
            names.append(part)
        else:  # such as a classifier with a norm: its linear maps
            inner = module.named_modules(prefix=part)
            names += [path for path, layer in inner if type(layer) is nn.Linear]
    return names or None


# ---- checks


def _check_labels(model: nn.Module, rows: Any, y: Any) -> tuple[str, ...]:
    """Refuses classes that the model does not have; returns their names."""
    config: Any = getattr(model, "config", None)
    if y.ndim > 1:
        is_decoder = isinstance(y, Ragged) and bool(getattr(model, "can_generate", bool)())
        is_decoder = is_decoder and not config.is_encoder_decoder
        expected = "one class a row, or a decoder's tokens"
        check(is_decoder, "labels", f"several a row for a {type(model).__name__}", expected)
        return ()
    count = getattr(config, "num_labels", 0)
    inside = (y >= 0) & (y < count)
    expected = f"whole numbers in [0, {count - 1}], the model's num_labels"
    check(y.dtype == torch.int64 and bool(inside.all()), "labels", "others", expected)
    check(count > 1, "num_labels", count, "at least 2 classes: regression is not learned here")
    names = tuple(str(config.id2label[i]) for i in range(count))
    _check_class_names(names, rows)
    return names


def _check_class_names(names: tuple[str, ...], rows: Any) -> None:
    """Refuses rows whose ClassLabel names other classes, or in another order, than the model."""
    features = getattr(rows, "features", None) or {}
    for column in ("label", "labels"):
        declared = getattr(features.get(column), "names", names)
        check((*declared,) == names, "id2label", names, f"the data's ClassLabel: {declared}")


def _check_tokens(model: nn.Module, processing_class: Any, x: Mapping[str, Any]) -> None:
    """Refuses tokens without a row in the embedding, and texts that the model cannot hold."""
    ids = x.get("input_ids")
    if not isinstance(ids, Ragged):
        return
    known = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    largest = max(int(ids.values.max()), len(processing_class or ()) - 1)
    advice = f"at most {known - 1}: model.resize_token_embeddings(len(tokenizer))"
    check(largest < known, "tokens", f"{largest} in the tokenizer or the rows", advice)
    most = getattr(model.config, "max_position_embeddings", 0)
    check(
        most <= 0 or ids.shape[1] <= most,
        "input_ids",
        f"{ids.shape[1]} tokens",
        f"at most {most}: truncate",
    )


def _check_answers(x: Mapping[str, Any], y: Any) -> None:
    """Refuses labels of a decoder that teach it nothing, or the wrong token."""
    learned = y.values != IGNORED
    same = bool((y.values == x["input_ids"].values)[learned].all())
    check(same, "labels", "other tokens", "input_ids, or -100: the model shifts them itself")
    taught = [bool((row[1:] != IGNORED).any()) for row in y.rows()]
    check(2 * sum(taught) >= len(y), "labels", "-100 throughout in most rows", "answers")
    ends = y.lengths.cumsum(0) - 1
    if int((y.values[ends] == IGNORED).sum()) * 2 > len(y):
        warn("labels: most rows end in -100, so no end is learned: is pad_token the eos_token?")


def _made_up_rows(model: nn.Module, x: Mapping[str, Any], y: Any) -> tuple[dict[str, Any], Any]:
    """Four rows of the private ones' form and none of their values, to try the model on."""
    # Of different tokens each: where all are alike, none can be seen to change another.
    tokens = (torch.arange(TRIED)[:, None] + torch.arange(1, 4)).flatten()
    if isinstance(x.get("input_ids"), Ragged):
        tokens = tokens % model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    lengths = torch.full((TRIED,), 3)
    made = {
        name: Ragged(tokens if name == "input_ids" else torch.ones_like(tokens), lengths, 0)
        if isinstance(column, Ragged)
        else torch.ones(TRIED, *column.shape[1:], dtype=column.dtype)
        for name, column in x.items()
    }
    if "token_type_ids" in made:
        made["token_type_ids"] = Ragged(torch.zeros_like(tokens), lengths, 0)
    # Zero is a class, and a token, of every model.
    labels = torch.zeros(TRIED).long()
    if y.ndim > 1:
        labels = Ragged(torch.zeros_like(tokens), lengths, IGNORED)
    return made, labels


@torch.no_grad()
def _check_loss(model: Any, scored: tuple[dict, Any], loss: Callable[..., Tensor]) -> None:
    """Refuses a loss other than the model's own, tried on public rows: one by one, and for a
    classifier on one row of each class together, where weights of classes count.
    """
    x, y = scored
    knows = "labels" in inspect.signature(model.forward).parameters
    tried = [torch.tensor([i]) for i in range(min(TRIED, len(y)))]
    if y.ndim == 1:
        tried.append(torch.tensor([int((y == label).nonzero()[0]) for label in y.unique()]))
    for one in tried if knows else []:
        inputs = move_to_model(take(x, one), model)
        label = move_to_model(y[one], model)
        with in_one_line("model: expected one that takes such rows, but"):
            logits = forward(model, inputs)
            ours = float(loss(logits, label).mean())
            own = float(model(**inputs, labels=label).loss)
        # Transformers takes some losses in float32 whatever the model's own type is.
        rounding = max(1e-4, 4 * torch.finfo(logits.dtype).eps)
        count = getattr(model.config, "num_labels", 0)
        expected = f"{count}, the model's num_labels"
        check(y.ndim > 1 or logits.shape[-1] == count, "outputs", logits.shape[-1], expected)
        close = abs(ours - own) <= rounding * (1 + abs(own)) or (own != own and ours == 0)
        expected = "the cross entropy of its labels, without smoothing or weights"
        check(close, "loss", f"{own:.6g} by the model, {ours:.6g} of its logits", expected)
