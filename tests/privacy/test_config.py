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
from fedlora_lab.privacy.config import Privacy

PLAN = Plan(rounds=20, local_steps=5, batch=16)
TASK = SimpleNamespace(sizes=(60, 90, 120, 150, 300))
RATES = tuple(16 / n for n in TASK.sizes)


def client(**fields: Any) -> Privacy:
    return Privacy(**dict[str, Any](unit="client", noise_multiplier=1.0, delta=1e-3) | fields)


NUMBER, RATE, DELTA = "a number >= 0", r"a number in \[0, 1\]", r"a number in \(0, 1\)"
ZERO_OUT = "'zero-out', one unit's contribution replaced by nothing"
SECAGG = {"unit": "client", "trust": "secagg"}


@pytest.mark.parametrize(
    ("field", "values", "expected"),
    [
        ("unit", ["user"], "one of 'example', 'person', 'client'"),
        ("person_examples", [0, 2.5], "a whole number >= 1"),
        ("person_examples", [4], "None unless unit='person'"),
        ("clip_norm", [-1, math.nan, True, "median", None, lambda norms: 1.0], NUMBER),
        ("noise_multiplier", [-0.1, math.nan, False, "1.0"], NUMBER),
        ("noise_multiplier", [math.inf], "a finite number"),
        ("noise_multiplier", [()], "one number, or one per client"),
        ("sample_rate", [1.5, -0.1, "all"], RATE),
        ("delta", [0, 1, -1e-5, math.nan, "1e-5", None], DELTA),
        ("delta", [1e-300], "at least 1e-12: noise from 52 random bits ends at 8.2 sigma"),
        ("accountant", ["gdp"], "one of 'pld', 'rdp'"),
        ("relation", ["add-or-remove"], f"{ZERO_OUT}; sums are .* sizes are public here"),
        ("relation", ["replace-one"], f"{ZERO_OUT}; .* read epsilon for groups of two"),
        ("relation", [3], ZERO_OUT),
        ("trust", ["everyone"], "one of 'local', 'secagg', 'central'"),
        ("trust", ["central", "secagg"], "'local' for unit='example': each client noises .* alone"),
        ("target", [0, "8"], "a number > 0"),
        ("releases", [-1, 1.5], "a whole number >= 0"),
        ("honest", [3], "None unless trust='secagg'"),
        ("colluding", [3], "0 unless trust='secagg'"),
        ("epsilon", [8], r"to be met by a plan: Privacy\(...\).calibrate\(epsilon=..., task=.*\)"),
        ("max_grad_norm", [1.0], "clip_norm, the name of this bound here"),
    ],
)
def test_privacy_refuses_bad_values(field: str, values: list[Any], expected: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field}=.*: expected {expected}$"):
            Privacy(**{field: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip_norm": math.inf, "noise_multiplier": (0.0, 1.0)}, "clip_norm=inf: .* is sigma C"),
        ({"noise_multiplier": (1.0, None)}, rf"noise_multiplier\[1\]=None: expected {NUMBER}"),
        ({"sample_rate": (0.1, 2.0)}, rf"sample_rate\[1\]=2.0: expected {RATE}"),
        ({"unit": "client", "noise_multiplier": (1.0, 2.0)}, ".* common to all"),
        ({"unit": "client", "sample_rate": (0.5, 0.5)}, ".*one number for unit='client': .*"),
        ({**SECAGG, "sample_rate": 0.2}, "sample_rate=0.2: expected 1 or None .* who takes part"),
        ({"noise_multiplier": (1, 2), "sample_rate": (0.1,)}, ".*as many numbers as noise_mul.*"),
        ({**SECAGG, "honest": 2.5}, "honest=2.5: expected a whole number >= 1"),
        ({**SECAGG, "colluding": -1}, "colluding=-1: expected a whole number >= 0"),
    ],
)
def test_privacy_refuses_values_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Privacy(**fields)


def test_a_plan_is_frozen_and_a_changed_one_forgets_what_no_longer_holds() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Privacy().clip_norm = 2.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        Privacy("example")  # type: ignore[misc]
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


