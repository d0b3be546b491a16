"""Faults of clients, server and network: the run goes on or stops in one line, and the ledger is
right.
"""

import copy
import logging
import math
from functools import cache
from itertools import islice

import pytest
import torch
from calls import refused
from flower_runs import (
    ROUNDS,
    InProcessGrid,
    apart,
    party,
    protected,
    question,
    tensors_of,
)
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from toy_tasks import book, play, tensors, tokens

from fedlora_lab import flower, methods
from fedlora_lab.flower import messages
from fedlora_lab.flower.server import Stopped
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy.ledger import Ledger

PLAN = ROUNDS.replace(participation=1.0)
NAME = ParamKey("B", "inner")


def with_tensor(reply, change, key=NAME):
    """The same reply with another tensor of this name."""
    tensors = tensors_of(reply)
    tensors[key] = change(tensors.get(key))
    return RecordDict({**reply.content, "tensors": messages.pack_tensors(tensors)})


def claims(reply, **changes):
    """The same reply about something else."""
    about = {**reply.content["about"], **changes}
    return RecordDict({**reply.content, "about": ConfigRecord(about)})


def with_bytes(reply, change):
    """The same reply with other bytes."""
    data = change(reply.content["tensors"]["tensors"].data)
    array = Array(dtype="uint8", shape=(len(data),), stype="safetensors", data=data)
    return RecordDict({**reply.content, "tensors": ArrayRecord({"tensors": array})})


def raising(reply):
    raise RuntimeError("out of memory\x1b[2J")


HOSTILE = "expected\x1b[2J\r\n\x07\x08\x9b31m\x85\u2028\u202e\u2066\u200b\ufeff\x7f" * 10_000
"""Clears a screen, rings, colours, breaks lines, turns the direction of reading, and is long."""
BAD = {
    "infinite": lambda r: with_tensor(r, change=lambda x: x.where(x != x.max(), -math.inf)),
    "wrong shape": lambda r: with_tensor(r, change=lambda x: x[:-1]),
    "a header that claims a terabyte": lambda r: with_bytes(
        r, lambda x: x.replace(b'"shape":[6,2]', b'"shape":[9999999999,9999]')
    ),
    "a name without a layer": lambda r: with_bytes(r, lambda x: x.replace(b"B/inner", b"B_inner")),
    "one tensor more": lambda r: with_tensor(r, lambda _: torch.zeros(3), ParamKey("B", HOSTILE)),
    "a record more": lambda r: RecordDict({**r.content, "extra": MetricRecord({"loss": 1.0})}),
    "the round before": lambda r: claims(r, round=0),
    "another client": lambda r: claims(r, client=0),
    "other terms": lambda r: claims(r, terms=HOSTILE),
    "an error": lambda r: Error(2, HOSTILE),
    "nothing": lambda r: RecordDict(),
}


@cache
def everybody(**terms):
    """A federation under these terms, else the usual ones."""
    usual = {"row": "fedlora", "privacy": protected("example"), "plan": PLAN, "seed": 0}
    return party(tokens("head"), **usual | terms)


def lossy(fault, clients=(1,)):
    """A network in which the replies of these clients in the second round are bad, or
    never come.
    """

    class Lossy(InProcessGrid):
        def __init__(self, app, clients):
            super().__init__(self.answer, clients)
            self.honest = app

        def answer(self, message, context):
            reply = self.honest(message, context)
            if fault is None or not self.is_bad(reply):
                return reply
            return Message(fault(reply), reply_to=message)

        def is_bad(self, reply):
            about = reply.content["about"] if reply.has_content() else {}
            return about.get("client") in clients and about.get("round") == 1

        def pull_messages(self, message_ids):
            replies = super().pull_messages(message_ids)
            return [reply for reply in replies if fault is not None or not self.is_bad(reply)]

    return Lossy


def run(grid=InProcessGrid, upto=4, terms=None, **options):
    """A run over this network."""
    usual = everybody(**(terms or {}))
    network = grid(usual.app(), 3)
    return list(islice(flower.run(network, usual.terms, timeout=0.1, **options), upto))


whole = cache(run)
"""The run in which every upload came."""
without_the_reply = cache(lambda: run(lossy(None)))
"""The run in which client 1's upload of round 1 never came."""


def test_a_lost_reply_leaves_its_weight_to_the_old_state():
    """The mean keeps its denominator, who did not answer is no participant, the next round has
    everyone again, the ledger counts all that was asked for.
    """
    loop = play(tokens("head"), "fedlora", protected("example"), PLAN)
    lost = without_the_reply()
    assert apart(lost[:2], loop[:2]) < 1e-9
    assert apart(lost[2:3], loop[2:3]) > 1e-3
    assert [record.participants for record in lost] == [0, 3, 2, 3]
    assert lost[2].traffic.numbers_up == loop[2].traffic.numbers_up * 2 // 3
    assert book(lost[-1]).to_json() == book(loop[-1]).to_json()
    assert all((tensors(lost[2])[key] - x).norm() > 0 for key, x in tensors(lost[1]).items())


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_a_bad_upload_is_left_out(name, caplog):
    """Bit for bit the run in which nothing came, one line in the log that says what was wrong, the
    same ledger.
    """
    with caplog.at_level(logging.WARNING, "fedlora_lab.flower"):
        records = run(lossy(BAD[name]), upto=3)
    (line,) = caplog.messages
    assert line.startswith("round 2, client 1 is left out: ")
    # Nothing that a client sends moves the coordinator's cursor.
    assert "expected" in line and line.isprintable() and len(line) < 600
    assert apart(records, without_the_reply()[:3]) == 0
    assert book(records[2]).to_json() == book(without_the_reply()[2]).to_json()


