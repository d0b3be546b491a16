"""A task: a frozen model, the clients' private examples, and public examples to measure on.

In this order: inputs, `Task`, `classification`, and the checks of both.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_lab._utils.torch_state import with_default_modes
from fedlora_lab._utils.validation import check, in_one_line, refuse
from fedlora_lab.tasks.metrics import METRICS, Metric, cross_entropy
from fedlora_lab.tasks.modules import (
    Head,
    check_batch_norm,
    check_model,
    frozen_copy,
    head_modules,
    head_names,
    is_finite,
    is_frozen,
    target_layers,
)
from fedlora_lab.tasks.names import to_identifiers
from fedlora_lab.tasks.public_rows import FEW_PEOPLE, SharedRows, row_keys, shared_rows
from fedlora_lab.tasks.ragged import Ragged

# jaxtyping cannot express "a tensor or a mapping of tensors".
Inputs = Tensor | Mapping[str, Tensor]
Examples = tuple[Any, Tensor]
Persons = Sequence[int | str] | np.ndarray | Tensor
"""Whose each example of a client is, (n_k,)."""
ONE_CLIENT = (
    "one client for each person: merge those that share persons; or, where each site counts its "
    "persons from 1, make them different, such as site + '-' + number"
)
"""What to do about a person at two clients."""
PUBLIC_ROWS = (
    "public rows of their own, without those that are private "
    "(texts are compared as the tokenizer encodes them)"
)
"""What is expected of test rows that are declared public."""


# ---- inputs


def map_inputs(function: Callable[[Tensor], Tensor], x: Inputs) -> Any:
    """Applies a function to the input tensor, or to every tensor of a mapping."""
    return {key: function(v) for key, v in x.items()} if isinstance(x, Mapping) else function(x)


def move_to_model(x: Inputs, model: nn.Module) -> Any:
    """Puts inputs where the model's first parameter is."""
    device = next(model.parameters()).device
    return map_inputs(lambda value: value.to(device, non_blocking=True), x)


def named_tensors(examples: Examples) -> dict[str, Tensor]:
    """Lists the tensors of (x, y) by name: ``x`` or ``x['key']``, and ``y``."""
    x, y = examples
    inputs = {f"x[{key!r}]": v for key, v in x.items()} if isinstance(x, Mapping) else {"x": x}
    return {**inputs, "y": y}


