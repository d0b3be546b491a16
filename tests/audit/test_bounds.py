"""Bounds from counts: golden values, limits, and how often each errs where epsilon is known."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import binom

from fedlora_lab import theory
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.audit import bounds
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.privacy.privatizer import add_noise, clip_sum, gaussian_noise


def test_one_run_bounds_are_those_of_the_paper():
    """Fault: another constant than that of the theorem, by two numbers of the paper."""
    for m, r, v, delta, value in ((1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.676)):
        assert bounds.one_run_lower_bound(m, r, v, delta, 0.05) == pytest.approx(value, abs=6e-4)


@pytest.mark.parametrize(("m", "one_run", "many"), [(100, 3.49, 3.28), (1000, 5.78, 5.60)])
def test_ceilings_grow_with_the_canaries(m, one_run, many):
    """Fault: a perfect score that proves more, or less, than luck leaves open."""
    ceiling = bounds.one_run_ceiling(m, 1e-5, 0.05, ((m // 2, m - m // 2),))
    assert ceiling == pytest.approx(one_run, abs=5e-3)
    assert bounds.one_run_ceiling(m, 1e-5, 0.05) < one_run
    assert bounds.threshold_lower_bound(0, m, 0, m, 0.0, 0.05) == pytest.approx(many, abs=5e-3)


def test_delta_lowers_the_one_run_bound():
    """Fault: a term of delta left out, or not at its largest."""
    plain = bounds.one_run_p_value(1000, 100, 75, 0.5, 0.0)
    assert plain == pytest.approx(float(binom.sf(74, 100, expit(0.5))))
    ms = (100, 1000, 10_000, 100_000)
    lower = [bounds.one_run_lower_bound(m, 100, 95, 1e-4, 0.05) for m in ms]
    assert sorted(lower, reverse=True) == lower and lower[0] > lower[-1] + 0.5
    # Sum by hand: P[v > W' >= v - i] / i at its largest.
    pmf = binom.pmf(np.arange(101), 100, expit(0.5))
    by_hand = max(pmf[75 - i : 75].sum() / i for i in range(1, 76))
    with_delta = bounds.one_run_p_value(1000, 100, 75, 0.5, 1e-4)
    assert with_delta == pytest.approx(plain + 2 * 1000 * 1e-4 * by_hand)
    assert with_delta > 1.01 * plain


def test_choosing_the_guesses_is_paid_for():
    """Fault: on noise alone the best of several numbers of guesses errs more than it says."""
    scores = [3.0, 2.0, 1.0, 0.0]
    included = [True, False, True, False]
    for guesses in ((1, 1), (2, 2), (4, 0)):  # of the highest and the lowest
        assert bounds.count_correct(scores, included, guesses) == 2
    rng = np.random.default_rng(1)
    p = 0.2
    runs = 300
    draws = ((rng.random(40), rng.random(40) < 0.5) for _ in range(runs))
    wrong = sum(bounds.one_run_best_bound(*draw, 0.0, p) > 0 for draw in draws)
    assert wrong / runs <= p + 4 * math.sqrt(p * (1 - p) / runs)
    assert bounds.default_guesses(40) == ((5, 5), (10, 10), (20, 20))
    assert all(sum(guess) <= m for m in range(2, 50) for guess in bounds.default_guesses(m))


@pytest.mark.parametrize(
    ("guesses", "correct", "looks", "expected"),
    [(406, 379, 386, 2.164749), (938, 934, 374, 4.7218075)],
)
def test_the_gaussian_one_run_bound_equals_another_implementation(
    guesses, correct, looks, expected
):
    """The tests of jax_privacy [primary]: 20,000 scores of which half are larger by 1 or 2; its
    best of so many thresholds guesses so many canaries in, and is right so often."""
    counts = guesses, correct, 1e-6, 0.05 / looks
    lower = bounds.gaussian_one_run_lower_bound(20_000, *counts)
    assert lower == pytest.approx(expected, abs=5e-4) and lower <= expected
    assert lower > bounds.one_run_lower_bound(20_000, *counts) + 1


def test_the_gaussian_one_run_bound_errs_as_often_as_it_says():
    """Fault: above the truth of Gaussian noise too often, or so seldom that it proves nothing."""
    rng = np.random.default_rng(5)
    p = 0.2
    runs = 300
    m = 100
    delta = 1e-5
    truth = theory.gdp_epsilon(1.0, delta)
    lower = []
    for _ in range(runs):
        included = rng.random(m) < 0.5
        v = bounds.count_correct(included + rng.standard_normal(m), included, (15, 15))
        lower.append(bounds.gaussian_one_run_lower_bound(m, 30, v, delta, p))
    wrong = np.mean(np.array(lower) > truth)
    assert wrong <= p + 4 * math.sqrt(p * (1 - p) / runs) and np.median(lower) > 0.25 * truth
    assert bounds.gaussian_one_run_lower_bound(100, 0, 0, delta, p) == 0


def test_clopper_pearson_inverts_the_binomial_tail():
    """Fault: the other tail, or an interval of both."""
    assert bounds.clopper_pearson_upper(0, 100, 0.025) == pytest.approx(1 - 0.025 ** (1 / 100))
    assert bounds.clopper_pearson_upper(100, 100, 0.025) == 1.0
    assert binom.cdf(25, 500, bounds.clopper_pearson_upper(25, 500, 0.025)) == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("false_positives", "false_negatives", "expected"),
    [(25, 200, 2.031), (200, 25, 2.031), (250, 250, 0.0)],
)
def test_threshold_bounds_are_symmetric_in_both_errors(false_positives, false_negatives, expected):
    """Fault: one direction of the definition only."""
    lower = bounds.threshold_lower_bound(false_positives, 500, false_negatives, 500, 0.0, 0.05)
    assert lower == pytest.approx(expected, abs=6e-4)


def test_the_threshold_bound_errs_as_often_as_it_says():
    """Fault: two thresholds for the price of one."""
    rng = np.random.default_rng(3)
    p = 0.1
    runs = 800
    n = 200
    delta = 1e-2
    draws = ((1 + rng.standard_normal(n), rng.standard_normal(n)) for _ in range(runs))
    lower = [bounds.best_threshold_bound(*draw, delta, p, [0.5, 1.5]) for draw in draws]
    assert np.mean(np.array(lower) > theory.gdp_epsilon(1.0, delta)) <= p


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_a_plain_gaussian_release_is_seen(sigma):
    """Draws through the library's own clip and noise: nearly all of the ledger's epsilon, no more.

    The (epsilon, delta) forms need the far tail at sigma = 1: a likelihood ratio of e^4.4 occurs
    once in 10^6 draws.
    """
    n = 400_000
    delta = 1e-5
    p = 0.01
    key = ParamKey("B", "only")
    truth = Privacy(noise_multiplier=sigma, sample_rate=1.0, delta=delta).ledger(1).epsilon()
    scores = []
    for seed, size in ((0, 5.0), (1, 0.0)):
        sums, _ = clip_sum({key: torch.full((n, 1), size)}, 1.0, torch.arange(n), n)
        drawn = gaussian_noise({key: torch.Size([n])}, [sigma], Streams(seed), [(0, 0, 0)])
        released, _ = add_noise(sums, {key: drawn[key].T}, {})
        scores.append(released[key][:, 0].double().numpy())
    grid = [0.5 + z * sigma for z in (1.0, 2.0, 2.5, 3.0)]
    inside, outside = scores
    gaussian = bounds.threshold_gdp_lower_bound(inside, outside, 0.5, delta, p)
    thresholds = bounds.best_threshold_bound(inside, outside, delta, p, grid)
    assert 0.95 * truth <= gaussian <= truth
    assert 0.55 * truth <= thresholds <= truth


NAN = np.where(np.arange(8) == 3, np.nan, 0.0)
REFUSED = {
    "correct": lambda: bounds.one_run_p_value(10, 5, 6, 1.0, 0.0),
    "guess": lambda: bounds.count_correct([1.0], [True], (1, 1)),
    # No threshold would count NaN as an error: it would raise the bound.
    "inside": lambda: bounds.best_threshold_bound(NAN, [0.0], 0.0, 0.05, [0.5]),
    "outside": lambda: bounds.threshold_gdp_lower_bound([0.0], NAN, 0.5, 0.0, 0.05),
    "scores": lambda: bounds.one_run_best_bound(NAN, [True] * 8, 0.0, 0.05),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_counts_and_scores_are_refused(name):
    """Fault: counts that cannot be, or NaN that no threshold counts as an error."""
    with pytest.raises(ValueError, match=f"^{name}=[^\n]*: expected [^\n]*$"):
        REFUSED[name]()
