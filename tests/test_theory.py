"""Closed forms against exact algebra (1e-12) or against simulation (within 4 standard errors); one test a function."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from fedlora_lab import accounting, theory

RNG = np.random.default_rng


def stacks(seed: int, clients: int = 5, d_out: int = 4, r: int = 3, d_in: int = 6) -> tuple[np.ndarray, ...]:
    rng = RNG(seed)
    p = rng.random(clients)
    return rng.normal(size=(clients, d_out, r)), rng.normal(size=(clients, r, d_in)), p / p.sum()


def layer(seed: int = 0, d_out: int = 12, r: int = 4, d_in: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = RNG(seed)
    return 0.3 * rng.normal(size=(d_out, r)), rng.uniform(-1, 1, size=(r, d_in)) / math.sqrt(d_in)


def unchecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as users have it, without the type checker that these tests put over the package."""
    return inspect.unwrap(function)


def energies(change: np.ndarray) -> np.ndarray:
    """Squared Frobenius norm of each of n matrices, (n, d_out, d_in) -> (n,)."""
    return np.square(change).sum((1, 2))


def test_every_function_has_a_test_of_its_name() -> None:
    functions = {name for name in theory.__all__ if inspect.isfunction(getattr(theory, name))}
    tests = "\n".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("test_*.py")))
    missing = {name for name in functions if f"def test_{name}(" not in tests}
    assert not missing
    for name in functions:
        text = getattr(theory, name).__doc__
        assert "Guarantees: " in text and f"test_{name}" in text, name
        assert "Source: " in text or name.endswith("_band"), name


# aggregation deviation


def test_deviation() -> None:
    """By hand for two clients, and by loops for five."""
    B, A = np.array([[[1.0]], [[3.0]]]), np.array([[[2.0]], [[6.0]]])
    assert theory.deviation(B, A).item() == pytest.approx(2 * 4 - (2 + 18) / 2)
    B, A, p = stacks(0)
    means = [np.sum([w * x for w, x in zip(p, X, strict=True)], axis=0) for X in (B, A)]
    expected = means[0] @ means[1] - np.sum([w * b @ a for w, b, a in zip(p, B, A, strict=True)], axis=0)
    np.testing.assert_allclose(theory.deviation(B, A, p), expected, atol=1e-12)
    # one common factor, or one client, is enough for none
    np.testing.assert_allclose(theory.deviation(B, np.repeat(A[:1], 5, 0), p), 0, atol=1e-12)
    np.testing.assert_allclose(theory.deviation(np.repeat(B[:1], 5, 0), A, p), 0, atol=1e-12)
    np.testing.assert_allclose(theory.deviation(B[:1], A[:1]), 0, atol=1e-12)
    assert np.abs(theory.deviation(B, A, p)).max() > 0.1


def test_deviation_covariance() -> None:
    for seed in range(5):
        B, A, p = stacks(seed)
        np.testing.assert_allclose(theory.deviation_covariance(B, A, p), theory.deviation(B, A, p), atol=1e-12)
        np.testing.assert_allclose(theory.deviation_covariance(B, A), theory.deviation(B, A), atol=1e-12)


def test_deviation_pairs() -> None:
    for seed in range(5):
        B, A, p = stacks(seed)
        np.testing.assert_allclose(theory.deviation_pairs(B, A, p), theory.deviation(B, A, p), atol=1e-12)
        np.testing.assert_allclose(theory.deviation_pairs(B, A), theory.deviation(B, A), atol=1e-12)


