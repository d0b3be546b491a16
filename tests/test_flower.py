"""One method, three engines: the loop, the stack and Flower's messages give the same run, for every row."""

import math

import pytest
import torch
from contract import keeps
from flowers import ROUNDS, apart, by_messages, protected, state
from small import LORA, UNITS, book, play, private, regression, tokens
from test_contract import WRITTEN

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.flower import InProcess, client_app, public, rounds
from fedlora_lab.flower.server import open_run
from fedlora_lab.flower.simulation import everyone

ROWS = [*methods.ALL.values(), *WRITTEN]
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.slug)
ONLY_CLIENTS_KNOW = {"clipped", "nonfinite", "seconds"}


def agree(records, others, hidden=()):
    """The server's state, the ledgers, the traffic and the metrics of two runs."""
    assert apart(records, others) <= 1e-5
    for ours, theirs in zip(records, others, strict=True):
        assert (ours.ledger is None) == (theirs.ledger is None)
        if ours.ledger is not None:
            assert book(ours).to_json() == book(theirs).to_json()
        assert ours.uploads == theirs.uploads
        assert ours.participants == theirs.participants
        mine, other = ours.measures(), theirs.measures()
        assert mine.keys() == other.keys()
        for name in mine.keys() - ONLY_CLIENTS_KNOW - set(hidden):
            assert mine[name] == pytest.approx(other[name], rel=1e-5, abs=1e-9, nan_ok=True), name


@every_row
@pytest.mark.parametrize("unit", UNITS)
def test_three_engines_agree(row, unit):
    """Three rounds with participation, lost uploads, momentum and a head: <= 1e-5, and the same books."""
    task, privacy = tokens("head"), protected(unit)
    flower = by_messages(task, row, privacy)
    assert apart(flower[:1], flower[-1:]) > 1e-3 or row.share == ""
    hidden = tuple(task.metrics) if unit == "client" and keeps(row) else ()
    for chunks in ({}, {"chunk_clients": 1, "chunk_examples": 1}):
        agree(flower, play(task, row, privacy, ROUNDS, **chunks), hidden)


@pytest.mark.parametrize("slug", ["fedlora", "flora", "fedsa-lora"])
def test_without_privacy_too(slug):
    agree(by_messages(regression(), slug, None), play(regression(), slug, None, ROUNDS))


@pytest.mark.parametrize("slug", ["fedlora", "hetlora", "sdflora", "flexlora", "deer"])
@pytest.mark.parametrize("unit", UNITS)
def test_clients_of_unequal_rank(slug, unit):
    lora = fl.Lora(rank=3, alpha=3.0, ranks=(1, 3, 2))
    task, privacy = tokens(), protected(unit)
    hidden = tuple(task.metrics) if unit == "client" and keeps(methods.get(slug)) else ()
    agree(by_messages(task, slug, privacy, lora=lora), play(task, slug, privacy, ROUNDS, lora=lora), hidden)


@pytest.mark.parametrize("slug", ["fedlora", "deer", "la-lora", "fedlpp", "as-lora"])
def test_a_sum_of_shares(slug):
    """Secure aggregation: each upload holds a share of the noise, the server goes on from their sum."""
    privacy, plan = private("client", trust="secagg", honest=2), ROUNDS.replace(rounds=4)
    flower = by_messages(tokens("head"), slug, privacy, plan)
    agree(flower, play(tokens("head"), slug, privacy, plan))
    assert all(math.isnan(record.deviation) for record in flower[1:] if record.participants)


def test_weights_by_size_and_steps_of_their_own_noise():
    privacy = fl.Privacy(noise_multiplier=(0.5, 1.0, 3.0), clip_norm=0.7, delta=1e-3, accountant="rdp")
    plan = ROUNDS.replace(weights="size", lr_decay=0.5)
    agree(by_messages(tokens(), "fedlora", privacy, plan), play(tokens(), "fedlora", privacy, plan))


def test_an_empty_round():
    plan = ROUNDS.replace(participation=1e-9)
    records = by_messages(tokens(), "fedlora", protected("example"), plan)
    assert [record.participants for record in records] == [0] * 4
    assert apart(records[:1], records[-1:]) == 0


def test_the_server_needs_no_data():
    """The task without its clients' examples has their sizes and nothing else of them; the party holds no other."""
    task = tokens("head")
    bare = public(task)
    assert bare.sizes == task.sizes
    assert all(not x.any() and not y.any() for x, y in bare.clients)
    party = everyone(task, "fedlora", protected("example"), ROUNDS, LORA, 0).party()
    assert party.asked.task.sizes == task.sizes
    assert all(not x.any() for x, _ in party.asked.task.clients)
    assert party.setting.data == {}
    with pytest.raises(ValueError, match=r"^examples: expected 8, as agreed for client 1"):
        party.with_data(1, task.clients[0])
    with pytest.raises(ValueError, match=r"^client=3: expected a number in \[0, 2\]"):
        party.with_data(3, task.clients[0])


def test_what_only_clients_know_is_not_in_the_record():
    """What the clips did and the noise alone never reach the server: not a number, or no row at all."""
    records = by_messages(tokens(), "fedlora", protected("example"))
    assert all(math.isnan(record.clipped) and math.isnan(record.nonfinite) for record in records)
    names = {measure for record in records for _, measure, _ in record.rows}
    assert "norm" in names
    assert not names & {"noise_A", "noise_B", "noise_BA", "snr"}
    assert set(fl.to_frame(records)["round"]) == {0, 1, 2, 3}


def test_scores_of_kept_factors_are_the_clients_own():
    """In the client unit what a client keeps is not noised, so no score of it is asked for or given."""
    seen = []
    records = by_messages(tokens(), "fedsa-lora", protected("client"), seen=seen.append)
    assert all(math.isnan(value) for value in records[-1].metrics.values())
    assert not any(message.metadata.message_type == "evaluate" for message in seen)
    for privacy in (None, protected("example")):
        assert not any(math.isnan(v) for v in by_messages(tokens(), "fedsa-lora", privacy)[-1].metrics.values())


def test_a_trusted_server_is_refused():
    with pytest.raises(ValueError, match=r"^trust='central': expected 'local' or 'secagg'"):
        by_messages(tokens(), "fedlora", private("client"))


def test_release_mode_draws_fresh_noise():
    first, second = (by_messages(tokens(), "fedlora", protected("example"), seed=None) for _ in range(2))
    assert book(first[-1]).mode == "release"
    for slot, x in state(first[-1]).items():
        assert ((x - state(second[-1])[slot]).abs() > 0).all(), slot


def test_a_restarted_server_goes_on(tmp_path):
    """Stopped after a round and opened again from its folder, with clients that kept their state: the same bits."""
    task, privacy = tokens("head"), protected("example")
    who = everyone(task, "fedsa-lora", privacy, ROUNDS, LORA, 0)
    party = who.party()
    whole = by_messages(task, "fedsa-lora", privacy)
    grid = InProcess(client_app(who), len(task.sizes))
    begun = rounds(grid, party, open_run(party, checkpoint=tmp_path))
    for _ in range(2):
        next(begun)
    begun.close()
    rest = list(rounds(grid, party, open_run(party, resume=tmp_path)))
    assert [record.index for record in rest] == [2, 3]
    assert apart(rest, whole[2:]) == 0
    assert book(rest[-1]).to_json() == book(whole[-1]).to_json()
    assert torch.equal(*(torch.tensor(list(r[-1].metrics.values())) for r in (rest, whole)))
