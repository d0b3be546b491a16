"""Canaries: which examples they are, and where in a task they are put."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check_whole
from fedlora_lab.audit.instruments import (
    LEFT_OUT,
    mark_examples,
    ordinary_marks,
    select_examples,
)
from fedlora_lab.tasks.task import Examples, Origin, Task, concatenate

CANARY_LOSS_WEIGHT = 10_000
"""Weight of a canary's loss: the clip always leaves a whole C of it."""


@dataclass(frozen=True)
class Canaries:
    """A task with its canaries inside.

    Args:
        task: targets carry marks; canaries that lost their coin are left out.
        examples: all m canaries (x, y), targets plain.
        owner, included: each canary's client and coin.
    """

    task: Task
    examples: Examples
    owner: Int[Tensor, " m"]
    included: Bool[Tensor, " m"]


def mislabel(task: Task, count: int, streams: Streams) -> Examples:
    """Gives public examples wrong targets: another class, or the answer to another example.

    Args: task: its validation examples, else its test examples. count: >= 2. streams: of the run.
    """
    check_whole("canaries", count, 2)
    public = task.validation or task.test
    size = len(public[1])
    rng = streams.numpy("audit canaries")
    # Public examples are taken again where they do not suffice.
    order = np.concatenate([rng.permutation(size) for _ in range(-(-count // size))])
    x, y = select_examples(public, torch.from_numpy(order[:count]))
    classes = 0 if y.is_floating_point() else int(task.test[1].max()) + 1
    if y.dim() == 1 and classes > 1:
        # Any class but the right one.
        return x, (y + torch.from_numpy(rng.integers(1, classes, count))) % classes
    # Answers without classes go to the next example.
    return x, y.roll(1, 0)


def insert_canaries(task: Task, examples: Examples, streams: Streams) -> Canaries:
    """Deals canaries to the clients in turn; where persons are known each is one of its own.

    Args:
        task: where they go.
        examples: all m canaries (x, y).
        streams: of the run; the coins are drawn from it.

    Guarantees: test_canaries_are_dealt_evenly.
    """
    count = len(examples[1])
    included = torch.from_numpy(streams.numpy("audit coins").random(count) < 0.5)
    # A canary that is out stays in the sizes: sample rates and denominators do not know the coins.
    canary_marks = torch.where(included, CANARY_LOSS_WEIGHT, LEFT_OUT)
    owner = torch.arange(count) % len(task.clients)
    clients = []
    marks = []
    for k, before in enumerate(ordinary_marks(task)):
        of_client = (owner == k).nonzero().squeeze(1)
        clients.append(concatenate([task.clients[k], select_examples(examples, of_client)]))
        marks.append(torch.cat([before, canary_marks[of_client]]))
    persons = task.persons
    if persons is not None:
        # Numbers that no person of the task has.
        new = int(torch.cat(persons).max()) + 1 + torch.arange(count)
        persons = tuple(torch.cat([ids, new[owner == k]]) for k, ids in enumerate(persons))
    full = replace(task, clients=clients, persons=persons, origin=Origin())
    return Canaries(mark_examples(full, marks), examples, owner, included)
