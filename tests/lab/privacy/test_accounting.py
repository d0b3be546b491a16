"""Epsilon against dp-accounting, Opacus, explicit attacks, closed forms and published numbers."""

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import dp_accounting as dp
import numpy as np
import opacus.accountants as opacus
import pytest
from calls import refused
from dp_accounting.pld import PLDAccountant
from scipy.stats import norm

from fedlora_lab import theory
from fedlora_lab.privacy import accounting, pld
from fedlora_lab.privacy.accounting import epsilon, noise_multipliers

Entry = tuple[float, float, int]
both = pytest.mark.parametrize("accountant", ["pld", "rdp"])


def noise_by(accountant: str, epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The noise multiplier of one rate, by an accountant."""
    return noise_multipliers(epsilon, delta, (rate,), steps, accountant)[0]


HISTORIES: list[tuple[tuple[Entry, ...], float]] = [
    (((3.0, 0.1, 512),), 1e-6),
    (((0.7, 0.02, 800),), 1e-5),
    (((5.0, 0.7, 60),), 1e-4),
    (((20.0, 0.1, 100),), 1e-5),
    (((1.0, 0.1, 60), (2.0, 1.0, 3), (0.8, 0.01, 200)), 1e-5),  # sigma and q change on the way
]

# ---- against other libraries, attacks and closed forms


def test_published_noise_multipliers_are_found_again():
    """Of FFA-LoRA (SST-2 at epsilon = 6, three clients, 10,000 steps of 200) and of DEeR's code
    (250 passes over an assumed 6,400 images by tens), which both count by Renyi's divergences."""
    assert noise_by("rdp", 6.0, 1e-5, 200 / 22_450, 10_000) == pytest.approx(0.99, abs=2e-3)
    for target, sigma in ((1.0, 1.12), (3.0, 0.75)):
        found = noise_by("rdp", target, 1 / 12, 10 / 6400, 250 * 640)
        assert found == pytest.approx(sigma, abs=7e-3)


@pytest.mark.slow
def test_pld_is_never_below_dp_accounting():
    """And above it by 0.1 % at most, also where draws are rare and noise is little."""
    rare = [(((0.4, 1e-4, 100),), 1e-6), (((0.5, 0.003, 1000),), 1e-6)]
    many = [(((1.0, 0.1, 100),), 1e-12), (((1.0, 0.05, 20_000),), 1e-10)]
    for history, delta in (*HISTORIES, *rare, *many):
        value = epsilon(history, delta)
        # On a grid five times its default, which takes a fifth as long.
        accountant = PLDAccountant(value_discretization_interval=5e-4)
        for sigma, q, steps in history:
            accountant.compose(dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(sigma)), steps)
        other = accountant.get_epsilon(delta)
        # Its grid is mostly the finer one, so its number is the smaller, but for both roundings.
        assert other - 3e-4 <= value <= 1.003 * other + 1e-4, (history, delta)
        assert value <= epsilon(history, delta, "rdp")


def test_an_optimal_attack_finds_what_is_stated():
    """The best attack on two releases, by integration over their outcomes."""
    sigma = 1.5
    q = 0.2
    delta = 1e-3
    x = np.linspace(-9 * sigma, 1 + 9 * sigma, 1501)
    noise = norm.pdf(x, 0, sigma)
    mixed = (1 - q) * noise + q * norm.pdf(x, 1, sigma)
    without, within = (np.outer(one, one) * (x[1] - x[0]) ** 2 for one in (noise, mixed))

    def attack_delta(e):
        pairs = ((within, without), (without, within))
        return max(np.maximum(a - math.exp(e) * b, 0).sum() for a, b in pairs)

    value = epsilon(((sigma, q, 2),), delta)
    assert attack_delta(value) <= delta * (1 + 1e-6) < attack_delta(0.995 * value)


@pytest.mark.parametrize(("history", "delta"), HISTORIES, ids=str)
def test_accountants_of_opacus_state_what_opacus_does(history, delta):
    """By its public accountants; an upper bound, at most .01 and what PRV's own error is above.

    "rdp" has more orders, which matter where epsilon is small.
    """
    theirs: list[tuple[str, Any]] = [
        ("opacus-rdp", opacus.RDPAccountant()),
        ("opacus-prv", opacus.PRVAccountant()),
    ]
    exact = epsilon(history, delta)
    for name, accountant in theirs:
        accountant.history = list(history)
        # Of full batches PRV takes the logarithm of 1 - q; of much noise no Renyi order is best.
        with np.errstate(divide="ignore"), warnings.catch_warnings(action="ignore"):
            value = accountant.get_epsilon(delta)
        assert epsilon(history, delta, name) == pytest.approx(value, rel=1e-4)
        # "pld" may lie .1 % above the exact value.
        assert epsilon(history, delta, name) >= exact / 1.001
    assert epsilon(history, delta, "opacus-prv") <= exact + 0.012
    theirs_by_rdp = epsilon(history, delta, "opacus-rdp")
    rel = 1e-5 if theirs_by_rdp > 1 else 0.02
    assert epsilon(history, delta, "rdp") == pytest.approx(theirs_by_rdp, rel=rel)


