"""Runs over Flower's messages in one process, for the tests of the Flower room."""

from typing import NamedTuple

import torch
from toy_tasks import LORA, PLAN, private

import fedlora_lab as fl
from fedlora_lab.flower import (
    InProcessGrid,
    Participant,
    client_app,
    messages,
    open_run,
    rounds,
    simulated_clients,
)
from fedlora_lab.lora.source import require_source
from fedlora_lab.tasks.task import Task

ROUNDS = PLAN.replace(rounds=3, participation=0.8, optimizer=fl.SGD(0.5))


def protected(unit, **fields):
    """A small privacy plan in which every client noises for itself."""
    return private(unit, trust="local" if unit == "client" else None, **fields)


class Party(NamedTuple):
    """The terms of a federation, and the examples of its clients."""

    terms: Participant
    task: Task

    def app(self, memory=None):
        """The app of every client."""
        return client_app(simulated_clients(self.terms, self.task), memory=memory)

    def grid(self, memory=None):
        """A network in which a node has just started for every client."""
        return InProcessGrid(self.app(memory), len(self.task.sizes))


def party(
    task,
    row,
    privacy,
    plan=ROUNDS,
    lora=LORA,
    seed=0,
):
    """All agree to these terms."""
    return Party(Participant.of(task, row, privacy, plan, lora=lora, seed=seed), task)


def folders(place, order=None):
    """A folder for the memory of each client; ``order``: which is whose."""

    def memory(context):
        k = int(context.node_config["partition-id"])
        return place / str(k if order is None else order[k])

    return memory


def node(k=0):
    """A node of client k that has just started."""
    return InProcessGrid(None, k + 1).contexts[1000 + k]  # type: ignore[arg-type]


def by_messages(*terms, **options):
    """All records of a run over messages, under the terms of `party`."""
    everybody = party(*terms, **options)
    return list(rounds(everybody.grid(), everybody.terms, open_run(everybody.terms)))


def question(participant, t=0, kind="train", **about):
    """The server's message about a round before anything was trained, as it comes over the wire."""
    arrays = messages.pack_arrays(participant.broadcast(participant.begin))
    content = messages.make_content({"terms": participant.terms, "round": t, **about}, arrays)
    grid = InProcessGrid(None, 1)  # type: ignore[arg-type]
    return grid._over_the_wire(grid.create_message(content, kind, 1000, ""), f"question {t}")


def state(record):
    """Everything the server holds after a round: factors, head, residuals, modes, scores."""
    return dict(require_source(record)[2].tensors)


def apart(left, right):
    """Largest relative difference between two runs, over all that the server holds, NaN too."""
    largest = 0.0
    for one, other in zip(left, right, strict=True):
        ours = state(one)
        theirs = state(other)
        assert ours.keys() == theirs.keys()
        for key, x in ours.items():
            if not torch.equal(x.isnan(), theirs[key].isnan()):
                return float("inf")
            gap = (x - theirs[key]).nan_to_num().norm()
            size = theirs[key].nan_to_num().norm().clamp(min=1e-12)
            largest = max(largest, float(gap / size))
    return largest
