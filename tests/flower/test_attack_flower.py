"""What a client's errors tell the coordinator, and what a server's ledger says at any moment."""

import copy

import pytest
import torch
from flower_runs import question
from flwr.app import Context, RecordDict
from toy_tasks import LORA, PLAN, private, tokens

from fedlora_lab.flower import (
    InProcessGrid,
    Participant,
    SimulatedClients,
    client_app,
    open_run,
    rounds,
)
from fedlora_lab.privacy.ledger import Ledger

pytestmark = [pytest.mark.attack, pytest.mark.slow]
ROUNDS = PLAN.replace(rounds=3)
OWN = tokens("head")


def test_an_error_tells_the_coordinator_no_value(caplog):
    """Flower sends an error's text to whoever asked: it names no label, and a label that the loss
    refuses is no error.
    """
    participant = Participant.of(OWN, "fedlora", private("example"), ROUNDS, lora=LORA, seed=None)
    x, y = OWN.clients[0]

    def unreadable(context):
        raise ValueError("57 is a label")

    def answer(load):
        context = Context(1, 1000, {}, RecordDict(), {})
        return client_app(load)(copy.deepcopy(question(participant)), context)

    def told(load):
        with pytest.raises(ValueError, match=r"^[^\n]+$") as found:
            answer(load)
        return str(found.value)

    assert told(unreadable) == "reading its examples failed at this site; its own log says why"
    assert "57" in caplog.text and {one.name for one in caplog.records} == {"fedlora_lab.flower"}
    for labels in (y + 57.5, torch.stack([y, y * 0 + 57], 1)):
        words = "inputs and labels of the types and shapes of the public test examples"
        assert told(lambda _, y=labels: (participant, 0, (x, y))) == f"examples: expected {words}"
    # An example that the loss cannot take counts as zero.
    reply = answer(lambda _: (participant, 0, (x, y * 0 + 57)))
    assert reply.content["arrays"]


def test_a_round_is_in_the_ledger_before_a_client_is_asked(tmp_path):
    """Killed at any moment, the file on the disk has every round that a client was asked for."""
    clients = SimulatedClients(OWN, "fedlora", private("example"), ROUNDS, LORA, seed=None)
    participant, asked = clients.participant(), []

    def look(message):
        about = message.content.config_records.get("about", {})
        if message.metadata.message_type == "train" and "client" not in about:
            asked.append(about["round"])
            written = {entry.round for entry in Ledger.load(tmp_path / "ledger.json").releases}
            assert about["round"] + 1 in written
            if about["round"] == 2:
                raise KeyboardInterrupt

    grid = InProcessGrid(client_app(clients), len(OWN.sizes), look)
    with pytest.raises(KeyboardInterrupt):
        list(rounds(grid, participant, open_run(participant, tmp_path)))
    assert set(asked) == {0, 1, 2}
