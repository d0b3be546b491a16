"""The privacy plan: what it refuses, how much noise it asks for, whom the noise protects from."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedlora_lab import theory
from fedlora_lab.methods.plan import Plan
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.plan import Privacy

PLAN = Plan(rounds=20, local_steps=5, batch=16)
TASK = SimpleNamespace(sizes=(60, 90, 120, 150, 300))
RATES = tuple(16 / n for n in TASK.sizes)
SECAGG = {"unit": "client", "trust": "secagg"}


def client(**fields: Any) -> Privacy:
    return Privacy(**dict[str, Any](unit="client", noise_multiplier=1.0, delta=1e-3) | fields)


def noised(**fields: Any) -> Privacy:
    return Privacy(noise_multiplier=1.0, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"unit": "user"},
        *({"clip_norm": value} for value in (-1, math.nan, True, "median", None)),
        *({"noise_multiplier": value} for value in (-0.1, math.nan, False, "1", math.inf, ())),
        {"noise_multiplier": (1.0, None)},
        {"clip_norm": math.inf, "noise_multiplier": (0.0, 1.0)},
        *({"sample_rate": value} for value in (1.5, "all", (0.1, 2.0))),
        {"sample_rate": (0.1,), "noise_multiplier": (1, 2)},
        *({"delta": value} for value in (0, 1, 1e-300, math.nan, None)),
        {"accountant": "gdp"},
        {"trust": "everyone"},
        {"trust": "central"},
        {"target": 0},
        {"honest": 3},
        {"honest": 2.5, **SECAGG},
        {"colluding": 3},
        {"colluding": -1, **SECAGG},
        {"noise_multiplier": (1.0, 2.0), "unit": "client"},
        {"sample_rate": (0.5, 0.5), "unit": "client"},
        {"sample_rate": 0.2, **SECAGG},
    ],
    ids=repr,
)
def test_privacy_refuses_bad_values(fields: dict[str, Any]) -> None:
    name = next(iter(fields))
    with pytest.raises(ValueError, match=rf"^{name}(\[1\])?=.{{1,60}}: expected .{{5,120}}$"):
        Privacy(**fields)


def test_a_plan_is_frozen_and_a_changed_one_forgets_what_no_longer_holds() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Privacy().clip_norm = 2.0  # type: ignore[misc]
    assert (Privacy().trust, client().trust) == ("local", "central")
    assert Privacy().replace(unit="client").trust == "central"
    shared = client(trust="secagg", honest=3)
    assert shared.replace(unit="example").trust == "local"
    assert shared.replace(clip_norm=2.0).honest == 3
    aimed = Privacy(noise_multiplier=1.0, target=8)
    assert aimed.replace(clip_norm=2.0).target == 8
    assert aimed.replace(noise_multiplier=2.0).target is aimed.replace(delta=1e-6).target is None
    lists: dict[str, Any] = {"noise_multiplier": np.array([1, 2]), "sample_rate": [1, 0.5]}
    assert Privacy(**lists) == Privacy(noise_multiplier=(1.0, 2.0), sample_rate=(1.0, 0.5))


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_calibrate_meets_its_target(accountant: str) -> None:
    """Every client, at its own sampling rate, spends at most epsilon and at least 99 % of it."""
    privacy = Privacy(delta=1e-4, accountant=accountant)
    privacy = privacy.calibrate(epsilon=8, task=TASK, plan=PLAN)
    assert (privacy.target, privacy.sample_rate) == (8, RATES)
    sigmas = privacy.noise_multiplier
    assert isinstance(sigmas, tuple) and list(sigmas) == sorted(sigmas, reverse=True)
    for q, sigma in zip(RATES, sigmas, strict=True):
        assert 7.92 <= accounting.epsilon(((sigma, q, 100),), 1e-4, accountant) <= 8
    assert privacy.resolve(TASK, PLAN) == privacy


def test_calibrate_is_one_number_where_clients_are_alike() -> None:
    alike, small = SimpleNamespace(sizes=(100, 100, 100)), SimpleNamespace(sizes=(5, 8))
    equal, full, few = (
        Privacy(delta=1e-4).calibrate(epsilon=3, task=task, plan=PLAN.replace(batch=batch))
        for task, batch in ((alike, 16), (TASK, None), (small, 16))
    )
    assert equal.sample_rate == 0.16 and isinstance(equal.noise_multiplier, float)
    assert full.sample_rate == few.sample_rate == 1  # a batch larger than the data is all of them


def test_calibrate_counts_every_round_and_step() -> None:
    """The worst case: by expected participation an unlucky client would overspend."""
    alike, plan = SimpleNamespace(sizes=(100,) * 8), Privacy(delta=1e-4)
    full, half, none = (
        plan.calibrate(epsilon=3, task=alike, plan=PLAN.replace(**change)).noise_multiplier
        for change in ({}, {"participation": 0.5}, {"rounds": 0})
    )
    assert full == half and none == 0


@pytest.mark.parametrize(("trust", "q"), [("central", 0.2), ("secagg", 1.0), ("local", 1.0)])
def test_calibrate_meets_its_target_in_the_client_unit(trust: str, q: float) -> None:
    many, plan = SimpleNamespace(sizes=(10,) * 200), PLAN.replace(participation=0.2)
    privacy = Privacy(unit="client", trust=trust, delta=1e-3)
    privacy = privacy.calibrate(epsilon=4, task=many, plan=plan)
    assert privacy.sample_rate == q and isinstance(privacy.noise_multiplier, float)
    spent = accounting.epsilon(((privacy.noise_multiplier, q, 20),), 1e-3)
    assert 3.96 <= spent == privacy.ledger(releases=20).epsilon(7) <= 4
    assert privacy.resolve(many, plan.replace(local_steps=50)) == privacy  # rounds alone count


@pytest.mark.parametrize("epsilon", [0, math.nan, math.inf, "8", None, True])
def test_calibrate_refuses_bad_targets(epsilon: Any) -> None:
    with pytest.raises(ValueError, match=r"^epsilon=.*: expected a number in \(0, 1e\+09\]$"):
        Privacy(delta=1e-4).calibrate(epsilon=epsilon, task=TASK, plan=PLAN)


@pytest.mark.parametrize(
    ("privacy", "change", "message"),
    [
        (Privacy(), {}, "noise_multiplier=None: expected a number >= 0, or call calibrate"),
        (noised(sample_rate=0.2), {}, "sample_rate=0.2: expected 0.266667 = batch / n_k of"),
        (noised(sample_rate=RATES), {"batch": 8}, r"sample_rate\[0\]=0.26.*: expected 0.133333"),
        (noised(sample_rate=(0.5, 0.5)), {}, "sample_rate=.*: expected 5 numbers, one per client"),
        (Privacy(noise_multiplier=(1, 1)), {}, "noise_multiplier=.*: expected 5 numbers, one"),
        (client(sample_rate=0.2), {"participation": 0.5}, "sample_rate=0.2: .* 0.5 = particip"),
        (client(trust="secagg", honest=6), {}, r"honest=6: expected a whole number in \[1, 5\]"),
        (client(trust="secagg", colluding=5), {}, "colluding=5: expected at most 4: the others"),
        (client(trust="secagg", honest=3, colluding=3), {}, "colluding=3: expected at most 2"),
    ],
)
def test_resolve_refuses_contradictions(privacy: Privacy, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        privacy.resolve(TASK, PLAN.replace(**change))


def test_resolve_fills_the_sample_rate() -> None:
    assert noised().resolve(TASK, PLAN).sample_rate == RATES
    assert noised().resolve(TASK, PLAN.replace(batch=None)).sample_rate == 1
    for trust, rate in (("central", 0.4), ("local", 1)):
        fixed = client(trust=trust).resolve(TASK, PLAN.replace(participation=0.4))
        assert fixed.sample_rate == rate


def test_delta_must_lie_below_one_over_units() -> None:
    """delta >= 1 / units would allow to publish one unit outright."""
    dozen = SimpleNamespace(sizes=(500,) * 12, persons=(), person_counts=(2,) * 12)
    for privacy, limit in (
        (client(delta=1 / 12), "< 0.0833 = 1 / 12 clients"),
        (noised(delta=16 / 6000), "< 0.000167 = 1 / 6000 examples"),
        (noised(unit="person", delta=0.2), "< 0.0417 = 1 / 24 persons"),
    ):
        with pytest.raises(ValueError, match=rf"^delta=.*: expected {limit}$"):
            privacy.resolve(dozen, PLAN)
        with pytest.raises(ValueError, match=rf"^delta=.*: expected {limit}$"):
            privacy.calibrate(epsilon=1, task=dozen, plan=PLAN)
    assert client(delta=1 / 13).resolve(dozen, PLAN).delta == 1 / 13


@pytest.mark.parametrize("trust", ["local", "secagg", "central"])
def test_noise_of_the_sum_is_sigma_c_under_every_trust(trust: str) -> None:
    """The levels of the closed form; what a run draws by them: test_uploads.py."""
    clients, sigma, clip = 9, 1.3, 0.5
    privacy = client(trust=trust, noise_multiplier=sigma, clip_norm=clip)
    each, server, shares = privacy.noise_levels(clients, PLAN)
    table: Any = theory.trust_level(trust, sigma, clip, clients)
    assert (each, server) == pytest.approx((table.each, table.server))
    variance = clients * table.each**2 + table.server**2
    assert variance == pytest.approx((sigma * clip) ** 2 * (clients if trust == "local" else 1))
    assert shares == {"local": 1, "secagg": clients, "central": 0}[trust]


def test_noise_per_client_and_at_the_ends() -> None:
    privacy = Privacy(noise_multiplier=(1.0, 2.0, 0.0), clip_norm=0.5)
    assert privacy.noise_levels(3, PLAN).each == (0.5, 1.0, 0.0)
    assert noised(clip_norm=0.0).noise_levels(3, PLAN).each == 0
    assert Privacy(clip_norm=math.inf, noise_multiplier=0).noise_levels(3, PLAN).each == 0
    wrong = ((Privacy(), 3), (client(), 0), (client(**SECAGG, honest=5), 3))
    for plan, clients in (*wrong, (client(**SECAGG, colluding=3), 3)):
        with pytest.raises(ValueError, match=r"^(noise_multiplier|clients|honest|colluding)=.*:"):
            plan.noise_levels(clients, PLAN)


def test_honest_shares_come_in_nearly_always() -> None:
    """The default is the 1 % quantile of the uploads: fewer come in less often, but not never.

    Colluding clients are not relied on.
    """
    rng, summed = np.random.default_rng(1), client(trust="secagg")
    for clients, participation, dropout in ((50, 0.5, 0.1), (12, 1.0, 0.2), (200, 0.1, 0.0)):
        plan = PLAN.replace(participation=participation, dropout=dropout)
        levels = summed.noise_levels(clients, plan)
        uploads = rng.binomial(clients, participation * (1 - dropout), 200_000)
        assert np.mean(uploads < levels.shares) < 0.01 <= np.mean(uploads < levels.shares + 1)
        fewer = summed.replace(colluding=3).noise_levels(clients, plan)
        assert fewer.shares == levels.shares - 3
        assert fewer.each == pytest.approx(1 / math.sqrt(fewer.shares))
    assert summed.noise_levels(5, PLAN.replace(participation=0.01)).shares == 1
    assert client(trust="secagg", colluding=49).noise_levels(50, PLAN).shares == 1
    assert client(trust="secagg", honest=4, colluding=6).noise_levels(16, PLAN).each == 0.5


def test_a_plan_longer_than_its_calibration_is_refused() -> None:
    """By a round or by a step; a shorter one is not, nor one without a target."""
    privacy = Privacy(delta=1e-4).calibrate(epsilon=8, task=TASK, plan=PLAN)
    spent = privacy.ledger(105).epsilon()
    expected = f"at least {spent:.4g}, which 105 releases of this plan spend: calibrate"
    with pytest.raises(ValueError, match=f"^target=8.0: expected {expected}"):
        privacy.resolve(TASK, PLAN.replace(rounds=21))
    with pytest.raises(ValueError, match=r"^target=8.0: expected at least 8.9.*, which 120 rel"):
        privacy.resolve(TASK, PLAN.replace(local_steps=6))
    privacy.resolve(TASK, PLAN.replace(rounds=10))
    free = privacy.replace(target=None).resolve(TASK, PLAN.replace(rounds=40))
    assert free.noise_multiplier == privacy.noise_multiplier


def test_entry_and_ledger_take_the_numbers_of_the_participants() -> None:
    privacy = Privacy(noise_multiplier=(1.0, 2.0, 3.0), sample_rate=(0.1, 0.2, 0.3))
    assert privacy.entry((2, 0)) == {"sample_rate": (0.3, 0.1), "noise_multiplier": (3.0, 1.0)}
    assert client(trust="local").entry(None) == {"sample_rate": 1.0, "noise_multiplier": 1.0}
    ledger = privacy.ledger(releases=7)
    assert ledger.history(1) == ((2.0, 0.2, 7),)
    assert (ledger.delta, ledger.accountant, ledger.unit) == (1e-5, "pld", "example")
    assert Privacy().ledger().epsilon() == 0
    assert noised(sample_rate=0.1).ledger(1, reproducible=False).mode == "release"
    with pytest.raises(ValueError, match=r"^sample_rate=None: expected a number, or call resolve"):
        client().entry(None)
    with pytest.raises(ValueError, match=r"^noise_multiplier=None: .* calibrate\(.*\)$"):
        Privacy(sample_rate=0.1).ledger(1)
    # The clip norm alone changes no epsilon.
    loud = client(clip_norm=7.0, noise_multiplier=1.1, sample_rate=0.2).ledger(releases=50)
    assert loud.epsilon() == accounting.epsilon(((1.1, 0.2, 50),), 1e-3)
