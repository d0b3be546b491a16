"""What a client's errors tell the coordinator, what a server's ledger says at any moment, and what
a restarted server gets.
"""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from calls import refused
from flower_runs import InProcessGrid, folders, party, protected, question, site
from flwr.app import Context, RecordDict
from toy_tasks import PLAN, book, private, tokens

from fedlora_lab import flower
from fedlora_lab.flower import client_ledger
from fedlora_lab.privacy.ledger import Ledger

pytestmark = [pytest.mark.attack, pytest.mark.slow]
TASK = tokens("head")
EVERYBODY = party(TASK, "fedlora", private("example"), PLAN.replace(rounds=3), seed=None)
TERMS = EVERYBODY.terms
ONE_STEP = PLAN.replace(rounds=4, local_steps=1)


def test_an_error_tells_the_coordinator_no_value(tmp_path, caplog):
    """Flower sends an error's text to whoever asked: it names no label, and a label that the loss
    refuses is no error.
    """
    own = site(TASK, 0)
    ((x, y),) = own.clients

    def unreadable():
        raise ValueError("57 is a label")

    def answer(read):
        app = flower.client_app(lambda context: (TERMS, 0, read()), memory=lambda context: tmp_path)
        return app(copy.deepcopy(question(TERMS)), Context(1, 1000, {}, RecordDict(), {}))

    with refused(r"^reading its examples failed at this site; its own log"):
        answer(unreadable)
    assert "57" in caplog.text
    for labels in (y + 57.5, torch.stack([y, y * 0 + 57], 1)):
        held_out = replace(own.held_out, test=(x, labels))
        odd = replace(own, held_out=held_out, clients=((x, labels),))
        with refused("^checking its examples failed at this site; its own log says why$"):
            answer(lambda odd=odd: odd)
    # An example that the loss cannot take counts as zero.
    assert answer(lambda: replace(own, clients=((x, y * 0 + 57),))).content["tensors"]


def test_a_round_is_in_the_ledger_before_a_client_is_asked(tmp_path):
    """Killed at any moment, the file on the disk has every round that a client was asked for."""
    asked = set()

    class Watched(InProcessGrid):
        def push_messages(self, messages):
            for message in messages:
                t = message.content["about"].get("round")
                if t is None:  # asks who is there
                    continue
                asked.add(t)
                released = Ledger.load(tmp_path / "ledger.json").releases
                assert t + 1 in {entry.round for entry in released}
                if t == 2:
                    raise KeyboardInterrupt
            return super().push_messages(messages)

    with pytest.raises(KeyboardInterrupt):
        list(flower.run(Watched(EVERYBODY.app(), 3), TERMS, out=tmp_path))
    assert asked == {0, 1, 2}


class Dying(InProcessGrid):
    """Clients that have just started; notes what they send, by round and client, and may end the
    server once it has round 2.
    """

    def __init__(self, everybody, place, dies=False):
        super().__init__(everybody.app(folders(place)), len(everybody.task.sizes))
        self.dies = dies
        self.sent = {}

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            about: Any = reply.content["about"] if reply.has_content() else {}
            if "round" in about:
                self.sent[about["round"] + 1, about["client"]] = reply.content["tensors"]
        if self.dies and any(t == 2 for t, _ in self.sent):
            raise KeyboardInterrupt
        return replies


@pytest.mark.parametrize("unit", ["example", "client"])
def test_a_restarted_server_asks_for_nothing_twice(unit, tmp_path):
    """It asks for round 2 again, gets the same bits and counts both."""
    everybody = party(TASK, "fedlora", protected(unit), ONE_STEP, seed=None)
    terms = everybody.terms
    out = tmp_path / "out"
    first, later = (Dying(everybody, tmp_path, dies) for dies in (True, False))
    with pytest.raises(KeyboardInterrupt):
        list(flower.run(first, terms, out=out))
    records = list(flower.run(later, terms, out=out))
    repeated = first.sent.keys() & later.sent.keys()
    assert {t for t, _ in repeated} == {2}
    assert all(first.sent[place] == later.sent[place] for place in repeated)
    server = Ledger.load(out / "ledger.json")
    assert [entry.round for entry in server.releases] == [1, 2, 2, 3, 4]
    assert records[-1].index == 4 and book(records[-1]).to_json() == server.to_json()
    for k in range(len(everybody.task.sizes)):
        ledger = client_ledger(tmp_path / str(k))
        assert ledger is not None and [entry.round for entry in ledger.releases] == [1, 2, 3, 4]
        assert ledger.epsilon() <= server.epsilon()
