"""A federation in one process: a grid without Ray or sockets, and clients that read a task."""

from collections.abc import Iterable
from itertools import count
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

from fedlora_lab.flower.client import Loader
from fedlora_lab.flower.participant import Participant
from fedlora_lab.tasks.task import Task

RUN = 1
SERVER = 1
CLIENT_FAILED = 2
"""A code of Flower's errors."""


class InProcessGrid(Grid):
    """A Flower grid without Ray, sockets or threads, for notebooks and tests.

    A client that raises is answered for with an error, as by Flower. Nothing is timed.

    Args:
        app: of every client.
        clients: how many nodes there are; node n + 1000 has the partition n.
    """

    def __init__(self, app: ClientApp, clients: int) -> None:
        # A message takes its sender from the process that makes it, which here is the server's.
        TaskIdentity.run_id = RUN
        TaskIdentity.node_id = SERVER
        TaskIdentity.task_id = 1
        self.app = app
        self.contexts = {
            1000 + n: Context(
                RUN, 1000 + n, {"partition-id": n, "num-partitions": clients}, RecordDict(), {}
            )
            for n in range(clients)
        }
        self.numbers = count()
        self.replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """There is one run."""

    @property
    def run(self) -> FlowerRun:
        return FlowerRun.create_empty(RUN)

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.replies.pop(key) for key in list(message_ids) if key in self.replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: Any = None) -> Any:
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> str:
        key = str(next(self.numbers))
        received = self._over_the_wire(message, key)
        try:
            reply = self.app(received, self.contexts[received.metadata.dst_node_id])
        except Exception as error:
            reply = Message(Error(CLIENT_FAILED, str(error)), reply_to=received)
        self.replies[key] = self._over_the_wire(reply, f"reply to {key}")
        return key

    def _over_the_wire(self, message: Message, key: str) -> Message:
        message.metadata.__dict__["_message_id"] = key
        proto = message_to_proto(message)
        return message_from_proto(type(proto).FromString(proto.SerializeToString()))


def simulated_clients(participant: Participant, task: Task) -> Loader:
    """Makes what `client_app` loads of a task's clients: a node's partition is its client's number.

    Args:
        participant: the terms, which all clients and the server share.
        task: with the examples of its clients, and in the person unit their persons.
    """

    def load(context: Context) -> tuple[Participant, int, Any]:
        number = int(context.node_config["partition-id"])
        data: Any = task.clients[number]
        if participant.config.by_person:
            data = (*data, task.local_persons[number])
        return participant, number, data

    return load