def add_to_digest(digest: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Adds tensors, with their names, types and shapes, to a digest of `hashlib` or `hmac`."""
    for name, tensor in tensors.items():
        # Bytes alone do not tell (2, 3) from (3, 2), or whole numbers from floating ones.
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if isinstance(tensor, Ragged):
            add_to_digest(digest, {"lengths": tensor.lengths, "values": tensor.values})
            continue
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest


def take(x: Inputs, index: Tensor | slice) -> Any:
    """Takes some rows of a tensor, or of every tensor of a mapping."""
    return map_inputs(lambda value: value[index], x)


def concatenate(pairs: Sequence[Examples]) -> Examples:
    """Joins the examples of several clients, in order; those of a single client are not copied."""
    if len(pairs) == 1:
        return pairs[0][0], pairs[0][1]
    inputs = [x for x, _ in pairs]
    y = _joined([y for _, y in pairs])
    if isinstance(inputs[0], Mapping):
        return {key: _joined([x[key] for x in inputs]) for key in inputs[0]}, y
    return _joined(inputs), y


def _joined(columns: list[Any]) -> Any:
    return Ragged.joined(columns) if isinstance(columns[0], Ragged) else torch.cat(columns)


def mask_of(x: Inputs) -> "Any":
    """The attention mask of texts, (n, tokens) or (n, ..., tokens); ``None`` for other inputs."""
    return x.get("attention_mask") if isinstance(x, Mapping) else None


def forward(model: nn.Module, x: Inputs) -> Any:
    """Calls ``model(**x)`` for a mapping, else ``model(x)``; returns ``logits`` if there."""
    x = map_inputs(lambda column: column.to("cpu") if isinstance(column, Ragged) else column, x)
    outputs = model(**x) if isinstance(x, Mapping) else model(x)
    return getattr(outputs, "logits", outputs)


# ---- the task


@dataclass(frozen=True)
class Layers:
    """The layers of a model that are trained.

    Args:
        targets: linear maps that get adapters, matched at the end of a module's name as by PEFT.
        head: what is trained in full beside the factors: a name, several, or ``None``; each stands
            for the modules whose names end with it, see `head_modules`.
    """

    targets: Sequence[str]
    head: Head = None


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Examples to measure on.

    Args:
        test: (x, y), for the curves.
        validation: (x, y) or ``None``; for tuning only, never for results.
        public: both are public, and a private run refuses them where they are plainly private ones,
            see `Task.check_public`. Otherwise their metrics are NaN in private runs: they would be
            exact numbers about private examples that no ledger counts.
    """

    test: Examples
    validation: Examples | None = None
    public: bool = True


@dataclass(frozen=True)
class Origin:
    """Where a task comes from.

    Args:
        classes: their names, in the order of the outputs, where they are known.
        processing_class: tokenizer or image processor, which is saved beside the adapter.
        data_collator: which makes tensors of rows.
    """

    classes: tuple[str, ...] = ()
    processing_class: Any = None
    data_collator: Any = None


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """What is learned, on whose data, and how it is scored. Functions of ``fl.tasks`` build one.

    Number and sizes of the clients, shapes, and the number of classes count as public.

    Args:
        name: short name, used in frames and figures.
        model: the base; of one that is not frozen a frozen copy is taken. It is never changed.
        layers: of the model that are trained.
        clients: a pair (x, y) for every client; x a tensor (n_k, ...) or a mapping of such
            tensors, y (n_k,) or (n_k, ...).
        held_out: examples to measure on.
        loss: (outputs, y) -> (N,), the loss of each example.
        metrics: name -> (outputs, y) -> (N,), scores whose mean over examples is reported; or a
            `metrics.OverAll`, a score of all test examples together.
        persons: whose each example is, for privacy by person: for every client n_k texts or whole
            numbers, each person at one client; kept as numbers from 0. ``None``: not known. How
            many persons each client has counts as public.
        origin: where it comes from.
    Raises: ValueError when data, layers or model cannot be trained exactly; it says why.
    Guarantees: test_tasks.py::test_what_cannot_be_trained_exactly_is_refused_in_one_line,
        ::test_fingerprint_sees_data_persons_and_weights, ::test_a_task_freezes_a_copy_of_its_model.
    """

    name: str
    model: nn.Module
    layers: Layers
    clients: Sequence[Examples]
    held_out: HeldOut
    loss: Callable[[Any, Tensor], Tensor] = cross_entropy
    metrics: Mapping[str, Metric] = field(default_factory=METRICS.copy)
    persons: Any = None
    origin: Origin = Origin()

    def __post_init__(self) -> None:
        object.__setattr__(self, "clients", tuple(self.clients))
        check(len(self.clients) > 0, "clients", 0, "at least one pair (x, y)")
        _check_parts(self.parts)
        if self.persons is not None:
            object.__setattr__(self, "persons", person_numbers(self.persons, self.sizes))
        kind = type(self.model).__name__
        check(isinstance(self.model, nn.Module), "model", kind, "a torch.nn.Module")
        if not is_frozen(self.model):
            check_batch_norm(self.model)  # the copy is in evaluation mode whatever this one is
            object.__setattr__(self, "model", frozen_copy(self.model))
        check_model(self.model)
        # The head comes first: what is trained in full has no adapter.
        named = bool(self.targets) and all(isinstance(name, str) and name for name in self.targets)
        check(named, "targets", self.targets, "one or more module names such as ('query', 'value')")
        target_layers(self.model, self.targets, head_modules(self.model, self.head))
        expected = "a mapping from names to scores"
        check(isinstance(self.metrics, Mapping), "metrics", self.metrics, expected)
        check(isinstance(self.public_test, bool), "public_test", self.public_test, "True or False")

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        head = ", ".join(head_names(self.head)) or None
        return (
            f"Task({self.name!r}: clients {len(self.sizes)} of {min(self.sizes)} to "
            f"{max(self.sizes)} examples, test {len(self.test[1])}, model parameters "
            f"{parameters:,}, adapters on {', '.join(self.targets)}, head {head})"
        )

    @property
    def targets(self) -> tuple[str, ...]:
        """Ends of the names of the linear maps that get adapters."""
        return tuple(self.layers.targets)

    @property
    def head(self) -> Head:
        """What is trained in full."""
        return self.layers.head

    @property
    def test(self) -> Examples:
        """Examples for the curves."""
        return self.held_out.test

    @property
    def validation(self) -> Examples | None:
        """Examples to tune on."""
        return self.held_out.validation

    @property
    def public_test(self) -> bool:
        """Whether the examples to measure on are public."""
        return self.held_out.public

    @property
    def parts(self) -> dict[str, Examples]:
        """All examples, by the name of their part."""
        named = {f"clients[{k}]": examples for k, examples in enumerate(self.clients)}
        named["test"] = self.test
        if self.validation is not None:
            named["validation"] = self.validation
        return named

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of examples of each client."""
        return tuple(len(y) for _, y in self.clients)

    @cached_property
    def local_persons(self) -> tuple[Tensor, ...]:
        """Each client's persons by example, (n_k,), counted from 0 at the client; empty without."""
        # From 0, so that sums over a client's persons are indexed by person.
        counted = (torch.unique(part, return_inverse=True) for part in self.persons or ())
        return tuple(inverse for _, inverse in counted)

    @cached_property
    def person_counts(self) -> tuple[int, ...]:
        """Number of persons of each client; empty where persons are not known."""
        return tuple(int(part.max()) + 1 for part in self.local_persons)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over all data and weights with their names, types and shapes."""
        tensors: dict[str, Tensor] = {}
        for part, examples in self.parts.items():
            tensors |= {f"{part} {name}": x for name, x in sorted(named_tensors(examples).items())}
        tensors |= {f"persons {k}": column for k, column in enumerate(self.persons or ())}
        tensors |= {f"model {n}": x for n, x in sorted(self.model.state_dict().items())}
        return add_to_digest(hashlib.sha256(), tensors).hexdigest()

    @cached_property
    def shared_rows(self) -> dict[str, SharedRows]:
        """What test and validation examples have in common with those of the clients."""
        private = row_keys(named_tensors(concatenate(self.clients)).values())
        persons = None if self.persons is None else torch.cat(self.persons).tolist()
        return {
            part: shared_rows(private, row_keys(named_tensors(examples).values()), persons)
            for part, examples in self.parts.items()
            if not part.startswith("client")
        }

    def check_public(self) -> None:
        """Refuses test and validation examples that are declared public and plainly private ones.

        Scores of public examples are exact, and no epsilon counts them. Two examples are equal if
        all that the model reads is, and the label. Refused is where more than half of one table lie
        in the other, beyond what chance explains, see `SharedRows`. Examples that were written
        differently, such as images that were encoded again, are not found. Nothing is said of those
        of a single person, or of a few: whoever chose the public ones would learn whether the
        person is among the private ones.

        Guarantees: test_public_rows.py::test_private_rows_are_refused_as_public_ones.
        """
        if not self.public_test:
            return
        expected = f"{PUBLIC_ROWS}, or public_test=False, which scores nothing under privacy"
        for part, shared in self.shared_rows.items():
            if shared.people >= FEW_PEOPLE and shared.excess > 0.5:
                refuse(part, f"{shared.twins} of {shared.rows} rows equal private rows", expected)


def examples_to_judge(task: Task, private: bool) -> Examples:
    """The test examples for a score of a run; of a private run only where they are public.

    Raises: ``ValueError`` where they are not: no epsilon of the run would count the score.
    Guarantees: test_attack_evaluation.py::test_no_measure_of_a_private_run_looks_at_private_rows.
    """
    expected = "True: of a private run only public test examples are scored"
    check(task.public_test or not private, "public_test", False, expected)
    return task.test


# ---- a task of any module and any tensors


@with_default_modes
def classification(
    model: nn.Module,
    clients: Sequence[Examples],
    test: Examples,
    targets: Sequence[str],
    head: Head = None,
    *,
    validation: Examples | None = None,
    metrics: Mapping[str, Metric] = METRICS,
    persons: Sequence[Persons] | None = None,
    public_test: bool = True,
    name: str = "classification",
) -> Task:
    """Builds a classification task of any module and tensors.

    Args:
        model: any module whose output, or whose output's ``logits``, is (N, classes).
        clients: (x, y) of every client, x a tensor (n_k, ...) or a mapping of tensors that the
            model takes as keywords, y (n_k,) whole numbers in [0, classes).
        test: (x, y), held out; public, or else with ``public_test=False``.
        public_test: False where test and validation are private rows too: a private run then states
            no score of them. A private run refuses rows of the clients as public ones.
        metrics: see `Task`; the loss is reported in any case, since it tells of divergence.
        targets, head, validation, persons, name: see `Layers`, `HeldOut` and
            `Task`.
    Raises: ValueError in one line when something cannot be trained exactly, such as BatchNorm in
        training mode, wrong labels, or targets that are no linear maps.
    Guarantees: test_adapters.py::test_the_users_model_is_left_alone,
        test_tasks.py::test_what_cannot_be_trained_exactly_is_refused_in_one_line.

    >>> import torch, fedlora_lab as fl
    >>> x, y = torch.randn(60, 4), torch.arange(60) % 3
    >>> clients = [(x[part], y[part]) for part in fl.partition.iid(60, 5)]
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    >>> classification(model, clients, test=(x[:9], y[:9]), targets=["0"]).sizes
    (12, 12, 12, 12, 12)
    """
    task = Task(
        name=name,
        model=model,
        layers=Layers(targets, head),
        clients=clients,
        held_out=HeldOut(test, validation, public_test),
        metrics={**metrics, "loss": metrics.get("loss", cross_entropy)},
        persons=persons,
    )
    return check_classes(task)


# ---- checks of the data

_TENSOR = (
    "a dense tensor of rows, as torch.as_tensor(...) makes of an array or a frame's to_numpy()"
)


def _check_parts(parts: Mapping[str, Examples]) -> None:
    """Refuses parts that are no examples, or whose tensors differ in kind."""
    first: dict[str, tuple] = {}
    for name, examples in parts.items():
        is_pair = isinstance(examples, (tuple, list)) and len(examples) == 2
        check(is_pair, name, type(examples).__name__, "a pair (x, y)")
        tensors = named_tensors(examples)
        for key, value in tensors.items():
            is_dense = isinstance(value, Ragged) or (
                isinstance(value, Tensor) and value.layout == torch.strided and value.ndim > 0
            )
            check(is_dense, f"{name} {key}", type(value).__name__, _TENSOR)
            # Clients' examples that are not finite are counted by the clip, and taken as zero.
            finite = name.startswith("client") or isinstance(value, Ragged) or is_finite(value)
            check(finite, f"{name} {key}", "NaN or infinity", "finite numbers")
        rows = {key: len(value) for key, value in tensors.items()}
        is_table = len(set(rows.values())) == 1 and rows["y"] > 0
        check(is_table, f"rows of {name}", rows, "as many of each, and at least one")
        # Of texts each client has its own longest one.
        kinds = {
            key: (value.dtype, "ragged" if isinstance(value, Ragged) else tuple(value.shape[1:]))
            for key, value in tensors.items()
        }
        first = first or kinds
        check(kinds == first, name, kinds, f"what clients[0] has: {first}")


def person_numbers(
    persons: Sequence[Persons], sizes: tuple[int, ...], names: Sequence[str] = ()
) -> tuple[Tensor, ...]:
    """Each client's persons as numbers from 0, in the order of the given ones.

    Args:
        persons: for each client a text or a whole number for each example.
        sizes: numbers of examples of the clients.
        names: of the clients, for messages; their numbers by default.
    Raises: ``ValueError`` for anything else, for names of persons that are nearly equal, see
        `to_identifiers`, and for a person at two clients: each of them draws and noises for itself,
        and what the person spends would be stated too small.
    Guarantees: test_persons.py::test_persons_are_compared_by_value.
    """
    is_list = isinstance(persons, (tuple, list)) and len(persons) == len(sizes)
    shown = len(persons) if isinstance(persons, (tuple, list)) else type(persons).__name__
    check(is_list, "persons", shown, f"{len(sizes)} lists, one for each client")
    cells: list[object] = []
    for k, (part, count) in enumerate(zip(persons, sizes, strict=True)):
        column = list(part.detach().cpu().numpy() if isinstance(part, Tensor) else part)
        expected = f"{count}, one an example"
        check(len(column) == count, f"persons[{k}]", f"{len(column)} entries", expected)
        cells += column
    rows = [f"row {i} of client {k}" for k, count in enumerate(sizes) for i in range(count)]
    everyone: list[Any] = to_identifiers("persons", cells, rows)
    place = {person: number for number, person in enumerate(sorted({*everyone}))}
    numbers = torch.tensor([place[person] for person in everyone]).split(sizes)
    client_of: dict[int, int] = {}
    for k, column in enumerate(numbers):
        for person in column.unique().tolist():
            holder = client_of.setdefault(person, k)
            first, second = (names[i] if names else i for i in (holder, k))
            check(k == holder, "persons", f"one at clients {first} and {second}", ONE_CLIENT)
    return numbers


@torch.no_grad()
def check_classes(task: Task) -> Task:
    """Returns the task if its model accepts its inputs, and outputs and labels are classes.

    A few public examples are tried. Of private ones nothing is: whether it fails would tell of one
    of them.
    """
    x, _ = task.test
    count = min(4, len(task.test[1]))
    expected = "expected to accept the test inputs, but it says"
    with in_one_line(f"model={type(task.model).__name__!r}: {expected}"):
        outputs = forward(task.model, move_to_model(take(x, slice(count)), task.model))
    is_table = isinstance(outputs, Tensor) and outputs.ndim == 2 and len(outputs) == count
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    check(is_table, "model output", shape, f"a tensor ({count}, classes) for {count} examples")
    classes = outputs.shape[1]
    for part, (_, labels) in task.parts.items():
        is_vector = labels.dtype == torch.int64 and labels.ndim == 1
        kind = f"{labels.dtype} {tuple(labels.shape)}"
        check(is_vector, f"{part} y", kind, "whole numbers of classes, one torch.int64 an example")
        # torch would refuse such a label in the step that draws its row, rounds later.
        odd = [label for label in labels.unique().tolist() if not 0 <= label < classes]
        check(not odd, f"{part} y", odd, f"labels in [0, {classes - 1}]")
    return task
