"""The server's side: who takes part, the ledger, the method's rule on the uploads, the records."""

import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, MessageType
from flwr.serverapp import Grid

from fedlora_lab._utils.torch_state import steps_with_default_modes
from fedlora_lab._utils.validation import check, check_number, printable
from fedlora_lab.federated import exchange
from fedlora_lab.federated.local_training import ClientBatch
from fedlora_lab.federated.records import Round
from fedlora_lab.federated.run import OpenRound, Run
from fedlora_lab.flower import messages
from fedlora_lab.flower.participant import Participant
from fedlora_lab.methods.state import Tensors

POLL = 0.2
"""Seconds between two looks for replies."""


class Stopped(ConnectionError):
    """The run cannot go on; what was spent stands in the ledger."""


def open_run(participant: Participant, out: "str | Path | None" = None) -> Run:
    """Opens the server's run. Args: participant: the server's terms. out: as in `fl.run`."""
    return Run.from_prepared(participant.prepared, out, remote=True)


def rounds(
    grid: Grid,
    participant: Participant,
    run: Run,
    *,
    timeout: float = 600.0,
    patience: float = 300.0,
) -> Iterator[Round]:
    """Plays the run over a grid; yields the records that `fl.run` yields.

    A client that fails, is too late, or sends what cannot be an upload is left out of its round,
    like one whose upload is lost: the mean keeps its denominator, the release stays in the ledger,
    one line of the log gives the reason. What only clients know is NaN or absent in a record: the
    clips' counts, the noise, and the metrics of models of which clients keep a part.

    A resumed run asks again for a round that was cut short, from the same broadcast, and gets the
    same uploads. Where clients would not answer again it gives the round up: under secure
    aggregation, and after a lost checkpoint. The model stays as it was, the release stays in the
    ledger, and the run goes on with the next round.

    Args:
        grid: Flower's, or an `InProcessGrid`.
        participant: the server's terms.
        run: from `open_run`.
        timeout: seconds for the replies of a round, > 0.
        patience: seconds until every client must have been there once, > 0.
    Raises: `Stopped` when not all clients come, when one has other terms, or when a round brings no
        upload at all.
    Guarantees: the run of `fl.run` under the same seed
        (tests/lab/flower/test_flower.py::test_messages_give_the_run_of_the_loop);
        the ledger is written before a round is asked for
        (tests/lab/flower/test_attack_flower.py::test_a_round_is_in_the_ledger_before_a_client_is_asked).
    """
    check_number("timeout", timeout, 0, open_low=True)
    check_number("patience", patience, 0, open_low=True)
    return _play(_Clients(grid, participant), run, timeout, patience)


@steps_with_default_modes
def _play(
    clients: "_Clients", run: Run, timeout: float, patience: float
) -> Generator[Round, None, None]:
    """The rounds that are left.

    Args: clients, run: of the federation. timeout, patience: see `rounds`.
    """
    clients.wait_for_all(patience)
    run.give_up_rounds()
    with run.lock():
        if not run.resumed:
            yield run.record_state() if run.given_up else run.record_start()
        while not run.ended:
            if (index := run.state.server.round + 1) in run.given_up:
                reason = "it was asked for before, and no client would answer it again"
                messages.LOG.warning("round %d is given up: %s", index, reason)
            # The round stands in the ledger, on disk as well, before any client is asked.
            opened = run.begin_round()
            valid = clients.collect_uploads(opened, timeout)
            present = tuple(k for k in opened.ids if k in valid)
            keys = opened.keys.uploaded if present else ()
            rows = {key: torch.stack([valid[k][key] for k in present]) for key in keys}
            received = exchange.combine(run.config, present, rows, opened.broadcast)
            # Of those that were asked, whoever answered. What they trained, and what they keep, is
            # with them.
            trained = ClientBatch(present, {}, {})
            yield run.close_round(run.finish_round(opened, received, trained))


