"""A server that asks twice: out of curiosity, or because it was restarted.

No answer, and no sum or difference of two that it sees, tells more of a client than is counted.
"""

import logging
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from flower_runs import apart, party, protected, question
from flwr.app import Context, RecordDict
from toy_tasks import PLAN, book, people, private, tokens

import fedlora_lab as fl
from fedlora_lab.flower import InProcessGrid, client_ledger, messages, open_run, rounds
from fedlora_lab.privacy.ledger import Ledger

pytestmark = pytest.mark.attack
SIZES = (5, 8, 3, 4, 6)
WIDE = fl.Lora(rank=8, alpha=8.0)
NUMBERS = 183
"""Sent by a client at this rank: so many that the size of their noise is known well."""
ONE_STEP = PLAN.replace(rounds=3, local_steps=1)
SUMMED = private("client", trust="secagg", honest=4)
UNITS = {
    # The task, what protects it, and the noise of a whole release, in units of sigma C, on what
    # one client sends.
    "example": (tokens("head", SIZES), protected("example"), PLAN.rate("A") / 3),
    "person": (people(), protected("person"), PLAN.rate("A") / 3),
    "client": (tokens("head", SIZES), protected("client"), 1.0),
    "secagg": (tokens("head", SIZES), SUMMED, 1 / len(SIZES)),
}


def folders(place):
    """A memory for each client."""
    return lambda context: place / str(context.node_config["partition-id"])


def ask(everybody, place, t=0, leave_out=(), broadcast=0.0):
    """Asks clients that have just started for a round: what each adds, (numbers,), or its refusal.

    ``broadcast``: is added to what the server sends.
    """
    begin = everybody.terms.begin
    moved = {key: x + broadcast for key, x in begin.tensors.items()}
    sender = replace(everybody.terms, begin=begin.replace_tensors(moved))
    answers: dict[int, Any] = {}
    for k in set(range(len(everybody.task.sizes))) - set(leave_out):
        node = Context(1, 1000 + k, {"partition-id": k}, RecordDict(), {})
        try:
            reply = everybody.app(folders(place))(question(sender, t), node)
        except ValueError as refusal:
            answers[k] = str(refusal)
            continue
        arrays = reply.content.array_records["arrays"].items()
        changes = [torch.tensor(x.numpy()) - moved[messages.parse_key(name)] for name, x in arrays]
        answers[k] = torch.cat([x.flatten() for x in changes])
    return answers


def seen(answers, by_sum):
    """What the server sees of the answers to one request: who is in it, and the numbers."""
    given = {k: x for k, x in answers.items() if not isinstance(x, str)}
    if not by_sum:
        return [({k}, x) for k, x in given.items()]
    # Of fewer than the shares of noise that are relied on no sum is formed.
    return [({*given}, sum(given.values()))] if len(given) >= 4 else []


def told(views, new, scale, clients):
    """What a new view, or its sum or difference with any other, tells of each client at most.

    In units of one whole release: the square of the client's part over the variance of the noise.
    """
    weighed = [[(1, one)] for one in new]
    for one, other in product(new, [*views, *new]):
        if other is not one:
            weighed += [[(1, one), (sign, other)] for sign in (1, -1)]
    most = dict.fromkeys(range(clients), 0.0)
    for parts in weighed:
        noise = sum(sign * numbers for sign, (_, numbers) in parts) / scale
        variance = max(float(noise.square().mean()), 1e-30)
        for k in most:
            part = sum(sign * (k in ids) for sign, (ids, _) in parts)
            most[k] = max(most[k], part**2 / variance)
    return most


@pytest.mark.parametrize("unit", UNITS)
def test_no_two_answers_tell_more_than_is_counted(unit, tmp_path):
    """The same request again, to fewer clients, from another broadcast, of other rounds and terms;
    and where a client has lost its memory.

    The clip leaves nothing but noise in what is sent, so that it is measured on the wire.
    """
    task, privacy, scale = UNITS[unit]
    hidden = privacy.replace(clip_norm=1e-9, noise_multiplier=1e9)
    first, longer = (
        party(task, "fedlora", hidden, plan, WIDE, seed=None)
        for plan in (ONE_STEP, ONE_STEP.replace(rounds=4))
    )
    kept = tmp_path / "kept"
    lost = tmp_path / "lost"
    requests = {
        "first": (first, kept),
        "again": (first, kept),
        "without one": (first, kept, 0, (1,)),
        "another broadcast": (first, kept, 0, (), 1.0),
        "other terms": (longer, kept),
        "other terms, without one": (longer, kept, 0, (2,)),
        "next round, without one": (first, kept, 1, (0,)),
        "next round": (first, kept, 1),
        "the round before": (first, kept, 0),
        "without a memory": (first, lost),
    }
    by_sum = unit == "secagg"
    views = []
    refusals = {}
    for name, request in requests.items():
        answers = ask(*request)
        refusals[name] = " ".join({x for x in answers.values() if isinstance(x, str)})
        new = seen(answers, by_sum)
        for k, most in told(views, new, scale, len(task.sizes)).items():
            counted = [client_ledger(place / str(k)) for place in (kept, lost)]
            releases = sum(len(ledger.releases) for ledger in counted if ledger)
            # Five deviations of a variance that is measured on so many numbers.
            enough = 1 + 5 * (2 / NUMBERS) ** 0.5
            assert most <= releases * enough, f"{name}, client {k}"
        views += new
    repeated = "under trust='secagg' a round is answered once" if by_sum else ""
    lines = {
        "again": repeated,
        "without one": repeated,
        "another broadcast": repeated or "to which it was answered: resume that run",
        "other terms, without one": repeated,
        "next round": repeated,
        "the round before": "expected 1, which was answered last, or a later one",
    }
    for name, refusal in refusals.items():
        line = lines.get(name, "")
        assert line in refusal and bool(line) == bool(refusal), name


