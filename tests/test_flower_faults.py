"""Faults of clients, server and network: the run goes on or stops in one line, and the ledger is right."""

import copy
import logging
import math

import numpy as np
import pytest
from flowers import ROUNDS, apart, protected, state
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from small import LORA, book, play, private, tokens

from fedlora_lab import methods
from fedlora_lab.flower import InProcess, client_app, rounds
from fedlora_lab.flower.server import Stopped, open_run
from fedlora_lab.flower.simulation import everyone
from fedlora_lab.ledger import Ledger

PLAN = ROUNDS.replace(participation=1.0, dropout=0.0)
SLOT = "B/inner"


def flat(array):
    """The numbers of an array on the wire."""
    return array.numpy().copy()


def with_array(reply, array, name=SLOT):
    """The same reply with one array in place of another."""
    arrays = ArrayRecord(dict(reply.content["arrays"]))
    arrays[name] = array
    return RecordDict({"about": reply.content["about"], "arrays": arrays})


def claims(reply, **changes):
    """The same reply about something else."""
    about = ConfigRecord({**reply.content["about"], **changes})
    return RecordDict({"about": about, "arrays": reply.content["arrays"]})


def without(reply, name):
    arrays = ArrayRecord({key: array for key, array in reply.content["arrays"].items() if key != name})
    return RecordDict({"about": reply.content["about"], "arrays": arrays})


def beside(reply, **records):
    return RecordDict({**reply.content, **records})


def lying(reply, data):
    """An array whose header says one thing and whose bytes another."""
    array = reply.content["arrays"][SLOT]
    return with_array(reply, Array(dtype=array.dtype, shape=tuple(array.shape), stype=array.stype, data=data))


def stored(values, **options):
    """Bytes of an array as NumPy writes them."""
    import io

    file = io.BytesIO()
    np.save(file, values, **options)
    return file.getvalue()


def changed(reply, change):
    values = flat(reply.content["arrays"][SLOT])
    change(values)
    return with_array(reply, Array(values))


CLAIM = stored(np.zeros(12)).replace(b"(12,), }" + 10 * b" ", b"(100000000000,), }")
"""As many bytes as are expected, and a header of ten times a hundred gigabytes."""

BAD = {
    "not a number": lambda r, old: changed(r, lambda x: x.fill(math.nan)),
    "infinite": lambda r, old: changed(r, lambda x: x.__setitem__((0, 0), -math.inf)),
    "wrong shape": lambda r, old: with_array(r, Array(flat(r.content["arrays"][SLOT])[:-1])),
    "wrong type": lambda r, old: with_array(r, Array(flat(r.content["arrays"][SLOT]).astype("float32"))),
    "oversized": lambda r, old: lying(r, b"\x00" * 5_000_000),
    "other bytes than said": lambda r, old: lying(r, stored(np.zeros((3, 3)))),
    "no array at all": lambda r, old: lying(r, b"nonsense" * 12),
    "a pickle": lambda r, old: lying(r, stored(np.array([print], dtype=object), allow_pickle=True)),
    "a header that claims a terabyte": lambda r, old: lying(r, CLAIM),
    "one tensor less": lambda r, old: without(r, SLOT),
    "one tensor more": lambda r, old: with_array(r, Array(np.zeros(3)), "B/elsewhere"),
    "a record more": lambda r, old: beside(r, extra=MetricRecord({"loss": 1.0})),
    "the round before": lambda r, old: RecordDict(dict(old.content)),
    "another round": lambda r, old: claims(r, round=9),
    "another client": lambda r, old: claims(r, client=0),
    "other terms": lambda r, old: claims(r, terms="others"),
    "nothing": lambda r, old: RecordDict(),
}


class Faulty:
    """The honest app, but for client 1 in round 1 (of 0, 1, 2): ``fault(reply, its reply of the round before)``."""

    def __init__(self, app, fault):
        self.app, self.fault, self.old = app, fault, None

    def __call__(self, message, context):
        reply = self.app(message, context)
        if context.node_config["partition-id"] != 1 or message.metadata.message_type != "train":
            return reply
        if message.content["about"]["round"] == 0:
            self.old = copy.deepcopy(reply)
        if message.content["about"]["round"] != 1:
            return reply
        found = self.fault(reply, self.old)
        return found if isinstance(found, Message) else Message(found, reply_to=message)


