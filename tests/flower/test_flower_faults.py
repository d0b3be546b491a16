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
from fedlora_lab.flower.client import client_app
from fedlora_lab.flower.server import Stopped, open_run, rounds
from fedlora_lab.flower.simulators import InProcessGrid, SimulatedClients
from fedlora_lab.privacy.ledger import Ledger

PLAN = ROUNDS.replace(participation=1.0, dropout=0.0)
NAME = "B/inner"


def with_arrays(reply, **changed):
    """The same reply with other arrays; ``None``: without."""
    given = {name.replace("_", "/"): array for name, array in changed.items()}
    arrays = {**reply.content["arrays"], **given}
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
    return with_arrays(reply, B_inner=Array(**kind, data=data))


def stored(values, **options):
    """Bytes of an array as NumPy writes them."""
    file = io.BytesIO()
    np.save(file, values, **options)
    return file.getvalue()


def changed(reply, change):
    return with_arrays(reply, B_inner=Array(change(reply.content["arrays"][NAME].numpy().copy())))


def gone(reply, old):
    """What Flower answers for a node that has gone."""
    return Error(5, "Node unavailable")


def raising(reply, old):
    raise RuntimeError("out of memory")


CLAIM = stored(np.zeros(12)).replace(b"(12,), }" + 10 * b" ", b"(100000000000,), }")
"""As many bytes as are expected, and a header of ten times a hundred gigabytes."""
PICKLE = stored(np.array([print], dtype=object), allow_pickle=True)
BAD: dict[str, Any] = {
    "not a number": lambda r, old: changed(r, lambda x: x * math.nan),
    "infinite": lambda r, old: changed(r, lambda x: np.where(x == x.max(), -math.inf, x)),
    "wrong shape": lambda r, old: changed(r, lambda x: x[:-1]),
    "wrong type": lambda r, old: changed(r, lambda x: x.astype("float32")),
    "oversized": lambda r, old: lying(r, b"\x00" * 5_000_000),
    "other bytes than said": lambda r, old: lying(r, stored(np.zeros((3, 3)))),
    "no array at all": lambda r, old: lying(r, b"nonsense" * 12),
    "a pickle": lambda r, old: lying(r, PICKLE),
    "a header that claims a terabyte": lambda r, old: lying(r, CLAIM),
    "one tensor less": lambda r, old: with_arrays(r, B_inner=None),
    "one tensor more": lambda r, old: with_arrays(r, B_elsewhere=Array(np.zeros(3))),
    "a record more": lambda r, old: RecordDict({**r.content, "extra": MetricRecord({"loss": 1.0})}),
    "the round before": lambda r, old: RecordDict(dict(old.content)),
    "another round": lambda r, old: claims(r, round=9),
    "another client": lambda r, old: claims(r, client=0),
    "other terms": lambda r, old: claims(r, terms="others"),
    "nothing": lambda r, old: RecordDict(),
    "an error": raising,
    "a node that has gone": gone,
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
            if message.metadata.message_type == "train" and t == 0:
                old[k] = copy.deepcopy(reply)
            if k not in clients or (message.metadata.message_type, t) != ("train", 1):
                return reply
            return Message(fault(reply, old[k]), reply_to=message)

        return answer

    return wrap


class Lossy(InProcessGrid):
    """A network that loses the reply of client 1 in round 1, as if it were too late or killed."""

    def send_and_receive(self, messages, *, timeout=None):
        for reply in super().send_and_receive(messages, timeout=timeout):
            about = reply.content["about"]
            if (reply.metadata.message_type, about["client"], about.get("round")) != (
                "train",
                1,
                1,
            ):
                yield reply


@cache
def parties(row: Any = "fedlora", privacy=None, plan=PLAN, seed: int | None = 0):
    who = SimulatedClients(tokens("head"), row, privacy or protected("example"), plan, LORA, seed)
    return who, who.participant()


def run(app=lambda app: app, grid=InProcessGrid, seen=None, privacy=None, upto=4, **options):
    """A run with this network, and with honest apps unless others are given."""
    who, participant = parties(privacy=privacy)
    there = grid(app(client_app(who)), 3, seen)
    return list(islice(rounds(there, participant, open_run(participant, **options)), upto))


def site(who):
    """The app of a client and its context, as a node that has just started."""
    grid = InProcessGrid(client_app(who), 3)
    return grid.app, grid.contexts[1000]


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
        found = run(faulty(BAD[name]), upto=3)
    (line,) = caplog.messages
    assert line.startswith("round 2, client 1 is left out: ")
    assert {raising: "out of memory", gone: "unavailable"}.get(BAD[name], "expected") in line
    assert "\n" not in line and len(line) < 600
    assert apart(found, without_the_reply()[:3]) == 0
    assert book(found[2]).to_json() == book(without_the_reply()[2]).to_json()


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
    found = run(grid=Lossy, privacy=private("client", trust="secagg", honest=3))
    assert apart(found[1:2], found[2:3]) == 0
    assert apart(found[2:3], found[3:4]) > 1e-3
    assert [entry.round for entry in book(found[-1]).releases] == [1, 2, 3]


# ---- the server's faults, as a client meets them


@pytest.mark.parametrize("seed", [0, None])
def test_a_round_asked_twice_is_answered_twice_with_the_same_bits(seed):
    """A server that lost its memory gets no second release: not even where every noise is drawn
    afresh.
    """
    who, participant = parties(seed=seed)
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
        ({"round": -1}, r"^round=-1: expected a whole number in \[0, 2\]$"),
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


def test_scores_are_refused_in_the_client_unit():
    who, participant = parties(row="fedsa-lora", privacy=protected("client"))
    app, context = site(who)
    words = r"^unit='client': expected 'example' or 'person': scores would tell"
    with pytest.raises(ValueError, match=words):
        app(question(participant, kind="evaluate"), context)


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
    for name, value in (("timeout", 0), ("patience", -1), ("timeout", "soon")):
        given: Any = {name: value}
        with pytest.raises(ValueError, match=rf"^{name}={value!r}: expected a number > 0$"):
            rounds(two, participant, open_run(participant), **given)


class Starting(InProcessGrid):
    """Clients of whose first answers nothing is there until the server has looked three times."""

    looked = 0

    def pull_messages(self, message_ids):
        self.looked += 1
        return super().pull_messages(message_ids) if self.looked > 3 else []


@pytest.mark.slow
def test_a_client_that_starts_slowly_is_asked_once_and_waited_for():
    (who, participant), seen = parties(), []
    grid = Starting(client_app(who), 3, seen.append)
    next(rounds(grid, participant, open_run(participant), timeout=1e-3))
    queries = [m.metadata for m in seen if m.metadata.message_type == "query"]
    asked = [m.dst_node_id for m in queries if not m.reply_to_message_id]
    assert grid.looked > 3 and asked == [1000, 1001, 1002]


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
