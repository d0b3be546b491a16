"""Epsilon against dp-accounting, Opacus' own classes, closed forms and published numbers."""

import itertools
import math
from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import PRVAccountant, RDPAccountant

from fedlora_lab import accounting, theory
from fedlora_lab.accounting import EPSILON_ERROR, prv, renyi

Entry = tuple[float, float, int]


def event(sigma: float, q: float) -> dp.DpEvent:
    return dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(sigma))


def pld(history: tuple[Entry, ...], delta: float) -> float:
    """dp-accounting's privacy loss distribution, both directions; a small epsilon once more on a finer grid."""
    for interval in (1e-3, 1e-4):
        accountant = PLDAccountant(value_discretization_interval=interval)
        for sigma, q, steps in history:
            accountant.compose(event(sigma, q), steps)
        value = accountant.get_epsilon(delta)
        if value > 1:
            break
    return value


def opacus(kind: type, history: tuple[Entry, ...], delta: float, **options: float) -> float:
    accountant = kind()
    accountant.history = list(history)
    return float(accountant.get_epsilon(delta, **options))


def of(history: Any) -> float:
    """Epsilon of what may not be a history."""
    return accounting.epsilon(history, 1e-5)


def settings(count: int, seed: int, parts: int = 1, largest: float = 15.0) -> list[tuple[tuple[Entry, ...], float]]:
    """Random histories with their delta, log-uniform in q, sigma and steps, as far as epsilon stays reportable."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        history = tuple(
            (
                float(np.exp(rng.uniform(np.log(0.5), np.log(8)))),
                float(np.exp(rng.uniform(np.log(0.003), 0))),
                int(np.exp(rng.uniform(0, np.log(1500)))),
            )
            for _ in range(parts)
        )
        delta = float(10 ** rng.uniform(-7, -3))
        if renyi.epsilon(accounting.canonical(history), delta, tuple(range(2, 33))) < largest:
            found.append((history, delta))
    return found


def test_golden_vectors() -> None:
    """q = 0.1, delta = 1e-6: published values, to the digits published plus the stated error."""
    for sigma, steps, published in [(3.0, 512, 3.770), (9.66, 512, 1.000), (3.0, 155, 1.996), (3.0, 156, 2.003)]:
        reported = accounting.epsilon(((sigma, 0.1, steps),), 1e-6)
        assert published - 1e-3 <= reported <= published + 1e-3 + EPSILON_ERROR
    orders = np.arange(2, 65)
    value, order = theory.rdp_to_epsilon(orders, theory.sampled_gaussian_rdp(orders, 0.1, 3.0, 512), 1e-6)
    assert value == pytest.approx(4.052, abs=1e-3)
    assert order == 7
    # fractional orders are finer than whole ones, so the library's RDP value may only be smaller
    assert 4.045 < accounting.epsilon(((3.0, 0.1, 512),), 1e-6, "rdp") <= value


def test_golden_heterogeneous_rdp() -> None:
    history = ((1.0, 1e-5, 10), (3.0, 1e-4, 4))
    assert renyi.epsilon(history, 1e-5, tuple(range(2, 33))) == pytest.approx(0.336, abs=1e-3)
    orders = np.arange(2, 33)
    total = np.sum([theory.sampled_gaussian_rdp(orders, q, sigma, steps) for sigma, q, steps in history], axis=0)
    value, order = theory.rdp_to_epsilon(orders, total, 1e-5)
    assert value == pytest.approx(0.336, abs=1e-3)
    assert order == 23


def test_rdp_equals_dp_accounting() -> None:
    """Two independent implementations, the same orders, 50 random settings of one to three parts: 1e-3 relative.

    Whole orders: dp-accounting leaves out a fractional one whose series is slow. Those have the next test.
    """
    whole = tuple(order for order in renyi.ORDERS if float(order).is_integer())
    for history, delta in settings(30, 1) + settings(10, 2, parts=2) + settings(10, 3, parts=3):
        accountant = RdpAccountant(list(whole))
        for sigma, q, steps in history:
            accountant.compose(event(sigma, q), steps)
        value = renyi.epsilon(history, delta, whole)
        assert value == pytest.approx(accountant.get_epsilon(delta), rel=1e-3)
        assert accounting.epsilon(history, delta, "rdp") <= value


def test_fractional_orders_equal_an_integral() -> None:
    """The divergence of order a is log E_Q (P / Q)^a / (a - 1); here the expectation is integrated on a fine grid."""
    fractional = tuple(order for order in renyi.ORDERS if not float(order).is_integer())[::7]
    for (history, _), order in itertools.product(settings(12, 6), fractional):
        sigma, q, _ = history[0]
        x = np.linspace(-40 * sigma, 40 * sigma + 20 * order, 400_001)
        log_ratio = np.logaddexp(np.log1p(-q), np.log(q) + (2 * x - 1) / (2 * sigma**2))
        log_q = -(x**2) / (2 * sigma**2) - np.log(sigma * np.sqrt(2 * np.pi))
        expected = np.log(np.trapezoid(np.exp(order * log_ratio + log_q), x)) / (order - 1)
        found = renyi.one_release(sigma, q, renyi.ORDERS)[renyi.ORDERS.index(order)]
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-10)


def test_prv_within_stated_error_of_pld() -> None:
    """50 random settings: never below dp-accounting's PLD (but for its discretisation), above by the error at most."""
    # rare draws with little noise: the loss of one release is nearly an atom, and the mean must be kept to the digit
    rare = [(((0.4, 1e-4, 100),), 1e-6), (((0.5, 0.003, 1000),), 1e-6), (((0.3, 2e-4, 64),), 1e-5)]
    cases = settings(50, 4, largest=8) + rare
    gaps = np.array([accounting.epsilon(history, delta) - pld(history, delta) for history, delta in cases])
    assert EPSILON_ERROR <= 1e-2
    assert gaps.min() > -1e-3
    assert gaps.max() <= EPSILON_ERROR


