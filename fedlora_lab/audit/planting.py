"""Canaries: which examples they are, how loud they are, and where in a task they are put."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check_whole
from fedlora_lab.audit.instruments import (
    LEFT_OUT,
    Recorder,
    mark_examples,
    ordinary_marks,
    select_examples,
)
from fedlora_lab.lora import per_example
from fedlora_lab.privacy.privatizer import row_norms
from fedlora_lab.tasks.task import Examples, Origin, Task, concatenate

CANARY_LOSS_WEIGHT = 10_000
"""Weight of a canary's loss: the clip always leaves a whole C of it."""
OfCanaries = Int[Tensor, " m"]
"""A whole number for each canary."""


@dataclass(frozen=True)
class Canaries:
    """A task with its canaries inside.

    Args:
        task: targets carry marks; canaries that lost their coin are left out.
        examples: all m canaries (x, y), targets plain.
        owner, included, weights: each canary's client, coin, and weight of its loss.
    """

    task: Task
    examples: Examples
    owner: OfCanaries
    included: Bool[Tensor, " m"]
    weights: OfCanaries

    @property
    def absent(self) -> frozenset[int]:
        """Clients of canaries that lost their coin, where each is a client of its own."""
        return frozenset(self.owner[~self.included].tolist())


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


def insert_canaries(
    task: Task, unit: str, examples: Examples, weights: OfCanaries, streams: Streams
) -> Canaries:
    """Deals canaries to the clients in turn, or makes each a client of its own.

    In the person unit each is a person of its own.

    Args:
        task, unit: where they go, and "example", "person" or "client".
        examples, weights: all m canaries (x, y), and the weights of their losses.
        streams: of the run; the coins are drawn from it.

    Guarantees: test_canaries_are_dealt_evenly.
    """
    count = len(examples[1])
    old = len(task.clients)
    included = torch.from_numpy(streams.numpy("audit coins").random(count) < 0.5)
    # A canary that is out stays in the sizes: sample rates and denominators do not know the coins.
    canary_marks = torch.where(included, weights, LEFT_OUT)
    owner = old + torch.arange(count) if unit == "client" else torch.arange(count) % old
    clients = []
    marks = []
    for k in range(old + count if unit == "client" else old):
        of_client = (owner == k).nonzero().squeeze(1)
        added = select_examples(examples, of_client)
        clients.append(concatenate([task.clients[k], added]) if k < old else added)
        before = ordinary_marks(task)[k] if k < old else canary_marks[:0]
        marks.append(torch.cat([before, canary_marks[of_client]]))
    persons = task.persons
    if persons is not None:
        # Numbers that no person of the task has.
        new = int(torch.cat(persons).max()) + 1 + torch.arange(count)
        persons = tuple(torch.cat([ids, new[owner == k]]) for k, ids in enumerate(persons))
    full = replace(task, clients=clients, persons=persons, origin=Origin())
    return Canaries(mark_examples(full, marks), examples, owner, included, weights)


def weights_at_clip_norm(run: Recorder, examples: Examples) -> OfCanaries:
    """Computes weights that carry the update of a one-example client to the clip norm.

    They are judged by the public start, at which the run stands.
    """
    adapted = run.prepared.adapted
    plan = run.config.plan
    # Of one local step; the update is about so many of them.
    rows = per_example.gradients_at(
        run.config.task, adapted, run.state.server.tensors, tuple(adapted.shapes), examples
    )
    moves = {key: plan.rate(key.name) * plan.local_steps * x.cpu() for key, x in rows.items()}
    norms = row_norms(moves)
    scale = run.clip_norm / norms.clamp(min=1e-12)
    # Rounded up, so that the clip acts; a larger weight would make the canary's training diverge.
    return scale.nan_to_num(CANARY_LOSS_WEIGHT).clamp(1, CANARY_LOSS_WEIGHT).ceil().long()
