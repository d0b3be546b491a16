"""The privacy plan: what it refuses, how much noise it asks for, whom the noise protects from."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
from calls import Options, refused
from scipy.stats import binom

from fedlora_lab._utils.rounding import round_up
from fedlora_lab.methods.plan import Plan
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.plan import Privacy

PLAN = Plan(rounds=20, local_steps=5, batch=16)
TASK = SimpleNamespace(sizes=(60, 90, 120, 150, 300))
RATES = tuple(16 / n for n in TASK.sizes)
SECAGG = {"unit": "client", "trust": "secagg"}


def client(**fields):
    return Privacy(**Options(unit="client", noise_multiplier=1.0, delta=1e-3) | fields)


def noised(**fields):
    return Privacy(noise_multiplier=1.0, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"unit": "user"},
        *({"clip_norm": value} for value in (-1, math.nan, "median")),
        *({"noise_multiplier": value} for value in (-0.1, math.nan, math.inf, (1.0, None), ())),
        # Where rounding lengthens a row, and where a sum overflows before its noise.
        *({"clip_norm": value, "noise_multiplier": (0.0, 1.0)} for value in (1e-31, 1e31)),
        {"noise_multiplier": 1e10, "clip_norm": 1e26},
        {"sample_rate": {0.1, 0.2}},
        {"sample_rate": (0.1, 2.0)},
        *({"delta": value} for value in (0, 1, 1e-300, math.nan)),
        {"accountant": "gdp"},
        {"trust": "everyone"},
        {"trust": "central"},
        {"target_epsilon": 0},
        {"colluding_clients": 3},
        {"colluding_clients": -1, **SECAGG},
        {"noise_multiplier": (1.0, 2.0), "unit": "client"},
        {"sample_rate": 0.2, **SECAGG},
    ],
    ids=repr,
)
def test_privacy_refuses_bad_values(fields):
    name = next(iter(fields))
    with refused(rf"^{name}(\[1\])?=.{{1,60}}: expected .{{5,120}}$"):
        Privacy(**fields)


def test_a_changed_plan_forgets_what_no_longer_holds():
    shared = client(trust="secagg", colluding_clients=3)
    assert shared.replace(unit="example").trust == "local"
    assert Privacy().replace(unit="client").trust == "central"
    assert shared.replace(clip_norm=2.0).colluding_clients == 3
    aimed = Privacy(noise_multiplier=1.0, target_epsilon=8)
    assert aimed.replace(clip_norm=2.0).target_epsilon == 8
    assert (
        aimed.replace(noise_multiplier=2.0).target_epsilon
        is aimed.replace(delta=1e-6).target_epsilon
        is None
    )


def test_calibrate_meets_its_target():
    """Every client, at its own sampling rate, spends at most epsilon and at least 99 % of it."""
    privacy = Privacy(delta=1e-4, accountant="rdp").calibrate(epsilon=8, task=TASK, plan=PLAN)
    assert (privacy.target_epsilon, privacy.sample_rate) == (8, RATES)
    sigmas = privacy.noise_multiplier
    assert isinstance(sigmas, tuple) and list(sigmas) == sorted(sigmas, reverse=True)
    for q, sigma in zip(RATES, sigmas, strict=True):
        assert 7.92 <= accounting.epsilon(((sigma, q, 100),), 1e-4, "rdp") <= 8
    assert privacy.resolve(TASK, PLAN) == privacy


def test_calibrate_counts_every_round_and_step():
    """The worst case: by expected participation an unlucky client would overspend."""
    alike = SimpleNamespace(sizes=(100,) * 8)
    full, half, none = (
        Privacy(delta=1e-4).calibrate(epsilon=3, task=alike, plan=PLAN.replace(**change))
        for change in ({}, {"participation": 0.5}, {"rounds": 0})
    )
    assert full.sample_rate == 0.16 and isinstance(full.noise_multiplier, float)
    assert full.noise_multiplier == half.noise_multiplier and none.noise_multiplier == 0


@pytest.mark.parametrize(("trust", "q"), [("central", 0.2), ("secagg", 1), ("local", 1)])
def test_calibrate_meets_its_target_in_the_client_unit(trust, q):
    many = SimpleNamespace(sizes=(10,) * 200)
    plan = PLAN.replace(participation=0.2)
    privacy = Privacy(unit="client", trust=trust, delta=1e-3)
    privacy = privacy.calibrate(epsilon=4, task=many, plan=plan)
    assert privacy.sample_rate == q and isinstance(privacy.noise_multiplier, float)
    assert 3.96 <= accounting.epsilon(((privacy.noise_multiplier, q, 20),), 1e-3) <= 4
    assert privacy.resolve(many, plan.replace(local_steps=50)) == privacy  # rounds alone count


@pytest.mark.parametrize(
    ("privacy", "change", "message"),
    [
        (Privacy(), {}, "noise_multiplier=None: expected a number >= 0, or call calibrate"),
        (noised(sample_rate=RATES), {"batch": 8}, r"sample_rate\[0\]=0.26.*: expected 0.133333"),
        (noised(sample_rate=(0.5, 0.5)), {}, "sample_rate=.*: expected 5 numbers, one per client"),
        (client(sample_rate=0.2), {"participation": 0.5}, "sample_rate=0.2: .* 0.5 = particip"),
        (
            client(trust="secagg", colluding_clients=5),
            {},
            "colluding_clients=5: expected at most 4",
        ),
    ],
)
def test_resolve_refuses_contradictions(privacy, change, message):
    with refused(f"^{message}"):
        privacy.resolve(TASK, PLAN.replace(**change))


def test_delta_must_lie_below_one_over_units():
    """delta >= 1 / units would allow to publish one unit outright."""
    dozen = SimpleNamespace(sizes=(500,) * 12, persons=(), person_counts=(2,) * 12)
    for unit, count in (("client", 12), ("example", 6000), ("person", 24)):
        privacy = noised(unit=unit, delta=1 / count)
        for use in (privacy.resolve, partial(privacy.calibrate, epsilon=1)):
            with refused(rf"^delta=.*: expected < .* = 1 / {count} {unit}s"):
                use(task=dozen, plan=PLAN)


def test_honest_shares_come_in_nearly_always():
    """The default is the 1 % quantile of the uploads: fewer come in less often, but not never.

    Colluding clients are not relied on.
    """
    summed = client(trust="secagg")
    plan = PLAN.replace(participation=0.5)
    shares = summed.noise_levels(50, plan).shares
    uploads = binom(50, 0.5)
    assert uploads.cdf(shares - 1) < 0.01 <= uploads.cdf(shares)
    fewer = summed.replace(colluding_clients=3).noise_levels(50, plan)
    assert fewer.shares == shares - 3
    assert fewer.each == pytest.approx(1 / math.sqrt(fewer.shares))
    assert summed.replace(colluding_clients=49).noise_levels(50, PLAN).shares == 1
    assert summed.replace(colluding_clients=12).noise_levels(16, PLAN).each == 0.5


def test_a_plan_longer_than_its_calibration_is_refused():
    """By a round or by a step; a shorter one is not, nor one without a target."""
    privacy = Privacy(delta=1e-4).calibrate(epsilon=8, task=TASK, plan=PLAN)
    for change, releases in (({"rounds": 21}, 105), ({"local_steps": 6}, 120)):
        spent = round_up(privacy.ledger(releases).epsilon(), ".4g")
        expected = f"at least {spent}, which {releases} releases of this plan spend: calibrate"
        with refused(f"^target_epsilon=8.0: expected {expected}"):
            privacy.resolve(TASK, PLAN.replace(**change))
    privacy.resolve(TASK, PLAN.replace(rounds=10))
    privacy.replace(target_epsilon=None).resolve(TASK, PLAN.replace(rounds=40))


def test_a_ledger_takes_the_numbers_of_each_client():
    privacy = Privacy(noise_multiplier=(1.0, 2.0, 3.0), sample_rate=(0.1, 0.2, 0.3))
    assert privacy.ledger(releases=7).history(1) == ((2.0, 0.2, 7),)
    for trust in ("local", "secagg"):
        assert client(trust=trust).ledger(2).history() == ((1.0, 1.0, 2),), "who uploads is known"
    with refused(r"^sample_rate=None: expected a number, or call resolve"):
        client().ledger(1)
