"""The engine's own step under review: every planted bug is found, and no row is blamed."""

from dataclasses import replace
from functools import cached_property
from typing import Any

import planted_bugs
import pytest
from engine_bugs import BUGS
from engine_review import engine, engine_subject
from toy_tasks import APART, LORA, tokens

import dp_review
import fedlora_lab as fl
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.federated.config import Config

TASK = tokens("head", (9, 7, 5))
PLAN = fl.Plan(rounds=3, local_steps=2, batch=4, lr=0.2)
ALONG = fl.methods.FedZO.replace(name="along", differences=fl.methods.Differences(directions=3))
KINDS = [
    ("fedlora", "example", 0),
    ("rolora", "client", 1),
    ("deer", "example", 0),
    ("la-lora", "example", 1),
    ("fedsa-lora", "example", 0),
    (APART, "example", 0),
    (ALONG, "example", 1),
]
"""Rows that differ in what they move, map, keep or clip; unit; round."""


def setup(row, unit):
    """What is reviewed, with the small adapter."""
    privacy = fl.Privacy(unit=unit, noise_multiplier=1.0, clip_norm=0.7, delta=1e-3)
    return {"task": TASK, "method": row, "privacy": privacy, "plan": PLAN, "lora": LORA}


def reviewed(row="fedlora", unit="example", **options):
    """A review of the engine."""
    return engine(**setup(row, unit), **options)


@pytest.mark.every(5)
@pytest.mark.slow
@pytest.mark.parametrize("name", planted_bugs.PLANTED)
def test_every_planted_bug_is_found(name, monkeypatch):
    """Fault: a check of the engine's step, batches, ledger or noise that lost its teeth."""
    unit, place, bug, check = planted_bugs.PLANTED[name]
    monkeypatch.setattr(*place, bug)
    if check in ("sampling", "accounting"):  # these need no step
        subject = engine_subject(**setup("fedlora", unit))
        found = dp_review.step(None, (), subject["claims"], loader=subject["loader"])
    else:
        found = reviewed(unit=unit)
    assert check in found.broken | found.not_as_claimed


@pytest.mark.every(5)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "bug", "check"),
    [
        *(("fedlora", bug, "sensitivity") for bug in BUGS.values()),
        ("deer", planted_bugs.twice_too_far, "sensitivity"),
        ("fedlora", planted_bugs.lets_infinities_through, "non-finite"),
    ],
)
def test_every_broken_clip_is_found(row, bug, check):
    """Fault: a clip that is looked at in other coordinates than the noise's, or not at all."""
    assert check in reviewed(row, bug=bug).broken


@pytest.mark.every(5)
@pytest.mark.slow
@pytest.mark.parametrize(("row", "unit", "index"), KINDS)
def test_no_row_is_blamed(row, unit, index):
    """Fault: an adapter that takes a schedule, a map or what a client keeps for a mistake."""
    found = reviewed(row, unit, round_index=index)
    assert found.sound, found


@pytest.mark.further
@pytest.mark.slow
def test_what_no_epsilon_covers_is_broken():
    """Fault: noise and clip that pass different maps, called sound."""
    assert "sensitivity" in reviewed("deer-literal").broken


@pytest.mark.parametrize(("row", "unit", "index"), KINDS)
def test_other_draws_change_nothing_that_was_computed_of_the_rest(row, unit, index):
    """Fault: a property that reads the draws, and would stay that of others."""
    parts: Any = setup(row, unit)
    method = fl.methods.get(row) if isinstance(row, str) else row
    privacy = parts["privacy"].resolve(parts["task"], parts["plan"])
    config = Config(TASK, method, privacy, PLAN, LORA, Streams(0))
    kept, anew = config.with_streams(Streams(1)), replace(config, streams=Streams(1))
    assert config.streams.seed == 0 and kept.streams.seed == 1
    computed = [name for name, x in vars(Config).items() if isinstance(x, cached_property)]
    # What is kept as a function is asked below.
    values = [name for name in computed if not callable(getattr(config, name))]
    assert len(values) > 5
    differ = [x for x in values if repr(getattr(kept, x)) != repr(getattr(anew, x))]
    assert differ == [] and kept.words(index) == anew.words(index)


def test_a_plan_of_one_local_step_has_no_next_one():
    """Fault: a step that the plan never takes is asked for its keys."""
    parts: Any = setup("fedlora", "example") | {"plan": PLAN.replace(local_steps=1)}
    assert {*engine_subject(**parts)["others"]} == {"the next round"}
