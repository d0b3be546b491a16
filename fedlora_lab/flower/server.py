"""The server's side: who takes part, the ledger, the method's rule on what came back, and the record of the round."""

import logging
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, MessageType
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from fedlora_lab import agreement, engine, local, observe, upload
from fedlora_lab.checks import check, check_number
from fedlora_lab.flower import records
from fedlora_lab.flower.client import down
from fedlora_lab.flower.party import Party
from fedlora_lab.loop import Federation, Opened
from fedlora_lab.method import Slot
from fedlora_lab.record import Round
from fedlora_lab.traffic import rank_sent

LOG = logging.getLogger("fedlora_lab.flower")


class Stopped(ConnectionError):
    """The run cannot go on; what was spent stands in the ledger."""


def server_app(
    opened: Callable[[Context], tuple[Party, Federation]], each: Callable[[Round], None], **options: Any
) -> ServerApp:
    """The ServerApp of a federation.

    Args:
        opened: context -> the terms, and the run that they open (see `open_run`).
        each: called with every record.
        options: as of `rounds`.
    """
    app = ServerApp()

    @app.main()
    def _main(grid: Grid, context: Context) -> None:
        for record in rounds(grid, *opened(context), **options):
            each(record)

    return app


def open_run(
    party: Party,
    checkpoint: "str | Path | None" = None,
    resume: "str | Path | None" = None,
    stop_at: float | None = None,
) -> Federation:
    """The server's run of these terms; the folders, and the epsilon to stop at, are those of `run`."""
    folder = agreement.folder(checkpoint, resume, party.asked)
    return Federation.over(party.asked, party.setting, folder, resume, stop_at=stop_at)


def rounds(
    grid: Grid, party: Party, run: Federation, *, timeout: float = 600.0, patience: float = 300.0
) -> "Generator[Round, None, None]":
    """Play the run over a grid; yields the records that the loop yields.

    A client that fails, is too late, or sends what cannot be an upload is left out of its round, like one whose upload
    is lost: the mean keeps its denominator, the release stays in the ledger, one line of the log says why. Of a record,
    what only clients know is NaN or absent: what the clips did, the noise that was drawn, and in the client unit the
    metrics of models that clients keep. Of the others clients report the metrics themselves.

    Args:
        timeout: seconds for the replies of a round, > 0.
        patience: seconds until every client must have been there once, > 0.

    Raises: `Stopped` when not all clients come, when one has other terms, or when a round brings no upload at all.

    Guarantees: the loop's run under the same seed (tests/test_flower.py::test_three_engines_agree); the ledger is
        written before a round is asked for (tests/test_flower_faults.py).
    """
    for name, value in (("timeout", timeout), ("patience", patience)):
        check_number(name, value, 0, open_low=True)
    return _rounds(Fleet(grid, party, timeout), run, patience)


def _rounds(fleet: "Fleet", run: Federation, patience: float) -> "Generator[Round, None, None]":
    fleet.meet(patience)
    keeps = kept(run)
    with run.alone():
        if not run.resumed:
            yield run.begin(replace(run.start(), shown=False))
        while not run.ended:
            keeps = bool(_moves(run, run.state.round).kept) or keeps
            opened = run.open_round()
            outcome = _round(fleet, run, opened)
            run._store()
            metrics = fleet.judged(run) if keeps else None
            yield run._record(replace(outcome, shown=False, metrics=metrics))


def kept(run: Federation) -> bool:
    """Clients have kept something in the rounds that are done."""
    return any(_moves(run, t).kept for t in range(run.state.round))


def _moves(run: Federation, t: int) -> local.Moves:
    return local.moves(run.setting, run.state.server.tensors, t)


def _round(fleet: "Fleet", run: Federation, opened: Opened) -> observe.Outcome:
    """Ask everyone who takes part, and close the round with what came."""
    moves = _moves(run, opened.t)
    found = fleet.uploads(run, opened, moves.sent)
    arrived = {opened.ids[i] for i in run._arrived(opened.t, opened.ids).tolist()}
    there = tuple(k for k in opened.ids if k in found and k in arrived)
    rows = {slot: torch.stack([found[k][slot] for k in there]) for slot in moves.sent} if there else {}
    received = upload.collect(run.setting, run.asked.privacy, there, rows, opened.sent)
    return run.close_round(opened, received, engine.Clients(opened.ids, {}, {}), (), there)


