"""The audit of a run: canaries, what is seen of them, and that no row of the table is refuted by it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small import LORA, UNITS, gap, play, private, same_bits, tokens

import fedlora_lab as fl
from fedlora_lab import audit as audits
from fedlora_lab import engine, mechanism, methods, upload
from fedlora_lab.audit import one_run
from fedlora_lab.audit.canaries import affordable, mislabelled, plant
from fedlora_lab.audit.marks import OUT, coded, decoded, given, marked
from fedlora_lab.audit.scores import apart
from fedlora_lab.audit.watch import Watched
from fedlora_lab.method import Slot
from fedlora_lab.plots.style import png
from fedlora_lab.record import Round
from fedlora_lab.streams import Streams

ROWS = list(methods.ALL.values())
PLAN = fl.Plan(rounds=3, local_steps=2, batch=8, lr=0.2)
WIDE = fl.tasks.regression(clients=3, examples=10, d_in=40, d_out=24, rank=4)
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.slug)
every_unit = pytest.mark.parametrize("unit", UNITS)


def privacy(unit="example", sigma=1.0, **fields):
    return fl.Privacy(unit=unit, noise_multiplier=sigma, delta=1e-5, accountant="rdp", **fields)


def audited(row, unit="example", sigma=1.0, seed=0, plan=PLAN, crafted=False, **fields):
    options: Any = {"canaries": 32, "confidence": 0.99, "lora": fl.Lora(8, 8.0), "seed": seed, "crafted": crafted}
    return audits.audit(WIDE, row, privacy(unit, sigma, **fields), plan, **options)


def test_marks_come_back():
    for y in (torch.tensor([3, 0, 2]), torch.randn(3, 4), torch.randn(3, 2, 2)):
        back, weights = decoded(coded(y, torch.tensor([0, OUT, 50])), y.shape[1:])
        assert torch.equal(back, y)
        assert back.dtype == y.dtype
        assert weights[0] == 1
        assert weights[1].isnan()
        assert weights[2] == 50


@every_unit
def test_given_marks_change_nothing(unit):
    task = tokens("head")
    same_bits(play(task, "fedlora", private(unit)), play(marked(task, given(task)), "fedlora", private(unit)))


def test_left_out_is_as_if_it_were_not_there():
    """An example that is left out weighs nothing; only the size, which is public, still counts it."""
    task = tokens("head", (6,))
    marks = given(task)
    marks[0][2] = OUT
    stay = torch.tensor([0, 1, 3, 4, 5])
    fewer = replace(task, clients=((task.clients[0][0][stay], task.clients[0][1][stay]),))
    plan = fl.Plan(rounds=3, local_steps=2, batch=None, lr=0.3)
    out = play(marked(task, marks), "fedlora", private("example", sigma=0.0), plan)
    gone = play(fewer, "fedlora", private("example", sigma=0.0), plan.replace(lr=0.3 * 5 / 6))
    assert gap(out[-1], gone[-1]) < 1e-9


def test_canaries_are_dealt_evenly():
    examples = mislabelled(WIDE, 32, Streams(0))
    one = plant(WIDE, "example", examples, torch.full((32,), 9), Streams(0))
    assert one.task.sizes == (21, 21, 20)
    other = plant(WIDE, "client", examples, torch.full((32,), 9), Streams(0))
    assert other.task.sizes == (10, 10, 10, *[1] * 32)
    for planted in (one, other):
        y = torch.cat([y for _, y in planted.task.clients])
        assert int((y[:, -1] == 9).sum()) == int(planted.included.sum())
        assert int((y[:, -1] == OUT).sum()) == int((~planted.included).sum())


def test_coins_are_fair_and_follow_the_seed():
    examples = mislabelled(WIDE, 32, Streams(0))
    coins = [plant(WIDE, "example", examples, torch.ones(32).long(), Streams(s)).included for s in (*range(40), 0)]
    assert torch.equal(coins[0], coins[-1])
    assert not torch.equal(coins[0], coins[1])
    total = int(torch.stack(coins[:40]).sum())
    assert abs(total - 640) < 5 * np.sqrt(320)


def test_wrong_targets_are_wrong():
    task = fl.tasks.digits(clients=3)
    x, y = mislabelled(task, 50, Streams(0))
    pool, right = task.validation or task.test
    for image, label in zip(x, y, strict=True):
        true = right[(pool == image).flatten(1).all(1)]
        assert len(true) >= 1
        assert label not in true


@every_row
@every_unit
def test_no_row_is_refuted(row, unit):
    """At 99 % no lower bound exceeds the ledger's epsilon, and none exceeds the ceiling."""
    for sigma, seed in ((1.0, 0), (4.0, 1)):
        found = audited(row, unit, sigma, seed)
        assert found.epsilon_lower <= min(found.epsilon_upper, found.ceiling)
        assert found.holds
        assert str(found).count("<=") == 1


