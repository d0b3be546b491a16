"""A task: a frozen model, the clients' private examples, and public examples to measure on.

In this order: inputs, `Task`, `classification`, and the checks of both.
"""

import copy
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.tasks.metrics import Metric, TextScore, cross_entropy, select_metrics

ALL_LINEAR = "all-linear"
"""Targets that stand for every linear map, as in PEFT."""
CLASSIFIERS = "classifier", "score"
"""Names of classifiers, as PEFT knows them too."""
PARTS_OF_PEFT = ("base_layer", "default", "lora_A", "lora_B", "lora_dropout")
PARTS_OF_PEFT += ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
"""Modules inside a layer that PEFT adapted, which it would take for a head of such a name."""
MERGE_FIRST = "a model without an adapter of PEFT's; merge it first (merge_and_unload)"
# jaxtyping cannot express "a tensor or a mapping of tensors".
Inputs = Tensor | Mapping[str, Tensor]
Examples = tuple[Any, Tensor]

# ---- inputs


def map_inputs(function: Callable[[Any], Any], x: Any) -> Any:
    """Applies a function to the input tensor, or to every tensor of a mapping."""
    return {key: function(v) for key, v in x.items()} if isinstance(x, Mapping) else function(x)


def named_tensors(examples: Sequence[Any]) -> dict[str, Any]:
    """Lists the tensors of (x, y) by name: ``x`` or ``x['key']``, and ``y``."""
    x, y = examples
    inputs = {f"x[{key!r}]": v for key, v in x.items()} if isinstance(x, Mapping) else {"x": x}
    return {**inputs, "y": y}


def take(x: Any, index: Any) -> Any:
    """Takes some rows of a tensor, or of every tensor of a mapping."""
    return map_inputs(lambda value: value[index], x)


def concatenate(pairs: Sequence[Examples]) -> Examples:
    """Joins the examples of several clients, in order; those of a single client are not copied."""
    xs, ys = zip(*pairs, strict=True)
    if len(xs) == 1:
        return xs[0], ys[0]
    if isinstance(xs[0], Mapping):
        return {key: torch.cat([x[key] for x in xs]) for key in xs[0]}, torch.cat(ys)
    return torch.cat(xs), torch.cat(ys)


def mask_of(x: Any) -> Tensor | None:
    """The attention mask of texts, (n, tokens) or (n, ..., tokens); ``None`` for other inputs."""
    return x.get("attention_mask") if isinstance(x, Mapping) else None


def forward(model: nn.Module, x: Inputs) -> Any:
    """Calls ``model(**x)`` for a mapping, else ``model(x)``; returns ``logits`` if there."""
    outputs = model(**x) if isinstance(x, Mapping) else model(x)
    return getattr(outputs, "logits", outputs)


