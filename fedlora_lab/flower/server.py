"""The server's side: who takes part, the ledger, the method's rule on the uploads, the records."""

import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedlora_lab._utils.torch_state import steps_with_default_modes
from fedlora_lab._utils.validation import check_number, check_whole, printable
from fedlora_lab.federated import exchange
from fedlora_lab.federated.local_training import ClientBatch
from fedlora_lab.federated.recording import OpenRound
from fedlora_lab.federated.records import Round
from fedlora_lab.federated.run import Run
from fedlora_lab.flower import messages
from fedlora_lab.flower.participant import Participant, sent_down
from fedlora_lab.methods.state import Tensors

POLL = 0.5
"""Seconds between two looks for nodes, before the first round."""


class Stopped(ConnectionError):
    """The run cannot go on; what was spent stands in the ledger."""


def run(
    grid: Grid,
    participant: Participant,
    *,
    out: "str | Path | None" = None,
    timeout: float = 600.0,
) -> Iterator[Round]:
    """Plays a run over a grid, or goes on with it; yields the records that `fl.run` yields.

    A client that fails, is too late, has gone, or sends what cannot be an upload is left out of its
    round, like one whose upload is lost: the mean keeps its denominator, the release stays in the
    ledger, one line of the log gives the reason. A client that was started again is asked from the
    next round on. What only clients know is NaN or absent in a record: the clips' counts, the
    noise, and the metrics of models of which clients keep a part.

    A resumed run asks again for a round that was cut short, from the same broadcast, and gets the
    same uploads.

    Args:
        grid: Flower's.
        participant: the server's terms.
        out: as in `fl.run`.
        timeout: seconds until all clients must have been there once, and for the replies of a
            round, > 0.
    Raises: `Stopped` when not all clients come, when one has other terms, or when a round brings no
        upload at all.
    Guarantees: the run of `fl.run` under the same seed
        (tests/lab/flower/test_flower.py::test_messages_give_the_run_of_the_loop);
        the ledger is written before a round is asked for
        (tests/lab/flower/test_attack_flower.py::test_a_round_is_in_the_ledger_before_a_client_is_asked).
    """
    check_number("timeout", timeout, 0, open_low=True)
    opened = Run.from_prepared(participant.prepared, out, remote=True)
    return _play(_Clients(grid, participant, timeout), opened)


@steps_with_default_modes
def _play(clients: "_Clients", run: Run) -> Generator[Round, None, None]:
    """The rounds that are left. Args: clients, run: of the federation."""
    clients.wait_for_all()
    with run.lock():
        yield run.stored_record() if run.resumed else run.record_start()
        while not run.ended:
            clients.look_for_absent()
            # The round stands in the ledger, on disk as well, before any client is asked.
            opened = run.begin_round()
            valid = clients.collect_uploads(opened)
            present = tuple(k for k in opened.ids if k in valid)
            keys = opened.keys.uploaded if present else ()
            rows = {key: torch.stack([valid[k][key] for k in present]) for key in keys}
            received = exchange.receive_uploads(run.config, present, rows)
            # Of those that were asked, whoever answered. What they trained, and what they keep, is
            # with them.
            trained = ClientBatch(present, {}, {})
            yield run.close_round(run.finish_round(opened, received, trained))