class _Clients:
    """The clients behind a grid; ``nodes`` maps a client's number to its node."""

    def __init__(self, grid: Grid, participant: Participant) -> None:
        self.grid = grid
        self.participant = participant
        self.nodes: dict[int, int] = {}

    def wait_for_all(self, patience: float) -> None:
        """Asks every node once for its number, until all clients are there. Raises `Stopped`."""
        count = len(self.participant.config.task.sizes)
        end = time.monotonic() + patience
        greeted: set[int] = set()
        content = messages.make_content({"terms": self.participant.terms})
        while len(self.nodes) < count and (left := end - time.monotonic()) > 0:
            new = [node for node in self.grid.get_node_ids() if node not in greeted]
            greeted.update(new)
            queries = [Message(content, node, MessageType.QUERY, ttl=left) for node in new]
            for node, reply in self._ask(queries, left).items():
                self._introduce(node, reply, count)
            if not new:
                time.sleep(POLL)
        if absent := sorted(set(range(count)) - set(self.nodes)):
            expected = f"expected all {count} to be there within {patience:g} s"
            raise Stopped(f"clients={absent}: {expected}")

    def _ask(self, questions: list[Message], seconds: float) -> dict[int, Message]:
        """Sends messages; returns the replies that come in time, by their nodes.

        Flower's own `send_and_receive` looks every three seconds only.
        """
        waiting = set(self.grid.push_messages(questions))
        end = time.monotonic() + seconds
        replies = {}
        while waiting:
            for reply in self.grid.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies[reply.metadata.src_node_id] = reply
            if not waiting or time.monotonic() > end:
                break
            time.sleep(POLL)
        return dict(sorted(replies.items()))

    def _introduce(self, node: int, reply: Message, count: int) -> None:
        try:
            _check_reply(reply, {"terms": self.participant.terms})
            k: Any = reply.content.config_records[messages.ABOUT].get("client")
            right = isinstance(k, int) and 0 <= k < count
            check(right, "client", k, f"a number in [0, {count - 1}]")
            # Examples that lie with two nodes would be released by both.
            check(k not in self.nodes, "client", k, "one node for each number, this is the second")
        except ValueError as error:
            raise Stopped(f"node {node}: {error}") from None
        self.nodes[k] = node

    def collect_uploads(self, opened: OpenRound, timeout: float) -> dict[int, Tensors]:
        """Returns the valid uploads of a round by client. Raises `Stopped` when none is valid."""
        about = {"terms": self.participant.terms, "round": opened.before.round}
        arrays = messages.pack_arrays(self.participant.broadcast(opened.broadcast))
        content = messages.make_content(about, arrays)
        questions = [
            Message(content, self.nodes[k], MessageType.TRAIN, ttl=timeout) for k in opened.ids
        ]
        replies = self._ask(questions, timeout)
        valid = {}
        failure = ""
        for k in opened.ids:
            try:
                reply = _check_reply(replies.get(self.nodes[k]), {"client": k, **about})
                valid[k] = self._upload(opened, k, messages.get_arrays(reply))
            except ValueError as error:
                failure = failure or f"client {k}: {error}"
                messages.LOG.warning(
                    "round %d, client %d is left out: %s", opened.before.round + 1, k, error
                )
        if failure and not valid:
            reason = f"no upload of {len(opened.ids)} clients; {failure}"
            raise Stopped(f"round {opened.before.round + 1}: {reason}")
        return valid

    def _upload(self, opened: OpenRound, k: int, arrays: ArrayRecord) -> Tensors:
        """One client's upload in full size. Raises ``ValueError`` for anything else."""
        config = self.participant.config
        keys = opened.keys.uploaded
        rank = config.sent_ranks[k]
        like = {key: opened.before.tensors[key] for key in keys}
        # A client sends no more ranks than it holds.
        tensors = messages.unpack_arrays(arrays, messages.take_ranks(like, rank))
        # Of a sum everyone sends all ranks, and what is not sent is what the server has: it takes
        # that off again.
        if config.is_secagg:
            start = {key: tensor[None] for key, tensor in opened.broadcast.tensors.items()}
        else:
            start = exchange.tensors_received(config, (k,), opened.broadcast)
        return messages.fill_ranks(tensors, {key: start[key][0] for key in keys})


def _check_reply(reply: Message | None, about: Mapping[str, str | int]) -> Message:
    """Returns a reply about this subject. Raises ``ValueError`` for any other, or for an error."""
    if reply is None:
        raise ValueError("reply=None: expected one in time")
    if reply.has_error():
        # Cut before it is read: a client may send any number of characters, and any of them.
        reason = printable((reply.error.reason or "no reason given")[-200:])[-200:]
        raise ValueError(f"client failed: {reason}")
    messages.check_about(reply, about)
    return reply