# ---- the task


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """What is learned, on whose data, and how it is scored. Functions of ``fl.tasks`` build one.

    Number, sizes and names of the clients, shapes, and the number of classes count as public.

    Args:
        name: short name, used in frames and figures.
        model: the frozen base in evaluation mode; it is never changed.
        targets: linear maps that get adapters, matched at the end of a module's name as by PEFT.
        clients: (x, y) of every client; x a tensor (n_k, ...) or a mapping of such tensors, y
            (n_k,) or (n_k, ...).
        test: (x, y) held out, for the curves.
        validation: (x, y) or ``None``; for tuning only, never for results.
        head: name of a module trained in full beside the factors, several names, or ``None``.
        forward: (model, x) -> outputs, the first dimension being that of x.
        loss: (outputs, y) -> (N,), the loss of each example.
        metrics: name -> (outputs, y) -> (N,), scores whose mean over examples is reported; or a
            `metrics.OverAll`, a score of all test examples together, or a `metrics.TextScore`.
        labels: the classes in order, names or numbers; ``None``: numbers from 0.
        client_names: one name per client; numbers by default.
        prepare: x -> x of a batch before it goes to the model's device, such as cutting padding.
        info: JSON-able; ``info["task"]`` and ``info["arguments"]`` rebuild a built-in task.
        public_test: the test examples are public. Otherwise their metrics are NaN in private runs:
            they would be exact numbers about private examples that no ledger counts.
        generation: how a decoder answers prompts, see `prompts.Generation`; ``None``: no decoder.
        persons: whose each example is, for privacy by person: for every client n_k whole numbers,
            each person at one client; kept as numbers from 0. ``None``: not known. How many
            persons each client has counts as public.
        new_modules: names of modules that the model's checkpoint lacks, or may lack: whoever loads
            it draws other numbers, so a saved adapter holds these modules, trained or not.
    Raises: ValueError when data, targets, head or model cannot be trained exactly; it says why.
    Guarantees: test_tasks.py::test_what_cannot_be_trained_exactly_is_refused_in_one_line,
        ::test_fingerprint_sees_data_and_weights.
    """

    name: str
    model: nn.Module
    targets: tuple[str, ...]
    clients: tuple[Examples, ...]
    test: Examples
    validation: Examples | None = None
    head: str | Sequence[str] | None = None
    forward: Callable[[nn.Module, Any], Any] = forward
    loss: Callable[[Any, Tensor], Tensor] = cross_entropy
    metrics: Mapping[str, Metric] = field(default_factory=select_metrics)
    labels: tuple[Any, ...] | None = None
    client_names: tuple[str, ...] = ()
    prepare: Callable[[Any], Any] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    public_test: bool = True
    generation: Any = None
    persons: tuple[Any, ...] | None = None
    new_modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_data(self.clients, self.test, self.validation)
        count = len(self.clients)
        names = tuple(self.client_names) or tuple(str(k) for k in range(count))
        check(len(names) == count, "client_names", names, f"{count} names")
        object.__setattr__(self, "clients", tuple(self.clients))
        object.__setattr__(self, "client_names", names)
        object.__setattr__(self, "targets", _target_names(self.targets))
        _check_model(self.model)
        check_head(self.model, self.head)
        object.__setattr__(self, "head", _shortest(head_names(self.head)))
        target_layers(self.model, self.targets, head_names(self.head))
        check(isinstance(self.public_test, bool), "public_test", self.public_test, "True or False")
        texts = [name for name, metric in self.metrics.items() if isinstance(metric, TextScore)]
        expected = "no score of texts: this task writes none, tasks of fl.tasks.prompts do"
        check(not texts or self.generation is not None, "metrics", texts, expected)
        modules = dict(self.model.named_modules())
        for part in self.new_modules:
            check(part in modules, "new_modules", part, "the full name of a module")
        if self.persons is not None:
            object.__setattr__(self, "persons", person_numbers(self.persons, self.sizes))

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        head = ", ".join(head_names(self.head)) or None
        return (
            f"Task({self.name!r}: clients {len(self.sizes)} of {min(self.sizes)} to "
            f"{max(self.sizes)} examples, test {len(self.test[1])}, frozen parameters "
            f"{parameters:,}, adapters on {', '.join(self.targets)}, head {head})"
        )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of examples of each client."""
        return tuple(len(y) for _, y in self.clients)

    @cached_property
    def local_persons(self) -> tuple[Tensor, ...]:
        """Each client's persons by example, (n_k,), counted from 0 at the client; empty without."""
        own = (torch.unique(part, return_inverse=True) for part in self.persons or ())
        return tuple(inverse for _, inverse in own)

    @cached_property
    def person_counts(self) -> tuple[int, ...]:
        """Number of persons of each client; empty where persons are not known."""
        return tuple(int(part.max()) + 1 for part in self.local_persons)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over all data and weights with their names, types and shapes."""
        tensors: dict[str, Any] = {}
        parts = _parts(self.clients, self.test, self.validation, "client {}")
        for part, (x, y) in parts.items():
            inputs = sorted(x.items()) if isinstance(x, Mapping) else [("x", x)]
            tensors |= {f"{part} {key}": value for key, value in [*inputs, ("y", y)]}
        tensors |= {f"client {k} persons": own for k, own in enumerate(self.persons or ())}
        tensors |= {f"model {n}": value for n, value in sorted(self.model.state_dict().items())}
        digest = hashlib.sha256()
        for name, value in tensors.items():
            if isinstance(value, Tensor):
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
                flat = value.detach().cpu().contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def to(self, dtype: torch.dtype) -> "Task":
        """The same task with model, floating inputs and floating labels in another precision."""
        ok = isinstance(dtype, torch.dtype) and dtype.is_floating_point
        check(ok, "dtype", dtype, "a floating torch.dtype")

        def cast(value: Any) -> Any:
            return value.to(dtype) if value.is_floating_point() else value

        examples = _each(self.clients, self.test, self.validation, cast, cast)
        info = {**self.info, "dtype": str(dtype).removeprefix("torch.")}
        return replace(self, model=frozen_copy(self.model).to(dtype), info=info, **examples)

    def pooled(self) -> "Task":
        """The same examples with one client: all data in one place."""
        info = {**self.info, "pooled": True}
        persons = None if self.persons is None else (torch.cat(self.persons),)
        changes: Any = {"client_names": ("all",), "info": info, "persons": persons}
        return replace(self, clients=(concatenate(self.clients),), **changes)

    def only(self, client: int) -> "Task":
        """The same task with one client alone, counted from 0."""
        check_whole("client", client, 0, len(self.clients) - 1)
        names = (self.client_names[client],)
        info = {**self.info, "only": client}
        persons = None if self.persons is None else (self.persons[client],)
        changes: Any = {"client_names": names, "info": info, "persons": persons}
        return replace(self, clients=(self.clients[client],), **changes)


def examples_to_judge(task: Task, private: bool) -> Examples:
    """The test examples for a score of a run; of a private run only where they are public.

    Raises: ``ValueError`` where they are not: no epsilon of the run would count the score.
    Guarantees: test_attack_evaluation.py::test_no_measure_of_a_private_run_looks_at_private_rows.
    """
    expected = "True: of a private run only public test examples are scored; give others by data="
    check(task.public_test or not private, "public_test", False, expected)
    return task.test


# ---- a task of any module and any tensors


def classification(
    model: nn.Module,
    clients: Sequence[Examples],
    test: Examples,
    targets: Sequence[str],
    head: str | Sequence[str] | None = None,
    *,
    validation: Examples | None = None,
    metrics: Sequence[str] | Mapping[str, Metric] = ("accuracy",),
    labels: Sequence[Any] | None = None,
    client_names: Sequence[str] = (),
    persons: Sequence[Any] | None = None,
    name: str = "classification",
) -> Task:
    """Builds a classification task of any module and tensors.

    Args:
        model: any module whose output, or whose output's ``logits``, is (N, classes); it is copied.
        clients: (x, y) of every client, x a tensor (n_k, ...) or a mapping of tensors that the
            model takes as keywords, y (n_k,) whole numbers in [0, classes).
        test: (x, y), public and held out.
        metrics: names in `fl.tasks.METRICS`, or a mapping from names to metrics of your own; the
            loss is reported in any case.
        targets, head, validation, labels, client_names, persons, name: as of `Task`.
    Raises: ValueError in one line when something cannot be trained exactly, such as BatchNorm in
        training mode, wrong labels, or targets that are no linear maps.
    Guarantees: test_tasks.py::test_classification_leaves_the_model_alone,
        ::test_inputs_may_be_mappings,
        ::test_what_cannot_be_trained_exactly_is_refused_in_one_line.

    >>> import torch, fedlora_lab as fl
    >>> x, y = torch.randn(60, 4), torch.arange(60) % 3
    >>> clients = [(x[part], y[part]) for part in fl.partition.iid(60, 5)]
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    >>> classification(model, clients, test=(x[:9], y[:9]), targets=["0"]).sizes
    (12, 12, 12, 12, 12)
    """
    check(isinstance(model, nn.Module), "model", type(model).__name__, "a torch.nn.Module")
    _check_batch_norm(model)  # before the copy, which is in evaluation mode whatever this one is
    _check_data(clients, test, validation)

    def classes(y: Tensor) -> Tensor:
        other = y.is_floating_point() or y.is_complex() or y.dtype == torch.bool
        return y.detach() if other else y.detach().long()

    task = Task(
        name=name,
        model=frozen_copy(model),
        new_modules=task_parts(model),
        targets=_target_names(targets),
        **_each(clients, test, validation, Tensor.detach, classes),
        head=head,
        metrics=select_metrics(metrics),
        labels=None if labels is None else tuple(labels),
        client_names=tuple(client_names),
        info={"task": name, "model": type(model).__name__},
        persons=None if persons is None else tuple(persons),
    )
    return check_classes(task)


def frozen_copy(model: nn.Module) -> nn.Module:
    """Copies a model in evaluation mode, without gradients; the given model stays as it is.

    Raises: ``ValueError`` for a model that cannot be copied or frozen, such as a compiled script.
    """
    try:
        twin = copy.deepcopy(model).eval().requires_grad_(False)
    except Exception as error:  # whatever a foreign model raises, the reader needs it in one line
        expected = (
            f"expected a module that can be copied and frozen, but it says: {first_line(error)}"
        )
        raise ValueError(f"model={type(model).__name__!r}: {expected}") from error
    for module in twin.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            # 0 switches off a fused kernel that passes by the adapters.
            module.activation_relu_or_gelu = 0
    return twin


# ---- checks of the data


def _parts(clients: Any, test: Any, validation: Any, word: str = "clients[{}]") -> dict[str, Any]:
    """All examples of a task by the name of their part."""
    parts = {word.format(k): pair for k, pair in enumerate(clients)} | {"test": test}
    return parts if validation is None else {**parts, "validation": validation}


def _each(
    clients: Any, test: Any, validation: Any, to_x: Callable[[Any], Any], to_y: Callable[[Any], Any]
) -> dict[str, Any]:
    """All parts of a task, as its fields, with one function applied to inputs, one to labels."""

    def pair(examples: Any) -> Examples:
        return map_inputs(to_x, examples[0]), to_y(examples[1])

    held_out = None if validation is None else pair(validation)
    return {"clients": tuple(map(pair, clients)), "test": pair(test), "validation": held_out}


def _check_data(clients: Any, test: Any, validation: Any) -> None:
    """Refuses empty parts, rows that do not match, and parts whose tensors differ in kind."""
    listed = isinstance(clients, (tuple, list))
    shown = clients if listed else type(clients).__name__
    check(listed and bool(clients), "clients", shown, "at least one pair (x, y)")
    first: Any = None
    for name, pair in _parts(clients, test, validation).items():
        # Clients' examples that are not finite are counted by the clip, and taken as zero.
        kinds = check_examples(name, pair, finite=not name.startswith("clients"))
        first = first or kinds
        check(kinds == first, name, kinds, f"what clients[0] has: {first}")


def check_examples(name: str, pair: Any, finite: bool = False) -> dict[str, Any]:
    """Refuses anything but a pair (x, y) of tensors with as many rows; returns their kinds by name.

    Args:
        name: of the pair, for messages.
        pair: the examples.
        finite: whether their numbers must be.
    """
    two = isinstance(pair, (tuple, list)) and len(pair) == 2
    check(two, name, type(pair).__name__, "a pair (x, y)")
    some = not isinstance(pair[0], Mapping) or len(pair[0]) > 0
    check(some, f"{name} x", pair[0], "a tensor or a mapping of tensors")
    tensors = named_tensors(pair)
    for key, value in reversed(tensors.items()):  # y first: the others have as many rows
        key = f"{name} {key}"
        check(isinstance(value, Tensor), key, type(value).__name__, "a torch.Tensor")
        counted = "a tensor whose first dimension counts examples"
        check(value.ndim > 0, key, "a single number", counted)
        check(value.layout == torch.strided, key, value.layout, "a dense tensor: x.to_dense()")
        rows = f"{len(pair[1])} rows, as many as y"
        check(len(value) == len(pair[1]), key, f"{len(value)} rows", rows)
        check(not finite or _is_finite(value), key, "NaN or infinity", "finite numbers")
    check(len(pair[1]) > 0, name, "0 examples", "at least one example")
    return {key: (value.dtype, tuple(value.shape[1:])) for key, value in tensors.items()}


def person_numbers(persons: Any, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Each client's persons as numbers from 0, in the order of the given ones.

    Args:
        persons: for each client a whole number for each example.
        sizes: numbers of examples of the clients.
    Raises: ``ValueError`` for anything but whole numbers, and for a person at two clients: each of
        them draws and noises for itself, and what the person spends would be stated too small.
    """
    listed = isinstance(persons, (tuple, list)) and len(persons) == len(sizes)
    shown = len(persons) if isinstance(persons, (tuple, list)) else type(persons).__name__
    check(listed, "persons", shown, f"{len(sizes)} lists, one for each client")
    client_of: dict[int, int] = {}
    given: list[int] = []
    for k, (part, count) in enumerate(zip(persons, sizes, strict=True)):
        # Of an array its own numbers: they know how exact they are.
        part = part.detach().cpu().numpy() if isinstance(part, Tensor) else part
        column = list(part) if hasattr(part, "__iter__") else []
        expected = f"{count}, one an example"
        check(len(column) == count, f"persons[{k}]", f"{len(column)} entries", expected)
        numbers = whole_numbers("persons", column, lambda i, k=k: f"row {i} of client {k}")
        for number in numbers:
            first = client_of.setdefault(number, k)
            expected = "one client for each person: merge those that share persons"
            check(first == k, "persons", f"one at clients {first} and {k}", expected)
        given += numbers
    order = {number: i for i, number in enumerate(sorted(client_of))}
    parts = torch.tensor([order[number] for number in given]).split(list(sizes))
    return tuple(part.clone() for part in parts)


