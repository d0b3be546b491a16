"""The audit of a run: canaries, what is seen of them, and that it refutes no sound run."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from toy_tasks import LORA, UNITS, gap, play, private, same_bits, tokens

import fedlora_lab as fl
from fedlora_lab import audit as audits
from fedlora_lab import methods
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.audit import canary_audit, instruments
from fedlora_lab.audit.instruments import LEFT_OUT, Recorder, mark_examples, ordinary_marks
from fedlora_lab.federated.records import Round
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy import privatizer

PLAN = fl.Plan(rounds=3, local_steps=2, batch=8, lr=0.2)
LOSSY = PLAN.replace(participation=0.7, dropout=0.2)
ONE_SIDE = LOSSY.replace(optimizer=fl.SGD(0.5), lr={"A": 0.0, "B": 0.2})
WIDE = fl.tasks.regression(clients=3, examples=10, d_in=40, d_out=24, rank=4)
ROWS = [methods.get(slug) for slug in ("fedlora", "deer", "fedsa-lora", "fed-sb", "flora", "local")]
every_kind = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.slug)
every_unit = pytest.mark.parametrize("unit", UNITS)


def audited(row, unit="example", sigma=1.0, seed=0, plan=PLAN, crafted=False, **fields):
    privacy = fl.Privacy(unit=unit, noise_multiplier=sigma, delta=1e-5, accountant="rdp", **fields)
    options: Any = {"lora": fl.Lora(8, 8.0), "seed": seed, "crafted": crafted}
    return audits.canaries(WIDE, row, privacy, plan, canaries=32, confidence=0.99, **options)


@every_unit
def test_the_audit_changes_nothing_of_the_run(unit):
    """Neither do its ordinary marks."""
    task, plan = tokens("head"), PLAN.replace(batch=3, participation=0.8, dropout=0.1)
    marked = mark_examples(task, ordinary_marks(task))
    watched = Recorder.open(marked, methods.DEeR, private(unit), plan, lora=LORA).events()
    records = [event for event in watched if isinstance(event, Round)]
    same_bits(records, play(task, "deer", private(unit), plan))


def test_an_example_that_is_left_out_weighs_nothing():
    """An example that is left out weighs nothing; only the size, which is public, still counts."""
    task = tokens("head", (6,))
    marks = ordinary_marks(task)
    marks[0][2] = LEFT_OUT
    stay = torch.tensor([0, 1, 3, 4, 5])
    fewer = replace(task, clients=(instruments.select_examples(task.clients[0], stay),))
    plan, quiet = fl.Plan(rounds=3, local_steps=2, batch=None, lr=0.3), private("example", 0.0)
    out = play(mark_examples(task, marks), "fedlora", quiet, plan)
    gone = play(fewer, "fedlora", quiet, plan.replace(lr=0.3 * 5 / 6))
    assert gap(out[-1], gone[-1]) < 1e-9


def test_canaries_are_dealt_evenly():
    """By coins that are fair and follow the seed."""
    examples, weights = canary_audit.mislabel(WIDE, 32, Streams(0)), torch.full((32,), 9)

    def planted(unit, seed):
        return canary_audit.insert_canaries(WIDE, unit, examples, weights, Streams(seed))

    for unit, sizes in (("example", (21, 21, 20)), ("client", (10, 10, 10, *[1] * 32))):
        found = planted(unit, 0)
        marks = torch.cat([y for _, y in found.task.clients])[:, -1]
        assert found.task.sizes == sizes
        assert int((marks == 9).sum()) == int(found.included.sum())
        assert int((marks == LEFT_OUT).sum()) == int((~found.included).sum())
    coins = [planted("example", seed).included for seed in (*range(40), 0)]
    assert torch.equal(coins[0], coins[-1]) and not torch.equal(coins[0], coins[1])
    assert abs(int(torch.stack(coins[:40]).sum()) - 640) < 5 * np.sqrt(320)


def test_wrong_targets_are_wrong():
    task = fl.tasks.digits(clients=3)
    pool, right = task.validation or task.test
    for image, label in zip(*canary_audit.mislabel(task, 50, Streams(0)), strict=True):
        true = right[(pool == image).flatten(1).all(1)]
        assert len(true) >= 1 and label not in true


@pytest.mark.slow
@every_kind
@every_unit
def test_no_row_is_refuted(row, unit):
    """At 99 % no lower bound exceeds the ledger's epsilon, and none exceeds the ceiling; every row
    at twenty seeds: test_no_committed_audit_exceeds_its_ledger.
    """
    found = audited(row, unit, sigma=4.0)
    assert found.epsilon_lower <= min(found.epsilon_upper, found.ceiling)
    assert found.holds and str(found).count("<=") == 1


def test_the_gaussian_bound_of_an_audit_is_the_sharper_one():
    """Between the other bound and the ledger's epsilon: no release of the run is sampled."""
    task = fl.tasks.regression(clients=2, examples=8, d_in=60, d_out=40, rank=2)
    privacy = fl.Privacy(unit="client", noise_multiplier=0.5, delta=1e-5)
    plan = fl.Plan(rounds=1, local_steps=1, batch=None, lr=0.02)
    found = audits.canaries(task, "ffa-lora", privacy, plan, canaries=100, lora=fl.Lora(4, 4.0))
    assert 0.2 < found.epsilon_lower < found.gaussian_lower <= found.epsilon_upper
    assert np.isnan(replace(found, scores={}, invalid="not finite").gaussian_lower)


