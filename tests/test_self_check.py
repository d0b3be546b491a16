"""The self-check fails on every planted bug, and its chances are what they say."""

import models
import numpy as np
import planted
import pytest
from small import LORA, UNITS, private, regression, tokens

import fedlora_lab as fl
from fedlora_lab.audit import laws, self_check

TASK = tokens("head", (9, 7, 5))


@pytest.mark.parametrize(("name", "unit", "plant", "trial"), planted.PLANTED, ids=[bug[0] for bug in planted.PLANTED])
def test_every_planted_bug_is_found(name, unit, plant, trial, monkeypatch):
    row = plant(monkeypatch)
    checked = self_check(TASK, row, private(unit), planted.PLAN, lora=LORA)
    assert trial in {one.trial for one in checked.failed}, f"{name}:\n{checked}"
    assert "FAILED" in str(checked)


@pytest.mark.parametrize(("name", "unit", "bug"), planted.CLIPS, ids=[bug[0] for bug in planted.CLIPS])
def test_every_broken_clip_is_found(name, unit, bug):
    checked = self_check(TASK, "fedlora", private(unit), planted.PLAN, lora=LORA, bug=bug)
    assert "sensitivity" in {one.trial for one in checked.failed}, f"{name}:\n{checked}"


@pytest.mark.parametrize("row", ["deer", "deer-literal"])
def test_a_broken_clip_is_found_where_the_noise_is_shaped(row):
    """The clip is looked at in the noise's coordinates or, where no epsilon is certified for it, in its own."""
    checked = self_check(TASK, row, private("example"), planted.PLAN, lora=LORA, bug=planted.twice_too_far)
    assert "sensitivity" in {one.trial for one in checked.failed}, str(checked)


def test_there_are_at_least_twelve():
    names = [name for name, *_ in [*planted.PLANTED, *planted.CLIPS]]
    assert len(set(names)) >= 12
    assert len(names) - len(set(names)) == 1, "clips nothing, once by a step and once by the clip"


@pytest.mark.parametrize(
    ("unit", "fields"),
    [
        ("client", {"trust": "local"}),
        ("client", {"trust": "secagg"}),
        ("client", {"trust": "secagg", "honest": 2}),
        ("example", {"sigma": 0.0}),
        ("example", {"sigma": (0.5, 1.0, 2.0)}),
    ],
)
def test_other_plans_pass(unit, fields):
    plan = planted.PLAN if fields.get("trust") != "secagg" else planted.PLAN.replace(participation=1.0)
    checked = self_check(TASK, "fedlora", private(unit, **fields), plan, lora=LORA)
    assert checked.ok, str(checked)


def test_other_tasks_pass():
    plan = fl.Plan(rounds=2, local_steps=1, batch=None, momentum=0.5)
    assert self_check(regression(), "deer", private("example"), plan, lora=LORA).ok
    privacy = fl.Privacy(noise_multiplier=1.0, delta=1e-5)
    digits = self_check(fl.tasks.digits(clients=4), "la-lora", privacy, planted.PLAN)
    assert digits.ok, str(digits)


def test_a_calibrated_plan_of_many_unequal_clients_passes():
    """A noise multiplier and a sample rate for each client, more of them than the check takes."""
    task = tokens("head", (9, 7, 5, 4, 8))
    privacy = fl.Privacy(delta=1e-3, accountant="rdp").calibrate(epsilon=2, task=task, plan=planted.PLAN)
    assert isinstance(privacy.noise_multiplier, tuple)
    checked = self_check(task, "ffa-lora", privacy, planted.PLAN, lora=LORA)
    assert checked.ok, str(checked)


@pytest.mark.parametrize("name", ["bert", "gpt2", "swin"])
@pytest.mark.parametrize("unit", UNITS)
def test_models_of_transformers_pass(name, unit):
    """Word pieces and images, transposed maps, gradients far below the clip norm."""
    checked = self_check(models.task(name), "fedlora", private(unit), fl.Plan(rounds=2, local_steps=2, batch=2))
    assert checked.ok, str(checked)


def test_the_laws_find_what_breaks_them():
    rng = np.random.default_rng(0)
    x, n = rng.standard_normal(4000), 300
    assert min(laws.normal(x, rng), laws.spread(x), laws.unrelated(x[:2000], x[2000:])) > 1e-3
    assert laws.normal(rng.uniform(-(3**0.5), 3**0.5, 4000), rng) < 1e-6
    for bad in (np.nan, np.inf):
        strange = np.where(np.arange(4000) == 7, bad, x)
        assert max(laws.normal(strange, rng), laws.spread(strange), laws.unrelated(strange, x)) < 1e-9
    assert laws.spread(1.1 * x) < 1e-6
    assert laws.spread(0.9 * x) < 1e-6
    assert laws.normal(np.append(x, np.nan), rng) == 0
    assert laws.unrelated(x, x + rng.standard_normal(4000)) < 1e-6
    assert laws.unrelated(np.ones(9), np.ones(9)) == 0
    drawn = rng.random((n, 20)) < 0.3
    assert laws.counts(drawn.sum(1), 20, 0.3, rng) > 1e-3
    assert laws.counts(np.full(n, 6), 20, 0.3, rng) < 1e-6
    assert laws.total(int(drawn.sum()), drawn.size, 0.3) > 1e-3
    assert laws.total(int(drawn.sum()), drawn.size, 0.4) < 1e-6
    assert laws.even(drawn.sum(0), n, 0.3) > 1e-3
    assert laws.even(np.where(np.arange(20) < 10, 140, 40), n, 0.3) < 1e-6


def test_chances_are_uniform_under_the_claim():
    rng = np.random.default_rng(1)
    found = {"normal": [], "spread": [], "unrelated": [], "counts": [], "total": [], "even": []}
    for _ in range(300):
        x, drawn = rng.standard_normal(200), rng.random((60, 12)) < 0.4
        found["normal"].append(laws.normal(x, rng))
        found["spread"].append(laws.spread(x))
        found["unrelated"].append(laws.unrelated(x[:100], x[100:]))
        found["counts"].append(laws.counts(drawn.sum(1), 12, 0.4, rng))
        found["total"].append(laws.total(int(drawn.sum()), drawn.size, 0.4))
        found["even"].append(laws.even(drawn.sum(0), 60, 0.4))
    for name, values in found.items():
        for level in (0.01, 0.1, 0.5):
            assert np.mean(np.array(values) < level) <= level + 4 * (level * (1 - level) / 300) ** 0.5, (name, level)


def test_bad_parts_are_refused():
    with pytest.raises(ValueError, match="privacy=None"):
        self_check(TASK, "fedlora", None, planted.PLAN)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="significance=0"):
        self_check(TASK, "fedlora", private("example"), planted.PLAN, significance=0.0)
    with pytest.raises(ValueError, match="noise_multiplier=None"):
        self_check(TASK, "fedlora", fl.Privacy(), planted.PLAN)