def whole_numbers(name: str, values: Iterable[Any], place: Callable[[int], str]) -> list[int]:
    """The whole numbers in a column, compared by value: 7 and 7.0 are one.

    Messages name rows and no value, since persons are private.

    Args:
        name: of the argument, for messages.
        values: the cells.
        place: number of a value -> what messages call its row.
    Raises: ``ValueError`` for an empty cell, a text, and a floating number so large that its
        neighbours may have been rounded to it: one person counted as two would be protected by
        half.
    Guarantees: test_persons.py::test_persons_are_compared_by_value.
    """
    numbers = []
    for i, value in enumerate(values):
        is_whole = isinstance(value, (Integral, float, np.floating))
        is_whole = is_whole and not isinstance(value, (bool, np.bool_, np.timedelta64))
        if is_whole and not isinstance(value, Integral):
            limit = 2 ** (np.finfo(type(value)).nmant + 1)
            is_whole = bool(np.isfinite(value)) and abs(value) < limit and value == int(value)
        expected = "whole numbers, such as pandas.factorize makes of texts"
        check(bool(is_whole), name, f"{type(value).__name__} in {place(i)}", expected)
        numbers.append(int(value))
    return numbers


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of an ordinary floating tensor are finite; other types pass."""
    ordinary = tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    # An expanded tensor holds each number many times: look at it once.
    once = tensor[tuple(slice(None if step else 1) for step in tensor.stride())]
    return not ordinary or tensor.is_meta or bool(once.isfinite().all())


def first_line(error: Exception) -> str:
    """The first line of a foreign error's message, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@torch.no_grad()
