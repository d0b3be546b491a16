"""Bounds from counts: golden values, limits, and how often each errs where epsilon is known."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from scipy.stats import binom, norm

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.audit import bounds
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.privacy.privatizer import clip_sum, gaussian_noise, release


def test_one_run_bounds_are_those_of_the_paper():
    """The two numbers of the paper."""
    for m, r, v, delta, value in ((1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.676)):
        assert bounds.one_run_lower_bound(m, r, v, delta, 0.05) == pytest.approx(value, abs=6e-4)


@pytest.mark.parametrize(
    ("m", "one_run", "many"),
    [(50, 2.78, None), (100, 3.49, 3.28), (500, 5.10, 4.91), (1000, 5.78, 5.60)],
)
def test_ceilings_grow_with_the_canaries(m, one_run, many):
    found = bounds.one_run_ceiling(m, 1e-5, 0.05, ((m // 2, m - m // 2),))
    assert found == pytest.approx(one_run, abs=5e-3)
    assert bounds.one_run_ceiling(m, 1e-5, 0.05) < one_run
    if many:
        assert bounds.threshold_ceiling(m, 0.0, 0.05) == pytest.approx(many, abs=5e-3)


@pytest.mark.slow
def test_a_ceiling_is_reached_by_what_it_needs():
    m = bounds.canaries_needed(1.0, 1e-5, 0.05)
    fewer, enough = (bounds.one_run_lower_bound(n, n, n, 1e-5, 0.05) for n in (m - 1, m))
    assert fewer < 1.0 <= enough
    with pytest.raises(ValueError, match=r"epsilon=20\.0: expected one that 100000 canaries"):
        bounds.canaries_needed(20.0, 1e-5, 0.05)


def test_delta_lowers_the_one_run_bound():
    """Without delta a binomial tail; with it the bound is lower, the more so the more canaries."""
    plain = bounds.one_run_p_value(1000, 100, 75, 0.5, 0.0)
    assert plain == pytest.approx(float(binom.sf(74, 100, expit(0.5))))
    ms = (100, 1000, 10_000, 100_000)
    found = [bounds.one_run_lower_bound(m, 100, 95, 1e-4, 0.05) for m in ms]
    assert sorted(found, reverse=True) == found
    assert found[0] > found[-1] + 0.5
    # Sum by hand: P[v > W' >= v - i] / i at its largest.
    pmf = binom.pmf(np.arange(101), 100, expit(0.5))
    by_hand = max(pmf[75 - i : 75].sum() / i for i in range(1, 76))
    whole = bounds.one_run_p_value(1000, 100, 75, 0.5, 1e-4)
    assert whole == pytest.approx(plain + 2 * 1000 * 1e-4 * by_hand)
    assert whole > 1.01 * plain


def test_the_bound_errs_as_often_as_it_says():
    """Randomised response, the theorem's worst case: above the truth in at most p of the runs."""
    rng, epsilon, p, runs, m = np.random.default_rng(0), 1.0, 0.1, 1000, 60
    wrong = 0
    for _ in range(runs):
        included = rng.random(m) < 0.5
        told = np.where((rng.random(m) < expit(epsilon)) == included, 1.0, -1.0)
        v = bounds.count_correct(told + 1e-6 * rng.random(m), included, (30, 30))
        wrong += bounds.one_run_p_value(m, m, v, epsilon, 0.0) < p
    assert p / 4 <= wrong / runs <= p + 4 * math.sqrt(p * (1 - p) / runs)


def test_choosing_the_guesses_is_paid_for():
    """On noise alone the best of several numbers of guesses errs as seldom as it says."""
    scores, included = [3.0, 2.0, 1.0, 0.0], [True, False, True, False]
    for guesses in ((1, 1), (2, 2), (4, 0)):  # of the highest and the lowest
        assert bounds.count_correct(scores, included, guesses) == 2
    rng, p, runs = np.random.default_rng(1), 0.2, 300
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
    parts = guesses, correct, 1e-6, 0.05 / looks
    found = bounds.gaussian_one_run_lower_bound(20_000, *parts)
    assert found == pytest.approx(expected, abs=5e-4) and found <= expected
    assert found > bounds.one_run_lower_bound(20_000, *parts) + 1


