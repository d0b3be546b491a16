"""A grid in one process: clients one after the other, every message written and read as on the wire."""

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RUN, SERVER, FAILED = 1, 1, 2


class InProcess(Grid):
    """A Flower grid without Ray, sockets or threads: for notebooks and tests, and quick where a round is short.

    Args:
        app: of every client.
        clients: how many nodes there are; node n + 1000 has the partition n.
        seen: called with every message as it was read from the wire, the server's and the clients'.

    A client that raises is answered for with an error, as Flower does. Nothing is timed: a client that hangs hangs
    here too.
    """

    def __init__(self, app: ClientApp, clients: int, seen: "Callable[[Message], None] | None" = None) -> None:
        # A message takes its sender from the process that makes it, which here is the server's.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, SERVER, 1
        self.app, self.seen = app, seen or (lambda message: None)
        self.contexts = {
            1000 + n: Context(RUN, 1000 + n, {"partition-id": n, "num-partitions": clients}, RecordDict(), {})
            for n in range(clients)
        }
        self.replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """There is one run."""

    @property
    def run(self) -> Run:
        """A run of which only the number is known."""
        return Run.create_empty(RUN)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As ``Message(...)``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages, and keep the replies until they are pulled."""
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages."""
        return [self.replies.pop(key) for key in list(message_ids) if key in self.replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """The replies to these messages, after all of them are there."""
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> str:
        key = str(len(self.replies))
        received = self._over_the_wire(message, key)
        try:
            reply = self.app(received, self.contexts[received.metadata.dst_node_id])
        except Exception as error:
            reply = Message(Error(FAILED, str(error)), reply_to=received)
        self.replies[key] = self._over_the_wire(reply, f"reply to {key}")
        return key

    def _over_the_wire(self, message: Message, key: str) -> Message:
        message.metadata.__dict__["_message_id"] = key
        proto = message_to_proto(message)
        read = message_from_proto(type(proto).FromString(proto.SerializeToString()))
        self.seen(read)
        return read