def check_classes(task: Task) -> Task:
    """Returns the task if its outputs and labels are classes and its model keeps examples apart.

    Runs up to four test examples, together and the first among copies of itself.
    """
    x, y = task.test
    count = min(4, len(y))
    name = type(task.model).__name__
    try:
        batch = task.forward(task.model, take(x, torch.arange(count)))
        repeated = task.forward(task.model, take(x, torch.zeros(count, dtype=torch.int64)))
    except Exception as error:  # whatever a foreign model raises, the reader needs it in one line
        expected = f"expected to accept the test inputs, but it says: {first_line(error)}"
        raise ValueError(f"model={name!r}: {expected}") from error
    tensor = isinstance(batch, Tensor)
    what = tuple(batch.shape) if tensor else type(batch).__name__
    ok = tensor and batch.ndim == 2 and len(batch) == count and batch.is_floating_point()
    check(ok, "model output", what, f"a floating tensor ({count}, classes) for {count} examples")
    apart = torch.allclose(batch[0], repeated[0], rtol=1e-3, atol=1e-4, equal_nan=True)
    expected = "one that keeps examples apart; here other examples of a batch change an output"
    check(apart, "model", name, expected)
    classes = batch.shape[1]
    fits = task.labels is None or len(task.labels) == classes
    check(fits, "labels", task.labels, f"{classes} names, one for each output of the model")
    for part, (_, labels) in _parts(task.clients, task.test, task.validation).items():
        kind = f"{labels.dtype} {tuple(labels.shape)}"
        integral = labels.dtype == torch.int64 and labels.ndim == 1
        check(integral, f"{part} y", kind, "one whole number per example")
        low = int(labels.min())
        high = int(labels.max())
        check(low >= 0, f"{part} y", low, "labels >= 0")
        check(high < classes, f"{part} y", high, f"labels in [0, {classes - 1}]")
    return task