def test_history_is_composed_not_approximated() -> None:
    """sigma and q that change on the way: PLD again; the usual short cuts are off by more than the error."""
    for history, delta in settings(6, 5, parts=3, largest=8):
        gap = accounting.epsilon(history, delta) - pld(history, delta)
        assert -1e-3 < gap <= EPSILON_ERROR
    history = ((0.6, 0.01, 100), (4.0, 0.4, 100))
    exact = accounting.epsilon(history, 1e-5)
    assert abs(accounting.epsilon(((2.3, 0.205, 200),), 1e-5) - exact) > 10 * EPSILON_ERROR
    assert sum(accounting.epsilon((entry,), 1e-5) for entry in history) - exact > 10 * EPSILON_ERROR


@pytest.mark.parametrize(
    "history",
    [
        ((1.0, 0.1, 100),),
        ((1.1, 0.2, 50),),
        ((0.6, 0.9, 3),),
        ((1.0, 0.1, 20), (2.0, 0.1, 31), (1.0, 0.05, 7)),
        ((2.0, 0.5, 9), (0.8, 0.01, 300)),
    ],
)
def test_equals_the_classes_of_opacus(history: tuple[Entry, ...]) -> None:
    """The kept spectra give what `PRVAccountant` gives, and the kept divergences what `RDPAccountant` gives."""
    with np.errstate(all="ignore"):  # its distribution function takes the logarithm of 0 where q = 1
        given = opacus(PRVAccountant, history, 1e-5, eps_error=prv._HALF_WIDTH)
    assert accounting.epsilon(history, 1e-5) == pytest.approx(given, abs=3e-3)
    same_orders = renyi.epsilon(history, 1e-5, tuple(RDPAccountant.DEFAULT_ALPHAS))
    assert same_orders == pytest.approx(opacus(RDPAccountant, history, 1e-5), rel=1e-12)


def test_full_batches_have_the_exact_epsilon() -> None:
    """Without sampling epsilon has a closed form, also where sigma changes; 105.1 was stated where 100.3 is exact."""
    for sigma, steps, delta in itertools.product((0.01, 0.8, 2.0, 10.0), (1, 7, 200), (1e-3, 1e-6, 1e-12)):
        exact = theory.gdp_epsilon(theory.gaussian_mu(sigma, steps), delta)
        assert accounting.epsilon(((sigma, 1.0, steps),), delta) == pytest.approx(exact, rel=1e-10)
        assert accounting.epsilon(((sigma, 1.0, steps),), delta, "rdp") >= exact
    assert accounting.epsilon(((2.5, 1.0, 700),), 1e-5) == pytest.approx(100.296314, abs=1e-5)
    mixed = ((2.0, 1.0, 30), (0.7, 1.0, 2), (5.0, 1.0, 300))
    mu = math.sqrt(sum(steps / sigma**2 for sigma, _, steps in mixed))
    assert accounting.epsilon(mixed, 1e-5) == pytest.approx(theory.gdp_epsilon(mu, 1e-5), rel=1e-10)
    assert accounting.epsilon(((2.0, 1.0, 10),), 1e-5) == pytest.approx(pld(((2.0, 1.0, 10),), 1e-5), abs=2e-3)
    for target, steps in itertools.product((1e-3, 0.1, 8.0, 1000.0), (1, 700)):
        sigma = accounting.noise_multiplier(target, 1e-5, 1.0, steps)
        spent = accounting.epsilon(((sigma, 1.0, steps),), 1e-5)
        assert (1 - 1e-6) * target <= spent <= target