class _Clients:
    """The clients behind a grid; ``numbers`` maps each node that introduced itself to a client."""

    def __init__(self, grid: Grid, participant: Participant, timeout: float) -> None:
        self.grid = grid
        self.participant = participant
        self.timeout = timeout
        self.numbers: dict[int, int] = {}
        self.count = len(participant.config.task.sizes)

    @property
    def nodes(self) -> dict[int, int]:
        """The node that is asked for each client: of several the one that came first."""
        return {k: node for node, k in reversed(self.numbers.items())}

    @property
    def absent(self) -> list[int]:
        """The clients that no node answers for."""
        return sorted({*range(self.count)} - {*self.numbers.values()})

    def wait_for_all(self) -> None:
        """Asks every node once for its number, until all clients are there. Raises `Stopped`."""
        end = time.monotonic() + self.timeout
        while self.absent and (left := end - time.monotonic()) > 0:
            if faults := self._greet(left):
                raise Stopped(faults[0])
            if self.absent:
                time.sleep(min(POLL, left))
        expected = f"expected all to be there within {self.timeout:g} s"
        if self.absent:
            raise Stopped(f"clients={self.absent}: {expected}")

    def look_for_absent(self) -> None:
        """Asks nodes that are new who they are, where a client has gone or did not answer."""
        if self.absent:
            for fault in self._greet(self.timeout):
                messages.LOG.warning(fault)

    def _greet(self, seconds: float) -> list[str]:
        """Asks new nodes for their numbers; returns what is wrong with some."""
        new = [node for node in self.grid.get_node_ids() if node not in self.numbers]
        content = messages.make_content({"terms": self.participant.terms})
        queries = [Message(content, node, MessageType.QUERY, ttl=seconds) for node in new]
        faults = []
        for node, reply in self._ask(queries, seconds).items():
            try:
                _check_reply(reply, {"terms": self.participant.terms})
                k: Any = reply.content.config_records[messages.ABOUT].get("client")
                check_whole("client", k, 0, self.count - 1)
                self.numbers[node] = k
            except ValueError as error:
                faults.append(f"node {node}: {error}")
        return faults

    def _ask(self, questions: list[Message], seconds: float) -> dict[int, Message]:
        """Sends messages; returns the replies that come in time, by their nodes."""
        replies = self.grid.send_and_receive(questions, timeout=seconds) if questions else []
        return dict(sorted((reply.metadata.src_node_id, reply) for reply in replies))

    def collect_uploads(self, opened: OpenRound) -> dict[int, Tensors]:
        """Returns the valid uploads of a round by client. Raises `Stopped` when none is valid."""
        about = {"terms": self.participant.terms, "round": opened.before.round}
        arrays = messages.pack_tensors(sent_down(opened.broadcast))
        content = messages.make_content(about, arrays)
        nodes = self.nodes
        asked = [nodes[k] for k in opened.ids if k in nodes]
        questions = [Message(content, node, MessageType.TRAIN, ttl=self.timeout) for node in asked]
        replies = self._ask(questions, self.timeout)
        like = {key: opened.before.tensors[key] for key in opened.keys.uploaded}
        valid: dict[int, Tensors] = {}
        faults = []
        name = f"round {opened.before.round + 1}"
        for k in opened.ids:
            node = nodes.get(k, -1)
            reply = replies.get(node)
            if reply is None:
                # Perhaps it has gone, and is started again as another node. For one that has gone
                # Flower answers in no node's name.
                self.numbers.pop(node, None)
            try:
                right = _check_reply(reply, {"client": k, **about})
                received = messages.unpack_tensors(messages.get_arrays(right))
                valid[k] = messages.check_tensors(received, like)
            except ValueError as error:
                faults.append(f"client {k}: {error}")
                messages.LOG.warning("%s, client %d is left out: %s", name, k, error)
        if faults and not valid:
            raise Stopped(f"{name}: no upload of {len(opened.ids)} clients; {faults[0]}")
        return valid


def _check_reply(reply: Message | None, about: Mapping[str, str | int]) -> Message:
    """Returns a reply about this subject. Raises ``ValueError`` for any other, or for an error."""
    if reply is None:
        raise ValueError("reply=None: expected one in time, of a node that is there")
    if reply.has_error():
        # Cut before it is read: a client may send any number of characters, and any of them.
        reason = printable((reply.error.reason or "no reason given")[-200:])[-200:]
        raise ValueError(f"client failed: {reason}")
    messages.check_about(reply, about)
    return reply