# ---- checks of the model, its targets and its head


def _check_model(model: Any) -> None:
    """Refuses anything but a module of finite weights without gradients, in evaluation mode."""
    kind = type(model).__name__
    check(isinstance(model, nn.Module), "model", kind, "a torch.nn.Module")
    still = not model.training and not any(p.requires_grad for p in model.parameters())
    check(still, "model", kind, "a frozen copy in evaluation mode; tasks.classification makes one")
    check_no_adapters(model)
    for name, weight in model.named_parameters():
        check(_is_finite(weight.detach()), f"model.{name}", "NaN or infinity", "finite weights")
    _check_batch_norm(model)


def check_no_adapters(model: nn.Module) -> None:
    """Refuses a model that holds layers of PEFT's.

    PEFT would make their factors anew beside those of a run, and the run would start at another
    model than the one that was given.

    Guarantees: tests/tasks/test_loading.py::test_a_model_with_an_adapter_is_refused_everywhere.
    """
    kinds = (kind for module in model.modules() for kind in type(module).__mro__)
    layer = next((kind.__name__ for kind in kinds if kind.__module__.startswith("peft.")), None)
    check(layer is None, "model", layer, MERGE_FIRST)


def _check_batch_norm(model: nn.Module) -> None:
    """Refuses batch normalisation that would use the batch's own statistics."""
    mode = "evaluation mode: BatchNorm in training mode mixes examples; call model.eval() first"
    memory = "track_running_stats=True: without running statistics BatchNorm mixes examples"
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            name = f"model.{name}"
            kind = type(module).__name__
            check(not module.training, name, kind, mode)
            check(module.running_mean is not None, name, kind, memory)