@pytest.mark.slow
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_calibrate_meets_its_target(accountant: str) -> None:
    """Every client, at its own sampling rate, spends at most epsilon and at least 99 % of it."""
    privacy = Privacy(delta=1e-4, accountant=accountant)
    privacy = privacy.calibrate(epsilon=8, task=TASK, plan=PLAN)
    sigmas = accounting.noise_multipliers(8, 1e-4, RATES, 100, accountant)
    assert (privacy.target, privacy.sample_rate, privacy.noise_multiplier) == (8, RATES, sigmas)
    assert list(sigmas) == sorted(sigmas, reverse=True)
    for q, sigma in zip(RATES, sigmas, strict=True):
        assert 7.92 <= accounting.epsilon(((sigma, q, 100),), 1e-4, accountant) <= 8
    ledger = privacy.ledger(releases=100)
    assert all(7.92 <= ledger.epsilon(k) <= 8 for k in range(5))
    assert privacy.resolve(TASK, PLAN) == privacy


def test_calibrate_is_one_number_where_clients_are_alike() -> None:
    alike, small = SimpleNamespace(sizes=(100, 100, 100)), SimpleNamespace(sizes=(5, 8))
    one, whole, few = (
        Privacy(delta=1e-4).calibrate(epsilon=3, task=task, plan=PLAN.replace(batch=batch))
        for task, batch in ((alike, 16), (TASK, None), (small, 16))
    )
    assert one.sample_rate == 0.16 and isinstance(one.noise_multiplier, float)
    assert whole.sample_rate == few.sample_rate == 1  # a batch larger than the data is all of them


def test_calibrate_counts_every_round_and_step() -> None:
    """The worst case: by expected participation an unlucky client would overspend."""
    alike, plan = SimpleNamespace(sizes=(100,) * 8), Privacy(delta=1e-4)
    full, half, none = (
        plan.calibrate(epsilon=3, task=alike, plan=PLAN.replace(**change)).noise_multiplier
        for change in ({}, {"participation": 0.5}, {"rounds": 0})
    )
    assert full == half and none == 0
    expected_only = accounting.noise_multiplier(3.0, 1e-4, 0.16, 50)
    assert accounting.epsilon(((expected_only, 0.16, 100),), 1e-4) > 3.9


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


def noised(**fields: Any) -> Privacy:
    return Privacy(noise_multiplier=1.0, **fields)


OTHERS = "the others are honest"