@every_row
@every_unit
def test_a_run_without_noise_is_seen(row, unit):
    """White box, without noise: the bound comes near its ceiling wherever something is released."""
    found = audited(row.replace(smooth=methods.FedLoRA.smooth), unit, 0.0, plan=PLAN.replace(batch=None))
    if unit == "client" and row.share == "":
        assert set(found.scores) == {"loss"}
        assert found.epsilon_lower == 0
    else:
        # The auditor does not know what a client keeps, and 32 canaries share the few numbers of a core.
        seen = row.share is None and not row.own_ranks and "R" not in row.moved(0, 2)
        assert found.lower["update"] >= (0.3 if seen or unit == "example" else 0) * found.ceiling
        sides = {view for view in found.scores if view.startswith("update ")}
        assert sides <= {"update A", "update B", "update R", "update head"}


@pytest.mark.parametrize(("unit", "module"), [("client", upload), ("example", engine)])
def test_a_false_claim_is_refuted(unit, module, monkeypatch):
    """A hundredth of the noise that the ledger was told: the lower bound lies above it, and the audit says so."""
    true = mechanism.noise
    monkeypatch.setattr(module, "noise", lambda shapes, std, *rest: true(shapes, [x / 100 for x in std], *rest))
    found = audited("fedlora", unit, 25.0, plan=PLAN.replace(batch=None), crafted=unit == "client")
    assert not found.holds
    assert found.epsilon_lower > 1.2 * found.epsilon_upper
    assert " > " in str(found)


@pytest.mark.parametrize("bad", ["inside", "outside"])
def test_scores_that_are_no_numbers_prove_nothing(bad):
    """No threshold would count them as errors: they would raise the bound."""
    scores = {"inside": np.zeros(8), "outside": np.zeros(8)}
    scores[bad][3] = np.nan
    both = scores["inside"], scores["outside"]
    for bound in (
        lambda: audits.threshold.best(*both, 1e-5, 0.05, [0.5]),
        lambda: audits.threshold.split(*both, 1e-5, 0.05),
        lambda: audits.gaussian.threshold_lower(*both, 0.5, 1e-5, 0.05),
    ):
        with pytest.raises(ValueError, match=f"{bad}='with NaN'"):
            bound()
    with pytest.raises(ValueError, match="scores='with NaN'"):
        one_run.best(scores[bad], np.ones(8, bool), 1e-5, 0.05)
    with pytest.raises(ValueError, match="cosines='with NaN"):
        audits.estimate.epsilon_estimate(scores[bad], 2000, 1e-5)
    one = np.array([1e200, 2e200])
    assert audits.estimate.cosines(np.array([one, -one]), one) == pytest.approx([1, -1])


@every_unit
def test_the_audit_changes_nothing_of_the_run(unit):
    """A watched run has the bits of a plain one."""
    task, plan = tokens("head"), PLAN.replace(batch=3, participation=0.8, dropout=0.1)
    watched = Watched.open(task, methods.DEeR, private(unit), plan, lora=LORA).events()
    same_bits([event for event in watched if isinstance(event, Round)], play(task, "deer", private(unit), plan))


def test_directions_keep_apart():
    """With many near copies among them, each direction still answers most to its own canary."""
    random = torch.Generator().manual_seed(0)
    rows = {Slot("B", "x"): torch.randn(6, 50, generator=random) / 50**0.5 + torch.randn(50, generator=random) / 10}
    own = apart(rows, torch.zeros(6, dtype=torch.int64), 0.1)[Slot("B", "x")] @ rows[Slot("B", "x")].T
    plain = rows[Slot("B", "x")] @ rows[Slot("B", "x")].T
    off = ~torch.eye(6, dtype=torch.bool)
    assert own[off].abs().max() < 0.05 * own.diagonal().min()
    assert plain[off].abs().max() > 0.3 * plain.diagonal().min()
    alone = apart(rows, torch.arange(6), 0.1)[Slot("B", "x")]
    assert torch.allclose(torch.cosine_similarity(alone, rows[Slot("B", "x")]), torch.ones(6))