def test_the_gaussian_one_run_bound_errs_as_often_as_it_says():
    """Gaussian noise, the narrowest case: above the truth in at most p of the audits, and not in
    so few that it proves nothing."""
    rng, mu, p, runs, m, delta = np.random.default_rng(5), 1.0, 0.2, 300, 100, 1e-5
    truth, found = theory.gdp_epsilon(mu, delta), []
    for _ in range(runs):
        included = rng.random(m) < 0.5
        v = bounds.count_correct(mu * included + rng.standard_normal(m), included, (15, 15))
        found.append(bounds.gaussian_one_run_lower_bound(m, 30, v, delta, p))
    wrong = np.mean(np.array(found) > truth)
    assert wrong <= p + 4 * math.sqrt(p * (1 - p) / runs) and np.median(found) > 0.25 * truth
    assert bounds.gaussian_one_run_lower_bound(100, 0, 0, delta, p) == 0
    assert bounds.gaussian_one_run_lower_bound(100, 30, 15, delta, 0.05) == 0


def test_clopper_pearson_inverts_the_binomial_tail():
    assert bounds.clopper_pearson_upper(0, 100, 0.025) == pytest.approx(1 - 0.025 ** (1 / 100))
    assert bounds.clopper_pearson_upper(100, 100, 0.025) == 1.0
    assert binom.cdf(25, 500, bounds.clopper_pearson_upper(25, 500, 0.025)) == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("false_positives", "false_negatives", "expected"),
    [(25, 200, 2.031), (200, 25, 2.031), (250, 250, 0.0)],
)
def test_threshold_bounds_are_symmetric_in_both_errors(false_positives, false_negatives, expected):
    found = bounds.threshold_lower_bound(false_positives, 500, false_negatives, 500, 0.0, 0.05)
    assert found == pytest.approx(expected, abs=6e-4)


def test_the_threshold_bound_errs_as_often_as_it_says():
    rng, p, runs, n, delta = np.random.default_rng(3), 0.1, 800, 200, 1e-2
    draws = ((1 + rng.standard_normal(n), rng.standard_normal(n)) for _ in range(runs))
    found = [bounds.best_threshold_bound(*draw, delta, p, [0.5, 1.5]) for draw in draws]
    assert np.mean(np.array(found) > theory.gdp_epsilon(1.0, delta)) <= p


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_a_plain_gaussian_release_is_seen(sigma):
    """Draws through the library's own clip and noise: nearly all of the ledger's epsilon, no more.

    The (epsilon, delta) forms need the far tail at sigma = 1: a likelihood ratio of e^4.4 occurs
    once in 10^6 draws.
    """
    n, delta, p, key = 400_000, 1e-5, 0.01, ParamKey("B", "only")
    truth = Privacy(noise_multiplier=sigma, sample_rate=1.0, delta=delta).ledger(1).epsilon()
    scores = []
    for seed, size in ((0, 5.0), (1, 0.0)):
        sums, _ = clip_sum({key: torch.full((n, 1), size)}, 1.0, torch.arange(n), n)
        drawn = gaussian_noise({key: torch.Size([n])}, [sigma], Streams(seed), [(0, 0, 0)])
        released, _ = release(sums, {key: drawn[key].T}, {})
        scores.append(released[key][:, 0].double().numpy())
    grid = [0.5 + z * sigma for z in (1.0, 2.0, 2.5, 3.0)]
    inside, outside = scores
    gaussian = bounds.threshold_gdp_lower_bound(inside, outside, 0.5, delta, p)
    thresholds = bounds.best_threshold_bound(inside, outside, delta, p, grid)
    assert 0.95 * truth <= gaussian <= truth
    assert 0.55 * truth <= thresholds <= truth


@pytest.mark.parametrize(("sigma", "truth"), [(1.0, 4.38), (2.0, 1.99)])
def test_the_federated_estimate_is_near_the_truth(sigma, truth):
    """Gaussian sums with 500 canaries in 10,000 numbers: near the truth in the median, no bound."""
    d, k, delta, rng = 10_000, 500, 1e-5, np.random.default_rng(0)
    canaries = rng.standard_normal((k, d), dtype=np.float32)
    canaries /= np.linalg.norm(canaries, axis=1, keepdims=True)
    found = []
    for _ in range(9):
        update = canaries.sum(0) + sigma * rng.standard_normal(d, dtype=np.float32)
        cosines = canaries @ update / np.linalg.norm(update)
        found.append(bounds.epsilon_estimate(cosines, d, delta))
    assert theory.gdp_epsilon(1 / sigma, delta) == pytest.approx(truth, abs=6e-3)
    assert 0.8 * truth < np.median(found) < 1.3 * truth
    assert max(found) > truth