class Lossy(InProcess):
    """A network that loses the reply of client 1 in round 1, as if the client were too late or killed."""

    def send_and_receive(self, messages, *, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        about = [(r, r.content["about"]) for r in replies]
        return [r for r, a in about if (r.metadata.message_type, a["client"], a.get("round")) != ("train", 1, 1)]


def parties(row: "methods.Method | str" = "fedlora", privacy=None, plan=PLAN, seed: int | None = 0):
    who = everyone(tokens("head"), row, privacy or protected("example"), plan, LORA, seed)
    return who, who.party()


def run(app=None, grid=InProcess, row="fedlora", privacy=None, plan=PLAN, **options):
    """A run with this network, and with the honest app unless another is given."""
    who, party = parties(row, privacy, plan)
    honest = client_app(who)
    server = open_run(party, **options)
    return list(rounds(grid(honest if app is None else app(honest), 3), party, server))


@pytest.fixture(scope="module")
def without_the_reply():
    """The run in which client 1's upload of round 1 never came."""
    return run(grid=Lossy)


def test_a_lost_reply_leaves_its_weight_to_the_old_state(without_the_reply):
    """The mean keeps its denominator, the next round has everyone again, the ledger counts all that was asked for."""
    whole = play(tokens("head"), "fedlora", protected("example"), PLAN)
    lost = without_the_reply
    assert apart(lost[:2], whole[:2]) < 1e-9
    assert apart(lost[2:3], whole[2:3]) > 1e-3
    assert lost[2].uploads.numbers_up == whole[2].uploads.numbers_up * 2 // 3
    assert book(lost[-1]).to_json() == book(whole[-1]).to_json()
    for slot, before in state(lost[1]).items():
        assert state(whole[2])[slot].shape == before.shape
        both, three = (float((state(r[2])[slot] - before).norm()) for r in (lost, whole))
        assert both > 0 and three > 0, slot


@pytest.mark.parametrize("fault", BAD.values(), ids=BAD.keys())
def test_a_bad_upload_is_left_out(fault, without_the_reply, caplog):
    """Bit for bit the run in which nothing came, one line in the log that says what was wrong, the same ledger."""
    with caplog.at_level(logging.WARNING, "fedlora_lab.flower"):
        found = run(lambda app: Faulty(app, fault))
    (line,) = caplog.messages
    assert line.startswith("round 2, client 1 is left out: ")
    assert "expected" in line
    assert "\n" not in line
    assert len(line) < 600
    assert apart(found, without_the_reply) == 0
    assert book(found[-1]).to_json() == book(without_the_reply[-1]).to_json()


def test_a_client_that_raises_is_left_out(without_the_reply, caplog):
    def raising(reply, old):
        raise RuntimeError("out of memory")

    found = run(lambda app: Faulty(app, raising))
    assert [line for line in caplog.messages if "client 1 is left out: client failed: out of memory" in line]
    assert apart(found, without_the_reply) == 0


def test_a_reply_that_is_an_error_is_left_out(without_the_reply, caplog):
    """What Flower answers for a node that has gone."""

    def gone(app):
        def answer(message, context):
            late = context.node_config["partition-id"] == 1 and message.content["about"].get("round") == 1
            return Message(Error(5, "Node unavailable"), reply_to=message) if late else app(message, context)

        return answer

    assert apart(run(gone), without_the_reply) == 0
    assert "Node unavailable" in caplog.text


def test_when_nobody_answers_the_run_stops(tmp_path):
    """One line; the round that was asked for stands in the ledger; the same folder goes on, and counts it once."""

    def down(app):
        def answer(message, context):
            if message.content["about"].get("round") == 1:
                raise RuntimeError("no power")
            return app(message, context)

        return answer

    with pytest.raises(Stopped, match=r"^round 2: no upload of 3 clients; client 0: client failed: no power$"):
        run(down, checkpoint=tmp_path)
    assert [entry.round for entry in Ledger.load(tmp_path / "ledger.json").releases] == [1, 2]
    rest = run(resume=tmp_path)
    assert [record.index for record in rest] == [2, 3]
    whole = run()
    assert apart(rest, whole[2:]) == 0
    assert book(rest[-1]).to_json() == book(whole[-1]).to_json()


def test_the_ledger_is_written_before_a_round_is_asked_for(tmp_path):
    who, party = parties()
    asked = []

    def look(message):
        if message.metadata.message_type == "train" and not message.metadata.reply_to_message_id:
            written = [entry.round for entry in Ledger.load(tmp_path / "ledger.json").releases]
            asked.append((message.content["about"]["round"] + 1, written[-1]))

    list(rounds(InProcess(client_app(who), 3, look), party, open_run(party, checkpoint=tmp_path)))
    assert asked == [(t, t) for t in (1, 1, 1, 2, 2, 2, 3, 3, 3)]


def test_too_few_shares_release_nothing():
    """Secure aggregation: with fewer uploads than shares of noise are relied on, no sum is formed."""
    privacy = private("client", trust="secagg", honest=3)
    found = run(grid=Lossy, privacy=privacy)
    assert apart(found[1:2], found[2:3]) == 0
    assert apart(found[2:3], found[3:4]) > 1e-3
    assert [entry.round for entry in book(found[-1]).releases] == [1, 2, 3]


# ---- the server's faults, as a client meets them


def asked(who, t, **changes):
    """The server's message for a round, as it was recorded in an honest run."""
    party, seen = who.party(), []
    list(rounds(InProcess(client_app(who), 3, seen.append), party, open_run(party)))
    train = [m for m in seen if m.metadata.message_type == "train" and not m.metadata.reply_to_message_id]
    message = next(m for m in train if m.content["about"]["round"] == t)
    message.content["about"] = ConfigRecord({**message.content["about"], **changes})
    return message


def test_a_round_asked_twice_is_answered_twice_with_the_same_bits():
    """A server that lost its memory gets no second release: not even where every noise is drawn afresh."""
    for seed in (0, None):
        who, party = parties(seed=seed)
        grid = InProcess(client_app(who), 3)
        context = next(iter(grid.contexts.values()))
        seen = []
        list(rounds(InProcess(client_app(who), 3, seen.append), party, open_run(party)))
        (first, *_) = [m for m in seen if m.metadata.message_type == "train"]
        once, again = grid.app(first, context), grid.app(first, context)
        assert once.content["arrays"] == again.content["arrays"]
        other = copy.deepcopy(first)
        arrays = ArrayRecord({name: Array(array.numpy() + 1) for name, array in other.content["arrays"].items()})
        other.content["arrays"] = arrays
        assert grid.app(other, context).content["arrays"] == once.content["arrays"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"round": 0}, r"^round=0: expected 1, which was answered last, or a later one$"),
        ({"round": 3}, r"^round=3: expected a whole number in \[0, 2\]$"),
        ({"round": -1}, r"^round=-1: expected a whole number in \[0, 2\]$"),
        ({"terms": "weaker"}, r"^terms='weaker': expected [0-9a-f]{64}$"),
    ],
)
def test_a_client_refuses(changes, line):
    """Rounds of the past and beyond the plan, so that it never releases more than it agreed to; and other terms."""
    who, _ = parties()
    grid = InProcess(client_app(who), 3)
    context = next(iter(grid.contexts.values()))
    grid.app(asked(who, 1), context)
    kept = copy.deepcopy(context.state)
    with pytest.raises(ValueError, match=line):
        grid.app(asked(who, 2, **changes), context)
    assert context.state == kept