@dataclass
class Fleet:
    """The clients behind a grid.

    Args:
        nodes: a client's number -> its node.
    """

    grid: Grid
    party: Party
    timeout: float
    nodes: dict[int, int]

    def __init__(self, grid: Grid, party: Party, timeout: float) -> None:
        self.grid, self.party, self.timeout, self.nodes = grid, party, timeout, {}

    def meet(self, patience: float) -> None:
        """Wait until every client has said its number. Raises `Stopped`.

        A node is asked once and may take until the end: its first answer waits for its process to start.
        """
        count, end = len(self.party.asked.task.sizes), time.monotonic() + patience
        asked: set[int] = set()
        waiting: set[str] = set()
        while len(self.nodes) < count and time.monotonic() < end:
            new = [node for node in self.grid.get_node_ids() if node not in asked]
            asked.update(new)
            content = records.content({"terms": self.party.terms})
            waiting.update(self.grid.push_messages([Message(content, n, MessageType.QUERY, ttl=patience) for n in new]))
            replies = self.grid.pull_messages(waiting) if waiting else ()
            for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
                waiting.discard(reply.metadata.reply_to_message_id)
                self._introduce(reply.metadata.src_node_id, reply, count)
            if len(self.nodes) < count:
                time.sleep(0.2)
        absent = sorted(set(range(count)) - set(self.nodes))
        if absent:
            raise Stopped(f"clients={absent}: expected all {count} to be there within {patience:g} s")

    def _introduce(self, node: int, reply: Message, count: int) -> None:
        try:
            _fine(reply)
            records.about(reply, {"terms": self.party.terms})
            number = reply.content.config_records[records.ABOUT].get("client")
            check(isinstance(number, int) and 0 <= number < count, "client", number, f"a number in [0, {count - 1}]")
            check(number not in self.nodes, "client", number, "one node for each number, this is the second")
        except ValueError as error:
            raise Stopped(f"node {node}: {error}") from None
        self.nodes[int(number)] = node  # type: ignore[arg-type]

    def uploads(self, run: Federation, opened: Opened, slots: tuple[Slot, ...]) -> dict[int, Mapping[Slot, Tensor]]:
        """The valid uploads of a round by client. Raises `Stopped` when there is none of those who were asked."""
        found, wrong = {}, {}
        about = {"terms": self.party.terms, "round": opened.t}
        content = records.content(about, records.packed(down(opened.sent, run.setting.method)))
        replies = self._ask([self.nodes[k] for k in opened.ids], MessageType.TRAIN, content)
        for k in opened.ids:
            try:
                reply = replies.get(self.nodes[k])
                check(reply is not None, "reply", None, f"one within {self.timeout:g} s")
                found[k] = self._upload(run, opened, slots, k, reply)  # type: ignore[arg-type]
            except ValueError as error:
                wrong[k] = str(error)
                LOG.warning("round %d, client %d is left out: %s", opened.t + 1, k, error)
        if wrong and not found:
            first = min(wrong)
            raise Stopped(f"round {opened.t + 1}: no upload of {len(wrong)} clients; client {first}: {wrong[first]}")
        return found

    def _upload(
        self, run: Federation, opened: Opened, slots: tuple[Slot, ...], k: int, reply: Message
    ) -> Mapping[Slot, Tensor]:
        """One client's upload in full size. Raises ``ValueError`` for anything else."""
        _fine(reply)
        records.about(reply, {"client": k, "terms": self.party.terms, "round": opened.t})
        method, privacy = run.setting.method, run.asked.privacy
        rank = rank_sent(method, run.asked.lora, k, privacy)
        forms = records.forms({s: opened.before.tensors[s] for s in slots}, rank)
        tensors = records.unpacked(records.arrays(reply), forms)
        summed = privacy is not None and privacy.trust == "secagg"
        # Of a sum everyone sends all ranks, and what is not sent is what the server has: it takes that off again.
        whole = {slot: tensor[None] for slot, tensor in opened.sent.tensors.items()}
        start = whole if summed else upload.received(run.setting, (k,), opened.sent)
        shift = method.clips if privacy is not None and privacy.unit == "client" else (lambda x: x)
        return records.filled(tensors, {slot: shift(start[slot])[0] for slot in slots})

    def judged(self, run: Federation) -> dict[str, float]:
        """Means of the metrics that clients report of their own models.

        NaN where they may not: in the client unit, and in a private run on test examples that are not public.
        """
        names, privacy = run.setting.task.metrics, run.asked.privacy
        if privacy is not None and (privacy.unit == "client" or not run.setting.task.public_test):
            return dict.fromkeys(names, observe.NOT_SEEN)
        t, sent = run.state.round, observe.broadcast(run.setting, run.state.server)
        about = {"terms": self.party.terms, "round": t}
        content = records.content(about, records.packed(down(sent, run.setting.method)))
        replies = self._ask(list(self.nodes.values()), MessageType.EVALUATE, content)
        found = []
        for k, node in sorted(self.nodes.items()):
            try:
                check(node in replies, "reply", None, f"one within {self.timeout:g} s")
                found.append(records.scores(_fine(replies[node]), {**about, "client": k}, tuple(names)))
            except ValueError as error:
                LOG.warning("round %d, scores of client %d are left out: %s", t, k, error)
        return {name: sum(s[name] for s in found) / len(found) if found else observe.NOT_SEEN for name in names}

    def _ask(self, nodes: list[int], kind: str, content: Any) -> dict[int, Message]:
        """The replies of these nodes, as far as they come in time."""
        messages = [Message(content, node, kind, ttl=self.timeout) for node in nodes]
        if not messages:
            return {}
        replies = self.grid.send_and_receive(messages, timeout=self.timeout)
        return {reply.metadata.src_node_id: reply for reply in replies if reply.metadata.src_node_id in nodes}


def _fine(reply: Message) -> Message:
    """The reply, unless it says that the client failed. Of Flower's reason the last line with words is kept."""
    if reply.has_error():
        lines = [line.strip(" '<>") for line in (reply.error.reason or "").splitlines()]
        worded = [line for line in lines if any(letter.isalpha() for letter in line)] or ["no reason given"]
        raise ValueError(f"client failed: {worded[-1][:200]}")
    return reply
