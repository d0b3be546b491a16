"""Closed forms against exact algebra (1e-12) or simulation (4 standard errors); one test each."""

import inspect
import math
import re
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from fedlora_lab import theory

RNG = np.random.default_rng
DRAWS = 4000


def stacks(seed: int) -> tuple[np.ndarray, ...]:
    """Factors of five clients, and weights."""
    rng, p = RNG(seed), RNG(seed + 100).random(5)
    return rng.normal(size=(5, 4, 3)), rng.normal(size=(5, 3, 6)), p / p.sum()


def layer(seed: int = 0, d_out: int = 12, d_in: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Factors of rank 4."""
    rng = RNG(seed)
    return 0.3 * rng.normal(size=(d_out, 4)), rng.uniform(-1, 1, size=(4, d_in)) / math.sqrt(d_in)


def close(value: Any, expected: Any) -> None:
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)


def gaussian(seed: int, n: int, std_B: float, B: Any, std_A: float, A: Any) -> tuple[Any, Any]:
    """n draws of the noise on both factors."""
    rng = RNG(seed)
    return rng.normal(0, std_B, (n, *B.shape)), rng.normal(0, std_A, (n, *A.shape))


def energies(change: np.ndarray) -> np.ndarray:
    """Squared Frobenius norm of each of n matrices, (n, d_out, d_in) -> (n,)."""
    return np.square(change).sum((1, 2))


def is_mean(expected: float, samples: Any) -> bool:
    """Whether it lies within 4 standard errors of the samples' mean."""
    return expected in theory.mean_band(np.asarray(samples, float))


def test_every_closed_form_names_its_test_and_its_source() -> None:
    """That the named tests exist is held by tests/project/test_docs.py."""
    names = [name for name in dir(theory) if inspect.isfunction(getattr(theory, name))]
    assert len(names) > 50 and "check" not in names
    for name in names:
        text = str(getattr(theory, name).__doc__)
        assert re.search(r"Guarantees: .*test_", text), name
        assert "Source: " in text or name.endswith("_band"), name


# ---- aggregation deviation


def test_deviation_matrix() -> None:
    """By hand for two clients, and by loops for five."""
    B, A = np.array([[[1.0]], [[3.0]]]), np.array([[[2.0]], [[6.0]]])
    close(theory.deviation_matrix(B, A), 2 * 4 - (2 + 18) / 2)
    B, A, p = stacks(0)
    means = [np.sum([w * x for w, x in zip(p, X, strict=True)], axis=0) for X in (B, A)]
    products = [w * b @ a for w, b, a in zip(p, B, A, strict=True)]
    close(theory.deviation_matrix(B, A, p), means[0] @ means[1] - np.sum(products, axis=0))
    # one common factor, or one client, is enough for none
    close(theory.deviation_matrix(B, np.repeat(A[:1], 5, 0), p), 0)
    close(theory.deviation_matrix(np.repeat(B[:1], 5, 0), A, p), 0)
    close(theory.deviation_matrix(B[:1], A[:1]), 0)
    assert np.abs(theory.deviation_matrix(B, A, p)).max() > 0.1


def test_deviation_covariance() -> None:
    """Minus the covariance of B and A over clients is the deviation."""
    B, A, p = stacks(1)
    close(theory.deviation_covariance(B, A, p), theory.deviation_matrix(B, A, p))
    close(theory.deviation_covariance(B, A), theory.deviation_matrix(B, A))


def test_sign_pairs() -> None:
    """No deviation under equal weights, neither factor common; other weights break it."""
    B, A = theory.sign_pairs()
    assert theory.deviation_matrix(B, A).item() == 0
    assert not theory.vanishes_for_every_weighting(B, A)


def test_vanishes_for_every_weighting() -> None:
    B, A, _ = stacks(1)
    common = np.repeat(A[:1], 5, 0)
    # Neither factor common, yet every pair of gaps multiplies to zero: B moves in the first rank, A
    # in the second.
    apart_B, apart_A = np.repeat(B[:1], 5, 0), np.repeat(A[:1], 5, 0)
    apart_B[:, :, 0], apart_A[:, 1] = B[:, :, 0], A[:, 1]
    for b, a, expected in [(B, A, False), (B, common, True), (apart_B, apart_A, True)]:
        assert theory.vanishes_for_every_weighting(b, a) is expected
        found = [
            theory.deviation_matrix(b, a, RNG(seed).dirichlet(np.ones(5))) for seed in range(20)
        ]
        assert bool(np.abs(found).max() < 1e-12) is expected


# ---- noise on the factors


def test_noise_terms() -> None:
    """Each term and the total by simulation; then the published example."""
    (B, A), std_B, std_A, scaling = layer(), 0.2, 0.15, 2.0
    xi_B, xi_A = gaussian(1, DRAWS, std_B, B, std_A, A)
    terms = theory.noise_terms(B, A, std_B, std_A, scaling)
    parts = scaling * (xi_B @ A), scaling * (B @ xi_A), scaling * (xi_B @ xi_A)
    assert all(is_mean(e, energies(part)) for e, part in zip(terms, parts, strict=True))
    assert is_mean(terms.total, energies(np.sum(parts, axis=0)))
    assert terms.total == pytest.approx(sum(terms))
    # d = 48, k = 64, r = 4, s = 0.07: the quadratic term needs no factors
    published = theory.noise_terms(np.ones((48, 4)), np.ones((4, 64)), 0.07, 0.07)
    assert published.quadratic == pytest.approx(0.2950, abs=5e-5)


def test_accumulated_noise_terms() -> None:
    """Three releases of B and five of A from B = 0 and a larger start, multiplied out at the end;
    the amplification is the energy of the noise in A over A's own, and the ratio of the two terms.
    """
    rng, (d_out, r, d_in), (std_B, std_A), scaling, c = RNG(40), (6, 3, 10), (0.2, 0.1), 1.5, 2.0
    start = c * rng.uniform(-1, 1, (DRAWS, r, d_in)) / math.sqrt(d_in)
    B = rng.normal(0, std_B, (3, DRAWS, d_out, r)).sum(0)
    noise = rng.normal(0, std_A, (5, DRAWS, r, d_in)).sum(0)
    terms = theory.accumulated_noise_terms(d_out, r, d_in, std_B, std_A, 3, 5, scaling, c)
    assert is_mean(terms.linear_B, energies(scaling * B @ start)) and terms.linear_A == 0
    assert is_mean(terms.quadratic, energies(scaling * B @ noise))
    assert is_mean(terms.total, energies(scaling * B @ (start + noise)))
    rho = theory.amplification(std_A, 5, d_in, c)
    assert is_mean(rho, energies(noise) / energies(start).mean())
    assert terms.quadratic / terms.linear_B == pytest.approx(rho)


def test_balanced_scale() -> None:
    """The amplification with the scale is the target, or what it was where that is less."""
    for std in (0.001, 0.03, 0.3):
        rho = theory.amplification(std, 40, 64)
        scale = theory.balanced_scale(rho, 0.5)
        assert theory.amplification(std, 40, 64, scale) == pytest.approx(min(rho, 0.5))
        assert scale >= 1


def test_quadratic_share() -> None:
    """Against the two terms themselves, with A drawn as PEFT draws it, U(-1, 1) / sqrt(k); it is 1
    at the crossover.
    """
    rng, d_in, std = RNG(2), 200, 0.05
    starts = [rng.uniform(-1, 1, (4, d_in)) / math.sqrt(d_in) for _ in range(200)]
    terms = [theory.noise_terms(np.zeros((8, 4)), A, std, std) for A in starts]
    ratios = [term.linear_B / term.quadratic for term in terms]
    assert is_mean(1 / theory.quadratic_share(std, d_in), ratios)
    assert theory.crossover(768) == pytest.approx(0.0208, abs=5e-5)
    close(theory.quadratic_share(theory.crossover(768), 768), 1)


def test_accumulated_std() -> None:
    total = 0.5 * RNG(6).normal(0, 0.4, (40_000, 9)).sum(1)
    assert is_mean(theory.accumulated_std(0.4, 9, 0.5) ** 2, total**2)


def test_product_average_terms() -> None:
    """Six noised copies of an adapter: means of factors, and of products, which have the same
    linear terms and K times the quadratic one.
    """
    (B, A), rng = layer(2, d_out=5, d_in=6), RNG(7)
    noised_B = B + rng.normal(0, 0.5, (3000, 6, *B.shape))
    noised_A = A + rng.normal(0, 0.4, (3000, 6, *A.shape))
    factors = theory.factor_average_terms(B, A, 0.5, 0.4, 6)
    products = theory.product_average_terms(B, A, 0.5, 0.4, 6)
    assert is_mean(factors.total, energies(noised_B.mean(1) @ noised_A.mean(1) - B @ A))
    assert is_mean(products.total, energies((noised_B @ noised_A).mean(1) - B @ A))
    close(products, (*factors[:2], 6 * factors.quadratic))


# ---- trust


def test_trust_level() -> None:
    """The noise of each level drawn: on the mean, and on one upload alone."""
    rng, sigma, clip, m, n = RNG(9), 1.2, 0.7, 5, 4 * DRAWS
    for trust, honest in (("local", None), ("secagg", None), ("secagg", 3), ("central", None)):
        level = theory.trust_level(trust, sigma, clip, m, honest)
        uploads = rng.normal(0, level.each, (n, m))
        mean = (uploads.sum(1) + rng.normal(0, level.server, n)) / m
        assert is_mean(level.mean**2, mean**2)
        assert is_mean((level.alone * clip) ** 2, uploads[:, 0] ** 2)
    # the sum of the shares of the honest alone is hidden by sigma C
    close(math.sqrt(3) * theory.trust_level("secagg", sigma, clip, m, 3).each, sigma * clip)


def test_weighted_sensitivity() -> None:
    """Remove each client in turn from a weighted mean of updates of norm C: the largest move."""
    weights, updates = np.array([0.5, 0.3, 0.2]), RNG(11).normal(size=(3, 5))
    updates *= 0.7 / np.linalg.norm(updates, axis=1, keepdims=True)
    moves = np.linalg.norm(weights[:, None] * updates, axis=1)
    close(theory.weighted_sensitivity(0.7, weights), moves.max())
    close(theory.weighted_sensitivity(0.7, np.full(4, 0.25)), 0.7 / 4)


# ---- regulated and smoothed noise


def test_regulated_mahalanobis() -> None:
    """Against the covariance std^2 (A A^T)^-1 written out, and the measured one of the noise."""
    _, A = layer(3)
    shift, std, n = RNG(12).normal(size=(2, 4)), 0.3, 4 * DRAWS
    noise = RNG(13).normal(0, std, (n, A.shape[1])) @ np.linalg.pinv(A)
    exact, measured = A @ A.T / std**2, np.linalg.inv(np.cov(noise.T))
    for precision, error in ((exact, 1e-12), (measured, 4 * math.sqrt(2 / n))):
        expected = math.sqrt(sum(row @ precision @ row for row in shift))
        assert theory.regulated_mahalanobis(shift, A, std) == pytest.approx(expected, rel=error)


def test_regulated_multiplier() -> None:
    """The worst shift of norm C stands along the peer's largest direction; none stands out more."""
    A, clip, sigma, size = 3 * layer(4)[1], 0.5, 1.1, theory.regulated_mahalanobis
    worst = clip * np.outer([1.0, 0.0], np.linalg.svd(A)[0][:, 0])
    multiplier = theory.regulated_multiplier(A, sigma)
    close(1 / multiplier, size(worst, A, sigma * clip))
    for shift in RNG(0).normal(size=(50, 2, 4)):
        shift *= clip / np.linalg.norm(shift)
        assert size(shift, A, sigma * clip) <= 1 / multiplier
    assert multiplier < sigma  # weaker than nominal: this peer's spectral norm exceeds 1
    # clipping the product instead gives the nominal multiplier
    close(size(worst * clip / np.linalg.norm(worst @ A), A, sigma * clip), 1 / sigma)


def test_regulated_energy() -> None:
    (B, A), std = layer(5), 0.4
    noise = RNG(14).normal(0, std, (DRAWS, len(B), A.shape[1])) @ np.linalg.pinv(A)
    energy = theory.regulated_energy(len(B), len(A), std)
    assert is_mean(energy, energies(noise @ A))


def test_filter_gain() -> None:
    assert (theory.filter_weights(5) * 16).tolist() == [1, 4, 6, 4, 1]
    for taps in (1, 3, 9):
        close(theory.filter_gain(taps), np.square(theory.filter_weights(taps)).sum())
    assert theory.filter_gain(5) == pytest.approx(0.2734, abs=5e-5)


# ---- accounting


def renyi_by_integral(order: float, q: float, sigma: float) -> float:
    x = np.linspace(-60 * sigma, 60 * sigma + order, 60_001)
    with np.errstate(divide="ignore"):
        log_ratio = np.logaddexp(np.log1p(-q), np.log(q) + (2 * x - 1) / (2 * sigma**2))
    log_q = stats.norm.logpdf(x, scale=sigma)
    return float(np.log(integrate.trapezoid(np.exp(order * log_ratio + log_q), x)) / (order - 1))


def test_sampled_gaussian_rdp() -> None:
    orders, rdp = np.array([2, 5, 12]), theory.sampled_gaussian_rdp
    for q, sigma in ((0.01, 0.8), (0.2, 2.0), (0.9, 4.0), (1.0, 0.7)):
        expected = [3 * renyi_by_integral(order, q, sigma) for order in orders]
        np.testing.assert_allclose(rdp(orders, q, sigma, 3), expected, rtol=1e-8)
    np.testing.assert_array_equal(rdp(orders, 0.0, 1.0), 0)


def test_rdp_to_epsilon() -> None:
    """Never below the exact epsilon, never above the classical conversion."""
    fine = np.linspace(1.01, 200, 20_000)
    for sigma in (0.6, 2.0, 9.0):
        rdp, exact = fine / (2 * sigma**2), theory.gdp_epsilon(1 / sigma, 1e-5)
        value, _ = theory.rdp_to_epsilon(fine, rdp, 1e-5)
        assert exact < value < 1.1 * exact + 0.03
        assert value < theory.rdp_to_epsilon_classical(fine, rdp, 1e-5)[0]
    assert theory.rdp_to_epsilon(fine, np.zeros_like(fine), 0.9)[0] == 0
    # the classical minimum for a Gaussian is known: 1 / (2 s^2) + sqrt(2 log(1 / delta)) / s
    orders, root = np.linspace(1.01, 60, 200_000), math.sqrt(2 * math.log(1e5))
    for sigma in (1.0, 3.0):
        value, order = theory.rdp_to_epsilon_classical(orders, orders / (2 * sigma**2), 1e-5)
        assert value == pytest.approx(1 / (2 * sigma**2) + root / sigma, rel=1e-6)
        assert order == pytest.approx(1 + sigma * root, rel=1e-3)


def test_gaussian_mu() -> None:
    """The log-likelihood ratio of T releases has standard deviation mu and mean mu^2 / 2."""
    sigma, steps = 2.0, 9
    outputs = RNG(15).normal(1, sigma, (40_000, steps))
    loss = (stats.norm.logpdf(outputs, 1, sigma) - stats.norm.logpdf(outputs, 0, sigma)).sum(1)
    mu = theory.gaussian_mu(sigma, steps)
    assert mu == pytest.approx(1.5)
    assert is_mean(mu**2 / 2, loss) and is_mean(mu**2, (loss - mu**2 / 2) ** 2)


def test_clt_mu() -> None:
    """The published example, below the exact 3.770; mu^2 is steps times the chi-square divergence
    of one release.
    """
    assert theory.gdp_epsilon(theory.clt_mu(0.1, 3.0, 512), 1e-6) == pytest.approx(3.668, abs=1e-3)
    chi_square = math.expm1(theory.sampled_gaussian_rdp(np.array([2]), 0.1, 1.5).item())
    assert theory.clt_mu(0.1, 1.5, 7) ** 2 == pytest.approx(7 * chi_square, rel=1e-9)


def test_gdp_delta() -> None:
    """delta = E max(0, 1 - e^(epsilon - loss)) with the loss N(mu^2 / 2, mu^2); by quadrature."""
    for mu, epsilon in ((0.5, 0.0), (0.5, 1.0), (2.0, 3.0), (3.0, 12.0)):

        def gain(t: float, mu: float = mu, epsilon: float = epsilon) -> float:
            return -math.expm1(epsilon - t) * float(stats.norm.pdf(t, mu**2 / 2, mu))

        expected, _ = integrate.quad(gain, epsilon, epsilon + 40 * mu, epsabs=1e-14)
        assert theory.gdp_delta(mu, epsilon) == pytest.approx(expected, rel=1e-8)
    assert 0 < theory.gdp_delta(1.0, 30.0) < 1e-150, "far in the tail"
    for mu in (0.1, 1.0, 4.0, 30.0):
        for delta in (1e-3, 1e-9):
            epsilon = theory.gdp_epsilon(mu, delta)
            assert theory.gdp_delta(mu, epsilon) == pytest.approx(delta, rel=1e-9)
    assert theory.gdp_epsilon(0.01, 0.5) == 0


def test_classical_sigma() -> None:
    """Holds in its range; there it asks for more noise than needed, and outside it is refused."""
    for epsilon, delta in ((0.05, 1e-3), (0.5, 1e-6), (0.99, 1e-6)):
        sigma = theory.classical_sigma(epsilon, delta)
        close(sigma * epsilon, math.sqrt(2 * math.log(1.25 / delta)))
        assert theory.gdp_delta(1 / sigma, epsilon) < delta
    with pytest.raises(ValueError, match=r"^epsilon=1.0: expected a number in"):
        theory.classical_sigma(1.0, 1e-5)


def test_membership_bound() -> None:
    """No test between two Gaussians beats the bound at any of its (epsilon, delta), and the best
    one touches it; randomised response meets it.
    """
    fpr, bound_of = np.linspace(0, 1, 201), theory.membership_bound
    for mu in (0.3, 1.0, 3.0):
        best = stats.norm.cdf(stats.norm.ppf(fpr) + mu)
        for epsilon in (0.0, 0.5, 2.0):
            bound = bound_of(fpr, epsilon, theory.gdp_delta(mu, epsilon))
            assert (best <= bound + 1e-12).all() and (best > bound - 1e-3).any()
    close(bound_of(np.array([0.25]), math.log(3), 0.0), [0.75])
    assert bound_of(fpr, 800.0, 0.0).max() <= 1


def test_clip_terms() -> None:
    """Simulated releases of heavy-tailed rows; limits exact."""
    rng, n = RNG(21), 2 * DRAWS
    rows = rng.standard_t(3, size=(30, 5))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    for clip, sigma, batch in ((1.0, 0.7, 10.0), (2.5, 1.5, 30.0), (0.3, 0.0, 5.0)):
        terms = theory.clip_terms(rows, clip, sigma, batch)
        clipped = rows * np.minimum(1.0, clip / norms)
        drawn, xi = rng.random((n, 30)) < batch / 30, rng.normal(0, sigma * clip, (n, 5))
        assert is_mean(terms.total, np.square((drawn @ clipped + xi) / batch - rows.mean(0)).sum(1))
        assert terms.noise == pytest.approx(np.square(xi / batch).sum(1).mean(), rel=0.1)
        close(terms.bias, np.sum((clipped.mean(0) - rows.mean(0)) ** 2))


# ---- bands, and the start of training


def covers(band: theory.Band, values: Any) -> float:
    return float(np.mean([value in band for value in values]))


def test_mean_band() -> None:
    """Covers the mean as often as a normal interval should: about 95 % at 1.96 errors."""
    rng = RNG(17)
    hits = [1.0 in theory.mean_band(rng.exponential(size=400), 1.96) for _ in range(1000)]
    assert 0.92 < np.mean(hits) < 0.97


def test_row_space_share() -> None:
    """Against projections on random directions, for one and for several directions."""
    rng, d_in, r = RNG(33), 24, 5
    spaces = [np.linalg.qr(rng.normal(size=(d_in, r)))[0] for _ in range(2000)]
    for spectrum in (np.ones(1), np.array([3.0, 2.0, 1.0, 0.5])):
        wanted, band = np.diag(spectrum) @ np.eye(len(spectrum), d_in), theory.row_space_share
        shares = [np.sum((wanted @ Q) ** 2) / np.sum(wanted**2) for Q in spaces]
        assert band(r, d_in, spectrum).mean == r / d_in and is_mean(r / d_in, shares)
        assert covers(band(r, d_in, spectrum), shares) == pytest.approx(0.95, abs=0.025)
    assert theory.row_space_share(24, 24) == (1, 1, 1)


def test_measured_band() -> None:
    """95 % of separations measured on 30 draws lie inside."""
    stds = RNG(34).normal(size=(DRAWS, 30)).std(axis=1, ddof=1)
    band = theory.measured_band(2.0, 30)
    assert band.mean == 2.0 and covers(band, 2.0 / stds) == pytest.approx(0.95, abs=0.015)


ONES = np.ones
BAD = [
    ("deviation_matrix", (ONES((2, 3, 4)), ONES((2, 3, 4))), "^B, A=.*: expected shapes"),
    (
        "deviation_matrix",
        (*stacks(0)[:2], np.full(5, 0.3)),
        "^weights=.*: expected 5 numbers >= 0 that",
    ),
    ("noise_terms", (ONES((2, 3)), ONES((2, 3)), 1, 1), "^B, A=.*: expected shapes"),
    ("noise_terms", (*layer(), 1, math.nan), "^std_A=nan: expected a number >= 0$"),
    ("trust_level", ("secagg", 1.0, 1.0, 3, 4), r"^honest=4: expected a whole number in \[1, 3"),
    ("filter_weights", (4,), "^taps=4: expected an odd number$"),
    ("gdp_delta", (0.0, 1.0), "^mu=0.0: expected a number > 0$"),
    ("gdp_epsilon", (1.0, 1.0), r"^delta=1.0: expected a number in \(0, 1\)"),
    ("sampled_gaussian_rdp", (np.array([1]), 0.1, 1.0), "^orders=.*: expected whole numbers >= 2"),
    ("mean_band", (ONES(1),), r"^samples=\(1,\): expected one dimension, at least 2 samples"),
    ("row_space_share", (5, 4), r"^rank=5: expected a whole number in \[1, 4\]$"),
    ("membership_bound", (np.array([1.5]), 1.0, 0.1), r"^fpr=.*: expected numbers in \[0, 1\]"),
    ("clip_terms", (ONES((3, 2)), 1.0, 1.0, 4.0), r"^batch=4.0: expected a number in \(0, 3\]"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), BAD)
def test_refuses_bad_input(name: str, arguments: tuple, message: str) -> None:
    # as users have it, without the type checker that these tests put over the package
    function = inspect.unwrap(getattr(theory, name))
    with pytest.raises(ValueError, match=message) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
