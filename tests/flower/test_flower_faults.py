"""Faults of clients, server and network: the run goes on or stops in one line, and the ledger is
right.
"""

import copy
import io
import logging
import math
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import pytest
from flower_runs import ROUNDS, apart, protected, question, state
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from toy_tasks import LORA, book, play, private, tokens

from fedlora_lab import methods
from fedlora_lab.flower import InProcessGrid, SimulatedClients, client_app, open_run, rounds
from fedlora_lab.flower.server import Stopped
from fedlora_lab.privacy.ledger import Ledger

PLAN = ROUNDS.replace(participation=1.0, dropout=0.0)
NAME = "B/inner"


def with_array(reply, array, name=NAME):
    """The same reply with another array of this name; ``None``: without."""
    arrays = {**reply.content["arrays"], name: array}
    kept = {name: array for name, array in arrays.items() if array is not None}
    return RecordDict({**reply.content, "arrays": ArrayRecord(kept)})


def claims(reply, **changes):
    """The same reply about something else."""
    about = ConfigRecord({**reply.content["about"], **changes})
    return RecordDict({**reply.content, "about": about})


def lying(reply, data):
    """An array whose header says one thing and whose bytes another."""
    array = reply.content["arrays"][NAME]
    kind = {"dtype": array.dtype, "shape": tuple(array.shape), "stype": array.stype}
    return with_array(reply, Array(**kind, data=data))


def stored(values, **options):
    """Bytes of an array as NumPy writes them."""
    file = io.BytesIO()
    np.save(file, values, **options)
    return file.getvalue()


def changed(reply, change):
    return with_array(reply, Array(change(reply.content["arrays"][NAME].numpy().copy())))


def raising(reply, old):
    raise RuntimeError("out of memory")


CLAIM = stored(np.zeros(12)).replace(b"(12,), }" + 10 * b" ", b"(100000000000,), }")
"""As many bytes as are expected, and a header of ten times a hundred gigabytes."""
PICKLE = stored(np.array([print], dtype=object), allow_pickle=True)
BAD: dict[str, Any] = {
    "infinite": lambda r, old: changed(r, lambda x: np.where(x == x.max(), -math.inf, x)),
    "wrong shape": lambda r, old: changed(r, lambda x: x[:-1]),
    "wrong type": lambda r, old: changed(r, lambda x: x.astype("float32")),
    "oversized": lambda r, old: lying(r, b"\x00" * 5_000_000),
    "a pickle": lambda r, old: lying(r, PICKLE),
    "a header that claims a terabyte": lambda r, old: lying(r, CLAIM),
    "one tensor less": lambda r, old: with_array(r, None),
    "one tensor more": lambda r, old: with_array(r, Array(np.zeros(3)), "B/elsewhere"),
    "a record more": lambda r, old: RecordDict({**r.content, "extra": MetricRecord({"loss": 1.0})}),
    "the round before": lambda r, old: RecordDict(dict(old.content)),
    "another client": lambda r, old: claims(r, client=0),
    "other terms": lambda r, old: claims(r, terms="others"),
    "nothing": lambda r, old: RecordDict(),
    "an error": raising,
    "a node that has gone": lambda r, old: Error(5, "Node unavailable"),
}


def faulty(fault, clients=(1,)):
    """Honest apps, but for these clients in round 1 (of 0, 1, 2): ``fault(reply, its reply of the
    round before)``.
    """
    old = {}

    def wrap(app):
        def answer(message, context):
            reply = app(message, context)
            k, t = context.node_config["partition-id"], message.content["about"].get("round")
            if t == 0:
                old[k] = copy.deepcopy(reply)
            if k not in clients or t != 1:
                return reply
            return Message(fault(reply, old[k]), reply_to=message)

        return answer

    return wrap


class Lossy(InProcessGrid):
    """A network that loses the reply of client 1 in round 1, as if it were too late or killed."""

    def pull_messages(self, message_ids):
        for reply in super().pull_messages(message_ids):
            about = reply.content["about"]
            if (about["client"], about.get("round")) != (1, 1):
                yield reply


@cache
def parties(row: Any = "fedlora", privacy=None, plan=PLAN, seed: int | None = 0):
    who = SimulatedClients(tokens("head"), row, privacy or protected("example"), plan, LORA, seed)
    return who, who.participant()


def run(app=lambda app: app, grid=InProcessGrid, privacy=None, upto=4, **options):
    """A run with this network, and with honest apps unless others are given."""
    who, participant = parties(privacy=privacy)
    records = rounds(
        grid(app(client_app(who)), 3), participant, open_run(participant, **options), timeout=0.1
    )
    return list(islice(records, upto))


whole = cache(run)
"""The run in which every upload came."""
without_the_reply = cache(lambda: run(grid=Lossy))
"""The run in which client 1's upload of round 1 never came."""