def test_prv_is_refused_where_its_arithmetic_is_not_exact_enough():
    """Fault of Opacus: at a small delta the upper end of PRV lies below the exact epsilon."""
    history = ((1.0, 0.1, 100),)
    accountant = opacus.PRVAccountant()
    accountant.history = list(history)
    assert accountant.get_epsilon(1e-12) < 0.999 * epsilon(history, 1e-12)
    with refused("^accountant: .*: delta=1e-12: expected more than .* for 'opacus-prv'$"):
        epsilon(history, 1e-12, "opacus-prv")
    for sigma, many, expected in ((0.15, 100, "losses up to"), (20.0, 10**6, "its grid would")):
        with refused(f"^accountant: .*'opacus-prv': expected 'pld': {expected}"):
            epsilon(((sigma, 0.1, many),), 1e-5, "opacus-prv")


def test_full_batches_have_the_exact_epsilon():
    """Without sampling epsilon has a closed form, also where sigma changes."""
    mixed = ((2.0, 1.0, 30), (0.7, 1.0, 2), (5.0, 1.0, 300))
    for history in (((0.01, 1.0, 1),), ((10.0, 1.0, 200),), mixed):
        mu = math.sqrt(sum(steps / sigma**2 for sigma, _, steps in history))
        for delta in (1e-3, 1e-12):
            exact = theory.gdp_epsilon(mu, delta)
            assert epsilon(history, delta) == pytest.approx(exact, rel=1e-10)
            assert epsilon(history, delta, "rdp") >= exact


# ---- the trade-off curve

CURVES = {  # noise, q, releases: advantage; TPR at FPR 0.001, 0.01, 0.1
    (3.0, 0.1, 512): (0.29950, 0.01054, 0.06096, 0.30589),
    (1.0, 0.01, 1000): (0.16110, 0.00407, 0.02915, 0.19425),
    (0.5, 0.002, 10_000): (0.44140, 0.04791, 0.16055, 0.47843),
    (1.0, 1.0, 1): (0.38292, 0.01830, 0.09236, 0.38914),
}
RATES = np.array([0.001, 0.01, 0.1])


@pytest.mark.slow
@pytest.mark.parametrize("entry", CURVES, ids=str)
def test_tradeoff_equals_golden_numbers(entry):
    """Computed apart, from losses and probabilities of dp-accounting. The third is the one where
    probabilities of a finer grid add up to 1.0004 or 1.012: scaled back to 1 they give .157 or .032
    for .161."""
    computed = (accounting.advantage((entry,)), *accounting.tradeoff_curve((entry,), RATES))
    for value, golden in zip(computed, CURVES[entry], strict=True):
        assert golden - 1e-4 <= value <= golden + 5e-4


@pytest.mark.parametrize(("sigma", "q"), [(0.1, 0.586), (0.5, 0.3), (1.5, 0.7)])
def test_the_curve_of_one_release_lies_above_the_best_attack(sigma, q):
    """Both attackers' curves by the Neyman-Pearson lemma: a threshold on the released number."""
    at = np.linspace(-40 * sigma, 1 + 40 * sigma, 200_001)
    absent, present = norm.sf(at / sigma), norm.sf((at - 1) / sigma)
    drawn = (1 - q) * absent + q * present
    rates = np.linspace(0.005, 0.995, 199)
    found = np.interp(rates, absent[::-1], drawn[::-1])
    cleared = np.interp(rates, 1 - drawn, 1 - absent)
    above = accounting.tradeoff_curve(((sigma, q, 1),), rates) - np.maximum(found, cleared)
    assert above.min() > -1e-6


# ---- answers are kept, ordered and finite


def test_an_answer_is_the_same_whatever_was_asked_before():
    """To the bit: a resumed run asks for other numbers first."""
    caches = (accounting._epsilon, pld._losses, pld._repeated)
    for cache in caches:
        cache.cache_clear()
    alone = epsilon(((1.1, 0.07, 37),), 1e-5)
    for cache in caches:
        cache.cache_clear()
    assert [epsilon(((1.1, 0.07, n),), 1e-5) for n in range(1, 38)][-1] == alone


@both
def test_what_releases_nothing_spends_nothing_and_bare_values_all(accountant):
    assert epsilon(((1.0, 0.0, 10), (0.0, 0.0, 10), (None, 0.5, 0)), 1e-5, accountant) == 0
    for none in (None, 0.0):
        assert epsilon(((1.0, 0.1, 5), (none, 0.1, 1)), 1e-5, accountant) == math.inf
    assert noise_by(accountant, 1.0, 1e-5, 0.0, 10) == 0
    rare = (((0.5, q, 10),) for q in (1e-6, 2e-6))  # drawn at all with a chance of delta, or twice
    assert [epsilon(history, 1e-5, accountant) > 0 for history in rare] == [False, True]
    assert (accounting.tradeoff_curve(((2.0, 0.0, 5),), RATES) == RATES).all()
    assert accounting.tradeoff_curve(((None, 0.1, 1),), RATES).min() == 1