def _target_names(targets: Any) -> tuple[str, ...]:
    """Returns the target names as a tuple; refuses anything but a list or tuple of names."""
    listed = isinstance(targets, (list, tuple)) and len(targets) > 0
    ok = listed and all(isinstance(name, str) and name for name in targets)
    check(ok, "targets", targets, "one or more module names such as ('query', 'value')")
    return tuple(targets)


def matching_modules(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Finds the modules whose name is one of ``names``, or ends with a dot and one of them."""
    ends = tuple(f".{name}" for name in names)
    modules = model.named_modules()
    return {name: m for name, m in modules if name and (name in names or name.endswith(ends))}


def is_linear(module: nn.Module) -> bool:
    """Whether a module is nn.Linear itself, or Transformers' transposed linear map Conv1D."""
    kind = type(module)
    transposed = kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
    return kind is nn.Linear or transposed


def linear_names(model: nn.Module) -> str:
    """The last parts of the names of a model's linear maps, for messages."""
    last = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if is_linear(m)}
    return ", ".join(sorted(last))


def target_layers(
    model: nn.Module, targets: str | Sequence[str], heads: Sequence[str]
) -> tuple[str, ...]:
    """The full names of the linear maps that targets stand for, in the model's order.

    Args:
        model: the base.
        targets: ends of names, as PEFT matches them; a regular expression for whole names; or
            "all-linear", every map but those of the heads and the output layer of a language model.
        heads: full names of modules that are trained as a whole.

    Raises: ``ValueError`` for targets that match nothing, or more than free-standing linear maps.
    """
    modules = dict(model.named_modules())
    if targets == ALL_LINEAR:
        base: Any = model
        output = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
        free = [name for name in modules if _obstacle(modules, name, heads) is None]
        return tuple(name for name in free if modules[name] is not output)
    found: set[str] = set()
    for target in [targets] if isinstance(targets, str) else targets:
        if isinstance(targets, str):
            matches = [name for name in modules if re.fullmatch(target, name)]
        else:
            matches = list(matching_modules(model, [target]))
        expected = f"the end of a module's name; linear maps here: {linear_names(model)}"
        check(bool(matches), "targets", target, expected)
        for name in matches:
            obstacle = _obstacle(modules, name, heads)
            check(obstacle is None, "targets", name, str(obstacle))
        found.update(matches)
    return tuple(name for name in modules if name in found)