class Watched(InProcessGrid):
    """Notes what each client sent for each round; ends the server after the answers to round 2."""

    def __init__(self, everybody, place, dies=False):
        super().__init__(everybody.app(folders(place)), len(everybody.task.sizes))
        self.dies = dies
        self.sent = {}

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            about = reply.content["about"] if reply.has_content() else {}
            if "round" in about:
                self.sent[about["round"], about["client"]] = reply.content["arrays"]
        if self.dies and any(t == 1 for t, _ in self.sent):
            raise KeyboardInterrupt
        return replies


def restarted(unit, place, plan, spoil, keeps_target):
    """A run whose server ends in round 2, and goes on from its folder: what either attempt saw, the
    records of the second and what it warned of, and the ledgers of the server and of the clients.
    """
    task, privacy, _ = UNITS[unit]
    # Beyond it the run would end early, and warn.
    target = privacy.ledger(plan.rounds).epsilon() if keeps_target else None
    everybody = party(task, "fedlora", privacy.replace(target=target), plan, seed=None)
    out = place / "out"
    grid = Watched(everybody, place, dies=True)
    with pytest.raises(KeyboardInterrupt):
        list(rounds(grid, everybody.terms, open_run(everybody.terms, out)))
    spoil(out)
    later = Watched(everybody, place)
    run = open_run(everybody.terms, resume=out, stop_at=target)
    records = list(rounds(later, everybody.terms, run))
    clients = [client_ledger(place / str(k)) for k in range(len(task.sizes))]
    return grid.sent, later.sent, records, Ledger.load(out / "ledger.json"), clients


@pytest.mark.filterwarnings("ignore:checkpoint=:UserWarning", "ignore:resume=:UserWarning")
@pytest.mark.parametrize(
    ("unit", "lost", "given_up", "counted"),
    [
        ("example", "nothing", [], [1, 2, 2, 3, 4]),
        ("client", "nothing", [], [1, 2, 2, 3, 4]),
        ("secagg", "nothing", [2], [1, 2, 3, 4]),
        ("client", "round 1", [1, 2], [1, 2, 3, 4]),
        ("secagg", "round 1", [1, 2], [1, 2, 3, 4]),
        ("client", "all rounds", [1, 2], [1, 2, 3, 4]),
    ],
)
def test_a_restarted_server_asks_for_nothing_twice(unit, lost, given_up, counted, tmp_path, caplog):
    """Where clients answer alone it asks again and gets the same bits; under secure aggregation, or
    from another model than before, it gives the round up, says so and goes on.
    """

    def spoil(folder):
        for path in folder.glob("round-*1.*" if lost == "round 1" else "round-*"):
            if lost != "nothing":
                path.write_bytes(b"nothing")

    with caplog.at_level(logging.WARNING, "fedlora_lab.flower"):
        first, later, records, server, clients = restarted(
            unit, tmp_path, ONE_STEP.replace(rounds=4), spoil, bool(given_up)
        )
    assert caplog.messages == [
        f"round {t} is given up: it was asked for before, and no client would answer it again"
        for t in given_up
    ]
    repeated = first.keys() & later.keys()
    assert {t + 1 for t, _ in repeated} == {2} - {*given_up}
    assert all(first[place] == later[place] for place in repeated)
    assert [entry.round for entry in server.releases] == counted
    assert records[-1].index == 4 and book(records[-1]).to_json() == server.to_json()
    for before, record in pairwise(records):
        moved = record.participants > 0 and apart([before], [record]) > 0
        assert moved == (record.index not in given_up)
    for ledger in clients:
        assert ledger is not None and [entry.round for entry in ledger.releases] == [1, 2, 3, 4]
        assert ledger.epsilon() <= server.epsilon()