@pytest.mark.parametrize(
    ("history", "delta"),
    [
        (((1.0, 0.01, 100_000),), 1e-5),
        (((1.0, 0.05, 20_000),), 1e-10),
        (((0.3, 0.5, 100), (2.0, 0.01, 30_000)), 1e-9),
    ],
)
def test_where_no_grid_fits_the_bound_is_tight(history: tuple[Entry, ...], delta: float) -> None:
    """Many steps, tiny delta: dp-accounting's distribution, no longer the Renyi bound, which is 3 to 7 % larger."""
    with pytest.raises((RuntimeError, ValueError, ArithmeticError, MemoryError)):
        prv.epsilon(accounting.canonical(history), delta)
    fine = PLDAccountant(value_discretization_interval=1e-3)
    for sigma, q, steps in history:
        fine.compose(event(sigma, q), steps)
    exact = fine.get_epsilon(delta)
    value = accounting.epsilon(history, delta)
    assert exact * (1 - 2e-3) <= value <= exact * (1 + 2e-3)
    assert accounting.epsilon(history, delta, "rdp") > 1.025 * value


def test_hardly_any_noise_is_counted_without_a_word() -> None:
    """No grid holds it; what is stated is a bound, finite or not, and nothing is warned about."""
    for sigma in (0.05, 1e-3, 1e-8, 1e-200):
        history = ((sigma, 0.5, 100),)
        value = accounting.epsilon(history, 1e-5)
        assert value <= accounting.epsilon(history, 1e-5, "rdp")
        assert value >= accounting.epsilon(((0.06, 0.5, 100),), 1e-5)


def test_smallest_delta() -> None:
    """Noise of 52 random bits ends at 8.2 standard deviations: nothing far beyond can be promised."""
    assert accounting.epsilon(((1.0, 0.1, 100),), 1e-12) >= pld(((1.0, 0.1, 100),), 1e-12) - 1e-3
    for delta in (1e-13, 1e-300):
        with pytest.raises(ValueError, match=r"^delta=1e-.*: expected at least 1e-12: noise from 52 random bits"):
            accounting.epsilon(((1.0, 0.1, 100),), delta)


def test_grouped_rates_are_as_narrow_as_can_be() -> None:
    few = (0.5, 0.1, 0.0, 0.1)
    assert accounting.grouped(few, 16) == {0.5: 0.5, 0.1: 0.1}
    rates = tuple(float(q) for q in np.random.default_rng(0).uniform(0.01, 1, 300))
    groups = accounting.grouped(rates, 16)
    assert len(set(groups.values())) <= 16
    assert all(rate <= top for rate, top in groups.items())
    assert max(top / rate for rate, top in groups.items()) <= (max(rates) / min(rates)) ** (1 / 16) * (1 + 1e-6)


def test_many_distinct_sizes_spend_at_most_the_target() -> None:
    """200 clients of random sizes: every one, counted by itself, spends at most the target."""
    sizes = np.random.default_rng(1).choice(np.arange(20, 2000), 200, replace=False)
    rates = tuple(float(16 / max(16, n)) for n in sizes)
    sigmas = accounting.noise_multipliers(8.0, 1e-7, rates, 20)
    assert len(set(sigmas)) <= 16
    spent = [accounting.epsilon(((s, q, 20),), 1e-7) for s, q in zip(sigmas, rates, strict=True)]
    assert 0.99 * 8 <= max(spent) <= 8
    assert [s for _, s in sorted(zip(rates, sigmas, strict=True))] == sorted(sigmas)
    few = tuple(sorted(rates)[:16])
    alone = tuple(accounting.noise_multiplier(8.0, 1e-7, q, 20) for q in few)
    assert accounting.noise_multipliers(8.0, 1e-7, few, 20) == alone


