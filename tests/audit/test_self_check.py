"""The self-check fails on every planted bug and on no row; its chances are what they say."""

from itertools import product

import models
import numpy as np
import planted
import pytest
from scipy import stats
from small import LORA, UNITS, private, regression, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.audit.self_check import (
    binomial_p_value,
    correlation_p_value,
    equal_rates_p_value,
    normality_p_value,
    self_check,
    total_p_value,
    variance_p_value,
)

TASK, PLAN = tokens("head", (9, 7, 5)), planted.PLAN


@pytest.mark.slow
@pytest.mark.parametrize(("row", "unit"), list(product(methods.ALL, UNITS)))
def test_no_row_fails(row, unit):
    checked = self_check(TASK, row, private(unit), PLAN, lora=LORA)
    assert checked.ok, str(checked)
    trials = {one.trial for one in checked.findings}
    assert trials >= {"no clip norm, no trace", "sampling law", "ledger"}


@pytest.mark.slow
@pytest.mark.parametrize(("slug", "unit"), [("fedlora", "example"), ("deer", "client")])
def test_eight_repetitions_raise_no_alarm(slug, unit):
    """At 1 in 1000 each: 8 in 1000 together; and the p-values are uniform, not merely large."""
    least, chances = 1.0, []
    for seed in range(20, 28):
        checked = self_check(TASK, slug, private(unit), PLAN, lora=LORA, seed=seed)
        assert checked.ok, f"seed {seed}:\n{checked}"
        values = [one for one in checked.findings if one.limit is None]
        least = min(least, *(one.value for one in values))
        chances += [one.value for one in values if one.what.startswith(("spread", "normal"))]
    assert least < 0.05
    assert stats.kstest(chances, "uniform").pvalue > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("bug", planted.PLANTED, ids=lambda bug: bug[0])
def test_every_planted_bug_is_found(bug, monkeypatch):
    name, unit, plant, trial = bug
    checked = self_check(TASK, plant(monkeypatch), private(unit), PLAN, lora=LORA)
    assert trial in {one.trial for one in checked.failed}, f"{name}:\n{checked}"
    assert "FAILED" in str(checked)


# Where the noise is shaped, a clip is looked at in the noise's coordinates or, where no epsilon is
# certified for it, in its own.
SHAPED = [(row, "example", planted.twice_too_far) for row in ("deer", "deer-literal")]


@pytest.mark.slow
@pytest.mark.parametrize(("row", "unit", "bug"), [*planted.CLIPS, *SHAPED])
def test_every_broken_clip_is_found(row, unit, bug):
    row = row if row in methods.ALL else "fedlora"
    checked = self_check(TASK, row, private(unit), PLAN, lora=LORA, bug=bug)
    assert "sensitivity" in {one.trial for one in checked.failed}, str(checked)


def test_there_are_at_least_twelve():
    assert len({name for name, *_ in [*planted.PLANTED, *planted.CLIPS]}) >= 12


@pytest.mark.slow
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
    plan = PLAN.replace(participation=1.0) if fields.get("trust") == "secagg" else PLAN
    checked = self_check(TASK, "fedlora", private(unit, **fields), plan, lora=LORA)
    assert checked.ok, str(checked)


@pytest.mark.slow
def test_other_tasks_pass():
    plan = fl.Plan(rounds=2, local_steps=1, batch=None, optimizer=fl.SGD(0.5))
    assert self_check(regression(), "deer", private("example"), plan, lora=LORA).ok
    privacy = fl.Privacy(noise_multiplier=1.0, delta=1e-5)
    digits = self_check(fl.tasks.digits(clients=4), "la-lora", privacy, PLAN)
    assert digits.ok, str(digits)


@pytest.mark.slow
def test_a_calibrated_plan_of_many_unequal_clients_passes():
    """A noise multiplier and a sample rate for each client, more of them than the check takes."""
    task, privacy = tokens("head", (9, 7, 5, 4, 8)), fl.Privacy(delta=1e-3, accountant="rdp")
    privacy = privacy.calibrate(epsilon=2, task=task, plan=PLAN)
    assert isinstance(privacy.noise_multiplier, tuple)
    checked = self_check(task, "ffa-lora", privacy, PLAN, lora=LORA)
    assert checked.ok, str(checked)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "unit"), [("bert", "example"), ("gpt2", "client"), ("swin", "example")]
)
def test_models_of_transformers_pass(name, unit):
    """Word pieces and images, transposed maps, gradients far below the clip norm."""
    plan = fl.Plan(rounds=2, local_steps=2, batch=2)
    checked = self_check(models.task(name), "fedlora", private(unit), plan)
    assert checked.ok, str(checked)


def test_the_laws_find_what_breaks_them():
    rng, n, rate = np.random.default_rng(0), 300, 0.3
    x, drawn = rng.standard_normal(4000), rng.random((n, 20)) < rate
    flat = rng.uniform(-(3**0.5), 3**0.5, 4000)
    infinite, nan = (np.where(np.arange(4000) == 7, bad, x) for bad in (np.inf, np.nan))
    halves = np.where(np.arange(20) < 10, 140, 40)
    sound = [
        normality_p_value(x, rng),
        variance_p_value(x),
        correlation_p_value(x[:2000], x[2000:]),
        binomial_p_value(drawn.sum(1), 20, rate, rng),
        total_p_value(int(drawn.sum()), drawn.size, rate),
        equal_rates_p_value(drawn.sum(0), n, rate),
    ]
    assert min(sound) > 1e-3
    broken = [
        *(normality_p_value(some, rng) for some in (flat, infinite, nan)),
        *(variance_p_value(some) for some in (1.1 * x, 0.9 * x, infinite, nan)),
        *(correlation_p_value(x, some) for some in (x + flat, infinite, nan)),
        correlation_p_value(np.ones(9), np.ones(9)),
        binomial_p_value(np.full(n, 6), 20, rate, rng),
        total_p_value(int(drawn.sum()), drawn.size, 0.4),
        equal_rates_p_value(halves, n, rate),
    ]
    assert max(broken) < 1e-6


def test_chances_are_uniform_under_the_claim():
    rng, found, level = np.random.default_rng(1), [], np.array([[0.01], [0.1], [0.5]])
    for _ in range(300):
        x, drawn = rng.standard_normal(200), rng.random((60, 12)) < 0.4
        normal = normality_p_value(x, rng), variance_p_value(x)
        pair = correlation_p_value(x[:100], x[100:])
        counts = binomial_p_value(drawn.sum(1), 12, 0.4, rng)
        total = total_p_value(int(drawn.sum()), drawn.size, 0.4)
        found.append([*normal, pair, counts, total, equal_rates_p_value(drawn.sum(0), 60, 0.4)])
    shares = np.mean(np.array(found)[None] < level[:, None], axis=1)
    assert (shares <= level + 4 * (level * (1 - level) / 300) ** 0.5).all(), shares


@pytest.mark.parametrize(
    ("privacy", "significance", "message"),
    [
        (None, 1e-3, "privacy=None: expected a Privacy"),
        (private("example"), 0.0, r"significance=0.0: expected a number in \(0, 1\]"),
        (fl.Privacy(), 1e-3, "noise_multiplier=None"),
    ],
)
def test_bad_parts_are_refused(privacy, significance, message):
    with pytest.raises(ValueError, match=message):
        self_check(TASK, "fedlora", privacy, PLAN, significance=significance)