@pytest.mark.parametrize(
    ("unit", "fields", "plan"),
    [
        ("client", {"trust": "local"}, PLAN.replace(participation=0.7, dropout=0.2)),
        ("client", {"trust": "secagg"}, PLAN),
        ("client", {}, PLAN.replace(participation=0.7, dropout=0.2)),
        ("example", {}, PLAN.replace(participation=0.7, dropout=0.2, momentum=0.5, lr={"A": 0.0, "B": 0.2})),
    ],
)
def test_trust_and_absence(unit, fields, plan):
    for sigma in (0.3, 3.0):
        found = audited("fedlora", unit, sigma, plan=plan, **fields)
        assert found.holds
        if fields.get("trust") == "local" and sigma < 1:
            assert found.lower["update"] > 0.1


@every_row
def test_crafted_canaries_are_seen_under_noise(row):
    """Directions of their own show more than trained canaries, and still no more than the ledger states."""
    found = audited(row, "client", 0.3, crafted=True)
    assert found.holds
    if found.scores.keys() == {"loss"}:  # nothing is sent
        assert found.epsilon_lower == 0
    elif not row.own_ranks and "R" not in row.moved(0, 2):  # a core has too few numbers for 32 directions
        assert found.lower["update"] >= 0.3 * found.ceiling


def test_the_estimate_errs_on_both_sides_of_the_ledger():
    """Three rounds of both factors, 1,024 numbers, 32 canaries: 6 to 27 where 9.0 is spent, 2 to 23 where 2.5 is."""
    for sigma, seeds in ((1.0, 9), (3.0, 9)):
        found = [audited("fedlora", "client", sigma, seed, crafted=True) for seed in range(seeds)]
        ratios = sorted(one.estimate / one.epsilon_upper for one in found)
        assert 0.5 < ratios[0] < 1 < ratios[-1] < 12
        assert 0.8 < ratios[seeds // 2] < 4
    assert np.isnan(audited("fedlora", "client").estimate)


@pytest.mark.parametrize("trust", ["local", "secagg"])
def test_crafted_canaries_under_other_trust(trust):
    found = audited("fedlora", "client", 0.5, crafted=True, trust=trust)
    assert found.holds
    assert found.lower["update"] > 0.4
    with pytest.raises(ValueError, match="crafted=True"):
        audited("fedlora", "example", crafted=True)


def test_without_privacy_and_with_own_canaries():
    x, y = tokens("head").test
    found = audits.audit(tokens("head"), "fedlora", None, PLAN.replace(batch=3), canaries=(x, (y + 1) % 3), lora=LORA)
    assert (found.canaries, found.epsilon_upper, found.delta) == (len(y), float("inf"), 1e-5)


def test_the_default_number_is_affordable():
    plan = fl.Plan(batch=16, local_steps=5)
    assert affordable(fl.tasks.digits(), plan, "example") == 100
    assert affordable(fl.tasks.digits(), plan, "client") == 32
    assert affordable(WIDE, plan, "client") == 16


def test_the_module_is_its_function():
    call: Any = fl.audit
    assert call is audits
    assert call.one_run is one_run
    with pytest.raises(ValueError, match="confidence=1"):
        call(WIDE, "fedlora", privacy(), PLAN, confidence=1.0)
    for bad, message in (
        ({"canaries": 1}, "canaries=1"),
        ({"seed": None}, "seed=None"),
        ({"canaries": 8, "guesses": [(5, 5)]}, "guess=5"),
    ):
        with pytest.raises(ValueError, match=message):
            call(WIDE, "fedlora", privacy(), PLAN, **bad)


def test_the_figure_draws_the_three_numbers():
    several = [audited("fedlora", sigma=0.3), audited("deer-literal"), audited("ffa-lora", "client")]
    figure = fl.plots.audit(several)
    words = " ".join(text.get_text() for text in figure.axes[1].texts)
    for one in several:
        assert f"{one.epsilon_lower:.2f}" in words
    assert "not certified" in words
    ticks = [float(np.asarray(line.get_xdata())[0]) for line in figure.axes[1].lines if line.get_marker() == "|"]
    assert ticks == [one.ceiling for one in several]
    assert png(fl.plots.audit(several[0])) == png(fl.plots.audit(several[:1]))
    with pytest.raises(ValueError, match="audits"):
        fl.plots.audit([])
