"""Attacks on the audit itself: a release that explodes, a bug that the ledger knows nothing of."""

import math
from dataclasses import replace

import pytest
from calls import refused

import fedlora_lab as fl
from fedlora_lab.privacy.privatizer import clip_sum

pytestmark = pytest.mark.attack

WIDE = fl.tasks.regression(clients=4, examples=16, d_in=40, d_out=24, rank=4)
PLAN = fl.Plan(rounds=6, local_steps=2, batch=8, lr=1e-7)


def clips_nothing(rows, clip, owner, owners, *rest):
    """Adds up the rows as they are, in the place of the true clip."""
    return clip_sum(rows, math.inf, owner, owners)


REASON = "an injected bug: clips nothing"


def audited(lr=1e-7, row="fedlora", task=WIDE, bug=None, **fields):
    noise: dict = {"noise_multiplier": 4.0, "delta": 1e-5, "accountant": "rdp"} | fields
    options = {"canaries": 64, "lora": fl.Lora(8, 8.0), "bug": bug}
    return fl.audit.run_audit(task, row, fl.Privacy(**noise), PLAN.replace(lr=lr), **options)


@pytest.mark.parametrize(
    ("lr", "options"),
    [
        (1e9, {"noise_multiplier": 100.0}),
        # Finite tensors, whose model gives no finite loss.
        (0.2, {"bug": clips_nothing, "clip_norm": 1.0}),
    ],
)
def test_a_release_that_is_not_finite_is_refused(lr, options):
    """Fault: no score of such a release means anything, and some bound was made of them."""
    with refused("^scores='not finite: loss': expected finite releases"):
        audited(lr, **{"clip_norm": 1e30, **options})


def test_traces_of_a_large_finite_release_do_not_overflow():
    """Without a clip, inputs of 1e17 give gradients near the end of float32. Products that leave it
    do not count as 0, which would hide the bug.
    """
    clients = tuple((1e17 * x, y) for x, y in WIDE.clients)
    held_out = fl.tasks.HeldOut((1e17 * WIDE.test[0], WIDE.test[1]))
    task = replace(WIDE, clients=clients, held_out=held_out)
    result = audited(1e-38, task=task, clip_norm=1e-4, bug=clips_nothing)
    assert not result.holds
    assert result.lower["update A"] > result.epsilon_nominal and result.lower["update"] > 0.5


def test_a_bug_is_refuted_against_what_the_ledger_would_have_stated():
    sound = audited()
    broken = audited(bug=clips_nothing)
    assert sound.holds and sound.epsilon_upper == sound.epsilon_nominal == sound.claimed
    assert broken.epsilon_upper == float("inf")
    assert sound.epsilon_nominal == broken.epsilon_nominal == broken.claimed < broken.epsilon_lower
    assert not broken.holds and REASON in str(broken)
