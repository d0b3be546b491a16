"""A task: a frozen model, private examples of every client, public examples to measure on."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedlora_lab.checks import check, check_whole
from fedlora_lab.tasks import validate

Inputs = Tensor | Mapping[str, Tensor]
Examples = tuple[Any, Tensor]  # (inputs, labels); jaxtyping has no word for "tensor or mapping of tensors"


def forward(model: nn.Module, x: Inputs) -> Any:
    """``model(**x)`` for a mapping of tensors, ``model(x)`` for a tensor; the logits where the model says which."""
    outputs = model(**x) if isinstance(x, Mapping) else model(x)
    return getattr(outputs, "logits", outputs)


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Loss of each example: outputs (N, classes), labels (N,), or (N, classes) of probabilities -> (N,).

    Raises: ``ValueError`` for other shapes.
    """
    fits = outputs.ndim == 2 and y.shape in (outputs.shape[:1], outputs.shape)
    check(fits, "outputs", tuple(outputs.shape), f"({len(y)}, classes) for labels {tuple(y.shape)}")
    return F.cross_entropy(outputs, y, reduction="none")


def accuracy(outputs: Tensor, y: Tensor) -> Tensor:
    """1 where the largest output is the label, else 0: (N, classes), (N,) -> (N,)."""
    return (outputs.argmax(1) == y).to(outputs.dtype)


def squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    """Squared error of each example, averaged over its outputs: (N, d), (N, d) -> (N,).

    Raises: ``ValueError`` unless both have one shape: what broadcasts would compare examples with each other's targets.
    """
    check(outputs.shape == y.shape, "outputs", tuple(outputs.shape), f"{tuple(y.shape)}, the shape of y")
    return (outputs - y).square().reshape(len(y), -1).mean(1)


def examples_to_judge(task: "Task", private: bool) -> Examples:
    """The test examples, for a score of a run; of a private run only where they are public.

    Raises: ``ValueError`` where they are not: the score would be told beside an epsilon that does not count it.
    Guarantees: test_attack_evaluation.py::test_no_measure_of_a_private_run_looks_at_private_rows.
    """
    expected = "True: of a private run only public test examples are looked at; give others by data="
    check(task.public_test or not private, "public_test", False, expected)
    return task.test


def take(x: Any, index: Any) -> Any:
    """Some rows of a tensor, or of every tensor of a mapping."""
    return {key: value[index] for key, value in x.items()} if isinstance(x, Mapping) else x[index]


def mask_of(x: Any) -> Tensor | None:
    """The attention mask by which texts are known, (n, tokens) or with more between; ``None`` for anything else."""
    return x.get("attention_mask") if isinstance(x, Mapping) else None


def together(pairs: Sequence[Examples]) -> Examples:
    """Examples of several clients, one client's after the other's; of one alone its own tensors, not a copy."""
    xs, ys = zip(*pairs, strict=True)
    if len(xs) == 1:
        return xs[0], ys[0]
    x = {key: torch.cat([x[key] for x in xs]) for key in xs[0]} if isinstance(xs[0], Mapping) else torch.cat(xs)
    return x, torch.cat(ys)