def test_when_nobody_answers_the_run_stops(tmp_path):
    """One line; the round that was asked for stands in the ledger; the same folder goes on, and
    counts it once.
    """
    line = r"^round 2: no upload of 3 clients; client 0: client failed: out of memory\\x1b\[2J$"
    with pytest.raises(Stopped, match=line):
        run(lossy(raising, (0, 1, 2)), out=tmp_path)
    assert [entry.round for entry in Ledger.load(tmp_path / "ledger.json").releases] == [1, 2]
    later = run(out=tmp_path)
    assert [record.index for record in later] == [1, 2, 3]
    assert apart(later, whole()[1:]) == 0
    assert book(later[-1]).to_json() == book(whole()[-1]).to_json()


def test_a_client_that_was_started_again_is_asked_again():
    """As a new node, while the one that was killed is still listed; it misses one round."""

    class Restarted(InProcessGrid):
        def answer(self, message, context):
            if context.node_id == 1001 and message.content["about"].get("round") == 1:
                del self.contexts[1001]
                raise RuntimeError
            return self.honest(message, context)

        def pull_messages(self, message_ids):
            replies = super().pull_messages(message_ids)
            return [reply for reply in replies if not reply.has_error()]

        def __init__(self, app, clients):
            super().__init__(self.answer, clients)
            self.honest = app
            again = copy.deepcopy(self.contexts[1001])
            again.__dict__["node_id"] = 2001
            self.contexts[2001] = again

    records = run(Restarted)
    assert [record.participants for record in records] == [0, 3, 2, 3]
    assert apart(records, without_the_reply()) == 0


# ---- the server's faults, as a client meets them


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"round": 0}, r"^round=0: expected 1, which was answered last, or a later one$"),
        ({"round": 3}, r"^round=3: expected a whole number in \[0, 2\]$"),
        ({"terms": "weaker"}, r"^terms='weaker': expected [0-9a-f]{64}$"),
        ({}, r"^inner.B=nan: expected finite numbers$"),
    ],
)
def test_a_client_refuses_what_was_not_agreed_on(changes, line):
    """Rounds of the past and beyond the plan, so that it never releases more than it agreed to;
    other terms; a broadcast that does not fit. What was answered is answered again, from the
    broadcast that it answered.
    """
    usual = everybody(seed=None)
    grid = usual.grid()
    context = grid.contexts[1000]
    first = grid.app(question(usual.terms, t=1), context).content["tensors"]
    message = question(usual.terms, **{"t": 2, **changes})
    message.content = with_tensor(message, change=lambda x: x * math.nan)
    with refused(line):
        grid.app(message, context)
    message.content["about"] = question(usual.terms, t=1).content["about"]
    with refused(
        "^broadcast of round 1='[0-9a-f]{32}': expected [0-9a-f]{32}, to which it was ans"
    ):
        grid.app(message, context)
    assert grid.app(question(usual.terms, t=1), context).content["tensors"] == first


# ---- before the first round


@pytest.mark.slow
def test_every_client_must_be_there_once():
    usual = everybody()
    two = InProcessGrid(usual.app(), 2)
    double = usual.grid()
    double.contexts[1002].node_config["partition-id"] = 1
    for grid, line in (
        (two, r"^clients=\[2\]: expected all to be there within 0.3 s$"),
        (double, r"^clients=\[2\]: expected"),
    ):
        with pytest.raises(Stopped, match=line):
            next(flower.run(grid, usual.terms, timeout=0.3))
    with refused(r"^timeout=0: expected a number > 0$"):
        flower.run(two, usual.terms, timeout=0)


@pytest.mark.parametrize(
    "terms",
    [
        {"privacy": protected("example", sigma=0.5)},
        {"plan": PLAN.replace(rounds=4)},
        {"row": methods.FedLoRA.replace(aggregate=methods.FlexLoRA.aggregate)},
    ],
)
def test_a_client_with_other_terms_stops_the_run(terms):
    """Another noise, another plan, another rule of the server: each is seen before anything is
    trained.
    """
    server = everybody().terms
    words = f"terms='[0-9a-f]{{64}}': expected {server.terms}"
    with pytest.raises(Stopped, match=rf"^node 1000: {words}$"):
        next(flower.run(everybody(**terms).grid(), server))