@pytest.mark.slow
@every_kind
@every_unit
def test_a_run_without_noise_is_seen(row, unit):
    """White box, without noise: the bound comes near its ceiling wherever something is released."""
    plain, plan = row.replace(filter=methods.FedLoRA.filter), PLAN.replace(batch=None, rounds=2)
    found = audited(plain, unit, 0.0, plan=plan)
    if unit == "client" and row.share == "":
        assert set(found.scores) == {"loss"} and found.epsilon_lower == 0
    else:
        # The auditor does not know what a client keeps; 32 canaries share a core's few numbers.
        seen = row.share is None and not row.own_ranks and "R" not in row.sides_in_round(0, 2)
        assert found.lower["update"] >= (0.3 if seen or unit == "example" else 0) * found.ceiling
        sides = {view for view in found.scores if view.startswith("update ")}
        assert sides <= {"update A", "update B", "update R", "update head"}


@pytest.mark.parametrize("unit", ["client", "example"])
def test_a_false_claim_is_refuted(unit, monkeypatch):
    """With a hundredth of the noise that the ledger was told, the lower bound lies above it."""
    true_noise = privatizer.gaussian_noise

    def quiet(shapes, std, *rest):
        return true_noise(shapes, [x / 100 for x in std], *rest)

    monkeypatch.setattr(privatizer, "gaussian_noise", quiet)
    plan = PLAN.replace(batch=None)
    found = audited("fedlora", unit, 25.0, plan=plan, crafted=unit == "client")
    assert not found.holds and " > " in str(found)
    assert found.epsilon_lower > 1.2 * found.epsilon_upper


def test_each_direction_answers_most_to_its_own_canary():
    """With many near copies among them, each direction still answers most to its own canary."""
    random, key = torch.Generator().manual_seed(0), ParamKey("B", "x")
    u = torch.randn(6, 50, generator=random) / 50**0.5 + torch.randn(50, generator=random) / 10
    own = canary_audit.decorrelate({key: u}, torch.zeros(6).long(), 0.1)[key] @ u.T
    off, plain = ~torch.eye(6, dtype=torch.bool), u @ u.T
    assert own[off].abs().max() < 0.05 * own.diagonal().min()
    assert plain[off].abs().max() > 0.3 * plain.diagonal().min()
    alone = canary_audit.decorrelate({key: u}, torch.arange(6), 0.1)[key]
    assert torch.allclose(torch.cosine_similarity(alone, u), torch.ones(6))