CLASSIFICATION = {"accuracy": accuracy, "loss": cross_entropy}
REGRESSION = {"loss": squared_error}


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """What is learned, on whose data, and how it is judged. Build one with a function of ``fedlora_lab.tasks``.

    Args:
        name: short name, used in frames and figures.
        model: the frozen base in evaluation mode; nobody changes it.
        targets: names of the linear maps that get adapters, matched at the end of a module's name as PEFT does.
        clients: (x, y) of every client; x a tensor (n_k, ...) or a mapping of such tensors, y (n_k,) or (n_k, ...).
        test: (x, y) held out, for the curves.
        validation: (x, y) or ``None``; for tuning only, never for results.
        head: name of a module trained in full beside the factors, or ``None``.
        prepare: x -> x of a batch, done before it goes to the model's device, such as cutting padding off; or ``None``.
        forward: (model, x) -> outputs, the first dimension being that of x.
        loss: (outputs, y) -> (N,), the loss of each example.
        metrics: name -> (outputs, y) -> (N,), scores whose mean over examples is reported.
        labels: names of the classes, or ``None``.
        client_names: one name per client; numbers when not given.
        info: JSON-able; ``info["task"]`` and ``info["arguments"]`` rebuild a built-in task, the rest identifies it.
        public_test: nobody's privacy hangs on the test examples. Otherwise their metrics are NaN in every private run:
            they would be exact numbers about private examples, round by round, that no ledger counts.

    Number, sizes and names of the clients, shapes, and the number of classes are public facts in every run.

    Raises: ValueError when data, targets, head or model cannot be trained exactly; it says why.
    Guarantees: test_tasks.py::test_bad_calls, ::test_fingerprint_sees_data_and_weights, ::test_pooled_and_only.
    """

    name: str
    model: nn.Module
    targets: tuple[str, ...]
    clients: tuple[Examples, ...]
    test: Examples
    validation: Examples | None = None
    head: str | None = None
    forward: Callable[[nn.Module, Any], Any] = forward
    loss: Callable[[Any, Tensor], Tensor] = cross_entropy
    metrics: Mapping[str, Callable[[Any, Tensor], Tensor]] = field(default_factory=lambda: dict(CLASSIFICATION))
    labels: tuple[str, ...] | None = None
    client_names: tuple[str, ...] = ()
    prepare: Callable[[Any], Any] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    public_test: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", validate.names(self.targets))
        names = tuple(self.client_names) or tuple(str(k) for k in range(len(self.clients)))
        object.__setattr__(self, "client_names", names)
        validate.frozen(self.model)
        validate.no_mixing(self.model)
        validate.targets(self.model, self.targets, self.head)
        validate.head(self.model, self.head)
        validate.data(self.clients, self.test, self.validation)
        check(len(names) == len(self.clients), "client_names", names, f"{len(self.clients)} names")
        check(isinstance(self.public_test, bool), "public_test", self.public_test, "True or False")

    def __repr__(self) -> str:
        low, high = min(self.sizes), max(self.sizes)
        parameters = sum(p.numel() for p in self.model.parameters())
        return (
            f"Task({self.name!r}: clients {len(self.sizes)} of {low} to {high} examples, test {len(self.test[1])}, "
            f"frozen parameters {parameters:,}, adapters on {', '.join(self.targets)}, head {self.head})"
        )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of examples of each client."""
        return tuple(len(y) for _, y in self.clients)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over all data and weights with their names, types and shapes."""
        digest = hashlib.sha256()
        parts = {f"client {k}": pair for k, pair in enumerate(self.clients)} | {"test": self.test}
        if self.validation is not None:
            parts["validation"] = self.validation
        for part, (x, y) in parts.items():
            for key, value in sorted(x.items()) if isinstance(x, Mapping) else [("x", x)]:
                _add(digest, f"{part} {key}", value)
            _add(digest, f"{part} y", y)
        for name, value in sorted(self.model.state_dict().items()):
            if isinstance(value, Tensor):
                _add(digest, f"model {name}", value)
        return digest.hexdigest()

    def to(self, dtype: torch.dtype) -> "Task":
        """The same task with model, floating inputs and floating labels in another floating type."""
        check(isinstance(dtype, torch.dtype) and dtype.is_floating_point, "dtype", dtype, "a floating torch.dtype")

        def pair(examples: Examples) -> Examples:
            x, y = examples
            x = {k: _cast(v, dtype) for k, v in x.items()} if isinstance(x, Mapping) else _cast(x, dtype)
            return x, _cast(y, dtype)

        return replace(
            self,
            model=validate.frozen_copy(self.model).to(dtype),
            clients=tuple(pair(c) for c in self.clients),
            test=pair(self.test),
            validation=None if self.validation is None else pair(self.validation),
            info={**self.info, "dtype": str(dtype).removeprefix("torch.")},
        )

    def pooled(self) -> "Task":
        """The same examples with one client: all data in one place."""
        info = {**self.info, "pooled": True}
        return replace(self, clients=(together(self.clients),), client_names=("all",), info=info)

    def only(self, client: int) -> "Task":
        """The same task with one client alone, counted from 0."""
        check_whole("client", client, 0, len(self.clients) - 1)
        names = (self.client_names[client],)
        return replace(self, clients=(self.clients[client],), client_names=names, info={**self.info, "only": client})


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _add(digest: Any, name: str, value: Tensor) -> None:
    digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