def test_order_and_splitting_do_not_matter() -> None:
    parts = ((1.0, 0.1, 20), (2.0, 0.1, 30), (1.0, 0.05, 7), (1.0, 0.1, 5))
    values = {accounting.epsilon(order, 1e-5) for order in itertools.permutations(parts)}
    assert values == {accounting.epsilon(((1.0, 0.1, 25), (2.0, 0.1, 30), (1.0, 0.05, 7)), 1e-5)}


def test_nothing_released_and_no_noise() -> None:
    for accountant in ("prv", "rdp"):
        assert accounting.epsilon((), 1e-5, accountant) == 0
        assert accounting.epsilon(((1.0, 0.0, 10), (1.0, 0.5, 0)), 1e-5, accountant) == 0
        assert accounting.epsilon(((0.0, 0.0, 10), (None, 0.5, 0)), 1e-5, accountant) == 0
        assert accounting.epsilon(((None, 0.1, 1),), 1e-5, accountant) == math.inf
        assert accounting.epsilon(((1.0, 0.1, 5), (0.0, 0.1, 1)), 1e-5, accountant) == math.inf


def test_more_steps_less_noise_more_sampling_cost_more() -> None:
    for accountant in ("prv", "rdp"):
        by_steps = [accounting.epsilon(((1.0, 0.1, t),), 1e-5, accountant) for t in (1, 5, 60, 128, 129, 300)]
        by_sigma = [accounting.epsilon(((s, 0.1, 50),), 1e-5, accountant) for s in (8, 4, 2, 1, 0.6)]
        by_rate = [accounting.epsilon(((1.0, q, 50),), 1e-5, accountant) for q in (0.01, 0.1, 0.3, 0.9, 1.0)]
        for values in (by_steps, by_sigma, by_rate):
            assert values == sorted(values)
            assert len(set(values)) == len(values)


def test_answers_are_kept() -> None:
    history = ((1.37, 0.11, 17), (2.41, 0.07, 5))
    first = accounting.epsilon(history, 1e-5)
    before = accounting._epsilon.cache_info().misses
    assert accounting.epsilon(history[::-1], 1e-5) == first
    assert accounting._epsilon.cache_info().misses == before


def test_noise_multiplier_never_above_target() -> None:
    """At most the target, at least 99 % of it, and 1 % less noise would exceed it."""
    cases = [
        (8.0, 1e-4, 0.1, 100),
        (1.0, 1e-5, 0.01, 1000),
        (0.1, 1e-5, 0.2, 10),
        (3.0, 1e-6, 1.0, 60),
        (0.02, 1e-3, 0.05, 20),
        (50.0, 1e-5, 0.3, 40),
    ]
    for (target, delta, q, steps), accountant in itertools.product(cases, ("prv", "rdp")):
        sigma = accounting.noise_multiplier(target, delta, q, steps, accountant)
        spent = accounting.epsilon(((sigma, q, steps),), delta, accountant)
        assert 0.99 * target <= spent <= target
        assert accounting.epsilon(((0.99 * sigma, q, steps),), delta, accountant) > target


def test_noise_multiplier_at_the_ends() -> None:
    assert accounting.noise_multiplier(1.0, 1e-5, 0.0, 10) == 0
    assert accounting.noise_multiplier(1.0, 1e-5, 0.1, 0) == 0
    sigma = accounting.noise_multiplier(1e4, 1e-5, 0.1, 10)
    assert accounting.epsilon(((sigma, 0.1, 10),), 1e-5) <= 1e4
    with pytest.raises(ValueError, match=r"^epsilon=1e-06: expected a target that this accountant can certify"):
        accounting.noise_multiplier(1e-6, 1e-5, 0.1, 10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accounting.epsilon(((1.0, 0.1, 1),), 0.0), r"^delta=0.0: expected a number in \(0, 1\)$"),
        (lambda: accounting.epsilon(((1.0, 0.1, 1),), 1.0), "^delta=1.0: expected"),
        (lambda: accounting.epsilon(((1.0, 0.1, 1),), math.nan), "^delta=nan: expected"),
        (lambda: accounting.epsilon(((1.0, 0.1, 1),), 1e-5, "gdp"), "^accountant='gdp': expected one of 'prv', 'rdp'$"),
        (lambda: accounting.epsilon(((-1.0, 0.1, 1),), 1e-5), "^noise_multiplier=-1.0: expected a number >= 0$"),
        (lambda: accounting.epsilon(((1.0, 1.1, 1),), 1e-5), "^sample_rate=1.1: expected a number in"),
        (lambda: of(((1.0, 0.1, 1.5),)), "^steps=1.5: expected a whole number >= 0$"),
        (lambda: of(((1.0, 0.1),)), "^history="),
        (lambda: of("abc"), "^history='abc': expected"),
        (lambda: accounting.noise_multiplier(0.0, 1e-5, 0.1, 10), "^epsilon=0.0: expected a number"),
        (lambda: accounting.noise_multiplier(math.inf, 1e-5, 0.1, 10), "^epsilon=inf: expected a number"),
        (lambda: accounting.noise_multiplier(1.0, 2, 0.1, 10), "^delta=2: expected"),
        (lambda: accounting.noise_multiplier(1.0, 1e-5, -0.1, 10), "^sample_rate=-0.1: expected"),
        (lambda: accounting.noise_multiplier(1.0, 1e-5, 0.1, -1), "^steps=-1: expected"),
        (lambda: accounting.noise_multiplier(1.0, 1e-5, 0.1, 10, "x"), "^accountant='x': expected"),
    ],
)
def test_refuses_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# Numbers of published mistakes, each computed the wrong way and the right way.


