"""Any module and any tensors as a task."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedlora_lab import partition as splits
from fedlora_lab.checks import check, check_whole
from fedlora_lab.tasks import validate
from fedlora_lab.tasks.task import Examples, Task, take


def classification(
    model: nn.Module,
    clients: Sequence[Examples] | int | None = None,
    test: Examples | None = None,
    targets: Sequence[str] = (),
    head: str | None = None,
    *,
    pool: Examples | None = None,
    partition: Sequence[Any] | None = None,
    alpha: float | None = None,
    seed: int = 0,
    min_size: int = 1,
    validation: Examples | None = None,
    labels: Sequence[str] | None = None,
    client_names: Sequence[str] = (),
    name: str = "classification",
) -> Task:
    """A classification task of any module and tensors.

    The clients' data come in one of three ways: ``clients=[(x, y), ...]``, a pair of tensors each; ``pool=(x, y)`` with
    ``partition=``, index vectors such as the functions of ``fedlora_lab.partition`` return; ``pool=(x, y)`` with
    ``clients=10``, dealt by label with Dirichlet(``alpha``), or at random when ``alpha`` is ``None``.

    Args:
        model: any module whose output, or whose output's ``logits``, is (N, classes). It is copied, never changed.
        clients: (x, y) of every client, x a tensor (n_k, ...) or a mapping of tensors that the model takes as keywords,
            y (n_k,) whole numbers in [0, classes); or a number of clients, with ``pool``.
        test: (x, y), public and held out.
        targets: names of linear maps that get adapters, matched at the end of a module's name.
        head: full name of a module of linear maps to train in full, or ``None``.
        pool: one (x, y) to be split over the clients.
        partition: one index vector per client into ``pool``.
        alpha: concentration of the split by label, > 0.
        seed: of the split, a whole number >= 0.
        min_size: examples that every client of the split holds at least.
        validation: (x, y) for tuning only, or ``None``.
        labels: names of the classes.
        client_names: one name per client.
        name: short name of the task.
    Raises: ValueError in one line when something cannot be trained exactly: BatchNorm in training mode or any other
        mixing of examples, empty or unequal parts, wrong labels, targets that are no linear maps.
    Guarantees: test_tasks.py::test_classification_leaves_the_model_alone, ::test_mapping_inputs,
        ::test_pool_and_partition, ::test_bad_calls.
    """
    check(isinstance(model, nn.Module), "model", type(model).__name__, "a torch.nn.Module")
    validate.no_mixing(model)
    pairs = _clients(clients, pool, partition, alpha, seed, min_size)
    task = Task(
        name=name,
        model=validate.frozen_copy(model),
        targets=validate.names(targets),
        clients=tuple(_plain(pair) for pair in pairs),
        test=_plain(test),
        validation=None if validation is None else _plain(validation),
        head=head,
        labels=None if labels is None else tuple(labels),
        client_names=tuple(client_names),
        info={"task": name, "model": type(model).__name__},
    )
    return checked(task)


def checked(task: Task) -> Task:
    """The task, unless its outputs and labels are no classes, or examples of a batch touch each other."""
    _check_labels(task, _classes(task))
    return task


def _check_labels(task: Task, classes: int) -> None:
    check(task.labels is None or len(task.labels) == classes, "labels", task.labels, f"{classes} names")
    parts = {f"clients[{k}]": pair for k, pair in enumerate(task.clients)} | {"test": task.test}
    if task.validation is not None:
        parts["validation"] = task.validation
    for part, (_, y) in parts.items():
        validate.labels(y, classes, part)


def _clients(clients: Any, pool: Any, partition: Any, alpha: Any, seed: int, min_size: int) -> Sequence[Examples]:
    """The clients' pairs, whichever of the three ways they are given."""
    if pool is None:
        check(partition is None, "partition", "index vectors", "no partition without pool=(x, y)")
        check(alpha is None, "alpha", alpha, "no alpha without pool=(x, y)")
        validate.some_clients(clients)
        return clients
    check(not isinstance(clients, (list, tuple)), "clients", "pairs", "a number of clients, or None, with pool=(x, y)")
    validate.data([pool], pool, None)
    x, y = pool
    if partition is None:
        check_whole("clients", clients, 1)
        if alpha is None:
            split = splits.iid(len(y), clients, seed, min_size)
        else:
            validate.labels(y, None, "pool")
            split = splits.dirichlet(y, clients, alpha, seed, min_size)
    else:
        check(clients is None, "clients", clients, "None with partition=, which says how many there are")
        check(alpha is None, "alpha", alpha, "None with partition=, which says who holds what")
        split = splits.check_split(partition, len(y))
    return [(take(x, torch.from_numpy(part)), y[torch.from_numpy(part)]) for part in split]


def _plain(pair: Any) -> Any:
    """Detached tensors, whole-number labels as int64; anything malformed is left for the checks that follow."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        return pair
    x, y = pair
    if isinstance(x, Mapping):
        x = {key: value.detach() if isinstance(value, Tensor) else value for key, value in x.items()}
    elif isinstance(x, Tensor):
        x = x.detach()
    if isinstance(y, Tensor) and y.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        y = y.long()
    return x, y


@torch.no_grad()
def _classes(task: Task) -> int:
    """Number of outputs, seen by running up to four test examples; refuses models in which examples meet."""
    x, y = task.test
    count = min(4, len(y))
    name = type(task.model).__name__
    try:
        together = task.forward(task.model, take(x, torch.arange(count)))
        repeated = task.forward(task.model, take(x, torch.zeros(count, dtype=torch.int64)))
    except Exception as error:  # whatever a foreign model raises, the reader needs it in one line
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"model={name!r}: expected to accept the test inputs, but it says: {reason[0]}") from error
    ok = isinstance(together, Tensor) and together.ndim == 2 and len(together) == count and together.is_floating_point()
    what = tuple(together.shape) if isinstance(together, Tensor) else type(together).__name__
    check(ok, "model output", what, f"a floating tensor ({count}, classes) for {count} examples")
    same = torch.allclose(together[0], repeated[0], rtol=1e-3, atol=1e-4, equal_nan=True)
    check(same, "model", name, "one that keeps examples apart; here the other examples of a batch change an output")
    return together.shape[1]