def test_a_lost_reply_leaves_its_weight_to_the_old_state():
    """The mean keeps its denominator, the next round has everyone again, the ledger counts all that
    was asked for.
    """
    loop, lost = play(tokens("head"), "fedlora", protected("example"), PLAN), without_the_reply()
    assert apart(lost[:2], loop[:2]) < 1e-9
    assert apart(lost[2:3], loop[2:3]) > 1e-3
    assert lost[2].uploads.numbers_up == loop[2].uploads.numbers_up * 2 // 3
    assert book(lost[-1]).to_json() == book(loop[-1]).to_json()
    assert all(((state(lost[2])[key] - x).norm() > 0) for key, x in state(lost[1]).items())


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_a_bad_upload_is_left_out(name, caplog):
    """Bit for bit the run in which nothing came, one line in the log that says what was wrong, the
    same ledger.
    """
    with caplog.at_level(logging.WARNING, "fedlora_lab.flower"):
        records = run(faulty(BAD[name]), upto=3)
    (line,) = caplog.messages
    assert line.startswith("round 2, client 1 is left out: ")
    reasons = {"an error": "out of memory", "a node that has gone": "unavailable"}
    assert reasons.get(name, "expected") in line
    assert "\n" not in line and len(line) < 600
    assert apart(records, without_the_reply()[:3]) == 0
    assert book(records[2]).to_json() == book(without_the_reply()[2]).to_json()


def test_when_nobody_answers_the_run_stops(tmp_path):
    """One line; the round that was asked for stands in the ledger; the same folder goes on, and
    counts it once.
    """
    line = r"^round 2: no upload of 3 clients; client 0: client failed: out of memory$"
    with pytest.raises(Stopped, match=line):
        run(faulty(raising, range(3)), checkpoint=tmp_path)
    assert [entry.round for entry in Ledger.load(tmp_path / "ledger.json").releases] == [1, 2]
    rest = run(resume=tmp_path)
    assert [record.index for record in rest] == [2, 3]
    assert apart(rest, whole()[2:]) == 0
    assert book(rest[-1]).to_json() == book(whole()[-1]).to_json()


def test_too_few_shares_release_nothing():
    """Secure aggregation: of fewer uploads than shares of noise are relied on, no sum is formed."""
    records = run(grid=Lossy, privacy=private("client", trust="secagg", honest=3))
    assert apart(records[1:2], records[2:3]) == 0
    assert apart(records[2:3], records[3:4]) > 1e-3
    assert [entry.round for entry in book(records[-1]).releases] == [1, 2, 3]


# ---- the server's faults, as a client meets them


def site(who):
    """The app of a client and its context, as a node that has just started."""
    grid = InProcessGrid(client_app(who), 3)
    return grid.app, grid.contexts[1000]


def test_a_round_asked_twice_is_answered_twice_with_the_same_bits():
    """A server that lost its memory gets no second release, whatever it sends: not even where every
    noise is drawn afresh.
    """
    who, participant = parties(seed=None)
    (app, context), message = site(who), question(participant)
    once, again = app(message, context), app(message, context)
    assert once.content["arrays"] == again.content["arrays"]
    arrays = {name: Array(x.numpy() + 1) for name, x in message.content["arrays"].items()}
    message.content["arrays"] = ArrayRecord(arrays)
    assert app(message, context).content["arrays"] == once.content["arrays"]


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
    other terms; a broadcast that does not fit.
    """
    who, participant = parties()
    app, context = site(who)
    app(question(participant, t=1), context)
    about: Any = {"t": 2, **changes}
    kept, message = copy.deepcopy(context.state), question(participant, **about)
    message.content["arrays"][NAME] = Array(np.full((6, 2), math.nan))
    with pytest.raises(ValueError, match=line):
        app(message, context)
    assert context.state == kept


# ---- before the first round


@pytest.mark.slow
def test_every_client_must_be_there_once():
    who, participant = parties()
    two, double = (InProcessGrid(client_app(who), n) for n in (2, 3))
    double.contexts[1002].node_config["partition-id"] = 1
    for grid, line in (
        (two, r"^clients=\[2\]: expected all 3 to be there within 0.3 s$"),
        (double, r"^node 1002: client=1: expected one node for each number"),
    ):
        with pytest.raises(Stopped, match=line):
            next(rounds(grid, participant, open_run(participant), patience=0.3))
    with pytest.raises(ValueError, match=r"^timeout=0: expected a number > 0$"):
        rounds(two, participant, open_run(participant), timeout=0)


def test_a_client_that_starts_slowly_is_asked_once_and_waited_for():
    """Nothing of the clients' first answers is there until the server has looked three times."""
    looked = []

    class Starting(InProcessGrid):
        def pull_messages(self, message_ids):
            looked.append(list(message_ids))
            return super().pull_messages(message_ids) if len(looked) > 3 else []

    (who, participant), seen = parties(), []
    grid = Starting(client_app(who), 3, seen.append)
    next(rounds(grid, participant, open_run(participant)))
    queries = [m.metadata for m in seen if m.metadata.message_type == "query"]
    asked = [m.dst_node_id for m in queries if not m.reply_to_message_id]
    assert len(looked) > 3 and asked == [1000, 1001, 1002]


def test_a_client_with_other_terms_stops_the_run():
    """Another noise, another plan, another rule of the server: each is seen before anything is
    trained.
    """
    server = parties()[1]
    for other in (
        parties(privacy=protected("example", sigma=0.5)),
        parties(plan=PLAN.replace(rounds=4)),
        parties(row=methods.FedLoRA.replace(aggregate=methods.FlexLoRA.aggregate)),
    ):
        grid, words = InProcessGrid(client_app(other[0]), 3), "terms='[0-9a-f]{64}': expected "
        with pytest.raises(Stopped, match=rf"^node 1000: {words}{server.terms}$"):
            next(rounds(grid, server, open_run(server)))