EXTREME_SIGMAS = (0.0, 5e-324, 1e-160, 1e-3, 0.01, 1.0, 1e8, 1.7e308, math.inf)
ANSWERS: tuple[Callable[[Any], float], ...] = (
    lambda history: epsilon(history, 1e-5),
    lambda history: epsilon(history, 1e-5, "rdp"),
    accounting.advantage,
    lambda history: float(accounting.tradeoff_curve(history, np.array([0.01]))[0]),
)


@pytest.mark.slow
def test_every_history_has_an_answer_that_never_falls_with_less_noise():
    """Numbers whose squares overflow or vanish made some accountants fail and others not end."""
    for q, count, answer in itertools.product((5e-324, 0.3, 1.0), (1, 10**6, 2**53), ANSWERS):
        answers = [answer(((sigma, q, count),)) for sigma in EXTREME_SIGMAS]
        # NaN is in no order. Of two close values the larger may be the one with more noise.
        falls = [b <= a + 1e-2 for a, b in itertools.pairwise(answers)]
        assert all(falls), (q, count, answers)
        assert answers[0] == answers[3] and answers[-1] in (0.0, 0.01), (q, count, answers)


def test_no_moment_is_rounded_below_its_closed_form():
    """That of order 2 is 1 + q^2 (exp(1 / sigma^2) - 1): what rounding takes off one release would
    be missing in each of millions.
    """
    two = accounting.ORDERS.tolist().index(2.0)
    for sigma, q in itertools.product((0.5, 1.0, 3.0, 40.0), np.geomspace(1e-9, 0.9, 40).tolist()):
        exact = math.log1p(q * q * math.expm1(sigma**-2))
        assert accounting._release_rdp(sigma, q)[two] >= exact


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_beyond_a_million_releases_sampling_is_not_counted(accountant):
    """There one of them may spend less than a float's rounding: what is stated is larger."""
    counted, uncounted, unsampled = (
        epsilon(((50.0, q, steps),), 1e-5, accountant)
        for q, steps in ((1e-6, 10**6), (1e-6, 10**6 + 1), (1.0, 10**6 + 1))
    )
    assert counted < 0.01 and uncounted == unsampled > 200


# ---- from a target to the noise


@pytest.mark.slow
@both
def test_noise_multiplier_never_above_target(accountant):
    """At least 99 % of it, and 1 % less noise would exceed it; also where less noise than counts as
    noise at all would be enough."""
    cases = [(8.0, 1e-4, 0.1, 50), (3.0, 1e-6, 1.0, 60), (0.02, 1e-3, 0.05, 5)]
    for target, delta, q, steps in cases:
        sigma = noise_by(accountant, target, delta, q, steps)
        assert 0.99 * target <= epsilon(((sigma, q, steps),), delta, accountant) <= target
        assert epsilon(((0.99 * sigma, q, steps),), delta, accountant) > target
    for target, q, steps in itertools.product((8.0, 1e9), (5e-324, 1.0), (1, 2**53)):
        sigma = noise_by(accountant, target, 1e-5, q, steps)
        assert epsilon(((sigma, q, steps),), 1e-5, accountant) <= target
    with refused(r"^epsilon=1e-06: expected a target that this accountant"):
        noise_by("rdp", 1e-6, 1e-5, 0.1, 2)


@pytest.mark.parametrize("accountant", ["rdp", pytest.param("pld", marks=pytest.mark.slow)])
def test_many_distinct_sizes_spend_at_most_the_target(accountant):
    """Of 200 clients each, counted by itself, and hardly less; in another order the same."""
    sizes = np.random.default_rng(1).choice(np.arange(50, 250), 200, replace=False)
    rates = tuple(float(16 / n) for n in sizes)
    sigmas = noise_multipliers(8.0, 1e-5, rates, 60, accountant)
    assert noise_multipliers(8.0, 1e-5, rates[::-1], 60, accountant) == sigmas[::-1]
    for sigma, q in zip(sigmas[::9], rates[::9], strict=True):
        assert 0.98 * 8 <= epsilon(((sigma, q, 60),), 1e-5, accountant) <= 8


def test_an_accountant_is_asked_again_after_it_was_replaced(monkeypatch):
    """As in a notebook, where its cell is run anew; what is no epsilon is refused."""
    history = ((1.0, 0.1, 10),)
    for answer in (1.0, 5.0, -3.0, math.nan, None):
        monkeypatch.setitem(accounting.ACCOUNTANTS, "own", lambda key, delta, x=answer: x)
        if answer in (1.0, 5.0):
            assert epsilon(history, 1e-5, "own") == answer
        else:
            with refused("^epsilon, by the accountant=.*: expected a number >= 0"):
                epsilon(history, 1e-5, "own")