def test_edge_a_new_accountant_every_round_counts_only_the_last() -> None:
    """q = 32 / 4000, sigma = 1, an epoch of 125 steps a round: 1.14 is reported where 100 rounds spent 5.93."""
    orders = np.arange(2, 65)
    one, all_rounds = (
        theory.rdp_to_epsilon(orders, theory.sampled_gaussian_rdp(orders, 32 / 4000, 1.0, rounds * 125), 1e-5)[0]
        for rounds in (1, 100)
    )
    assert one == pytest.approx(1.14, abs=0.005)
    assert all_rounds == pytest.approx(5.93, abs=0.005)
    history = tuple((1.0, 32 / 4000, 125) for _ in range(100))
    assert accounting.epsilon(history, 1e-5, "rdp") == pytest.approx(5.93, rel=0.01)
    assert accounting.epsilon(history, 1e-5, "rdp") > 5 * one


def test_edge_sigma_for_one_round_used_for_sixty() -> None:
    """An epoch a round at q = 1 / 400: calibrated for 6, spent 20.4."""
    sigma = accounting.noise_multiplier(6.0, 1e-5, 1 / 400, 400, "rdp")
    assert accounting.epsilon(((sigma, 1 / 400, 60 * 400),), 1e-5, "rdp") == pytest.approx(20.4, abs=0.1)
    right = accounting.noise_multiplier(6.0, 1e-5, 1 / 400, 60 * 400, "rdp")
    assert accounting.epsilon(((right, 1 / 400, 60 * 400),), 1e-5, "rdp") <= 6


def test_edge_example_accounting_for_noise_on_client_updates() -> None:
    """sigma for epsilon = 1 over batches of 128 of 6,400; as noise on 100 releases of whole updates it gives 51."""
    delta = 1 / 12
    sigma = accounting.noise_multiplier(1.0, delta, 128 / 6400, 50 * 5 * 50, "rdp")
    assert theory.gdp_epsilon(theory.gaussian_mu(1.12, 100), delta) == pytest.approx(51, abs=0.5)
    assert sigma > 1.12  # even today's conversion asks for more noise than that
    assert theory.gdp_epsilon(theory.gaussian_mu(sigma, 100), delta) > 8


def test_edge_the_textbook_sigma_without_composition() -> None:
    """Above epsilon = 1 the formula is out of range (refused); below, per round, it forgets the other rounds."""
    with pytest.raises(ValueError, match=r"^epsilon=12: expected a number in"):
        theory.classical_sigma(12, 1e-5)
    unproven = math.sqrt(2 * math.log(1.25 / 1e-5)) / 12
    assert theory.gdp_delta(1 / unproven, 12.0) > 5e-5
    sigma = theory.classical_sigma(0.9, 1e-5)
    assert theory.gdp_epsilon(1 / sigma, 1e-5) <= 0.9
    assert accounting.epsilon(((sigma, 1.0, 50),), 1e-5) > 6


def test_edge_the_central_limit_understates() -> None:
    """q = 0.1, sigma = 3, 512 steps, delta = 1e-6: 3.67 where the exact value is 3.77."""
    approximate = theory.gdp_epsilon(theory.clt_mu(0.1, 3.0, 512), 1e-6)
    assert approximate == pytest.approx(3.668, abs=1e-3)
    exact = pld(((3.0, 0.1, 512),), 1e-6)
    assert exact == pytest.approx(3.770, abs=1e-3)
    assert approximate < exact - 0.1
    assert accounting.epsilon(((3.0, 0.1, 512),), 1e-6) >= exact