def _obstacle(modules: Mapping[str, nn.Module], name: str, heads: Sequence[str]) -> str | None:
    """Why a module can have no adapter, in words that follow "expected"; ``None`` if it can."""
    for outer, module in modules.items():
        if isinstance(module, nn.MultiheadAttention) and name.startswith(outer and f"{outer}."):
            return "a linear map outside nn.MultiheadAttention, which never calls its own"
    if not is_linear(modules[name]):
        kind = type(modules[name]).__name__
        return f"nn.Linear or Transformers' Conv1D, not {kind}: others have no exact gradients"
    for head in heads:
        if is_within(name, head):
            return f"a module outside the head {head!r}, which is trained in full"
        for other in lookalikes(modules, head):
            if is_within(name, other):
                reason = f"its name ends with the head's, {head!r}, and PEFT wraps it as well"
                return f"a module outside {other!r}: {reason}"
    return None


def head_names(head: Any) -> tuple[Any, ...]:
    """The names of the modules that a head consists of: none, one, or several."""
    if head is None:
        return ()
    return tuple(head) if isinstance(head, list | tuple) else (head,)


def _shortest(names: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """Names of modules as `Task.head` has them."""
    return names if len(names) > 1 else names[0] if names else None


def task_parts(model: Any) -> tuple[str, ...]:
    """Modules with weights that Transformers puts behind a base: classifiers, and poolers.

    A base's own pooler is one: classes for pretraining have none. The output layer of a language
    model is none: it belongs to the base.
    """
    prefix = getattr(model, "base_model_prefix", None)
    if prefix is None or model.get_output_embeddings() is not None:
        return ()
    children = dict(model.named_children())
    base = children.pop(prefix, None)
    if base is None:  # such as CLIP's, whose parts are those of a larger model
        children = {name: part for name, part in children.items() if name in CLASSIFIERS}
    pooler = getattr(base, "pooler", None)
    if isinstance(pooler, nn.Module):
        children[f"{prefix}.pooler"] = pooler
    return tuple(name for name, module in children.items() if module.state_dict())


def check_head(model: nn.Module, head: Any) -> None:
    """Refuses a head that is missing, has more than linear maps, shares weights with the base, or
    that PEFT cannot tell from modules inside it, from a list of modules or from its own modules.

    Args:
        model, head: the base, and the full names of the modules that are trained in full: one,
            several, or ``None``.
    """
    modules = dict(model.named_modules())
    parts = head_names(head)
    for part in parts:
        present = isinstance(part, str) and bool(part) and part in modules
        check(present, "head", part, "the full name of a module")
    for number, part in enumerate(parts):
        others = (*parts[:number], *parts[number + 1 :])
        apart = not any(is_within(part, other) for other in others)
        check(apart, "head", part, "modules that do not hold each other, each once")
    parameters = list(model.named_parameters(remove_duplicate=False))
    lists = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
    for part in parts:
        elsewhere = {p for path, p in parameters if not is_within(path, part)}
        linear_maps = [m for m in modules[part].modules() if type(m) is nn.Linear]
        linear = {p for m in linear_maps for p in m.parameters(recurse=False)}
        inside = set(modules[part].parameters())
        expected = "a module whose parameters all belong to nn.Linear"
        check(inside <= linear, "head", part, expected)
        expected = "a module with nn.Linear inside: there is nothing to train in it"
        check(bool(linear), "head", part, expected)
        expected = "a module that shares no weight with the frozen base"
        check(not inside & elsewhere, "head", part, expected)
        similar = lookalikes(modules, part)
        odd = [n for n in similar if is_within(n, part) or isinstance(modules[n], lists)]
        expected = "a name with which no module inside it, and no list, ends; "
        check(not odd, "head", part, expected + f"{', '.join(odd)} does")
        reserved = next((name for name in PARTS_OF_PEFT if name.endswith(part)), None)
        expected = f"another name for this module: that of PEFT's own {reserved!r} ends with it"
        check(reserved is None, "head", part, expected)


def is_within(name: str, module: str) -> bool:
    """Whether a path is that of a module, or of something inside it."""
    return name == module or name.startswith(f"{module}.")


def lookalikes(modules: Mapping[str, nn.Module], head: str) -> list[str]:
    """Modules that PEFT takes for the head as well: their names end with its name."""
    return [name for name in modules if name != head and name.endswith(head)]
