"""The server's side: who takes part, the ledger, the method's rule on the uploads, the records."""

import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedlora_lab._utils.validation import check, check_number
from fedlora_lab.federated import uploads
from fedlora_lab.federated.local_training import ClientBatch
from fedlora_lab.federated.records import NOT_SEEN, Round
from fedlora_lab.federated.run import OpenRound, Run, RunOptions
from fedlora_lab.flower import messages
from fedlora_lab.flower.client import LOG, Participant
from fedlora_lab.methods.state import ServerState, Tensors


class Stopped(ConnectionError):
    """The run cannot go on; what was spent stands in the ledger."""


def open_run(
    participant: Participant,
    checkpoint: "str | Path | None" = None,
    resume: "str | Path | None" = None,
    stop_at: float | None = None,
) -> Run:
    """Opens the server's run.

    Args:
        participant: the server's terms.
        checkpoint, resume, stop_at: as in `fl.run`.
    """
    options = RunOptions(checkpoint=checkpoint, resume=resume, stop_at=stop_at)
    return Run.of(participant.prepared, options)


def rounds(
    grid: Grid,
    participant: Participant,
    run: Run,
    *,
    timeout: float = 600.0,
    patience: float = 300.0,
) -> "Generator[Round, None, None]":
    """Plays the run over a grid; yields the records that `fl.run` yields.

    A client that fails, is too late, or sends what cannot be an upload is left out of its round,
    like one whose upload is lost: the mean keeps its denominator, the release stays in the ledger,
    one line of the log gives the reason. What only clients know is NaN or absent in a record: the
    clips' counts, the noise, and in the client unit the metrics of models that clients keep.

    Args:
        grid: Flower's, or an `InProcessGrid`.
        participant: the server's terms.
        run: from `open_run`.
        timeout: seconds for the replies of a round, > 0.
        patience: seconds until every client must have been there once, > 0.
    Raises: `Stopped` when not all clients come, when one has other terms, or when a round brings no
        upload at all.
    Guarantees: the run of `fl.run` under the same seed
        (tests/flower/test_flower.py::test_messages_give_the_run_of_the_loop);
        the ledger is written before a round is asked for
        (tests/flower/test_attack_flower.py::test_a_round_is_in_the_ledger_before_a_client_is_asked).
    """
    check_number("timeout", timeout, 0, open_low=True)
    check_number("patience", patience, 0, open_low=True)
    return _Server(grid, participant, run, timeout).play(patience)


def clients_kept_state(run: Run) -> bool:
    """Tells whether clients have kept tensors in the rounds that are done."""
    tensors = run.state.server.tensors
    return any(uploads.round_keys(run.spec, tensors, t).kept for t in range(run.state.round))


