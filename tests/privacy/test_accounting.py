"""Epsilon against dp-accounting, Opacus' own classes, closed forms and published numbers."""

import itertools
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
from commands import SMALL, call
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.accounting import EPSILON_ERROR, ORDERS, epsilon, noise_multiplier
from fedlora_lab.privacy.accounting import _renyi_epsilon as renyi

Entry = tuple[float, float, int]
WHOLE = tuple(range(2, 33))
both = pytest.mark.parametrize("accountant", ["prv", "rdp"])


def dp_accounted(accountant: Any, history: tuple[Entry, ...], delta: float) -> float:
    for sigma, q, steps in history:
        accountant.compose(dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(sigma)), steps)
    return accountant.get_epsilon(delta)


def pld(history: tuple[Entry, ...], delta: float, fine: bool = True) -> float:
    """dp-accounting's privacy loss distribution; a small epsilon once more on a finer grid."""
    value = dp_accounted(PLDAccountant(value_discretization_interval=1e-3), history, delta)
    if fine and value <= 1:
        value = dp_accounted(PLDAccountant(value_discretization_interval=1e-4), history, delta)
    return value


def random_histories(
    count: int, seed: int, parts: int = 1, largest: float = 15.0
) -> list[tuple[tuple[Entry, ...], float]]:
    """Histories with their delta, log-uniform in q, sigma and steps, of reportable epsilon."""
    rng, chosen = np.random.default_rng(seed), []

    def draw(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    while len(chosen) < count:
        history = tuple((draw(0.5, 8), draw(0.003, 1), int(draw(1, 1500))) for _ in range(parts))
        delta = float(10 ** rng.uniform(-7, -3))
        if renyi(accounting.merge_history(history), delta, WHOLE) < largest:
            chosen.append((history, delta))
    return chosen


def test_epsilon_equals_published_values() -> None:
    """Published values at q = 0.1 and of a mixed history, to the digits published."""
    published = {(3.0, 512): 3.770, (9.66, 512): 1.000, (3.0, 155): 1.996, (3.0, 156): 2.003}
    for (sigma, steps), value in published.items():
        reported = epsilon(((sigma, 0.1, steps),), 1e-6)
        assert value - 1e-3 <= reported <= value + 1e-3 + EPSILON_ERROR
    rdp = theory.sampled_gaussian_rdp(np.arange(2, 65), 0.1, 3.0, 512)
    value, order = theory.rdp_to_epsilon(np.arange(2, 65), rdp, 1e-6)
    assert value == pytest.approx(4.052, abs=1e-3) and order == 7
    # fractional orders are finer than whole ones, so the library's RDP value may only be smaller
    assert 4.045 < epsilon(((3.0, 0.1, 512),), 1e-6, "rdp") <= value
    mixed = ((1.0, 1e-5, 10), (3.0, 1e-4, 4))
    rdp = sum(theory.sampled_gaussian_rdp(np.array(WHOLE), q, s, n) for s, q, n in mixed)
    value, order = theory.rdp_to_epsilon(np.array(WHOLE), np.asarray(rdp), 1e-5)
    assert renyi(mixed, 1e-5, WHOLE) == pytest.approx(value, rel=1e-6)
    assert value == pytest.approx(0.336, abs=1e-3) and order == 23
    # Of clients, from noise that was meant for examples; and the central limit, which is too small.
    assert theory.gdp_epsilon(theory.gaussian_mu(1.12, 100), 1 / 12) == pytest.approx(51, abs=0.5)
    assert theory.gdp_epsilon(theory.clt_mu(0.1, 3.0, 512), 1e-6) == pytest.approx(3.668, abs=1e-3)


@pytest.mark.slow
def test_rdp_equals_dp_accounting() -> None:
    """Two independent implementations, the same whole orders, one to three parts: 1e-3 relative."""
    whole = tuple(order for order in ORDERS if float(order).is_integer())
    cases = (*random_histories(6, 1), *random_histories(2, 2, 2), *random_histories(2, 3, 3))
    for history, delta in cases:
        value = renyi(history, delta, whole)
        other = dp_accounted(RdpAccountant(list(whole)), history, delta)
        assert value == pytest.approx(other, rel=1e-3)
        assert epsilon(history, delta, "rdp") <= value


CURVES = {  # noise, q, releases: advantage; TPR at FPR 0.001, 0.01, 0.1
    (3.0, 0.1, 512): (0.29950, 0.01054, 0.06096, 0.30589),
    (1.0, 0.01, 1000): (0.16110, 0.00407, 0.02915, 0.19425),
    (0.5, 0.002, 10_000): (0.44140, 0.04791, 0.16055, 0.47843),
    (1.0, 1.0, 1): (0.38292, 0.01830, 0.09236, 0.38914),
}
RATES = np.array([0.001, 0.01, 0.1])


@pytest.mark.slow
@pytest.mark.parametrize("entry", CURVES, ids=str)
def test_tradeoff_equals_golden_numbers(entry: Entry) -> None:
    """Computed apart, from losses and probabilities of dp-accounting. The third is the one where a
    finer grid's probabilities add up to 1.0004 or 1.012: scaled back to 1 they give .157 or .032
    for .161."""
    found = (accounting.advantage((entry,)), *accounting.tradeoff_curve((entry,), RATES))
    assert found == pytest.approx(CURVES[entry], abs=1e-4)


@pytest.mark.slow
def test_tradeoff_equals_riskcal() -> None:
    """Two histories of two parts, and one direction that is not the other's."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
    from riskcal.analysis import get_advantage_from_pld, get_beta_from_pld

    rates = np.array([0.001, 0.01, 0.1, 0.5, 0.9])
    for history in (((1.0, 0.1, 60), (2.0, 1.0, 3)), ((0.7, 0.02, 30), (1.5, 0.3, 20))):
        mesh: Any = {"value_discretization_interval": 1e-3}
        ones = [from_gaussian_mechanism(s, sampling_prob=q, **mesh) for s, q, _ in history]
        parts = [one.self_compose(n) for one, (*_, n) in zip(ones, history)]
        whole = parts[0].compose(parts[1])
        ours = accounting.tradeoff_curve(history, rates)
        assert ours == pytest.approx(1 - get_beta_from_pld(whole, alpha=rates), abs=2e-4)
        assert accounting.advantage(history) == pytest.approx(
            get_advantage_from_pld(whole), abs=2e-4
        )


@pytest.mark.slow
def test_tradeoff_lies_below_every_epsilon() -> None:
    """Also where no grid fits; from guessing, without a release, to knowing, without noise."""
    rates = np.linspace(0, 1, 101)
    for history in (((1.0, 0.1, 60),), ((100.0, 0.001, 10),), ((0.7, 1e-4, 10**6),)):
        found = accounting.tradeoff_curve(history, rates)
        assert (found >= rates).all() and (np.diff(found) >= 0).all() and found[-1] == 1
        assert np.max(found - rates) <= accounting.advantage(history) + 1e-12
        for delta in (1e-6, 1e-3):
            loose = theory.membership_bound(rates, epsilon(history, delta), delta)
            assert (found <= loose + 1e-3).all()
    assert (accounting.tradeoff_curve(((2.0, 0.0, 5),), rates) == rates).all()
    assert accounting.tradeoff_curve(((None, 0.1, 1),), rates).min() == 1
    assert (accounting.advantage(()), accounting.advantage(((0, 0.5, 1),))) == (0, 1)


def test_fractional_orders_equal_an_integral() -> None:
    """The divergence of order a is log E_Q (P / Q)^a / (a - 1), here integrated on a fine grid."""
    fractional = tuple(order for order in ORDERS if not float(order).is_integer())[::9]
    for (history, _), order in itertools.product(random_histories(4, 6), fractional):
        sigma, q, _ = history[0]
        x = np.linspace(-40 * sigma, 40 * sigma + 20 * order, 100_001)
        log_ratio = np.logaddexp(np.log1p(-q), np.log(q) + (2 * x - 1) / (2 * sigma**2))
        log_q = -(x**2) / (2 * sigma**2) - np.log(sigma * np.sqrt(2 * np.pi))
        expected = np.log(np.trapezoid(np.exp(order * log_ratio + log_q), x)) / (order - 1)
        value = accounting._release_rdp(sigma, q, ORDERS)[ORDERS.index(order)]
        assert value == pytest.approx(expected, rel=1e-6, abs=1e-10)


@pytest.mark.slow
def test_prv_within_stated_error_of_pld() -> None:
    """Never below dp-accounting's PLD (but for its discretisation), above by the error at most."""
    # rare draws with little noise: the loss of one release is nearly an atom, and the mean must be
    # kept to the digit
    rare = [(((0.4, 1e-4, 100),), 1e-6), (((0.5, 0.003, 1000),), 1e-6), (((0.3, 2e-4, 64),), 1e-5)]
    cases = random_histories(16, 4, largest=8) + rare
    gaps = np.array([epsilon(history, delta) - pld(history, delta) for history, delta in cases])
    assert EPSILON_ERROR <= 1e-2
    assert gaps.min() > -1e-3 and gaps.max() <= EPSILON_ERROR
    smallest = ((1.0, 0.1, 100),)
    assert epsilon(smallest, 1e-12) >= pld(smallest, 1e-12) - 1e-3


@pytest.mark.slow
def test_history_is_composed_not_approximated() -> None:
    """sigma and q that change on the way: PLD again; the usual short cuts are off by more."""
    for history, delta in random_histories(4, 5, parts=3, largest=8):
        assert -1e-3 < epsilon(history, delta) - pld(history, delta) <= EPSILON_ERROR
    history = ((0.6, 0.01, 100), (4.0, 0.4, 100))
    exact = epsilon(history, 1e-5)
    assert abs(epsilon(((2.3, 0.205, 200),), 1e-5) - exact) > 10 * EPSILON_ERROR
    assert sum(epsilon((entry,), 1e-5) for entry in history) - exact > 10 * EPSILON_ERROR


def test_full_batches_have_the_exact_epsilon() -> None:
    """Without sampling epsilon has a closed form, also where sigma changes."""
    grid = itertools.product((0.01, 0.8, 2.0, 10.0), (1, 7, 200), (1e-3, 1e-6, 1e-12))
    for sigma, steps, delta in grid:
        exact = theory.gdp_epsilon(theory.gaussian_mu(sigma, steps), delta)
        assert epsilon(((sigma, 1.0, steps),), delta) == pytest.approx(exact, rel=1e-10)
        assert epsilon(((sigma, 1.0, steps),), delta, "rdp") >= exact
    # 105.1 was stated
    assert epsilon(((2.5, 1.0, 700),), 1e-5) == pytest.approx(100.296314, abs=1e-5)
    mixed = ((2.0, 1.0, 30), (0.7, 1.0, 2), (5.0, 1.0, 300))
    mu = math.sqrt(sum(steps / sigma**2 for sigma, _, steps in mixed))
    assert epsilon(mixed, 1e-5) == pytest.approx(theory.gdp_epsilon(mu, 1e-5), rel=1e-10)
    assert epsilon(mixed[:1], 1e-5) == pytest.approx(pld(mixed[:1], 1e-5), abs=2e-3)
    for target, steps in itertools.product((1e-3, 0.1, 8.0, 1000.0), (1, 700)):
        sigma = noise_multiplier(target, 1e-5, 1.0, steps)
        assert (1 - 1e-6) * target <= epsilon(((sigma, 1.0, steps),), 1e-5) <= target


@pytest.mark.slow
@pytest.mark.parametrize(
    ("history", "delta"),
    [
        (((1.0, 0.01, 100_000),), 1e-5),
        (((1.0, 0.05, 20_000),), 1e-10),
        (((0.3, 0.5, 100), (2.0, 0.01, 3000)), 1e-9),
    ],
)
def test_where_no_grid_fits_the_bound_is_tight(history: tuple[Entry, ...], delta: float) -> None:
    """Many steps, tiny delta: dp-accounting's distribution, no longer the larger Renyi bound."""
    with pytest.raises(accounting._NO_GRID):
        accounting.prv_epsilon(accounting.merge_history(history), delta)
    value = epsilon(history, delta)
    assert value == pytest.approx(pld(history, delta, fine=False), rel=2e-3)
    assert epsilon(history, delta, "rdp") > 1.02 * value


@pytest.mark.slow
def test_hardly_any_noise_is_counted_without_a_word() -> None:
    """No grid holds it; what is stated is a bound, finite or not, and nothing is warned about."""
    least = epsilon(((0.1, 0.5, 100),), 1e-5)
    for sigma in (0.05, 1e-200):
        history = ((sigma, 0.5, 100),)
        assert least <= epsilon(history, 1e-5) <= epsilon(history, 1e-5, "rdp")


@pytest.mark.slow
def test_many_distinct_sizes_spend_at_most_the_target() -> None:
    """More sizes than groups: every client, counted by itself, spends at most the target."""
    assert accounting.group_rates((0.5, 0.1, 0.0, 0.1), 16) == {0.5: 0.5, 0.1: 0.1}
    rates = tuple(float(q) for q in np.random.default_rng(0).uniform(0.01, 1, 300))
    groups = accounting.group_rates(rates, 16)
    width = (max(rates) / min(rates)) ** (1 / 16) * (1 + 1e-6)
    assert len(set(groups.values())) <= 16
    assert all(rate <= top <= width * rate for rate, top in groups.items())

    sizes = np.random.default_rng(1).choice(np.arange(20, 200), 18, replace=False)
    rates = tuple(float(16 / n) for n in sizes)
    sigmas = accounting.noise_multipliers(8.0, 1e-5, rates, 10)
    assert len(set(sigmas)) <= 16
    spent = [epsilon(((s, q, 10),), 1e-5) for s, q in zip(sigmas, rates, strict=True)]
    assert 0.99 * 8 <= max(spent) <= 8
    assert [s for _, s in sorted(zip(rates, sigmas, strict=True))] == sorted(sigmas)
    few = tuple(sorted(rates)[:3])
    alone = tuple(noise_multiplier(8.0, 1e-5, q, 10) for q in few)
    assert accounting.noise_multipliers(8.0, 1e-5, few, 10) == alone


def test_order_and_splitting_do_not_matter_and_answers_are_kept() -> None:
    parts = ((1.0, 0.1, 20), (2.0, 0.1, 30), (1.0, 0.05, 7), (1.0, 0.1, 5))
    first = epsilon(((1.0, 0.1, 25), (2.0, 0.1, 30), (1.0, 0.05, 7)), 1e-5)
    before = accounting._epsilon.cache_info().misses
    assert {epsilon(order, 1e-5) for order in itertools.permutations(parts)} == {first}
    assert accounting._epsilon.cache_info().misses == before


@pytest.mark.slow
@both
def test_epsilon_at_the_ends_and_between(accountant: str) -> None:
    """Nothing released, no noise; more steps, less noise and more sampling cost more."""
    for nothing in (((1.0, 0.0, 10), (1.0, 0.5, 0)), ((0.0, 0.0, 10), (None, 0.5, 0)), ()):
        assert epsilon(nothing, 1e-5, accountant) == 0
    for bare in (((None, 0.1, 1),), ((1.0, 0.1, 5), (0.0, 0.1, 1))):
        assert epsilon(bare, 1e-5, accountant) == math.inf
    for q, steps in ((0.0, 10), (0.1, 0)):
        assert noise_multiplier(1.0, 1e-5, q, steps, accountant) == 0
    steps = [(1.0, 0.1, t) for t in (1, 60, 128, 129)]
    sigmas = [(s, 0.1, 50) for s in (8, 2, 1)]
    rates = [(1.0, q, 50) for q in (0.01, 0.3, 1.0)]
    for entries in (steps, sigmas, rates):
        values = [epsilon((entry,), 1e-5, accountant) for entry in entries]
        assert values == sorted(set(values))


@pytest.mark.slow
@both
def test_noise_multiplier_never_above_target(accountant: str) -> None:
    """At most the target, at least 99 % of it, and 1 % less noise would exceed it."""
    cases = [(8.0, 1e-4, 0.1, 50), (3.0, 1e-6, 1.0, 60), (0.02, 1e-3, 0.05, 5)]
    for target, delta, q, steps in cases:
        sigma = noise_multiplier(target, delta, q, steps, accountant)
        assert 0.99 * target <= epsilon(((sigma, q, steps),), delta, accountant) <= target
        assert epsilon(((0.99 * sigma, q, steps),), delta, accountant) > target
    words = "^epsilon=1e-06: expected a target that this accountant can certify, above about 3e-3$"
    with pytest.raises(ValueError, match=words):
        noise_multiplier(1e-6, 1e-5, 0.1, 2, accountant)


@pytest.mark.slow
def test_a_target_beyond_every_grid_is_met() -> None:
    sigma = noise_multiplier(1e4, 1e-5, 0.1, 100)
    assert 0.99e4 <= epsilon(((sigma, 0.1, 100),), 1e-5) <= 1e4


@pytest.mark.slow
def test_an_accountant_from_outside_is_one_entry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plan, calibration, ledger, composition, command line and errors take what is registered."""
    twice = accounting.Accountant(lambda key, delta: 2 * renyi(key, delta))
    monkeypatch.setitem(fl.privacy.ACCOUNTANTS, "twice", twice)
    task, plan = SimpleNamespace(sizes=(60, 90)), fl.Plan(rounds=2, local_steps=2, batch=8)
    privacy = fl.Privacy(accountant="twice", delta=1e-3)
    privacy = privacy.calibrate(epsilon=4, task=task, plan=plan).resolve(task, plan)
    ledger = privacy.ledger(releases=4)
    assert 0.99 * 4 <= ledger.epsilon() <= 4
    assert ledger.epsilon(0) == 2 * epsilon(ledger.history(0), 1e-3, "rdp")
    assert fl.Ledger.from_json(ledger.to_json()).epsilon() == ledger.epsilon()
    assert fl.Ledger.compose(ledger, ledger).accountant == "twice"
    assert fl.Ledger.compose(ledger, fl.Ledger(delta=1e-3)).accountant == "rdp"
    for refused in (fl.Privacy, fl.Ledger):
        with pytest.raises(ValueError, match=r"^accountant='x': expected .* 'rdp', 'twice'$"):
            refused(accountant="x")
    command = ["run", "regression", "fedlora", *SMALL, "--out", tmp_path, "--accountant"]
    assert call(*command, "x") == 2
    assert "expected one of 'prv', 'rdp', 'twice'" in capsys.readouterr().err
    assert call(*command, "twice") == 0
    assert fl.Ledger.load(tmp_path / "checkpoints/fedlora-0/ledger.json").accountant == "twice"


ONE = ((1.0, 0.1, 1),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ONE, math.nan), r"delta=nan: expected a number in \(0, 1\)"),
        ((ONE, 1e-5, "gdp"), "accountant='gdp': expected one of 'prv', 'rdp'"),
        ((((-1.0, 0.1, 1),), 1e-5), "noise_multiplier=-1.0: expected a number >= 0"),
        ((((1.0, 1.1, 1),), 1e-5), r"sample_rate=1.1: expected a number in \[0, 1\]"),
        ((((1.0, 0.1, 1.5),), 1e-5), "steps=1.5: expected a whole number >= 0"),
        ((((1.0, 0.1),), 1e-5), r"history=\(1.0, 0.1\): expected three numbers in every entry"),
        (("abc", 1e-5), r"history='abc': expected a tuple of \(noise_multiplier, .*, steps\)"),
        ((0.0, 1e-5, 0.1, 10), r"epsilon=0.0: expected a number in \(0, 1e\+09\]"),
        ((1.0, 1e-5, 0.1, 10, "x"), "accountant='x': expected one of 'prv', 'rdp'"),
    ],
)
def test_refuses_bad_input(arguments: Any, message: str) -> None:
    function: Any = noise_multiplier if len(arguments) > 3 else epsilon
    with pytest.raises(ValueError, match=f"^{message}$"):
        function(*arguments)


@contextmanager
def processor_time(seconds: float) -> Iterator[None]:
    """Raises where the block takes more processor time of this process, however busy others are."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds:g} s of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


EXTREME_SIGMAS = (0.0, 5e-324, 1e-300, 1e-160, 1e-20, 1e-3, 1.0, 1e8, 1e160, 1.7e308, math.inf)
EXTREME_RATES = (5e-324, 1e-300, 1e-12, 1.0)
RATES_AND_COUNTS = [(q, n) for q in EXTREME_RATES for n in (1, 2**53)]
ANSWERS: dict[str, Any] = {
    "prv": lambda history: epsilon(history, 1e-5),
    "rdp": lambda history: epsilon(history, 1e-5, "rdp"),
    "group": lambda history: accounting.group_epsilon(history, 3, 1e-5),
    "second": lambda history: accounting.second_opinion(history, 1e-5)[0],
    "advantage": accounting.advantage,
    "trade-off": lambda history: float(accounting.tradeoff_curve(history, np.array([0.01]))[0]),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_every_history_has_an_answer_that_never_falls_with_less_noise(answer: Any) -> None:
    """Numbers whose squares overflow or vanish made some accountants fail and others not end."""
    for q, count in RATES_AND_COUNTS:
        found = []
        for sigma in EXTREME_SIGMAS:
            with processor_time(60):
                found.append(answer(((sigma, q, count),)))
        # NaN is in no order. Of two close values the larger may be the one with more noise.
        falls = [b <= a + EPSILON_ERROR for a, b in itertools.pairwise(found)]
        assert all(falls), (q, count, found)
        assert found[0] == found[4] and found[-1] in (0.0, 0.01), (q, count, found)
        assert found[-1] == pytest.approx(found[-2], abs=EPSILON_ERROR), (q, count, found)


@pytest.mark.parametrize("sigma", [1.0, 1e6])
def test_what_so_many_releases_spend_is_not_lost_in_rounding(sigma: float) -> None:
    """At 2^53 releases one of them spends less than a float's rounding: epsilon 0 was stated where
    attackers of the composed releases, sigma / (q sqrt(n)) of noise at best, find every member.
    """
    history = ((sigma, 1e-6 * sigma, 2**53),)
    for accountant in ("prv", "rdp"):
        assert epsilon(history, 1e-5, accountant) > 1000


def test_noise_for_any_target_spends_no_more() -> None:
    """Targets of which less noise would be enough than counts as noise at all, and rates that are
    no float's reciprocal.
    """
    for target, q, steps in itertools.product((8.0, 1e9), (5e-324, 1e-12, 1.0), (1, 2**53)):
        with processor_time(60):
            sigma = noise_multiplier(target, 1e-5, q, steps)
        assert epsilon(((sigma, q, steps),), 1e-5) <= target