@pytest.mark.parametrize(
    ("row", "norms"),
    [
        (methods.FedLoRA, (0.28, 0.96)),
        (methods.DPLoRA, (0.5**0.5, 0.5**0.5)),
        (methods.FedLoRA.replace(clip_groups=methods.DEeRLiteral.clip_groups), (1.0, 1.0)),
    ],
)
def test_a_canary_is_expected_as_its_groups_are_clipped(row, norms):
    """All together to C, each of two groups to C / sqrt(2), or each to C; not always together."""
    signal = {
        ParamKey(side, "x"): torch.full((2, 4, 4), x) for side, x in (("A", 7.0), ("B", 24.0))
    }
    run: Any = SimpleNamespace(
        context=SimpleNamespace(method=row),
        spec=SimpleNamespace(privacy=fl.Privacy(clip_norm=1.0, noise_multiplier=1.0, delta=1e-5)),
    )
    found, _ = canary_audit._clip_and_whiten(run, signal, {}, {}, torch.zeros(2).long())
    for x, norm in zip(found.values(), norms, strict=True):
        assert x.flatten(1).norm(dim=1).tolist() == pytest.approx([norm] * 2, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unit", "options", "least"),
    [
        ("client", {"trust": "local", "plan": LOSSY}, 0.1),
        ("client", {"trust": "local", "sigma": 0.5, "crafted": True}, 0.4),
        ("client", {"trust": "secagg"}, 0.0),
        ("client", {"trust": "secagg", "sigma": 0.5, "crafted": True}, 0.4),
        ("client", {"plan": LOSSY}, 0.0),
        ("client", {"crafted": True}, 0.5),
        ("example", {"plan": ONE_SIDE}, 0.0),
    ],
)
def test_audits_hold_under_every_trust_and_with_absent_clients(unit, options, least):
    found = audited("fedlora", unit, **{"sigma": 0.3, **options})
    assert found.holds and found.lower["update"] >= least


@pytest.mark.slow
def test_the_estimate_errs_on_both_sides_of_the_ledger():
    """Three rounds of both factors, 1,024 numbers, 32 canaries: 6 to 27 where 9.0 is spent."""
    found = [audited("fedlora", "client", 1.0, seed, crafted=True) for seed in range(9)]
    ratios = sorted(one.estimate / one.epsilon_upper for one in found)
    assert 0.5 < ratios[0] < 1 < ratios[-1] < 12 and 0.8 < ratios[4] < 4
    assert np.isnan(audited("fedlora", "client").estimate)


def test_a_run_without_privacy_promises_nothing():
    """Its canaries, by default, are as many as it can afford."""
    found = audits.canaries(tokens("head"), "fedlora", None, PLAN.replace(batch=3), lora=LORA)
    assert (found.canaries, found.epsilon_upper, found.delta) == (16, float("inf"), 1e-5)
    plan, digits = fl.Plan(batch=16, local_steps=5), fl.tasks.digits()
    sizes = ((digits, "example"), (digits, "client"), (WIDE, "client"))
    assert [canary_audit.affordable_canaries(t, plan, u) for t, u in sizes] == [100, 32, 16]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"confidence": 1.0}, r"confidence=1.0: expected a number in \(0, 1\)"),
        ({"canaries": 1}, "canaries=1: expected a whole number >= 2"),
        ({"seed": None}, "seed=None: expected a whole number"),
        ({"crafted": True}, "crafted=True: expected False in the example unit"),
    ],
)
def test_bad_arguments_are_refused(bad, message):
    call: Any = fl.audit.canaries
    with pytest.raises(ValueError, match=message):
        call(WIDE, "fedlora", private("example"), PLAN, **bad)
