"""A server that asks twice: out of curiosity, or because it was restarted.

No answer, and no sum or difference of two that it sees, tells more of a client than is counted.
"""

import logging
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from flower_runs import apart, folders, node, party, protected, question
from toy_tasks import PLAN, book, people, private, tokens

import fedlora_lab as fl
from fedlora_lab.flower import InProcessGrid, client_ledger, messages, open_run, rounds
from fedlora_lab.privacy.ledger import Ledger

pytestmark = pytest.mark.attack
TASK = tokens("head", (5, 8, 3, 4, 6))
SHARES = 4
UNITS = {
    # What is protected, how, and the noise of a whole release on what one client sends, in units of
    # sigma C.
    "example": (TASK, protected("example"), PLAN.rate("A") / 3),
    "person": (people(), protected("person"), PLAN.rate("A") / 3),
    "client": (TASK, protected("client"), 1.0),
    "secagg": (TASK, private("client", trust="secagg", honest_clients=SHARES), 1 / len(TASK.sizes)),
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
            arrays = app(question(sender, t), node(k)).content.array_records["arrays"]
            changes = [
                torch.tensor(x.numpy()) - sent[messages.parse_key(n)] for n, x in arrays.items()
            ]
            given[k] = torch.cat([x.flatten() for x in changes])
        except ValueError as error:
            refusal = str(error)
    return given, refusal


def told(seen, scale, clients):
    """What any two things that a server saw, added or subtracted, tell of each client, (clients,).

    In units of one whole release: the square of the client's part over the variance of the noise.
    """
    numbers = torch.stack([torch.stack([*rows.values()]).sum(0) for rows in seen]) / scale
    within = torch.tensor([[float(k in rows) for k in range(clients)] for rows in seen])
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
    task, privacy, scale = UNITS[unit]
    by_sum = unit == "secagg"
    hidden = privacy.replace(clip_norm=1e-9, noise_multiplier=1e9)
    # Of a rank at which a client sends so many numbers that the size of their noise is known well.
    wide = fl.Lora(rank=8, alpha=8.0)
    enough = 1 + 5 * (2 / 183) ** 0.5
    first, other = (
        party(task, "fedlora", hidden, ONE_STEP.replace(rounds=n), wide, seed=None) for n in (3, 4)
    )
    kept = tmp_path / "kept"
    lost = tmp_path / "lost"
    once = "under trust='secagg' a round is answered once" if by_sum else ""
    moved = once or "to which it was answered: resume that run"
    late = "expected 1, which was answered last, or a later one"
    seen = []
    lines = []
    # Each with what it is refused with, if it is.
    for request, line in (
        ((first, kept), ""),
        ((first, kept), once),
        ((first, kept, 0, 1), once),
        ((first, kept, 0, None, 1.0), moved),
        ((other, kept), ""),
        ((other, kept, 0, 2), once),
        ((first, kept, 1, 0), ""),
        ((first, kept, 1), once),
        ((first, kept, 0), late),
        ((first, lost), ""),
    ):
        given, refusal = ask(*request)
        if not by_sum:
            seen += [{k: x} for k, x in given.items()]
        elif len(given) >= SHARES:  # of fewer no sum is formed
            seen.append(given)
        for k, most in enumerate(told(seen, scale, len(task.sizes))):
            ledgers = [client_ledger(place / str(k)) for place in (kept, lost)]
            counted = sum(len(ledger.releases) for ledger in ledgers if ledger)
            assert most <= counted * enough, f"{request[2:]}, client {k}"
        lines.append((line, refusal))
    assert all(line in refusal and bool(line) == bool(refusal) for line, refusal in lines)


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
            about: Any = reply.content["about"]
            if "round" in about:
                self.sent[about["round"] + 1, about["client"]] = reply.content["arrays"]
        if self.dies and any(t == 2 for t, _ in self.sent):
            raise KeyboardInterrupt
        return replies


@pytest.mark.filterwarnings("ignore:checkpoint=:UserWarning", "ignore:out=:UserWarning")
@pytest.mark.parametrize(
    ("unit", "damaged", "given_up"),
    [
        ("example", "", []),
        ("client", "", []),
        ("secagg", "", [2]),
        ("client", "round-*1", [1, 2]),
        ("secagg", "round-*1", [1, 2]),
        ("client", "round-*", [1, 2]),
        ("secagg", "round-*", [1, 2]),
    ],
)
def test_a_restarted_server_asks_for_nothing_twice(unit, damaged, given_up, tmp_path, caplog):
    """Where clients answer alone it asks again, gets the same bits and counts both; under secure
    aggregation, or with another model than before, it gives the round up, says so and goes on to
    its last round within its target.
    """
    task, privacy, _ = UNITS[unit]
    target = privacy.ledger(ONE_STEP.rounds).epsilon() if given_up else None
    everybody = party(task, "fedlora", privacy.replace(target_epsilon=target), ONE_STEP, seed=None)
    terms = everybody.terms
    out = tmp_path / "out"
    first, later = (Watched(everybody, tmp_path, dies) for dies in (True, False))
    with pytest.raises(KeyboardInterrupt):
        list(rounds(first, terms, open_run(terms, out)))
    for path in out.glob(damaged or "nothing"):
        path.write_bytes(b"nothing")
    if damaged:  # and ended once more, before it has asked for anything
        next(rounds(Watched(everybody, tmp_path), terms, open_run(terms, out=out)))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fedlora_lab.flower"):
        records = list(rounds(later, terms, open_run(terms, out=out)))
    assert [line[: len("round 1 is given up")] for line in caplog.messages] == [
        f"round {t} is given up" for t in given_up
    ]
    repeated = first.sent.keys() & later.sent.keys()
    assert {t for t, _ in repeated} == {2} - {*given_up}
    assert all(first.sent[place] == later.sent[place] for place in repeated)
    server = Ledger.load(out / "ledger.json")
    again = [] if given_up else [2]
    assert [entry.round for entry in server.releases] == [1, 2, *again, 3, 4]
    assert records[-1].index == 4 and book(records[-1]).to_json() == server.to_json()
    for before, record in pairwise(records):
        assert (apart([before], [record]) > 0) == (record.index not in given_up)
    for k in range(len(task.sizes)):
        ledger = client_ledger(tmp_path / str(k))
        assert ledger is not None and [entry.round for entry in ledger.releases] == [1, 2, 3, 4]
        assert ledger.epsilon() <= server.epsilon()
