"""The audit of a run: canaries, what is seen of them, and that it refutes no sound run."""

import numpy as np
import pytest
import torch
from calls import Options, refused
from toy_tasks import APART, LORA, UNITS, play, private, random, same_bits, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.audit import bounds, planting, traces
from fedlora_lab.audit.instruments import (
    LEFT_OUT,
    Recorder,
    mark_examples,
    ordinary_marks,
)
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.methods.filters import binomial
from fedlora_lab.methods.state import ParamKey

PLAN = fl.Plan(rounds=3, local_steps=2, batch=8, lr=0.2)
ONE_SIDE = PLAN.replace(participation=0.7, optimizer=fl.SGD(0.5), lr={"A": 0.0, "B": 0.2})
WIDE = fl.tasks.regression(clients=3, examples=10, d_in=40, d_out=24, rank=4)


def audited(row, sigma=1.0, plan=PLAN):
    privacy = fl.Privacy(noise_multiplier=sigma, delta=1e-5, accountant="rdp")
    lora = fl.Lora(8, 8.0)
    return fl.audit.run_audit(WIDE, row, privacy, plan, canaries=32, confidence=0.99, lora=lora)


@pytest.mark.parametrize("unit", UNITS)
def test_the_audit_changes_nothing_of_the_run(unit):
    """Fault: marks, or whoever records a run, that change its bits."""
    task = tokens("head")
    plan = PLAN.replace(batch=3, participation=0.8)
    marked = mark_examples(task, ordinary_marks(task))
    watched = Recorder.open(make_config(marked, methods.DEeR, private(unit), plan, LORA, 0))
    same_bits(list(watched.records()), play(task, "deer", private(unit), plan))


def planted(seed):
    examples = planting.mislabel(WIDE, 32, Streams(0))
    return planting.insert_canaries(WIDE, examples, Streams(seed))


def test_canaries_are_dealt_evenly():
    """Fault: coins that are not fair, or do not follow the seed; a canary that is out and loud."""
    result = planted(0)
    marks = torch.cat([y for _, y in result.task.clients])[:, -1]
    assert result.task.sizes == (21, 21, 20)
    assert (marks == planting.CANARY_LOSS_WEIGHT).sum() == result.included.sum()
    assert (marks == LEFT_OUT).sum() == (~result.included).sum()
    coins = torch.stack([planted(seed).included for seed in range(40)])
    assert coins[0].equal(result.included) and 550 < int(coins.sum()) < 730


def test_wrong_targets_are_wrong():
    """Fault: a canary with its true label, which no clip has to cut."""
    task = fl.tasks.digits(clients=3)
    pool, right = task.validation or task.test
    for image, label in zip(*planting.mislabel(task, 50, Streams(0)), strict=True):
        true = right[(pool == image).flatten(1).all(1)]
        assert len(true) >= 1 and label not in true


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "options"),
    [("deer", {"sigma": 4.0}), ("fedlora", {"sigma": 0.3, "plan": ONE_SIDE})],
)
def test_no_row_is_refuted(row, options):
    """Fault: a bound above the ledger's epsilon or the ceiling, at 99 %, and with absent clients;
    every row at ten seeds: test_no_committed_audit_exceeds_its_ledger."""
    result = audited(row, **options)
    assert result.epsilon_lower <= min(result.epsilon_upper, result.ceiling)
    could = result.ceiling > result.claimed
    assert result.holds and ("not refuted" in str(result)) == could
    assert ("could not have refuted" in str(result)) != could


@pytest.mark.slow
@pytest.mark.parametrize("row", ["deer", "fedsa-lora"])
def test_a_run_without_noise_is_seen(row):
    """Fault: an auditor who does not come near the ceiling although nothing hides a canary; views
    of which each may err as often as all together.
    """
    result = audited(row, sigma=0.0, plan=PLAN.replace(batch=None, rounds=2))
    assert result.lower["update"] >= 0.3 * result.ceiling
    assert {*result.scores} <= {"loss", "update", "update A", "update B"}
    for view, scores in result.scores.items():
        share = 0.01 / len(result.scores)
        bound = bounds.one_run_best_bound(scores, result.included, result.delta, share)
        assert result.lower[view] == pytest.approx(bound)


def test_a_core_is_seen_as_it_is_released():
    """Fault: an audit that looks for a filtered core, where a run filters A and B alone."""
    plain = audited(methods.FedSB)
    smoothed = audited(methods.FedSB.replace(filter=binomial(5)))
    assert plain.scores["update"].any()
    for view, scores in plain.scores.items():
        assert scores.tolist() == smoothed.scores[view].tolist()


def test_each_direction_answers_most_to_its_own_canary():
    """Fault: directions that near copies share, so that one canary scores for another."""
    key = ParamKey("B", "x")
    u = random(6, 50) / 50**0.5 + random(50, seed=1) / 10
    apart = traces.decorrelate({key: u}, torch.zeros(6).long(), 0.1)[key]
    for directions, low, high in ((u, 0.3, np.inf), (apart, 0.0, 0.05)):
        answers = directions @ u.T
        own = answers.diagonal()
        assert low < float((answers - own.diag()).abs().max() / own.min()) < high


@pytest.mark.parametrize(
    ("row", "norms"),
    [
        (methods.FedLoRA, (0.28, 0.96)),
        (APART, (0.5**0.5, 0.5**0.5)),
        (methods.FedLoRA.replace(clip_groups=methods.DEeRLiteral.clip_groups), (1.0, 1.0)),
    ],
)
def test_a_canary_is_expected_as_its_groups_are_clipped(row, norms):
    """Fault: all together to C, where each of two groups is clipped to C / sqrt(2), or to C."""
    signal = {ParamKey("A", "x"): torch.full((1, 4, 4), 7.0)}
    signal[ParamKey("B", "x")] = torch.full((1, 4, 4), 24.0)
    clipped, _ = traces.clip_and_whiten(row, 1.0, signal, {}, {}, torch.zeros(1).long())
    assert [float(x.norm()) for x in clipped.values()] == pytest.approx(norms, rel=1e-6)


def test_a_run_without_privacy_promises_nothing():
    """Fault: an epsilon of a run without privacy."""
    result = fl.audit.run_audit(tokens("head"), "fedlora", None, PLAN.replace(batch=3), lora=LORA)
    assert (result.canaries, result.epsilon_upper) == (100, float("inf"))


def test_an_audit_that_proves_nothing_is_refused():
    """Fault: one that is certain, does not know its coins, has none to compare, or has canaries
    that are no unit."""
    wrong: list[Options] = [{"confidence": 1.0}, {"seed": None}, {"canaries": 1}]
    for bad in wrong:
        with refused(f"^{next(iter(bad))}=[^\n]*: expected [^\n]*$"):
            fl.audit.run_audit(WIDE, "fedlora", private("example"), PLAN, **bad)
    with refused("^unit='client': expected 'example' or 'person': a canary is an example"):
        fl.audit.run_audit(WIDE, "fedlora", private("client"), PLAN)