def test_sign_pairs() -> None:
    """No deviation under equal weights, neither factor common: commonness is not necessary. Other weights break it."""
    B, A = theory.sign_pairs()
    assert np.ptp(B) == np.ptp(A) == 2
    assert sorted(zip(B.ravel(), A.ravel(), strict=True)) == [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    assert theory.deviation(B, A).item() == 0
    assert abs(theory.deviation(B, A, np.array([0.4, 0.2, 0.2, 0.2])).item()) > 0.1
    assert not theory.vanishes_for_every_weighting(B, A)


def test_vanishes_for_every_weighting() -> None:
    B, A, _ = stacks(1)
    common = np.repeat(A[:1], 5, 0)
    # neither factor common, yet every pair of gaps multiplies to zero: B moves in the first rank, A in the second
    apart_B, apart_A = np.repeat(B[:1], 5, 0), np.repeat(A[:1], 5, 0)
    apart_B[:, :, 0], apart_A[:, 1] = B[:, :, 0], A[:, 1]
    for b, a, expected in [(B, A, False), (B, common, True), (apart_B, apart_A, True)]:
        assert theory.vanishes_for_every_weighting(b, a) is expected
        sizes = [np.abs(theory.deviation(b, a, RNG(seed).dirichlet(np.ones(5)))).max() for seed in range(20)]
        assert bool(max(sizes) < 1e-12) is expected


# noise on the factors


def test_noise_terms() -> None:
    """20,000 draws: each term and the total within 4 standard errors; then the published example."""
    B, A = layer()
    rng, n, std_B, std_A, scaling = RNG(1), 20_000, 0.2, 0.15, 2.0
    xi_B, xi_A = rng.normal(0, std_B, (n, *B.shape)), rng.normal(0, std_A, (n, *A.shape))
    terms = theory.noise_terms(B, A, std_B, std_A, scaling)
    parts = scaling * (xi_B @ A), scaling * (B @ xi_A), scaling * (xi_B @ xi_A)
    for expected, part in zip(terms, parts, strict=True):
        assert expected in theory.mean_band(energies(part))
    whole = scaling * ((B + xi_B) @ (A + xi_A) - B @ A)
    assert terms.total in theory.mean_band(energies(whole))
    assert terms.total == pytest.approx(sum(terms))
    assert theory.noise_terms(B, A, std_B, 0.0).total == theory.noise_terms(B, A, std_B, 0.0).linear_B > 0
    # d = 48, k = 64, r = 4, s = 0.07: the quadratic term needs no factors
    assert theory.noise_terms(np.ones((48, 4)), np.ones((4, 64)), 0.07, 0.07).quadratic == pytest.approx(
        0.2950, abs=5e-5
    )


def test_quadratic_share() -> None:
    """Against the two terms themselves, with A drawn as PEFT draws it, U(-1, 1) / sqrt(k)."""
    rng, d_in, std = RNG(2), 200, 0.05
    ratios = []
    for _ in range(400):
        terms = theory.noise_terms(np.zeros((8, 4)), rng.uniform(-1, 1, (4, d_in)) / math.sqrt(d_in), std, std)
        assert terms.linear_A == 0
        ratios.append(terms.linear_B / terms.quadratic)
    assert 1 / theory.quadratic_share(std, d_in) in theory.mean_band(np.array(ratios))


def test_crossover() -> None:
    assert theory.crossover(768) == pytest.approx(0.0208, abs=5e-5)
    assert theory.crossover(4096) == pytest.approx(0.0090, abs=5e-5)
    for d_in in (1, 10, 768):
        assert theory.quadratic_share(theory.crossover(d_in), d_in) == pytest.approx(1, rel=1e-12)
        assert theory.quadratic_share(0.9 * theory.crossover(d_in), d_in) < 1


def test_linear_noise_norm() -> None:
    rng, d_out, d_in, std, alpha, n = RNG(3), 10, 64, 0.3, 8.0, 20_000
    for r, stabilised in ((2, False), (8, False), (8, True)):
        rows = np.linalg.qr(rng.normal(size=(d_in, r)))[0].T
        scaling = alpha / (math.sqrt(r) if stabilised else r)
        band = theory.mean_band(energies(scaling * rng.normal(0, std, (n, d_out, r)) @ rows))
        assert theory.linear_noise_norm(r, alpha, std, d_out, rank_stabilised=stabilised) ** 2 in band
        kaiming = rng.uniform(-1, 1, (n, r, d_in)) / math.sqrt(d_in)
        band = theory.mean_band(energies(scaling * rng.normal(0, std, (n, d_out, r)) @ kaiming))
        assert theory.linear_noise_norm(r, alpha, std, d_out, "kaiming", stabilised) ** 2 in band
    norm = theory.linear_noise_norm
    assert norm(16, alpha, std, d_out) == pytest.approx(norm(4, alpha, std, d_out) / 2, rel=1e-12)
    stabilised = [norm(r, alpha, std, d_out, rank_stabilised=True) for r in (1, 4, 64)]
    assert stabilised == pytest.approx([stabilised[0]] * 3, rel=1e-12)


def test_release_snr() -> None:
    """All clients send the same update of norm C; signal over root-mean-square noise of the released mean."""
    rng, m, sigma, clip, (d_out, d_in, r) = RNG(4), 7, 0.8, 0.5, (9, 30, 3)
    for train, numbers in (("B", 27), ("A", 90), ("AB", 117), ("full", 270)):
        noise = rng.normal(0, sigma * clip, (20_000, numbers)) / m
        band = theory.mean_band(np.square(noise).sum(1))
        assert (clip / theory.release_snr(d_out, d_in, r, m, sigma, train)) ** 2 in band
    snr = theory.release_snr
    assert snr(d_out, d_in, 12, m, sigma) == pytest.approx(snr(d_out, d_in, 3, m, sigma) / 2, rel=1e-12)
    gain = snr(d_out, d_in, r, m, sigma, "B") / snr(d_out, d_in, r, m, sigma, "full")
    assert gain == pytest.approx(math.sqrt(d_in / r), rel=1e-12)


def test_alternation_total() -> None:
    """Taking turns: each release linear in its noise, the cycle as noisy as both at once, quadratic term included."""
    B, A = layer(1)
    rng, n, std_B, std_A, scaling = RNG(5), 20_000, 0.3, 0.2, 1.5
    xi_B, xi_A = rng.normal(0, std_B, (n, *B.shape)), rng.normal(0, std_A, (n, *A.shape))
    terms = theory.alternation_total(B, A, std_B, std_A, scaling)
    first = scaling * xi_B @ A
    second = scaling * (B + xi_B) @ xi_A
    assert terms.first in theory.mean_band(energies(first))
    assert terms.second in theory.mean_band(energies(second))
    assert terms.total in theory.mean_band(energies(first + second))
    assert terms.total == pytest.approx(theory.noise_terms(B, A, std_B, std_A, scaling).total, rel=1e-12)
    linear = theory.noise_terms(B, A, std_B, std_A, scaling)
    assert terms.total > 1.1 * (linear.linear_B + linear.linear_A)


def test_accumulated_std() -> None:
    steps, std, lr, n = 9, 0.4, 0.5, 40_000
    total = lr * RNG(6).normal(0, std, (n, steps)).sum(1)
    assert theory.accumulated_std(std, steps, lr) ** 2 in theory.mean_band(total**2)
    assert theory.accumulated_std(std, 0) == 0


def noised_clients(seed: int, clients: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    B, A = layer(2)
    rng = RNG(seed)
    noised_B = B + rng.normal(0, 0.5, (n, clients, *B.shape))
    noised_A = A + rng.normal(0, 0.4, (n, clients, *A.shape))
    return B, A, noised_B, noised_A


def test_factor_average_terms() -> None:
    B, A, noised_B, noised_A = noised_clients(7, 6, 5_000)
    terms = theory.factor_average_terms(B, A, 0.5, 0.4, 6)
    assert terms.total in theory.mean_band(energies(noised_B.mean(1) @ noised_A.mean(1) - B @ A))
    one = theory.noise_terms(B, A, 0.5, 0.4)
    assert terms.quadratic == pytest.approx(one.quadratic / 36, rel=1e-12)
    assert terms.linear_B == pytest.approx(one.linear_B / 6, rel=1e-12)


def test_product_average_terms() -> None:
    """The exact mean of locally noised products: the same linear terms, K times the quadratic one."""
    B, A, noised_B, noised_A = noised_clients(8, 6, 5_000)
    terms = theory.product_average_terms(B, A, 0.5, 0.4, 6)
    assert terms.total in theory.mean_band(energies((noised_B @ noised_A).mean(1) - B @ A))
    averaged = theory.factor_average_terms(B, A, 0.5, 0.4, 6)
    assert terms[:2] == pytest.approx(averaged[:2], rel=1e-12)
    assert terms.quadratic == pytest.approx(6 * averaged.quadratic, rel=1e-12)


# trust


def test_trust_level() -> None:
    """40,000 draws of the noise of each level: on the mean, and on one upload alone."""
    rng, sigma, clip, m, n = RNG(9), 1.2, 0.7, 5, 40_000
    for trust, honest in (("local", None), ("secagg", None), ("secagg", 3), ("central", None)):
        level = theory.trust_level(trust, sigma, clip, m, honest)
        uploads = rng.normal(0, level.each, (n, m))
        mean = (uploads.sum(1) + rng.normal(0, level.server, n)) / m
        assert level.mean**2 in theory.mean_band(mean**2)
        assert (level.alone * clip) ** 2 in theory.mean_band(uploads[:, 0] ** 2)
    assert theory.trust_level("local", sigma, clip, m).mean == pytest.approx(sigma * clip / math.sqrt(m), rel=1e-12)
    for trust in ("secagg", "central"):
        assert theory.trust_level(trust, sigma, clip, m).mean == pytest.approx(sigma * clip / m, rel=1e-12)
    # the sum of the shares of the honest alone is hidden by sigma C
    assert math.sqrt(3) * theory.trust_level("secagg", sigma, clip, m, 3).each == pytest.approx(sigma * clip)


def test_joint_sensitivity() -> None:
    """The worst example fills every tensor's clip at once."""
    rng, clips = RNG(10), np.array([0.5, 1.0, 2.0])
    worst = [c * v / np.linalg.norm(v) for c, v in zip(clips, rng.normal(size=(3, 7)), strict=True)]
    assert theory.joint_sensitivity(clips) == pytest.approx(float(np.linalg.norm(np.concatenate(worst))), rel=1e-12)
    assert theory.joint_sensitivity(np.full(36, 0.2)) == pytest.approx(6 * 0.2, rel=1e-12)


def test_weighted_sensitivity() -> None:
    """Remove each client in turn from a weighted mean of updates of norm C: the largest move."""
    rng, weights, clip = RNG(11), np.array([0.5, 0.3, 0.2]), 0.7
    updates = rng.normal(size=(3, 5))
    updates *= clip / np.linalg.norm(updates, axis=1, keepdims=True)
    moves = [np.linalg.norm(weights[k] * updates[k]) for k in range(3)]
    assert theory.weighted_sensitivity(clip, weights) == pytest.approx(max(moves), rel=1e-12)
    assert theory.weighted_sensitivity(clip, np.full(4, 0.25)) == pytest.approx(clip / 4, rel=1e-12)


# regulated and smoothed noise


def test_regulated_mahalanobis() -> None:
    """Against the covariance std^2 (A A^T)^-1 written out, and against the measured covariance of the noise."""
    _, A = layer(3)
    shift, std, rng = RNG(12).normal(size=(2, 4)), 0.3, RNG(13)
    precision = A @ A.T / std**2
    expected = math.sqrt(sum(row @ precision @ row for row in shift))
    assert theory.regulated_mahalanobis(shift, A, std) == pytest.approx(expected, rel=1e-12)
    noise = rng.normal(0, std, (40_000, A.shape[1])) @ np.linalg.pinv(A)
    measured = math.sqrt(sum(row @ np.linalg.inv(np.cov(noise.T)) @ row for row in shift))
    assert theory.regulated_mahalanobis(shift, A, std) == pytest.approx(measured, rel=4 * math.sqrt(2 / 40_000))


def test_regulated_multiplier() -> None:
    """The worst shift of norm C stands along the peer's largest direction; no other stands out more."""
    _, A = layer(4)
    A, clip, sigma = 3 * A, 0.5, 1.1
    direction = np.linalg.svd(A)[0][:, 0]
    worst = clip * np.outer([1.0, 0.0], direction)
    multiplier = theory.regulated_multiplier(A, sigma)
    assert 1 / multiplier == pytest.approx(theory.regulated_mahalanobis(worst, A, sigma * clip), rel=1e-12)
    shift = worst
    for seed in range(50):
        shift = RNG(seed).normal(size=(2, 4))
        shift *= clip / np.linalg.norm(shift)
        assert theory.regulated_mahalanobis(shift, A, sigma * clip) <= 1 / multiplier
    assert multiplier < sigma  # weaker than nominal: this peer's spectral norm exceeds 1
    # clipping the product instead gives the nominal multiplier
    shift *= clip / np.linalg.norm(shift @ A)
    assert theory.regulated_mahalanobis(shift, A, sigma * clip) == pytest.approx(1 / sigma, rel=1e-12)


def test_regulated_energy() -> None:
    B, A = layer(5)
    n, std = 20_000, 0.4
    noise = RNG(14).normal(0, std, (n, len(B), A.shape[1])) @ np.linalg.pinv(A)
    assert theory.regulated_energy(len(B), len(A), std) in theory.mean_band(energies(noise @ A))
    # at the usual start |A|^2 is about r / 3, so regulated noise is about three times larger than plain noise
    naive = theory.noise_terms(B, A, std, 0.0).linear_B
    assert 2 < theory.regulated_energy(len(B), len(A), std) / naive < 4


def test_whitened() -> None:
    B, A = layer(6)
    white_B, white_A = theory.whitened(B, A)
    np.testing.assert_allclose(white_B @ white_A, B @ A, atol=1e-12)
    np.testing.assert_allclose(white_A @ white_A.T, np.eye(4), atol=1e-12)
    assert np.linalg.norm(white_B) == pytest.approx(float(np.linalg.norm(B @ A)), rel=1e-12)
    # regulated noise on B is plain noise on the whitened B: the map to these coordinates undoes the pseudo-inverse
    root = np.linalg.lstsq(B, white_B, rcond=None)[0]
    shaped = np.linalg.pinv(A) @ root
    np.testing.assert_allclose(shaped.T @ shaped, np.eye(4), atol=1e-10)


def test_filter_weights() -> None:
    np.testing.assert_array_equal(theory.filter_weights(5) * 16, [1, 4, 6, 4, 1])
    np.testing.assert_array_equal(theory.filter_weights(1), [1])
    for taps in (3, 7, 21):
        weights = theory.filter_weights(taps)
        assert len(weights) == taps
        assert weights.sum() == pytest.approx(1, rel=1e-12)
        np.testing.assert_allclose(weights, weights[::-1], rtol=1e-12)


def test_filter_gain() -> None:
    for taps in (1, 3, 5, 9):
        assert theory.filter_gain(taps) == pytest.approx(float(np.square(theory.filter_weights(taps)).sum()), rel=1e-12)
    assert theory.filter_gain(5) == pytest.approx(0.2734, abs=5e-5)
    smoothed = np.array(
        [np.convolve(RNG(s).normal(size=5), theory.filter_weights(5), "valid")[0] for s in range(20_000)]
    )
    assert theory.filter_gain(5) in theory.mean_band(smoothed**2)


# accounting


def renyi_by_integral(order: float, q: float, sigma: float) -> float:
    x = np.linspace(-60 * sigma, 60 * sigma + order, 400_001)
    with np.errstate(divide="ignore"):
        log_ratio = np.logaddexp(np.log1p(-q), np.log(q) + (2 * x - 1) / (2 * sigma**2))
    log_q = stats.norm.logpdf(x, scale=sigma)
    return float(np.log(integrate.trapezoid(np.exp(order * log_ratio + log_q), x)) / (order - 1))


def test_gaussian_rdp() -> None:
    orders = np.array([1.5, 2.0, 8.0])
    for sigma in (0.7, 3.0):
        expected = [4 * renyi_by_integral(order, 1.0, sigma) for order in orders]
        np.testing.assert_allclose(theory.gaussian_rdp(orders, sigma, 4), expected, rtol=1e-9)


def test_sampled_gaussian_rdp() -> None:
    orders = np.array([2, 5, 12])
    for q, sigma in ((0.01, 0.8), (0.2, 2.0), (0.9, 4.0)):
        expected = [3 * renyi_by_integral(order, q, sigma) for order in orders]
        np.testing.assert_allclose(theory.sampled_gaussian_rdp(orders, q, sigma, 3), expected, rtol=1e-8)
    np.testing.assert_array_equal(theory.sampled_gaussian_rdp(orders, 0.0, 1.0), 0)
    full = theory.gaussian_rdp(orders.astype(float), 2.0)
    np.testing.assert_allclose(theory.sampled_gaussian_rdp(orders, 1.0, 2.0), full, rtol=1e-12)
    np.testing.assert_allclose(theory.sampled_gaussian_rdp(orders, 1 - 1e-12, 2.0), full, rtol=1e-9)


def test_rdp_to_epsilon() -> None:
    """The published example; never below the exact epsilon, never above the classical conversion."""
    orders = np.arange(2, 65)
    value, order = theory.rdp_to_epsilon(orders, theory.sampled_gaussian_rdp(orders, 0.1, 3.0, 512), 1e-6)
    assert (round(value, 3), order) == (4.051, 7) or (round(value, 3), order) == (4.052, 7)
    fine = np.linspace(1.01, 200, 20_000)
    for sigma in (0.6, 2.0, 9.0):
        rdp, exact = theory.gaussian_rdp(fine, sigma), theory.gdp_epsilon(1 / sigma, 1e-5)
        value, _ = theory.rdp_to_epsilon(fine, rdp, 1e-5)
        assert exact < value < 1.1 * exact + 0.03
        assert value < theory.rdp_to_epsilon_classical(fine, rdp, 1e-5)[0]
    assert theory.rdp_to_epsilon(fine, np.zeros_like(fine), 0.9)[0] == 0


def test_rdp_to_epsilon_classical() -> None:
    """For the Gaussian the minimum is known: 1 / (2 s^2) + sqrt(2 log(1 / delta)) / s, at order 1 + s sqrt(2 log)."""
    orders = np.linspace(1.01, 60, 200_000)
    for sigma in (1.0, 3.0):
        root = math.sqrt(2 * math.log(1e5))
        value, order = theory.rdp_to_epsilon_classical(orders, theory.gaussian_rdp(orders, sigma), 1e-5)
        assert value == pytest.approx(1 / (2 * sigma**2) + root / sigma, rel=1e-6)
        assert order == pytest.approx(1 + sigma * root, rel=1e-3)


def test_gaussian_mu() -> None:
    """T releases against one: the log-likelihood ratio of the whole has standard deviation mu and mean mu^2 / 2."""
    sigma, steps, n = 2.0, 9, 40_000
    outputs = RNG(15).normal(1, sigma, (n, steps))
    loss = (stats.norm.logpdf(outputs, 1, sigma) - stats.norm.logpdf(outputs, 0, sigma)).sum(1)
    mu = theory.gaussian_mu(sigma, steps)
    assert mu == pytest.approx(1.5)
    assert mu**2 / 2 in theory.mean_band(loss)
    assert mu**2 in theory.mean_band((loss - mu**2 / 2) ** 2)


def test_clt_mu() -> None:
    """The published example, below the exact 3.770; mu^2 is steps times the chi-square divergence of one release."""
    assert theory.gdp_epsilon(theory.clt_mu(0.1, 3.0, 512), 1e-6) == pytest.approx(3.668, abs=1e-3)
    q, sigma = 0.1, 1.5
    chi_square = math.expm1(theory.sampled_gaussian_rdp(np.array([2]), q, sigma).item())
    assert theory.clt_mu(q, sigma, 7) ** 2 == pytest.approx(7 * chi_square, rel=1e-9)


def test_gdp_delta() -> None:
    """delta = E max(0, 1 - e^(epsilon - loss)) with the loss N(mu^2 / 2, mu^2); by quadrature, and far in the tail."""
    for mu, epsilon in ((0.5, 0.0), (0.5, 1.0), (2.0, 3.0), (3.0, 12.0)):

        def gain(t: float, mu: float = mu, epsilon: float = epsilon) -> float:
            return -math.expm1(epsilon - t) * float(stats.norm.pdf(t, mu**2 / 2, mu))

        expected, _ = integrate.quad(gain, epsilon, epsilon + 40 * mu, epsabs=1e-14)
        assert theory.gdp_delta(mu, epsilon) == pytest.approx(expected, rel=1e-8)
    assert theory.gdp_delta(1.0, 0.0) == pytest.approx(2 * stats.norm.cdf(0.5) - 1, rel=1e-12)
    assert 0 < theory.gdp_delta(1.0, 30.0) < 1e-150
    assert theory.gdp_delta(200.0, 1e4) == pytest.approx(1.0)


def test_gdp_epsilon() -> None:
    for mu in (0.1, 1.0, 4.0, 30.0):
        for delta in (1e-3, 1e-9):
            epsilon = theory.gdp_epsilon(mu, delta)
            assert theory.gdp_delta(mu, epsilon) == pytest.approx(delta, rel=1e-9)
    assert theory.gdp_epsilon(0.01, 0.5) == 0


def test_classical_sigma() -> None:
    """Holds in its range; there it asks for more noise than needed, and outside it is refused."""
    for epsilon in (0.05, 0.5, 0.99):
        for delta in (1e-3, 1e-6):
            sigma = theory.classical_sigma(epsilon, delta)
            assert sigma * epsilon == pytest.approx(math.sqrt(2 * math.log(1.25 / delta)), rel=1e-12)
            assert theory.gdp_delta(1 / sigma, epsilon) < delta
    with pytest.raises(ValueError, match=r"^epsilon=1.0: expected a number in"):
        theory.classical_sigma(1.0, 1e-5)


def test_privacy_loss_cdf() -> None:
    """Simulated losses of the mixture fall below each threshold as often as stated, within 4 standard errors."""
    rng, n = RNG(16), 100_000
    for q, sigma in ((0.2, 1.0), (0.9, 2.0), (1.0, 0.8)):
        x = rng.normal(0, sigma, n) + (rng.random(n) < q)
        with np.errstate(divide="ignore"):
            loss = np.logaddexp(np.log1p(-q), np.log(q) + (2 * x - 1) / (2 * sigma**2))
        thresholds = np.quantile(loss, [0.01, 0.3, 0.7, 0.99])
        stated = theory.privacy_loss_cdf(thresholds, q, sigma)
        for t, expected in zip(thresholds, stated, strict=True):
            assert expected in theory.mean_band((loss <= t).astype(float))
        assert (np.diff(theory.privacy_loss_cdf(np.linspace(-3, 9, 200), q, sigma)) >= 0).all()
    assert theory.privacy_loss_cdf(np.array([math.log(0.8) - 1e-9]), 0.2, 1.0).item() == 0


def test_mean_band() -> None:
    """Covers the mean as often as a normal interval should: about 95 % at 1.96 errors."""
    rng = RNG(17)
    hits = [1.0 in theory.mean_band(rng.exponential(size=400), 1.96) for _ in range(1000)]
    assert 0.92 < np.mean(hits) < 0.97
    band = theory.mean_band(np.array([1.0, 3.0]), 0.0)
    assert band == (2.0, 2.0, 2.0)


# the promise, the clip, and the spread of noise


def test_membership_bound() -> None:
    """No test between two Gaussians beats the bound at any of its (epsilon, delta); randomised response meets it."""
    fpr = np.linspace(0, 1, 201)
    for mu in (0.3, 1.0, 3.0):
        best = stats.norm.cdf(stats.norm.ppf(fpr) + mu)
        for epsilon in (0.0, 0.5, 2.0):
            bound = theory.membership_bound(fpr, epsilon, theory.gdp_delta(mu, epsilon))
            assert (best <= bound + 1e-12).all()
            assert (best > bound - 1e-3).any()  # the bound touches the best test
    np.testing.assert_allclose(theory.membership_bound(np.array([0.25]), math.log(3), 0.0), [0.75])
    assert theory.membership_bound(np.array([0.01]), 1.0, 0.001).item() == pytest.approx(0.01 * math.e + 0.001)
    np.testing.assert_allclose(theory.membership_bound(fpr, 0.0, 0.0), fpr)
    assert theory.membership_bound(fpr, 800.0, 0.0).max() <= 1


def test_clip_terms() -> None:
    """Simulated releases of heavy-tailed rows, written out by loops, within 4 standard errors; limits exact."""
    rng = RNG(21)
    rows = rng.standard_t(3, size=(30, 5))
    for clip, sigma, batch in ((1.0, 0.7, 10.0), (2.5, 1.5, 30.0), (0.3, 0.0, 5.0)):
        terms, errors, alone = theory.clip_terms(rows, clip, sigma, batch), [], []
        for _ in range(4000):
            drawn = rng.random(30) < batch / 30
            clipped = [row * min(1.0, clip / np.linalg.norm(row)) for row in rows[drawn]]
            total = np.sum(clipped, axis=0) if clipped else np.zeros(5)
            xi = rng.normal(0, sigma * clip, 5)
            errors.append(np.sum(np.square((total + xi) / batch - rows.mean(0))))
            alone.append(np.sum(np.square(xi / batch)))
        assert terms.total in theory.mean_band(np.array(errors))
        assert terms.noise == pytest.approx(np.mean(alone), rel=0.1)
    wide = theory.clip_terms(rows, 1e6, 0.0, 30.0)
    assert wide == pytest.approx((0, 0, 0), abs=1e-20)
    assert theory.clip_terms(rows, 0.0, 1.0, 3.0).bias == pytest.approx(np.sum(rows.mean(0) ** 2))


def test_noise_spread() -> None:
    """Standard deviations over draws, within 6 % (their own standard error over 4,000 draws is about 1.5 %)."""
    (B, A), rng, draws = layer(22), RNG(23), 4000
    xi_B, xi_A = rng.normal(0, 0.3, (draws, *B.shape)), rng.normal(0, 0.2, (draws, *A.shape))
    spread = theory.noise_spread(B, A, 0.3, 0.2, 1.5)
    for change, expected in zip((xi_B @ A, B @ xi_A, xi_B @ xi_A), spread, strict=True):
        assert np.std(energies(1.5 * change)) == pytest.approx(expected, rel=0.06)


# the start of training: frozen and shaped noise over a run


def test_start_energy() -> None:
    """Mean within 4 standard errors and spread within 6 %, over random A and both noises; the mean by `noise_terms`."""
    rng, draws, r, d_out, d_in = RNG(31), 4000, 3, 8, 10
    for std_B, std_A, scaling in ((0.3, 0.0, 2.0), (0.2, 0.15, 1.0), (0.1, 0.6, 0.5)):
        A = rng.uniform(-1, 1, (draws, r, d_in)) / math.sqrt(d_in)
        xi_B, xi_A = rng.normal(0, std_B, (draws, d_out, r)), rng.normal(0, 1, A.shape) * std_A
        measured = energies(scaling * xi_B @ (A + xi_A))
        expected = theory.start_energy(r, d_out, d_in, std_B, std_A, scaling)
        assert expected.mean in theory.mean_band(measured)
        assert np.std(measured) == pytest.approx(expected.std, rel=0.06)
    typical = np.eye(r, d_in) / math.sqrt(3)  # |A|^2 = r / 3
    terms = theory.noise_terms(np.zeros((d_out, r)), typical, 0.1, 0.6, 0.5)
    assert terms.total == pytest.approx(expected.mean)


def test_energy_band() -> None:
    """95 % of simulated energies inside; the level is the share; no spread, no band."""
    rng, energy = RNG(32), theory.start_energy(4, 16, 24, 0.2, 0.1)
    A = rng.uniform(-1, 1, (4000, 4, 24)) / math.sqrt(24)
    measured = energies(rng.normal(0, 0.2, (4000, 16, 4)) @ (A + rng.normal(0, 0.1, A.shape)))
    for level in (0.5, 0.95):
        band = theory.energy_band(energy, level)
        inside = np.mean([value in band for value in measured])
        assert inside == pytest.approx(level, abs=0.03)
    assert theory.energy_band(theory.Energy(2.0, 0.0)) == (2.0, 2.0, 2.0)


def test_random_reach() -> None:
    """Against projections on random directions: the mean r / d_in, 95 % inside, for one and for several directions."""
    rng, d_in, r = RNG(33), 24, 5
    for spectrum in (np.ones(1), np.array([3.0, 2.0, 1.0, 0.5])):
        band, shares = theory.random_reach(r, d_in, spectrum), []
        for _ in range(2000):
            Q = np.linalg.qr(rng.normal(size=(d_in, r)))[0]
            wanted = np.diag(spectrum) @ np.eye(len(spectrum), d_in)
            shares.append(np.sum((wanted @ Q) ** 2) / np.sum(wanted**2))
        assert band.mean == r / d_in
        assert band.mean in theory.mean_band(np.array(shares))
        assert np.mean([share in band for share in shares]) == pytest.approx(0.95, abs=0.025)
    assert theory.random_reach(24, 24) == (1, 1, 1)


def test_measured_band() -> None:
    """95 % of separations measured on 30 draws lie inside."""
    stds = RNG(34).normal(size=(4000, 30)).std(axis=1, ddof=1)
    band = theory.measured_band(2.0, 30)
    assert band.mean == 2.0
    assert np.mean([2.0 / std in band for std in stds]) == pytest.approx(0.95, abs=0.015)
    with pytest.raises(ValueError, match=r"^draws=1: expected"):
        theory.measured_band(1.0, 1)


def test_regulated_epsilon() -> None:
    """Peers of size 1 spend what the accountant says, also where that is much; larger ones more, smaller ones less."""
    for sigma, q, rounds in ((1.2, 0.1, 6), (0.75, 0.074, 20), (0.4, 0.074, 20)):
        nominal = accounting.epsilon(((sigma, q, 5 * rounds),), 1e-4)
        loose = accounting.epsilon(((sigma, q, 5 * rounds),), 1e-4, "rdp")
        same, large, small = (theory.regulated_epsilon(np.full(rounds, x), sigma, q, 5, 1e-4) for x in (1.0, 2.0, 0.5))
        if nominal < loose:  # where no grid of the accountant's holds it, its bound is the loose one
            assert same[-1] == pytest.approx(nominal, abs=0.02)
        assert 0.7 * loose < same[-1] <= loose
        assert small[-1] < same[-1] < large[-1]
        assert np.all(np.diff(large) > 0)
    # Without sampling the releases of a run are one Gaussian release, exactly.
    by_hand = theory.gdp_epsilon(math.sqrt(3 * (1.0 + 9.0)) / 2.0, 1e-4)
    found = theory.regulated_epsilon(np.array([1.0, 3.0]), 2.0, 1.0, 3, 1e-4)[-1]
    assert by_hand - 1e-9 <= found <= by_hand + 0.01
    assert theory.regulated_epsilon(np.ones(2), 1.0, 0.0, 1, 1e-4).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unchecked(theory.deviation)(np.ones((2, 3, 4)), np.ones((2, 3, 4))), "^B, A=.*: expected shapes"),
        (
            lambda: theory.deviation(stacks(0)[0], stacks(0)[1], np.full(5, 0.3)),
            "^weights=.*: expected 5 numbers >= 0 that sum to 1",
        ),
        (lambda: unchecked(theory.noise_terms)(np.ones((2, 3)), np.ones((2, 3)), 1, 1), "^B, A=.*: expected shapes"),
        (lambda: theory.noise_terms(*layer(), -1, 1), "^std_B=-1: expected a number >= 0$"),
        (lambda: theory.noise_terms(*layer(), 1, math.nan), "^std_A=nan: expected"),
        (lambda: theory.crossover(0), "^d_in=0: expected a whole number >= 1$"),
        (lambda: theory.linear_noise_norm(4, 8.0, 0.1, 8, "zeros"), "^start='zeros': expected one of"),
        (lambda: theory.release_snr(4, 4, 2, 0, 1.0), "^participants=0: expected"),
        (lambda: theory.release_snr(4, 4, 2, 1, 1.0, "C"), "^train='C': expected"),
        (lambda: theory.trust_level("none", 1.0, 1.0, 3), "^trust='none': expected"),
        (lambda: theory.trust_level("secagg", 1.0, 1.0, 3, 4), r"^honest=4: expected a whole number in \[1, 3\]$"),
        (lambda: theory.filter_weights(4), "^taps=4: expected an odd number$"),
        (lambda: theory.whitened(np.ones((2, 2)), np.ones((2, 3))), "^A=.*: expected a matrix of full row rank$"),
        (lambda: theory.regulated_multiplier(np.zeros((2, 3)), 1.0), "^peer=0.0: expected"),
        (lambda: theory.gdp_delta(0.0, 1.0), "^mu=0.0: expected a number > 0$"),
        (lambda: theory.gdp_epsilon(1.0, 1.0), "^delta=1.0: expected"),
        (lambda: theory.sampled_gaussian_rdp(np.array([1]), 0.1, 1.0), "^orders="),
        (lambda: theory.mean_band(np.ones(1)), "^samples="),
        (lambda: theory.start_energy(0, 2, 2, 1.0), "^rank=0: expected"),
        (lambda: theory.energy_band(theory.Energy(1.0, 1.0), 1.0), "^level=1.0: expected"),
        (lambda: theory.random_reach(5, 4), r"^rank=5: expected a whole number in \[1, 4\]$"),
        (lambda: theory.regulated_epsilon(np.zeros(2), 1.0, 0.1, 1, 1e-4), "^peers="),
        (lambda: theory.regulated_epsilon(np.ones(2), 1.0, 1.1, 1, 1e-4), "^sample_rate=1.1: expected"),
        (lambda: theory.regulated_epsilon(np.ones(2), 1.0, 0.1, 1, 1.0), "^delta=1.0: expected"),
        (lambda: theory.membership_bound(np.array([1.5]), 1.0, 0.1), "^fpr="),
        (lambda: theory.clip_terms(np.ones((3, 2)), 1.0, 1.0, 4.0), "^batch=4.0: expected"),
    ],
)
def test_refuses_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
