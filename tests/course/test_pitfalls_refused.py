"""A user tries to make the fatal mistakes through the library's own doors."""

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from test_local_training import Mixes
from torch import nn
from toy_tasks import LORA, PLAN, examples, play, private, regression, tokens

import fedlora_lab as fl
from fedlora_lab._utils import files
from fedlora_lab.audit.self_check import self_check
from fedlora_lab.methods.filters import Preconditioner

TASK, OWN = regression(), private("example")
LONGER = PLAN.replace(rounds=4)
RDP = fl.Privacy(delta=1e-3, accountant="rdp")


def refused(message, act, *args, **options):
    with pytest.raises(ValueError, match=message):
        act(*args, **options)


# Counting


def test_nothing_that_a_ledger_states_can_be_set():
    last: Any = play(TASK, "ffa-lora", OWN)[-1]
    for name in ("unit", "delta", "accountant", "reproducible", "mode"):
        with pytest.raises(AttributeError):
            setattr(last.ledger, name, None)
    for one, name in ((last, "epsilon"), (last, "ledger"), (last.ledger.releases[0], "count")):
        with pytest.raises(FrozenInstanceError):
            setattr(one, name, 0)
    refused("snapshot", last.ledger.record, 9, None, 1, sample_rate=0.1, noise_multiplier=9.0)
    refused("snapshot", setattr, last.ledger, "uncertified", None)
    assert isinstance(last.ledger.releases, tuple)


@pytest.mark.parametrize(
    ("term", "value"),
    [("delta", 0.3), ("unit", "client"), ("accountant", "prv"), ("reproducible", False)],
)
def test_a_ledger_of_other_terms_is_refused(tmp_path, term, value):
    """Rewritten by somebody who knows how its digest is made."""
    play(TASK, "ffa-lora", OWN, checkpoint=tmp_path)
    path = tmp_path / "ledger.json"
    content = json.loads(path.read_text())["content"] | {term: value}
    content |= {"releases": []} if term == "unit" else {}
    files.write_atomically(path, files.dump_checksummed("fedlora_lab.ledger", 2, content) + "\n")
    refused("those of this run", play, TASK, "ffa-lora", OWN, LONGER, resume=tmp_path)


# Noise, unit, delta


def test_noise_of_a_shorter_plan_is_counted_in_full(tmp_path):
    """A longer plan is refused, at once and on resuming, unless the target is given up; then the
    ledger counts every release.
    """
    short, long = PLAN.replace(rounds=1), PLAN.replace(rounds=30)
    own = RDP.calibrate(epsilon=6, task=TASK, plan=short)
    at_most = "expected at most 2, for which epsilon = 6 was calibrated"
    refused(f"^releases=60: {at_most}", play, TASK, "ffa-lora", own, long)
    free = own.replace(target=None)
    spent = RDP.replace(noise_multiplier=own.noise_multiplier, sample_rate=0.5)
    last = play(TASK, "ffa-lora", free, long)[-1]
    assert last.epsilon == pytest.approx(spent.ledger(releases=30 * PLAN.local_steps).epsilon())
    assert last.epsilon > 12
    play(TASK, "ffa-lora", own, short, checkpoint=tmp_path)
    refused(
        r"^releases=8: expected at most 2", play, TASK, "ffa-lora", own, LONGER, resume=tmp_path
    )
    assert play(TASK, "ffa-lora", free, LONGER, resume=tmp_path)[-1].epsilon > 6


def test_a_rate_of_examples_does_not_pass_for_clients():
    own = RDP.calibrate(epsilon=1, task=TASK, plan=PLAN)
    for trust in ("central", "secagg", "local"):
        with pytest.raises(ValueError, match="sample_rate="):
            play(TASK, "ffa-lora", own.replace(unit="client", trust=trust))
    honest = own.replace(unit="client", sample_rate=None)
    everyone = RDP.replace(unit="client", noise_multiplier=honest.noise_multiplier, sample_rate=1.0)
    spent = everyone.ledger(releases=PLAN.rounds).epsilon()
    assert play(TASK, "ffa-lora", honest)[-1].epsilon == pytest.approx(spent)
    for numbers in ({"noise_multiplier": (1.0, 2.0)}, {"sample_rate": (0.1, 0.2)}):
        refused("unit='client'", fl.Privacy, unit="client", delta=1e-3, **numbers)


@pytest.mark.parametrize("unit", ["example", "client"])
def test_no_way_to_a_large_delta(unit):
    units = sum(TASK.sizes) if unit == "example" else len(TASK.sizes)
    for delta in (1 / units, 0.9):
        privacy = private(unit).replace(delta=delta)
        calibrate = privacy.replace(noise_multiplier=None).calibrate
        refused("delta=", play, TASK, "ffa-lora", privacy)
        refused("delta=", calibrate, epsilon=1, task=TASK, plan=PLAN)
        refused("delta=", self_check, TASK, "ffa-lora", privacy, PLAN, lora=LORA)
    for wrong in (1, "1e-5", True):
        refused("delta=", fl.Privacy, unit=unit, delta=wrong)


# Paths round the clip


def test_nothing_mixes_examples():
    clients, make = [examples(6, k) for k in range(3)], fl.tasks.classification
    layers = nn.Flatten(), nn.Linear(15, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
    norm, centred = nn.Sequential(*layers).double().train(), Mixes("mean").double()
    test = examples(4, 9)
    refused("mixes examples", make, norm, clients, test=test, targets=["1"])
    refused("keeps examples apart", make, centred, clients, test=test, targets=["inner"])
    task = tokens("head")
    mixed = replace(task, loss=lambda out, y: task.loss(out, y) * task.loss(out, y).mean())
    refused("examples that do not mix", play, mixed, "fedlora", OWN)


def test_a_clip_norm_is_a_number_fixed_before():
    for wrong in ("median", torch.ones(2), lambda norms: norms.median(), None, -1.0, float("nan")):
        refused("clip_norm=", fl.Privacy, clip_norm=wrong, noise_multiplier=1.0)
    refused("clip_norm=inf", fl.Privacy, clip_norm=float("inf"), noise_multiplier=1.0)
    with pytest.raises(FrozenInstanceError):
        OWN.clip_norm = 99.0  # type: ignore[misc]
    unclipped = fl.Privacy(clip_norm=float("inf"), noise_multiplier=0.0, delta=1e-3)
    assert play(TASK, "ffa-lora", unclipped)[-1].epsilon == float("inf")


def test_a_two_faced_whitening_is_refused():
    """Asked about the identity it passes signal and noise through one map; at work it leaves the
    noise out.
    """

    def rule(gram: torch.Tensor) -> Preconditioner:
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
        asked = torch.equal(gram.double(), torch.eye(2).double())
        return Preconditioner(eye, eye, eye if asked else 0 * eye)

    row = fl.methods.FFA.replace(name="two-faced", precondition=rule)
    for unit in ("example", "client"):
        refused("precondition=", play, TASK, row, private(unit))
