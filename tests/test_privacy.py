"""The privacy plan: what it refuses, how much noise it asks for, whom the noise protects from."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedlora_lab import accounting, theory
from fedlora_lab.plan import Plan
from fedlora_lab.privacy import Privacy

PLAN = Plan(rounds=20, local_steps=5, batch=16)
TASK = SimpleNamespace(sizes=(60, 90, 120, 150, 300))


def client(**fields: Any) -> Privacy:
    return Privacy(**{"unit": "client", "noise_multiplier": 1.0, "delta": 1e-3, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unit": "user"}, "^unit='user': expected one of 'example', 'client'$"),
        ({"clip_norm": -1}, "^clip_norm=-1: expected a number >= 0$"),
        ({"clip_norm": math.nan}, "^clip_norm=nan: expected a number >= 0$"),
        ({"clip_norm": True}, "^clip_norm=True: expected a number >= 0$"),
        ({"clip_norm": "1"}, "^clip_norm='1': expected a number >= 0$"),
        ({"clip_norm": None}, "^clip_norm=None: expected a number >= 0$"),
        ({"clip_norm": math.inf, "noise_multiplier": 1.0}, "^clip_norm=inf: expected a finite number when"),
        ({"clip_norm": math.inf, "noise_multiplier": (0.0, 1.0)}, "^clip_norm=inf: expected a finite number when"),
        ({"noise_multiplier": -0.1}, "^noise_multiplier=-0.1: expected a number >= 0$"),
        ({"noise_multiplier": math.nan}, "^noise_multiplier=nan: expected"),
        ({"noise_multiplier": math.inf}, "^noise_multiplier=inf: expected finite$"),
        ({"noise_multiplier": False}, "^noise_multiplier=False: expected"),
        ({"noise_multiplier": "1.0"}, "^noise_multiplier='1.0': expected"),
        ({"noise_multiplier": ()}, r"^noise_multiplier=\(\): expected one number, or one per client$"),
        ({"noise_multiplier": (1.0, -2.0)}, r"^noise_multiplier\[1\]=-2.0: expected a number >= 0$"),
        ({"noise_multiplier": (1.0, None)}, r"^noise_multiplier\[1\]=None: expected"),
        ({"sample_rate": 1.5}, r"^sample_rate=1.5: expected a number in \[0, 1\]$"),
        ({"sample_rate": -0.1}, "^sample_rate=-0.1: expected"),
        ({"sample_rate": (0.1, 2.0)}, r"^sample_rate\[1\]=2.0: expected"),
        ({"sample_rate": "all"}, "^sample_rate='all': expected"),
        ({"delta": 1e-300}, "^delta=1e-300: expected at least 1e-12: noise from 52 random bits ends at 8.2 sigma$"),
        (
            {"relation": "add-or-remove"},
            "^relation='add-or-remove': expected 'zero-out', one unit's contribution re.*n_k",
        ),
        ({"relation": "replace-one"}, "^relation='replace-one': expected 'zero-out'.*epsilon for groups of two$"),
        ({"relation": 3}, "^relation=3: expected 'zero-out', one unit's contribution replaced by nothing$"),
        ({"epsilon": 8}, r"^epsilon=8: expected to be met by a plan: Privacy\(...\).calibrate\(epsilon=..., task=task"),
        ({"unit": "client", "colluding": 3}, "^colluding=3: expected 0 unless trust='secagg'$"),
        ({"unit": "client", "trust": "secagg", "colluding": -1}, "^colluding=-1: expected a whole number >= 0$"),
        ({"releases": -1}, "^releases=-1: expected a whole number >= 0$"),
        ({"delta": 0}, r"^delta=0: expected a number in \(0, 1\)$"),
        ({"delta": 1}, "^delta=1: expected"),
        ({"delta": -1e-5}, "^delta=-1e-05: expected"),
        ({"delta": math.nan}, "^delta=nan: expected"),
        ({"delta": "1e-5"}, "^delta='1e-5': expected"),
        ({"delta": None}, "^delta=None: expected"),
        ({"accountant": "gdp"}, "^accountant='gdp': expected one of 'prv', 'rdp'$"),
        ({"trust": "everyone"}, "^trust='everyone': expected one of"),
        ({"trust": "central"}, "^trust='central': expected 'local' for unit='example': each client noises its own"),
        ({"trust": "secagg"}, "^trust='secagg': expected 'local' for unit='example'"),
        ({"unit": "client", "noise_multiplier": (1.0, 2.0)}, "expected one number for unit='client'"),
        ({"unit": "client", "sample_rate": (0.5, 0.5)}, "expected one number for unit='client'"),
        ({"unit": "client", "trust": "local", "sample_rate": 0.2}, "^sample_rate=0.2: expected 1 or None for trust"),
        (
            {"noise_multiplier": (1.0, 2.0), "sample_rate": (0.1,)},
            r"^sample_rate=\(0.1,\): expected as many numbers as",
        ),
        ({"unit": "client", "honest": 3}, "^honest=3: expected None unless trust='secagg'$"),
        ({"unit": "client", "trust": "secagg", "honest": 0}, "^honest=0: expected a whole number >= 1$"),
        ({"unit": "client", "trust": "secagg", "honest": 2.5}, "^honest=2.5: expected a whole number >= 1$"),
        ({"target": 0}, "^target=0: expected a number > 0$"),
        ({"target": "8"}, "^target='8': expected a number > 0$"),
    ],
)
def test_privacy_refuses_bad_values(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Privacy(**fields)
    assert "\n" not in str(error.value)


def test_privacy_is_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Privacy().clip_norm = 2.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        Privacy("example")  # type: ignore[misc]


def test_defaults_of_trust_follow_the_unit() -> None:
    assert Privacy().trust == "local"
    assert client().trust == "central"
    assert Privacy().replace(unit="client").trust == "central"
    assert client(trust="secagg", honest=3).replace(unit="example").trust == "local"
    assert client(trust="secagg", honest=3).replace(clip_norm=2.0).honest == 3
    aimed = Privacy(noise_multiplier=1.0, target=8)
    assert aimed.replace(clip_norm=2.0).target == 8
    assert aimed.replace(noise_multiplier=2.0).target is aimed.replace(delta=1e-6).target is None
    assert Privacy(clip_norm=math.inf).noise_multiplier is None
    assert Privacy(clip_norm=math.inf, noise_multiplier=0).noise(3, PLAN).each == 0
    lists: dict[str, Any] = {"noise_multiplier": np.array([1, 2]), "sample_rate": [1, 0.5]}
    assert Privacy(**lists) == Privacy(noise_multiplier=(1.0, 2.0), sample_rate=(1.0, 0.5))


def test_calibrate_meets_its_target() -> None:
    """Every client, at its own sampling rate, spends at most epsilon and at least 99 % of it."""
    for accountant in ("prv", "rdp"):
        privacy = Privacy(delta=1e-4, accountant=accountant).calibrate(epsilon=8, task=TASK, plan=PLAN)
        assert privacy.target == 8
        assert privacy.sample_rate == tuple(16 / n for n in TASK.sizes)
        assert isinstance(privacy.noise_multiplier, tuple)
        assert isinstance(privacy.sample_rate, tuple)
        assert list(privacy.noise_multiplier) == sorted(privacy.noise_multiplier, reverse=True)
        for q, sigma in zip(privacy.sample_rate, privacy.noise_multiplier, strict=True):
            assert 7.92 <= accounting.epsilon(((sigma, q, 100),), 1e-4, accountant) <= 8
        ledger = privacy.ledger(releases=100)
        assert all(7.92 <= ledger.epsilon(k) <= 8 for k in range(5))
        assert ledger.epsilon() == max(ledger.epsilon(k) for k in range(5)) == ledger.spent()


def test_calibrate_is_one_number_where_clients_are_alike() -> None:
    alike = SimpleNamespace(sizes=(100, 100, 100))
    privacy = Privacy(delta=1e-4).calibrate(epsilon=3, task=alike, plan=PLAN)
    assert privacy.sample_rate == 0.16
    assert isinstance(privacy.noise_multiplier, float)
    whole = Privacy(delta=1e-4).calibrate(epsilon=3, task=TASK, plan=PLAN.replace(batch=None))
    assert whole.sample_rate == 1
    exact = theory.gdp_epsilon(theory.gaussian_mu(whole.noise_multiplier, 100), 1e-4)  # type: ignore[arg-type]
    assert 2.96 <= exact <= 3
    small = Privacy(delta=1e-4).calibrate(epsilon=3, task=SimpleNamespace(sizes=(5, 8)), plan=PLAN)
    assert small.sample_rate == 1  # a batch larger than the data takes all of them


def test_calibrate_counts_every_round_and_step() -> None:
    """The worst case, all rounds: counting expected participation would let an unlucky client overspend."""
    alike = SimpleNamespace(sizes=(100,) * 8)
    full, half = (
        Privacy(delta=1e-4).calibrate(epsilon=3, task=alike, plan=PLAN.replace(participation=share))
        for share in (1.0, 0.5)
    )
    assert full.noise_multiplier == half.noise_multiplier
    expected_only = accounting.noise_multiplier(3.0, 1e-4, 0.16, 50)
    assert accounting.epsilon(((expected_only, 0.16, 100),), 1e-4) > 3.9
    assert Privacy(delta=1e-4).calibrate(epsilon=3, task=alike, plan=PLAN.replace(rounds=0)).noise_multiplier == 0


def test_calibrate_client_unit() -> None:
    many = SimpleNamespace(sizes=(10,) * 200)
    plan = PLAN.replace(participation=0.2)
    for trust, q in (("central", 0.2), ("secagg", 1.0), ("local", 1.0)):
        privacy = Privacy(unit="client", trust=trust, delta=1e-3).calibrate(epsilon=4, task=many, plan=plan)
        assert privacy.sample_rate == q
        assert isinstance(privacy.noise_multiplier, float)
        assert 3.96 <= accounting.epsilon(((privacy.noise_multiplier, q, 20),), 1e-3) <= 4
        assert privacy.ledger(releases=20).epsilon(7) <= 4


@pytest.mark.parametrize("epsilon", [0, -1, math.nan, math.inf, "8", None, True, 1e-9])
def test_calibrate_refuses_bad_targets(epsilon: Any) -> None:
    with pytest.raises(ValueError, match=r"^epsilon=") as error:
        Privacy(delta=1e-4).calibrate(epsilon=epsilon, task=TASK, plan=PLAN)
    assert "\n" not in str(error.value)


def test_resolve_fills_the_sample_rate() -> None:
    assert Privacy(noise_multiplier=1.0).resolve(TASK, PLAN).sample_rate == tuple(16 / n for n in TASK.sizes)
    assert Privacy(noise_multiplier=1.0).resolve(TASK, PLAN.replace(batch=None)).sample_rate == 1
    plan = PLAN.replace(participation=0.4)
    assert client().resolve(TASK, plan).sample_rate == 0.4
    assert client(trust="local").resolve(TASK, plan).sample_rate == 1
    calibrated = Privacy(delta=1e-4).calibrate(epsilon=8, task=TASK, plan=PLAN)
    assert calibrated.resolve(TASK, PLAN) == calibrated


@pytest.mark.parametrize(
    ("privacy", "plan", "message"),
    [
        (
            Privacy(),
            PLAN,
            r"^noise_multiplier=None: expected a number >= 0, or call calibrate\(epsilon=..., task=..., pl",
        ),
        (Privacy(noise_multiplier=1.0, sample_rate=0.2), PLAN, "^sample_rate=0.2: expected 0.266667 = batch / n_k of"),
        (
            Privacy(noise_multiplier=1.0, sample_rate=tuple(16 / n for n in TASK.sizes)),
            PLAN.replace(batch=8),
            r"^sample_rate\[0\]=0.26666666666666666: expected 0.133333 = batch / n_k of this plan$",
        ),
        (Privacy(noise_multiplier=1.0, sample_rate=(0.5, 0.5)), PLAN, "^sample_rate=.*: expected 5 numbers, one per"),
        (Privacy(noise_multiplier=(1.0, 1.0)), PLAN, "^noise_multiplier=.*: expected 5 numbers, one per client$"),
        (client(sample_rate=0.2), PLAN.replace(participation=0.5), "^sample_rate=0.2: expected 0.5 = participation"),
        (client(trust="secagg", honest=6), PLAN, r"^honest=6: expected a whole number in \[1, 5\]$"),
        (client(trust="secagg", colluding=5), PLAN, "^colluding=5: expected at most 4: the others are honest$"),
        (
            client(trust="secagg", honest=3, colluding=3),
            PLAN,
            "^colluding=3: expected at most 2: the others are honest",
        ),
        (client(delta=0.2), PLAN, "^delta=0.2: expected < 0.2 = 1 / 5 clients$"),
        (Privacy(noise_multiplier=1.0, delta=0.01), PLAN, "^delta=0.01: expected < 0.00139 = 1 / 720 examples$"),
    ],
)
def test_resolve_refuses_contradictions(privacy: Privacy, plan: Plan, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        privacy.resolve(TASK, plan)
    assert "\n" not in str(error.value)


def test_delta_must_lie_below_one_over_units() -> None:
    """delta >= 1 / units would allow to publish one unit outright: 1 / 12 for 12 clients, 1 / batches, are refused."""
    dozen = SimpleNamespace(sizes=(500,) * 12)
    for delta in (1 / 12, 0.1, 0.5):
        with pytest.raises(ValueError, match=r"^delta=.*: expected < 0.0833 = 1 / 12 clients$"):
            client(delta=delta).resolve(dozen, PLAN)
        with pytest.raises(ValueError, match=r"^delta=.*: expected < 0.0833 = 1 / 12 clients$"):
            Privacy(unit="client", delta=delta).calibrate(epsilon=1, task=dozen, plan=PLAN)
    with pytest.raises(ValueError, match=r"1 / 6000 examples"):
        Privacy(noise_multiplier=1.0, delta=16 / 6000).resolve(dozen, PLAN)
    assert client(delta=1 / 13).resolve(dozen, PLAN).delta == 1 / 13


def test_trust_levels_add_up() -> None:
    """Draw the noise as the levels say and measure: the sum is hidden by sigma C under every trust, within 4 errors."""
    clients, sigma, clip, draws = 9, 1.3, 0.5, 40_000
    rng = np.random.default_rng(0)
    for trust in ("local", "secagg", "central"):
        each, server, shares = client(trust=trust, noise_multiplier=sigma, clip_norm=clip).noise(clients, PLAN)
        alone = rng.normal(0, each, (draws, clients))  # type: ignore[arg-type]
        total = alone.sum(1) + rng.normal(0, server, draws)
        table = theory.trust_level(trust, sigma, clip, clients)
        assert (each, server) == pytest.approx((table.each, table.server))
        error = 4 / math.sqrt(2 * draws)
        assert total.std() / clients == pytest.approx(table.mean, rel=error)
        needed = {"local": sigma * clip * math.sqrt(clients), "secagg": sigma * clip, "central": sigma * clip}[trust]
        assert total.std() == pytest.approx(needed, rel=error)
        # what hides one upload from somebody who sees it alone
        assert alone[:, 0].std() == pytest.approx(table.alone * clip, rel=error, abs=1e-12)
        assert shares == {"local": 1, "secagg": clients, "central": 0}[trust]


def test_noise_per_client_and_at_the_ends() -> None:
    privacy = Privacy(noise_multiplier=(1.0, 2.0, 0.0), clip_norm=0.5)
    assert privacy.noise(3, PLAN).each == (0.5, 1.0, 0.0)
    assert Privacy(noise_multiplier=1.0, clip_norm=0.0).noise(3, PLAN).each == 0
    with pytest.raises(ValueError, match=r"^noise_multiplier=None: expected"):
        Privacy().noise(3, PLAN)
    with pytest.raises(ValueError, match=r"^clients=0: expected"):
        client().noise(0, PLAN)
    with pytest.raises(ValueError, match=r"^honest=5: expected a whole number in \[1, 3\]$"):
        client(trust="secagg", honest=5).noise(3, PLAN)


def test_honest_shares_come_in_nearly_always() -> None:
    """The default share is the 1 % quantile of the uploads: fewer come in less than 1 % of the rounds, not never."""
    rng = np.random.default_rng(1)
    for clients, participation, dropout in ((50, 0.5, 0.1), (12, 1.0, 0.2), (200, 0.1, 0.0)):
        plan = PLAN.replace(participation=participation, dropout=dropout)
        levels = client(trust="secagg").noise(clients, plan)
        uploads = rng.binomial(clients, participation * (1 - dropout), 200_000)
        assert np.mean(uploads < levels.shares) < 0.01
        assert np.mean(uploads < levels.shares + 1) >= 0.01
        assert levels.each == pytest.approx(1 / math.sqrt(levels.shares))
    assert client(trust="secagg").noise(7, PLAN).shares == 7
    assert client(trust="secagg").noise(5, PLAN.replace(participation=0.01)).shares == 1
    assert client(trust="secagg", honest=4).noise(16, PLAN).each == 0.5


def test_colluding_clients_are_not_relied_on() -> None:
    plan = PLAN.replace(participation=0.5)
    everyone = client(trust="secagg").noise(50, plan).shares
    levels = client(trust="secagg", colluding=6).noise(50, plan)
    assert levels.shares == everyone - 6
    assert levels.each == pytest.approx(1 / math.sqrt(everyone - 6))
    assert client(trust="secagg", colluding=49).noise(50, plan).shares == 1
    assert client(trust="secagg", honest=4, colluding=6).noise(50, plan).each == 0.5
    with pytest.raises(ValueError, match=r"^colluding=50: expected at most 49: the others are honest$"):
        client(trust="secagg", colluding=50).noise(50, plan)


def test_a_plan_longer_than_its_calibration_is_refused() -> None:
    """Calibrated for 100 releases of each client and 8; 200 would spend 12: refused with both numbers."""
    privacy = Privacy(delta=1e-4).calibrate(epsilon=8, task=TASK, plan=PLAN)
    assert (privacy.target, privacy.releases) == (8, 100)
    spent = privacy.ledger(200).epsilon()
    with pytest.raises(ValueError, match=r"^releases=200: expected at most 100, for which epsilon = 8 was") as error:
        privacy.resolve(TASK, PLAN.replace(rounds=40))
    assert f"(200 would spend {spent:.3g}): calibrate for this plan, or replace(target=None)" in str(error.value)
    for longer in (PLAN.replace(rounds=21), PLAN.replace(local_steps=6)):
        with pytest.raises(ValueError, match=r"^releases="):
            privacy.resolve(TASK, longer)
    assert privacy.resolve(TASK, PLAN.replace(rounds=10)).releases == 100
    free = privacy.replace(target=None)
    assert free.releases is None
    assert free.resolve(TASK, PLAN.replace(rounds=40)).noise_multiplier == privacy.noise_multiplier
    one = Privacy(unit="client", delta=1e-3).calibrate(epsilon=8, task=TASK, plan=PLAN)
    assert one.releases == PLAN.rounds
    assert one.resolve(TASK, PLAN.replace(local_steps=50)) == one


def test_a_share_seen_alone_is_weak() -> None:
    """sigma C / sqrt(m) per client protects the sum; to the server that sees one upload it is worth sigma / sqrt(m)."""
    each, _, _ = client(trust="secagg", noise_multiplier=2.0).noise(100, PLAN)
    together = accounting.epsilon(((2.0, 1.0, 1),), 1e-3)
    alone = accounting.epsilon(((each, 1.0, 1),), 1e-3)  # type: ignore[arg-type]
    assert alone > 10 * together


def test_entry_and_ledger_take_the_numbers_of_the_participants() -> None:
    privacy = Privacy(noise_multiplier=(1.0, 2.0, 3.0), sample_rate=(0.1, 0.2, 0.3))
    assert privacy.entry((2, 0)) == {"sample_rate": (0.3, 0.1), "noise_multiplier": (3.0, 1.0)}
    assert client(trust="local").entry(None) == {"sample_rate": 1.0, "noise_multiplier": 1.0}
    with pytest.raises(ValueError, match=r"^sample_rate=None: expected a number, or call resolve first$"):
        client().entry(None)
    ledger = privacy.ledger(releases=7)
    assert ledger.history(1) == ((2.0, 0.2, 7),)
    assert (ledger.delta, ledger.accountant, ledger.unit) == (1e-5, "prv", "example")
    assert Privacy().ledger().epsilon() == 0
    with pytest.raises(ValueError, match=r"^noise_multiplier=None: expected"):
        Privacy(sample_rate=0.1).ledger(releases=1)
    with pytest.raises(ValueError, match=r"^releases=-1: expected a whole number >= 0$"):
        privacy.ledger(releases=-1)
    assert Privacy(noise_multiplier=1.0, sample_rate=0.1).ledger(1, reproducible=False).mode == "release"


def test_the_sentence_of_the_manual() -> None:
    privacy = Privacy(unit="client", clip_norm=0.3, noise_multiplier=1.1, sample_rate=0.2, delta=1e-3)
    spent = privacy.ledger(releases=50).epsilon()
    assert spent == accounting.epsilon(((1.1, 0.2, 50),), 1e-3)
    assert spent == pytest.approx(5.98, abs=0.01)
    assert privacy.replace(clip_norm=7.0).ledger(releases=50).epsilon() == spent
