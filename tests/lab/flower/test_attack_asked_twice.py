"""A server that asks twice: out of curiosity, or because it was restarted.

No answer, and no sum or difference of two that it sees, tells more of a client than is counted.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from flower_runs import InProcessGrid, folders, node, party, protected, question, tensors_of
from toy_tasks import PLAN, book, people, tokens

import fedlora_lab as fl
from fedlora_lab import flower
from fedlora_lab.flower import client_ledger
from fedlora_lab.flower.server import Stopped
from fedlora_lab.privacy.ledger import Ledger

pytestmark = pytest.mark.attack
TASK = tokens("head", (5, 8, 3, 4, 6))
UNITS = {
    # The task, and the noise of a whole release on what one client sends, in units of sigma C.
    "example": (TASK, PLAN.rate("A") / 3),
    "person": (people(), PLAN.rate("A") / 3),
    "client": (TASK, 1.0),
}
ONE_STEP = PLAN.replace(rounds=4, local_steps=1)


def ask(everybody, place, t=0, absent=None, broadcast=0.0):
    """Asks clients that have just started for a round: what each adds, (numbers,), and a refusal.

    Args: absent: one that is not asked. broadcast: is added to what the server sends.
    """
    begin = everybody.terms.begin
    sent = {key: x + broadcast for key, x in begin.tensors.items()}
    sender = replace(everybody.terms, begin=begin.replace_tensors(sent))
    app = everybody.app(folders(place))
    given = {}
    refusal = ""
    for k in {*range(len(everybody.task.sizes))} - {absent}:
        try:
            tensors = tensors_of(app(question(sender, t), node(k)))
            given[k] = torch.cat([(x - sent[key]).flatten() for key, x in tensors.items()])
        except ValueError as error:
            refusal = str(error)
    return given, refusal


def told(seen, scale, clients):
    """What any two things that a server saw, added or subtracted, tell of each client, (clients,).

    In units of one whole release: the square of the client's part over the variance of the noise.
    """
    numbers = torch.stack([x for _, x in seen]) / scale
    within = torch.tensor([[float(k == sender) for k in range(clients)] for sender, _ in seen])
    products = numbers @ numbers.T / numbers.shape[1]
    sizes = products.diagonal()
    most = torch.zeros(clients)
    for sign in (1, -1):
        variances = (sizes + sizes[:, None] + 2 * sign * products).clamp(min=1e-12)
        parts = within + sign * within[:, None]
        most = torch.maximum(most, (parts**2 / variances[:, :, None]).amax((0, 1)))
    return most


@pytest.mark.parametrize("unit", UNITS)
def test_no_two_answers_tell_more_than_is_counted(unit, tmp_path):
    """The same request again, to fewer clients, from another broadcast, of other rounds and terms;
    and where a client has lost its memory.

    The clip leaves nothing but noise in what is sent, so that it is measured on the wire.
    """
    task, scale = UNITS[unit]
    hidden = protected(unit).replace(clip_norm=1e-9, noise_multiplier=1e9)
    # Of a rank at which a client sends so many numbers that the size of their noise is known well.
    wide = fl.Lora(rank=8, alpha=8.0)
    enough = 1 + 5 * (2 / 183) ** 0.5
    first, other = (
        party(task, "fedlora", hidden, ONE_STEP.replace(rounds=n), wide, seed=None) for n in (3, 4)
    )
    kept = tmp_path / "kept"
    lost = tmp_path / "lost"
    seen = []
    # Each with what it is refused with, if it is.
    for request, line in (
        ((first, kept), ""),
        ((first, kept), ""),
        ((first, kept, 0, None, 1.0), "to which it was answered: resume that run"),
        ((other, kept), ""),
        ((first, kept, 1, 0), ""),
        ((first, kept, 0), "expected 1, which was answered last, or a later one"),
        ((first, lost), ""),
    ):
        given, refusal = ask(*request)
        seen += given.items()
        for k, most in enumerate(told(seen, scale, len(task.sizes))):
            ledgers = [client_ledger(place / str(k)) for place in (kept, lost)]
            counted = sum(len(ledger.releases) for ledger in ledgers if ledger)
            assert most <= counted * enough, f"{request[2:]}, client {k}"
        assert line in refusal and bool(line) == bool(refusal)


class Watched(InProcessGrid):
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


@pytest.mark.filterwarnings("ignore:checkpoint=:UserWarning", "ignore:out=:UserWarning")
@pytest.mark.parametrize("unit", ["example", "client"])
@pytest.mark.parametrize("damaged", ["", "round-*1", "round-*"])
def test_a_restarted_server_asks_for_nothing_twice(unit, damaged, tmp_path):
    """It asks for round 2 again, gets the same bits and counts both; with another model than
    before, because checkpoints are damaged, clients refuse, and nothing is forgotten.
    """
    everybody = party(UNITS[unit][0], "fedlora", protected(unit), ONE_STEP, seed=None)
    terms = everybody.terms
    out = tmp_path / "out"
    first, later = (Watched(everybody, tmp_path, dies) for dies in (True, False))
    with pytest.raises(KeyboardInterrupt):
        list(flower.run(first, terms, out=out))
    for path in out.glob(damaged or "nothing"):
        path.write_bytes(b"nothing")
    if damaged:
        with pytest.raises(Stopped, match="round=0: expected 1, which was answered last"):
            list(flower.run(later, terms, out=out))
        assert not later.sent
        assert [x.round for x in Ledger.load(out / "ledger.json").releases] == [1, 2, 1]
        return
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
