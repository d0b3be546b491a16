"""A user tries to make the fatal mistakes through the library's own doors."""

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from toy_tasks import PLAN, play, private, regression

import fedlora_lab as fl
from fedlora_lab._utils import files
from fedlora_lab.methods.filters import Preconditioner

TASK, OWN = regression(), private("example")
LONGER = PLAN.replace(rounds=4)


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


# Paths round the clip


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
