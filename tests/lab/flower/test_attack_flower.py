"""What a client's errors tell the coordinator, and what a server's ledger says at any moment."""

import copy
from dataclasses import replace

import pytest
import torch
from calls import refused
from flower_runs import InProcessGrid, party, question, site
from flwr.app import Context, RecordDict
from toy_tasks import PLAN, private, tokens

from fedlora_lab import flower
from fedlora_lab.privacy.ledger import Ledger

pytestmark = [pytest.mark.attack, pytest.mark.slow]
TASK = tokens("head")
EVERYBODY = party(TASK, "fedlora", private("example"), PLAN.replace(rounds=3), seed=None)
TERMS = EVERYBODY.terms


def test_an_error_tells_the_coordinator_no_value(caplog):
    """Flower sends an error's text to whoever asked: it names no label, and a label that the loss
    refuses is no error.
    """
    own = site(TASK, 0)
    ((x, y),) = own.clients

    def unreadable():
        raise ValueError("57 is a label")

    def answer(read):
        app = flower.client_app(lambda context: (TERMS, 0, read()))
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