@pytest.mark.parametrize(
    ("privacy", "change", "message"),
    [
        (Privacy(), {}, r"noise_multiplier=None: expected a number >= 0, or call calibrate\(.*\)"),
        (
            noised(sample_rate=0.2),
            {},
            "sample_rate=0.2: expected 0.266667 = batch / n_k of .* plan",
        ),
        (
            noised(sample_rate=RATES),
            {"batch": 8},
            r"sample_rate\[0\]=0.26.*: expected 0.133333 = .*",
        ),
        (noised(sample_rate=(0.5, 0.5)), {}, "sample_rate=.*: expected 5 numbers, one per client"),
        (Privacy(noise_multiplier=(1, 1)), {}, "noise_multiplier=.*: expected 5 numbers, one .*"),
        (client(sample_rate=0.2), {"participation": 0.5}, "sample_rate=0.2: .* 0.5 = partic.*"),
        (client(trust="secagg", honest=6), {}, r"honest=6: expected a whole number in \[1, 5\]"),
        (client(trust="secagg", colluding=5), {}, f"colluding=5: expected at most 4: {OTHERS}"),
        (client(trust="secagg", honest=3, colluding=3), {}, f".*=3: expected at most 2: {OTHERS}"),
    ],
)
def test_resolve_refuses_contradictions(privacy: Privacy, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        privacy.resolve(TASK, PLAN.replace(**change))


def test_resolve_fills_the_sample_rate() -> None:
    assert noised().resolve(TASK, PLAN).sample_rate == RATES
    assert noised().resolve(TASK, PLAN.replace(batch=None)).sample_rate == 1
    for trust, rate in (("central", 0.4), ("local", 1)):
        fixed = client(trust=trust).resolve(TASK, PLAN.replace(participation=0.4))
        assert fixed.sample_rate == rate


def test_delta_must_lie_below_one_over_units() -> None:
    """delta >= 1 / units would allow to publish one unit outright."""
    dozen = SimpleNamespace(sizes=(500,) * 12)
    for privacy, limit in (
        (client(delta=1 / 12), "< 0.0833 = 1 / 12 clients"),
        (client(delta=0.5), "< 0.0833 = 1 / 12 clients"),
        (noised(delta=16 / 6000), "< 0.000167 = 1 / 6000 examples"),
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
    each, server, shares = client(trust=trust, noise_multiplier=sigma, clip_norm=clip).noise_levels(
        clients, PLAN
    )
    table: Any = theory.trust_level(trust, sigma, clip, clients)
    assert (each, server) == pytest.approx((table.each, table.server))
    whole = clients * table.each**2 + table.server**2
    assert whole == pytest.approx((sigma * clip) ** 2 * (clients if trust == "local" else 1))
    assert shares == {"local": 1, "secagg": clients, "central": 0}[trust]


def test_noise_per_client_and_at_the_ends() -> None:
    privacy = Privacy(noise_multiplier=(1.0, 2.0, 0.0), clip_norm=0.5)
    assert privacy.noise_levels(3, PLAN).each == (0.5, 1.0, 0.0)
    assert noised(clip_norm=0.0).noise_levels(3, PLAN).each == 0
    assert Privacy(clip_norm=math.inf, noise_multiplier=0).noise_levels(3, PLAN).each == 0
    for wrong, clients, message in (
        (Privacy(), 3, r"noise_multiplier=None: expected a number >= 0, or call calibrate\(.*\)"),
        (client(), 0, "clients=0: expected a whole number >= 1"),
        (client(trust="secagg", honest=5), 3, r"honest=5: expected a whole number in \[1, 3\]"),
        (client(trust="secagg", colluding=3), 3, f"colluding=3: expected at most 2: {OTHERS}"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            wrong.noise_levels(clients, PLAN)


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
        assert levels.each == pytest.approx(1 / math.sqrt(levels.shares))
        fewer = summed.replace(colluding=3).noise_levels(clients, plan)
        assert fewer.shares == levels.shares - 3
        assert fewer.each == pytest.approx(1 / math.sqrt(fewer.shares))
    assert summed.noise_levels(7, PLAN).shares == 7
    assert summed.noise_levels(5, PLAN.replace(participation=0.01)).shares == 1
    assert client(trust="secagg", colluding=49).noise_levels(50, PLAN).shares == 1
    assert client(trust="secagg", honest=4, colluding=6).noise_levels(16, PLAN).each == 0.5


@pytest.mark.slow
def test_a_plan_longer_than_its_calibration_is_refused() -> None:
    """Calibrated for 100 releases of each client and 8: 200 are refused with both numbers."""
    privacy = Privacy(delta=1e-4).calibrate(epsilon=8, task=TASK, plan=PLAN)
    assert (privacy.target, privacy.releases) == (8, 100)
    spent, longer = privacy.ledger(200).epsilon(), PLAN.replace(rounds=40)
    expected = (
        r"at most 100, for which epsilon = 8 was calibrated \(200 would spend "
        rf"{spent:.3g}\): calibrate for this plan, or replace\(target=None\)"
    )
    with pytest.raises(ValueError, match=f"^releases=200: expected {expected}$"):
        privacy.resolve(TASK, longer)
    with pytest.raises(ValueError, match=r"^releases=120: expected at most 100, for which"):
        privacy.resolve(TASK, PLAN.replace(local_steps=6))
    assert privacy.resolve(TASK, PLAN.replace(rounds=10)).releases == 100
    free = privacy.replace(target=None)
    assert free.releases is None
    assert free.resolve(TASK, longer).noise_multiplier == privacy.noise_multiplier


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
    with pytest.raises(ValueError, match=r"^releases=-1: expected a whole number >= 0$"):
        privacy.ledger(-1)
    # The clip norm alone changes no epsilon.
    loud = client(clip_norm=7.0, noise_multiplier=1.1, sample_rate=0.2).ledger(releases=50)
    assert loud.epsilon() == accounting.epsilon(((1.1, 0.2, 50),), 1e-3)
    assert loud.epsilon() == pytest.approx(5.98, abs=0.01)