@dataclass
class _Server:
    """A run and the clients behind a grid; ``nodes`` maps a client's number to its node."""

    grid: Grid
    participant: Participant
    run: Run
    timeout: float
    nodes: dict[int, int] = field(default_factory=dict)

    def play(self, patience: float) -> "Generator[Round, None, None]":
        self.wait_for_all(patience)
        run = self.run
        keeps = clients_kept_state(self.run)
        with run.lock():
            if not run.resumed:
                yield run.record_start(replace(run.initial_result(), shown=False))
            while not run.ended:
                # The round stands in the ledger, on disk as well, before any client is asked.
                opened = run.begin_round()
                keys = opened.keys
                keeps = bool(keys.kept) or keeps
                found = self.collect_uploads(opened)
                arrived = {opened.ids[i] for i in run.arrivals(opened.t, opened.ids).tolist()}
                there = tuple(k for k in opened.ids if k in found and k in arrived)
                rows = {x: torch.stack([found[k][x] for k in there]) for x in keys.sent if there}
                received = uploads.combine(run.spec, there, rows, opened.sent)
                # What they trained, and what they keep, is with the clients.
                trained = ClientBatch(opened.ids, {}, {})
                places = torch.tensor([opened.ids.index(k) for k in there], dtype=torch.int64)
                result = run.finish_round(opened, received, trained, places)
                run.save_state()
                metrics = self.collect_scores() if keeps else None
                yield run.record(replace(result, shown=False, metrics=metrics))

    def wait_for_all(self, patience: float) -> None:
        """Asks every node once for its number, until all clients are there. Raises `Stopped`."""
        count = len(self.participant.spec.task.sizes)
        end = time.monotonic() + patience
        known: set[int] = set()
        waiting: set[str] = set()
        content = messages.make_content({"terms": self.participant.terms})
        while len(self.nodes) < count and time.monotonic() < end:
            new = [node for node in self.grid.get_node_ids() if node not in known]
            known.update(new)
            queries = [Message(content, node, MessageType.QUERY, ttl=patience) for node in new]
            waiting.update(self.grid.push_messages(queries))
            replies = self.grid.pull_messages(waiting) if waiting else ()
            for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
                waiting.discard(reply.metadata.reply_to_message_id)
                self._introduce(reply.metadata.src_node_id, reply, count)
            if len(self.nodes) < count:
                time.sleep(0.2)
        if absent := sorted(set(range(count)) - set(self.nodes)):
            expected = f"expected all {count} to be there within {patience:g} s"
            raise Stopped(f"clients={absent}: {expected}")

    def _introduce(self, node: int, reply: Message, count: int) -> None:
        try:
            messages.check_about(self._checked(reply), {"terms": self.participant.terms})
            k: Any = reply.content.config_records[messages.ABOUT].get("client")
            known = isinstance(k, int) and 0 <= k < count
            check(known, "client", k, f"a number in [0, {count - 1}]")
            check(k not in self.nodes, "client", k, "one node for each number, this is the second")
        except ValueError as error:
            raise Stopped(f"node {node}: {error}") from None
        self.nodes[k] = node

    def collect_uploads(self, opened: OpenRound) -> dict[int, Tensors]:
        """Returns the valid uploads of a round by client. Raises `Stopped` when none is valid."""
        found = {}
        wrong = {}
        about = {"terms": self.participant.terms, "round": opened.t}
        for k, reply in self._ask(opened.ids, MessageType.TRAIN, about, opened.sent):
            try:
                answer = self._checked(reply)
                messages.check_about(answer, {"client": k, **about})
                found[k] = self._upload(opened, k, messages.get_arrays(answer))
            except ValueError as error:
                wrong[k] = str(error)
                LOG.warning("round %d, client %d is left out: %s", opened.t + 1, k, error)
        if wrong and not found:
            first = min(wrong)
            reason = f"no upload of {len(wrong)} clients; client {first}: {wrong[first]}"
            raise Stopped(f"round {opened.t + 1}: {reason}")
        return found

    def _upload(self, opened: OpenRound, k: int, arrays: Any) -> Tensors:
        """One client's upload in full size. Raises ``ValueError`` for anything else."""
        spec = self.run.spec
        keys = opened.keys.sent
        rank = uploads.rank_sent(spec, k)
        like = {key: opened.before.tensors[key] for key in keys}
        tensors = messages.unpack_arrays(arrays, like, rank)
        # Of a sum everyone sends all ranks, and what is not sent is what the server has: it takes
        # that off again.
        if spec.server_sees_only_sum:
            start = {key: tensor[None] for key, tensor in opened.sent.tensors.items()}
        else:
            start = uploads.tensors_received(spec, (k,), opened.sent)
        base = {key: start[key] for key in keys}
        if not spec.by_step:
            base = {key: spec.method.clip_reference(value) for key, value in base.items()}
        return messages.fill_ranks(tensors, {key: value[0] for key, value in base.items()})

    def collect_scores(self) -> dict[str, float]:
        """Means of the metrics that clients report of their own models; NaN where they may not."""
        state = self.run.state
        task = self.run.spec.task
        privacy = self.run.spec.privacy
        names = tuple(task.metrics)
        unseen = dict.fromkeys(names, NOT_SEEN)
        if privacy is not None and (privacy.unit == "client" or not task.public_test):
            return unseen
        t = state.round
        sent = uploads.broadcast(self.run.spec.method, state.server)
        about = {"terms": self.participant.terms, "round": t}
        found = []
        for k, reply in self._ask(sorted(self.nodes), MessageType.EVALUATE, about, sent):
            try:
                own = {**about, "client": k}
                found.append(messages.get_scores(self._checked(reply), own, names))
            except ValueError as error:
                LOG.warning("round %d, scores of client %d are left out: %s", t, k, error)
        means = {name: sum(scores[name] for scores in found) for name in names}
        return {name: total / len(found) for name, total in means.items()} if found else unseen

    def _ask(
        self, clients: Iterable[int], kind: str, about: dict[str, Any], values: ServerState
    ) -> list[tuple[int, Message | None]]:
        """Sends the server's tensors to these clients; yields each with its reply, if in time."""
        arrays = messages.pack_arrays(self.participant.broadcast(values))
        content = messages.make_content(about, arrays)
        nodes = self.nodes
        asked = [Message(content, nodes[k], kind, ttl=self.timeout) for k in clients]
        replies = self.grid.send_and_receive(asked, timeout=self.timeout) if asked else ()
        sources = {reply.metadata.src_node_id: reply for reply in replies}
        return [(k, sources.get(nodes[k])) for k in clients]

    def _checked(self, reply: Message | None) -> Message:
        """A reply that is there; raises ``ValueError`` with the last line of Flower's reason."""
        check(reply is not None, "reply", None, f"one within {self.timeout:g} s")
        assert reply is not None
        if reply.has_error():
            lines = [line.strip(" '<>") for line in (reply.error.reason or "").splitlines()]
            worded = [line for line in lines if any(letter.isalpha() for letter in line)]
            raise ValueError(f"client failed: {(worded or ['no reason given'])[-1][:200]}")
        return reply
