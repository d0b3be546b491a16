"""Bounds from counts: golden values, limits, and how often each bound errs on mechanisms whose epsilon is known."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import binom, norm

from fedlora_lab import theory
from fedlora_lab.audit import estimate, gaussian, one_run, threshold
from fedlora_lab.mechanism import clip_sum, noise, release
from fedlora_lab.method import Slot
from fedlora_lab.privacy import Privacy
from fedlora_lab.streams import Streams


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "p", "expected"),
    [(1000, 100, 75, 1e-4, 0.05, 0.673), (100_000, 1510, 1439, 1e-5, 0.05, 2.676)],
)
def test_one_run_vectors(m, r, v, delta, p, expected):
    assert one_run.epsilon_lower(m, r, v, delta, p) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(("m", "expected"), [(50, 2.78), (100, 3.49), (200, 4.19), (500, 5.10), (1000, 5.78)])
def test_ceilings(m, expected):
    assert one_run.ceiling(m, 1e-5, 0.05, [(m // 2, m - m // 2)]) == pytest.approx(expected, abs=5e-3)
    assert one_run.ceiling(m, 1e-5, 0.05) < expected
    many = {100: 3.28, 500: 4.91, 1000: 5.60}
    if m in many:
        assert threshold.ceiling(m, 0.0, 0.05) == pytest.approx(many[m], abs=5e-3)


def test_a_ceiling_is_reached_by_what_it_needs():
    m = one_run.needed(3.0, 1e-5, 0.05)
    assert one_run.epsilon_lower(m, m, m, 1e-5, 0.05) >= 3.0 > one_run.epsilon_lower(m - 1, m - 1, m - 1, 1e-5, 0.05)
    with pytest.raises(ValueError, match="100000 canaries"):
        one_run.needed(20.0, 1e-5, 0.05)


def test_the_delta_term_is_there():
    """Without delta the chance is a binomial tail; with it the bound is lower, and falls as canaries are added."""
    plain = one_run.p_value(1000, 100, 75, 0.5, 0.0)
    assert plain == pytest.approx(float(binom.sf(74, 100, expit(0.5))))
    assert one_run.p_value(1000, 100, 75, 0.5, 1e-4) > 1.01 * plain
    found = [one_run.epsilon_lower(m, 100, 95, 1e-4, 0.05) for m in (100, 1000, 10_000, 100_000)]
    assert sorted(found, reverse=True) == found
    assert found[0] > found[-1] + 0.5
    # Sum by hand: P[v > W' >= v - i] / i at its largest.
    pmf = binom.pmf(np.arange(101), 100, expit(0.5))
    by_hand = max(pmf[75 - i : 75].sum() / i for i in range(1, 76))
    assert one_run.p_value(1000, 100, 75, 0.5, 1e-4) == pytest.approx(plain + 2 * 1000 * 1e-4 * by_hand)


def randomised_response(rng, m, epsilon):
    """Scores of an exactly epsilon-DP mechanism: each coin is told rightly with probability 1 / (1 + exp(-epsilon))."""
    included = rng.random(m) < 0.5
    right = rng.random(m) < expit(epsilon)
    return np.where(right == included, 1.0, -1.0) + 1e-6 * rng.random(m), included


def test_the_bound_errs_as_often_as_it_says():
    """On randomised response, the worst case of the theorem, the bound exceeds the truth in at most p of the runs."""
    rng, epsilon, p, runs = np.random.default_rng(0), 1.0, 0.1, 2000
    wrong = 0
    for _ in range(runs):
        scores, included = randomised_response(rng, 60, epsilon)
        v = one_run.correct_guesses(scores, included, (30, 30))
        wrong += one_run.p_value(60, 60, v, epsilon, 0.0) < p
    assert wrong / runs <= p + 4 * math.sqrt(p * (1 - p) / runs)
    assert wrong / runs >= p / 4  # it is not merely always right


def test_choosing_the_guesses_is_paid_for():
    """On noise alone the best of several numbers of guesses errs no more often than the significance."""
    rng, p, runs = np.random.default_rng(1), 0.2, 600
    wrong = sum(one_run.best(rng.random(40), rng.random(40) < 0.5, 0.0, p) > 0 for _ in range(runs))
    assert wrong / runs <= p + 4 * math.sqrt(p * (1 - p) / runs)
    plans = one_run.plans(40)
    assert plans == ((5, 5), (10, 10), (20, 20))
    assert all(sum(guess) <= m for m in range(2, 50) for guess in one_run.plans(m))


def test_guesses_are_of_the_highest_and_the_lowest():
    scores, included = [3.0, 2.0, 1.0, 0.0], [True, False, True, False]
    assert one_run.correct_guesses(scores, included, (1, 1)) == 2
    assert one_run.correct_guesses(scores, included, (2, 2)) == 2
    assert one_run.correct_guesses(scores, included, (4, 0)) == 2
    for bad, message in (((5, 0), "guess=5"), ((2, 3), "guess=3")):
        with pytest.raises(ValueError, match=message):
            one_run.correct_guesses(scores, included, bad)
    with pytest.raises(ValueError, match="NaN"):
        one_run.correct_guesses([math.nan, 0.0], [True, False], (1, 1))


def test_the_gaussian_form_is_tighter_and_errs_no_more_often():
    """One Gaussian release with orthogonal canaries: the f-DP form sees more than the (epsilon, delta) form."""
    rng, m, delta, p = np.random.default_rng(2), 1000, 1e-5, 0.05
    mu = 1.0
    truth, wrong, plain, sharp = theory.gdp_epsilon(mu, delta), 0, [], []
    for _ in range(60):
        included = rng.random(m) < 0.5
        scores = mu * included + rng.standard_normal(m)
        v = one_run.correct_guesses(scores, included, (50, 50))
        wrong += gaussian.refuted(m, 100, v, mu, p)
        plain.append(one_run.epsilon_lower(m, 100, v, delta, p))
        sharp.append(gaussian.one_run_lower(m, 100, v, delta, p))
    assert wrong <= 60 * p + 4 * math.sqrt(60 * p)
    assert max(plain) <= truth
    assert np.mean(sharp) > 1.3 * np.mean(plain)
    assert np.mean(sharp) > 0.5 * truth


def test_clopper_pearson():
    assert threshold.upper(0, 100, 0.025) == pytest.approx(1 - 0.025 ** (1 / 100))
    assert threshold.upper(100, 100, 0.025) == 1.0
    assert binom.cdf(25, 500, threshold.upper(25, 500, 0.025)) == pytest.approx(0.025)


def test_threshold_vectors():
    assert threshold.epsilon_lower(25, 500, 200, 500, 0.0, 0.05) == pytest.approx(2.031, abs=6e-4)
    assert threshold.epsilon_lower(200, 500, 25, 500, 0.0, 0.05) == pytest.approx(2.031, abs=6e-4)
    assert threshold.epsilon_lower(250, 500, 250, 500, 0.0, 0.05) == 0.0


def test_the_threshold_bound_errs_as_often_as_it_says():
    rng, p, runs, n, mu, delta = np.random.default_rng(3), 0.1, 800, 200, 1.0, 1e-2
    truth = theory.gdp_epsilon(mu, delta)
    found = [
        threshold.best(mu + rng.standard_normal(n), rng.standard_normal(n), delta, p, [0.5, 1.5]) for _ in range(runs)
    ]
    assert np.mean(np.array(found) > truth) <= p


def test_a_plain_gaussian_release_is_seen():
    """Independent draws through the library's own clip and noise: nearly all of the ledger's epsilon, never more.

    The (epsilon, delta) forms need the far tail at sigma = 1: a likelihood ratio of e^4.4 occurs once in 10^6 draws.
    """
    n, delta, p = 400_000, 1e-5, 0.01
    slot = Slot("B", "only")
    for sigma in (1.0, 3.0):
        truth = Privacy(noise_multiplier=sigma, sample_rate=1.0, delta=delta).ledger(1).epsilon()
        scores = []
        for seed, size in ((0, 5.0), (1, 0.0)):
            rows = {slot: torch.full((n, 1), size)}
            sums, _ = clip_sum(rows, 1.0, torch.arange(n), n)
            drawn = noise({slot: torch.Size([n])}, [sigma], Streams(seed), [(0, 0, 0)])
            released, _ = release(sums, {slot: drawn[slot].T}, {})
            scores.append(released[slot][:, 0].double().numpy())
        inside, outside = scores
        grid = [0.5 + z * sigma for z in (1.0, 2.0, 2.5, 3.0)]
        found = {
            "gaussian": gaussian.threshold_lower(inside, outside, 0.5, delta, p),
            "thresholds": threshold.best(inside, outside, delta, p, grid),
            "split": threshold.split(inside, outside, delta, p),
        }
        assert all(value <= truth for value in found.values()), (truth, found)
        assert found["gaussian"] >= 0.95 * truth
        assert min(found.values()) >= 0.55 * truth, (truth, found)


def test_the_federated_estimate():
    """Gaussian sums with 1000 canaries in 20,000 numbers: near the truth in the median, and no bound."""
    d, k, delta = 20_000, 1000, 1e-5
    rng = np.random.default_rng(0)
    canaries = rng.standard_normal((k, d), dtype=np.float32)
    canaries /= np.linalg.norm(canaries, axis=1, keepdims=True)
    total = canaries.sum(0)
    for sigma, truth in ((1.0, 4.38), (2.0, 1.99), (4.0, 0.926)):
        updates = [total + sigma * rng.standard_normal(d, dtype=np.float32) for _ in range(9)]
        found = [estimate.epsilon_estimate(estimate.cosines(canaries, update), d, delta) for update in updates]
        assert theory.gdp_epsilon(1 / sigma, delta) == pytest.approx(truth, abs=6e-3)
        assert 0.8 * truth < np.median(found) < 1.3 * truth
        assert max(found) > truth


def test_epsilon_between_normals_is_the_gaussian_one():
    for mu in (0.3, 1.0, 3.0):
        found = estimate.between_normals((0.0, 0.01), (0.01 * mu, 0.01), 1e-5)
        assert found == pytest.approx(theory.gdp_epsilon(mu, 1e-5), rel=1e-6)
    assert estimate.between_normals((0.0, 1.0), (0.0, 1.0), 1e-5) == 0
    # Unequal spreads, against the integral on a fine grid.
    x = np.linspace(-30, 30, 400_001)
    one, other = norm.pdf(x, 0.0, 1.0), norm.pdf(x, 1.0, 1.3)
    epsilon = estimate.between_normals((0.0, 1.0), (1.0, 1.3), 1e-3)
    gaps = [np.trapezoid(np.maximum(p - math.exp(epsilon) * q, 0), x) for p, q in ((one, other), (other, one))]
    assert max(gaps) == pytest.approx(1e-3, rel=1e-3)


def test_bad_counts_are_refused():
    for call, message in (
        (lambda: one_run.p_value(10, 11, 5, 1.0, 0.0), "guesses=11"),
        (lambda: one_run.p_value(10, 5, 6, 1.0, 0.0), "correct=6"),
        (lambda: one_run.p_value(10, 5, 5, -1.0, 0.0), "epsilon=-1"),
        (lambda: one_run.epsilon_lower(10, 5, 5, 0.0, 0.0), "significance=0"),
        (lambda: threshold.upper(3, 2, 0.05), "count=3"),
        (lambda: threshold.best([0.0], [0.0], 0.0, 0.05, []), "thresholds"),
        (lambda: estimate.epsilon_estimate(np.zeros(5), 10, 1e-5), "dimension=10"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
