"""The self-check fails on every planted bug and on no row; its chances are what they say."""

from itertools import cycle

import numpy as np
import planted_bugs
import pytest
import toy_hubs
from scipy import stats
from toy_tasks import LORA, UNITS, private, regression, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.audit.self_check import (
    binomial_p_value,
    correlation_p_value,
    normality_p_value,
    self_check,
    total_p_value,
    variance_p_value,
)

TASK, PLAN = tokens("head", (9, 7, 5)), planted_bugs.PLAN


@pytest.mark.slow
@pytest.mark.parametrize(("row", "unit"), list(zip(methods.ALL, cycle(UNITS))))
def test_no_row_fails(row, unit):
    """One unit each, in turn: that a release is right in both is the contract's."""
    checked = self_check(TASK, row, private(unit), PLAN, lora=LORA)
    assert checked.ok, str(checked)
    trials = {one.trial for one in checked.findings}
    assert trials >= {"no clip norm, no trace", "sampling law", "ledger"}


@pytest.mark.slow
def test_eight_repetitions_raise_no_alarm():
    """At 1 in 1000 each: 8 in 1000 together; and the p-values are uniform, not merely large."""
    least, chances = 1.0, []
    for seed in range(20, 28):
        checked = self_check(TASK, "fedlora", private("example"), PLAN, lora=LORA, seed=seed)
        assert checked.ok, f"seed {seed}:\n{checked}"
        values = [one for one in checked.findings if one.limit is None]
        least = min(least, *(one.value for one in values))
        chances += [one.value for one in values if one.what.startswith(("spread", "normal"))]
    assert least < 0.05
    assert stats.kstest(chances, "uniform").pvalue > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("bug", planted_bugs.PLANTED, ids=lambda bug: bug[0])
def test_every_planted_bug_is_found(bug, monkeypatch):
    name, unit, plant, trial = bug
    checked = self_check(TASK, plant(monkeypatch), private(unit), PLAN, lora=LORA)
    assert trial in {one.trial for one in checked.failed}, f"{name}:\n{checked}"
    assert "FAILED" in str(checked)


# Where the noise is shaped, a clip is looked at in the noise's coordinates or, where no epsilon is
# certified for it, in its own.
SHAPED = [(row, "example", planted_bugs.twice_too_far) for row in ("deer", "deer-literal")]


@pytest.mark.slow
@pytest.mark.parametrize(("row", "unit", "bug"), [*planted_bugs.CLIPS, *SHAPED])
def test_every_broken_clip_is_found(row, unit, bug):
    row = row if row in methods.ALL else "fedlora"
    checked = self_check(TASK, row, private(unit), PLAN, lora=LORA, bug=bug)
    assert "sensitivity" in {one.trial for one in checked.failed}, str(checked)


EVERYONE, SHORT = PLAN.replace(participation=1.0), fl.Plan(rounds=2, local_steps=2, batch=2)
WHOLE = fl.Plan(rounds=2, local_steps=1, batch=None, optimizer=fl.SGD(0.5))
FIVE = tokens("head", (9, 7, 5, 4, 8))


@pytest.mark.slow
@pytest.mark.filterwarnings(toy_hubs.NO_PAD)
@pytest.mark.parametrize(
    ("task", "row", "privacy", "plan"),
    [
        (TASK, "fedlora", private("client", trust="local"), PLAN),
        (TASK, "fedlora", private("client", trust="secagg"), EVERYONE),
        (TASK, "fedlora", private("client", trust="secagg", honest=2), EVERYONE),
        (TASK, "fedlora", private("example", sigma=0.0), PLAN),
        (FIVE, "ffa-lora", "calibrated", PLAN),
        (regression(), "deer", private("example"), WHOLE),
        ("digits", "la-lora", fl.Privacy(noise_multiplier=1.0, delta=1e-5), PLAN),
        ("bert", "fedlora", private("example"), SHORT),
        ("gpt2", "fedlora", private("client"), SHORT),
        ("swin", "fedlora", private("example"), SHORT),
    ],
)
def test_correct_set_ups_of_every_kind_pass(task, row, privacy, plan):
    """All trusts; no noise; a noise multiplier and a rate for each of more clients than the check
    takes; one layer; word pieces and images, transposed maps, gradients far below the clip norm.
    """
    if isinstance(task, str):
        task = fl.tasks.digits(clients=4) if task == "digits" else toy_hubs.varied(task)
    if privacy == "calibrated":
        privacy = fl.Privacy(delta=1e-3, accountant="rdp").calibrate(
            epsilon=2, task=task, plan=plan
        )
        assert isinstance(privacy.noise_multiplier, tuple)
    checked = self_check(task, row, privacy, plan, lora=LORA)
    assert checked.ok, str(checked)


def chances(x, y, drawn, rate, rng, sizes=None, shares=None):
    """Each test's p-value: of normal numbers, of two samples, and of draws at this rate."""
    (n, width), each = drawn.shape, drawn.sum(0) if shares is None else shares
    return [
        normality_p_value(x, rng),
        variance_p_value(x),
        correlation_p_value(x, y),
        binomial_p_value(drawn.sum(1) if sizes is None else sizes, width, rate, rng),
        total_p_value(int(drawn.sum()), drawn.size, rate),
        variance_p_value((each - n * rate) / (n * rate * (1 - rate)) ** 0.5),
    ]


def test_each_statistic_finds_the_fault_that_it_is_for():
    rng, n = np.random.default_rng(0), 300
    (x, y), drawn = rng.standard_normal((2, 4000)), rng.random((n, 20)) < 0.3
    flat = rng.uniform(-(3**0.5), 3**0.5, 4000)
    infinite, nan = (np.where(np.arange(4000) == 7, bad, x) for bad in (np.inf, np.nan))
    assert min(chances(x, y, drawn, 0.3, rng)) > 1e-3
    halves = np.where(np.arange(20) < 10, 140, 40)
    p = chances(flat, flat + x, drawn, 0.3, rng, np.full(n, 6), halves)
    broken = [p[0], p[2], p[3], p[5], total_p_value(int(drawn.sum()), drawn.size, 0.4)]
    broken += [variance_p_value(1.1 * x), variance_p_value(0.9 * x)]
    broken += [one for bad in (infinite, nan) for one in chances(bad, x, drawn, 0.3, rng)[:3]]
    assert max(*broken, correlation_p_value(np.ones(9), np.ones(9))) < 1e-6


@pytest.mark.slow
def test_chances_are_uniform_under_the_claim():
    rng, found, level = np.random.default_rng(1), [], np.array([[0.01], [0.1], [0.5]])
    for _ in range(300):
        (x, y), drawn = rng.standard_normal((2, 200)), rng.random((60, 12)) < 0.4
        found.append(chances(x, y, drawn, 0.4, rng))
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