def test_epsilon_between_normals_is_the_gaussian_one():
    for mu in (0.3, 1.0, 3.0):
        found = bounds.epsilon_between_normals((0.0, 0.01), (0.01 * mu, 0.01), 1e-5)
        assert found == pytest.approx(theory.gdp_epsilon(mu, 1e-5), rel=1e-6)
    assert bounds.epsilon_between_normals((0.0, 1.0), (0.0, 1.0), 1e-5) == 0
    # Unequal spreads, against the integral on a fine grid; the second far out in the tails.
    x = np.linspace(-30, 40, 400_001)
    for p, q, delta in (((0.0, 1.0), (1.0, 1.3), 1e-3), ((0.0, 1.0), (5.0, 1.1), 1e-5)):
        one, other = norm.pdf(x, *p), norm.pdf(x, *q)
        epsilon = bounds.epsilon_between_normals(p, q, delta)
        gaps = (a - math.exp(epsilon) * b for a, b in ((one, other), (other, one)))
        largest = max(np.trapezoid(np.maximum(gap, 0), x) for gap in gaps)
        assert largest == pytest.approx(delta, rel=1e-3)


NAN = np.where(np.arange(8) == 3, np.nan, 0.0)
WITH_NAN = "with NaN': expected numbers: a release that is not finite"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds.one_run_p_value(10, 11, 5, 1.0, 0.0), r"guesses=11: .* in \[0, 10\]"),
        (lambda: bounds.one_run_p_value(10, 5, 6, 1.0, 0.0), r"correct=6: .* in \[0, 5\]"),
        (lambda: bounds.one_run_p_value(10, 5, 5, -1.0, 0.0), "epsilon=-1.0: .* >= 0"),
        (lambda: bounds.one_run_lower_bound(10, 5, 5, 0.0, 0.0), r"significance=0.0: .* \(0, 1\]"),
        (lambda: bounds.count_correct([1.0], [True], (2, 0)), r"guess=2: .* in \[0, 1\]"),
        (lambda: bounds.count_correct([1.0], [True], (1, 1)), r"guess=1: .* in \[0, 0\]"),
        (lambda: bounds.clopper_pearson_upper(3, 2, 0.05), r"count=3: .* in \[0, 2\]"),
        (lambda: bounds.best_threshold_bound([0.0], [0.0], 0.0, 0.05, []), "at least one"),
        (lambda: bounds.epsilon_estimate(np.zeros(5), 10, 1e-5), "dimension=10: .* >= 1000"),
        # No threshold would count NaN as an error: it would raise the bound.
        (lambda: bounds.best_threshold_bound(NAN, [0.0], 0.0, 0.05, [0.5]), f"inside='{WITH_NAN}"),
        (lambda: bounds.best_threshold_bound([0.0], NAN, 0.0, 0.05, [0.5]), f"outside='{WITH_NAN}"),
        (lambda: bounds.threshold_gdp_lower_bound([0.0], NAN, 0.5, 0.0, 0.05), "outside='with"),
        (lambda: bounds.one_run_best_bound(NAN, [True] * 8, 0.0, 0.05), f"scores='{WITH_NAN}"),
        (lambda: bounds.epsilon_estimate(NAN, 2000, 1e-5), "cosines='with NaN or infinity'"),
    ],
)  # fmt: skip
def test_bad_counts_and_scores_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_attack_above_the_curve_is_found_and_chance_is_not():
    """Of 200 perfect attackers of a Gaussian release none is above its own curve more often than
    allowed, and all are above that of twice the noise. A bound on one rate only would raise alarms.
    """
    rng, mu, alarms, threshold = np.random.default_rng(0), 1.5, 0, 1.0
    for _ in range(50):
        scores = rng.standard_normal((2, 4, 400)) + np.array([0.0, mu]).reshape(2, 1, 1)
        accused, found = (scores > threshold).sum(2)
        counts = {"accused": accused, "others": 400, "found": found, "members": 400}
        frame = pd.DataFrame(counts)

        def curve(fpr, mu):
            return float(norm.cdf(norm.ppf(fpr) + mu))

        alarms += len(fl.audit.attacks_above(frame, lambda fpr: curve(fpr, mu))) > 0
        assert len(fl.audit.attacks_above(frame, lambda fpr: curve(fpr, mu / 2))) == 4
    assert alarms <= 6
    with pytest.raises(ValueError, match=r"^frame='0 rows': expected at least one attack"):
        fl.audit.attacks_above(frame.head(0), lambda fpr: fpr)
