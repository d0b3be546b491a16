"""Runs over Flower's messages in one process, for the tests of the Flower room."""

import atexit
import tempfile
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from fedlora_lab import flower  # isort: skip  (first: flwr warns where it is imported alone)
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from toy_tasks import LORA, PLAN, gap, private

import fedlora_lab as fl
from fedlora_lab.flower import messages
from fedlora_lab.flower.participant import sent_down
from fedlora_lab.tasks.task import Task

ROUNDS = PLAN.replace(rounds=3, participation=0.8, optimizer=fl.SGD(0.5))
SCRATCH = tempfile.TemporaryDirectory()
"""For the memories of clients that no test looks at."""
atexit.register(SCRATCH.cleanup)
CLIENT_FAILED = 2
"""A code of Flower's errors."""


def protected(unit, **fields):
    """A small privacy plan in which every client noises for itself."""
    return private(unit, trust="local" if unit == "client" else None, **fields)


class InProcessGrid(Grid):
    """A Flower grid without sockets or threads; node n + 1000 has the partition n.

    A client that raises is answered for with an error, as by Flower. Nothing is timed.
    """

    def __init__(self, app, clients):
        # A message takes its sender from the process that makes it, which here is the server's.
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.app = app
        self.contexts = {1000 + n: node(n) for n in range(clients)}
        self.numbers = count()
        self.replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """There is one run."""

    @property
    def run(self):
        return Run.create_empty(1)

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return list(self.contexts)

    def push_messages(self, messages):
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids):
        return [self.replies.pop(key) for key in list(message_ids) if key in self.replies]

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message):
        key = str(next(self.numbers))
        received = self.over_the_wire(message, key)
        try:
            reply = self.app(received, self.contexts[received.metadata.dst_node_id])
        except Exception as error:
            reply = Message(Error(CLIENT_FAILED, str(error)), reply_to=received)
        self.replies[key] = self.over_the_wire(reply, f"reply to {key}")
        return key

    def over_the_wire(self, message, key):
        message.metadata.__dict__["_message_id"] = key
        proto = message_to_proto(message)
        return message_from_proto(type(proto).FromString(proto.SerializeToString()))


def node(k=0):
    """A node of client k that has just started."""
    return Context(1, 1000 + k, {"partition-id": k}, RecordDict(), {})


def site(task: Task, k):
    """What client k holds: a task of its own examples alone."""
    persons = None if task.persons is None else (task.persons[k],)
    return replace(task, clients=[task.clients[k]], persons=persons)


class Party(NamedTuple):
    """The terms of a federation, and the examples of its clients."""

    terms: flower.Participant
    task: Task

    def app(self, memory=None):
        """The app of every client; without a rule for its memory, of one that remembers nothing."""
        if memory is None:
            memory = folders(Path(tempfile.mkdtemp(dir=SCRATCH.name)))

        def load(context):
            k = int(context.node_config["partition-id"])
            return self.terms, k, site(self.task, k)

        return flower.client_app(load, memory=memory)

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
    return Party(flower.Participant.of(task, row, privacy, plan, lora=lora, seed=seed), task)


def folders(place, order=None):
    """A folder for the memory of each client; ``order``: which is whose."""

    def memory(context):
        k = int(context.node_config["partition-id"])
        return place / str(k if order is None else order[k])

    return memory


def by_messages(*terms, **options):
    """All records of a run over messages, under the terms of `party`."""
    everybody = party(*terms, **options)
    return list(flower.run(everybody.grid(), everybody.terms))


def question(participant, t=0, kind="train", **about):
    """The server's message about a round before anything was trained, as it comes over the wire."""
    arrays = messages.pack_tensors(sent_down(participant.begin))
    content = messages.make_content({"terms": participant.terms, "round": t, **about}, arrays)
    grid = InProcessGrid(None, 1)
    return grid.over_the_wire(grid.create_message(content, kind, 1000, ""), f"question {t}")


def tensors_of(message):
    """The tensors that a message carries."""
    return messages.unpack_tensors(messages.get_arrays(message))


def apart(left, right):
    """Largest relative difference between two runs, over all that the server holds."""
    return max(gap(one, other) for one, other in zip(left, right, strict=True))