def test_a_client_refuses_a_broadcast_that_does_not_fit():
    who, _ = parties()
    grid = InProcess(client_app(who), 3)
    context = next(iter(grid.contexts.values()))
    message = asked(who, 0)
    message.content["arrays"][SLOT] = Array(np.full((6, 2), math.nan))
    with pytest.raises(ValueError, match="expected finite numbers"):
        grid.app(message, context)
    assert not context.state


def test_scores_are_refused_in_the_client_unit():
    who, _ = parties(row="fedsa-lora", privacy=protected("client"))
    grid, message = InProcess(client_app(who), 3), asked(who, 0)
    message.metadata.message_type = "evaluate"
    with pytest.raises(ValueError, match=r"^unit='client': expected 'example': scores would tell"):
        grid.app(message, next(iter(grid.contexts.values())))


# ---- before the first round


def test_every_client_must_be_there_once():
    who, party = parties()
    with pytest.raises(Stopped, match=r"^clients=\[2\]: expected all 3 to be there within 0.3 s$"):
        next(rounds(InProcess(client_app(who), 2), party, open_run(party), patience=0.3))
    double = InProcess(client_app(who), 3)
    double.contexts[1002].node_config["partition-id"] = 1
    with pytest.raises(Stopped, match=r"^node 1002: client=1: expected one node for each number"):
        next(rounds(double, party, open_run(party)))


class Starting(InProcess):
    """Clients whose first answers take a while: nothing is there until the server has looked three times."""

    looked = 0

    def pull_messages(self, message_ids):
        self.looked += 1
        return super().pull_messages(message_ids) if self.looked > 3 else []


def test_a_client_that_starts_slowly_is_asked_once_and_waited_for():
    who, party = parties()
    queries = []
    grid = Starting(client_app(who), 3, lambda m: queries.append(m) if m.metadata.message_type == "query" else None)
    next(rounds(grid, party, open_run(party), timeout=1e-3))
    assert grid.looked > 3
    assert [m.metadata.dst_node_id for m in queries if m.metadata.reply_to_message_id == ""] == [1000, 1001, 1002]


def test_a_client_with_other_terms_stops_the_run():
    """Another noise, another plan, another base model: each is seen before anything is trained."""
    server = parties()[1]
    for other in (
        parties(privacy=protected("example", sigma=0.5)),
        parties(plan=PLAN.replace(rounds=4)),
        parties(row=methods.FedLoRA.replace(aggregate=methods.FlexLoRA.aggregate)),
    ):
        with pytest.raises(Stopped, match=r"^node 1000: terms='[0-9a-f]{64}': expected [0-9a-f]{64}$"):
            next(rounds(InProcess(client_app(other[0]), 3), server, open_run(server)))


@pytest.mark.parametrize("options", [{"timeout": 0}, {"patience": -1}, {"timeout": "soon"}])
def test_waiting_times_are_checked(options):
    who, party = parties()
    with pytest.raises(ValueError, match=r"^(timeout|patience)=.*expected a number > 0"):
        rounds(InProcess(client_app(who), 3), party, open_run(party), **options)
