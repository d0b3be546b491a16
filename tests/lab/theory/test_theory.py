"""Closed forms against exact algebra (1e-12) or simulation (4 standard errors); one test each."""

import math

import numpy as np
import pytest
from calls import refused
from scipy import integrate, stats

from fedlora_lab import theory

RNG = np.random.default_rng
DRAWS = 4000


def close(value, expected):
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)


def energies(change):
    """Squared Frobenius norm of each of n matrices, (n, d_out, d_in) -> (n,)."""
    return np.square(change).sum((1, 2))


def is_mean(expected, samples):
    """Whether it lies within 4 standard errors of the samples' mean."""
    return expected in theory.mean_band(np.asarray(samples, float))


# ---- products of factors


def test_noise_terms():
    """Each term and the total by simulation, and of a run that ends at these factors and noises."""
    B, A = 0.3 * RNG(0).normal(size=(12, 4)), RNG(2).uniform(-1, 1, size=(4, 16))
    A *= math.sqrt(4 / 3) / np.linalg.norm(A)
    rng = RNG(1)
    xi_B = rng.normal(0, 0.2, (DRAWS, *B.shape))
    xi_A = rng.normal(0, 0.15, (DRAWS, *A.shape))
    terms = theory.noise_terms(B, A, 0.2, 0.15)
    drawn = xi_B @ A, B @ xi_A, xi_B @ xi_A
    assert all(is_mean(e, energies(part)) for e, part in zip(terms, drawn, strict=True))
    assert is_mean(terms.total, energies(np.sum(drawn, axis=0)))
    norm = float(np.linalg.norm(B))
    # Nine releases of B and four of A.
    run = theory.accumulated_noise_terms(12, 4, 16, 0.2 / 3, 0.15 / 2, 9, 4, 2, 1, norm)
    close(run, [2**2 * term for term in terms])


@pytest.mark.parametrize("quadratic", [0.0, 1e-9, 3.0, 1e9])
def test_noise_factor(quadratic):
    variance = theory.OutputVariance(0.2, quadratic)
    x = theory.noise_factor(variance, 0.35)
    close(0.2 * x**2 + quadratic * x**4, 0.35)
    with refused("^variance.linear=0: expected a number > 0"):
        theory.noise_factor(theory.OutputVariance(0, 1), 0.35)


def test_balanced_scale():
    """The amplification with the scale is the target, or what it was where that is less."""
    for std in (0.001, 0.03):
        rho = theory.noise_amplification(std, 40, 64)
        scale = theory.balanced_scale(rho, 0.5)
        assert scale >= 1
        assert theory.noise_amplification(std, 40, 64, scale) == pytest.approx(min(rho, 0.5))


def test_mean_band():
    """Covers the mean as often as a normal interval should: about 95 % at 1.96 errors."""
    rng = RNG(17)
    hits = [1.0 in theory.mean_band(rng.exponential(size=400), 1.96) for _ in range(1000)]
    assert 0.92 < np.mean(hits) < 0.97


# ---- privacy


def test_gdp_delta():
    """delta = E max(0, 1 - e^(epsilon - loss)) with the loss N(mu^2 / 2, mu^2), by quadrature; and
    epsilon is its inverse.
    """
    for mu, epsilon in ((0.5, 0.0), (0.5, 1.0), (3.0, 12.0)):
        t = np.linspace(epsilon, epsilon + 40 * mu, 200_001)
        gain = -np.expm1(epsilon - t) * stats.norm.pdf(t, mu**2 / 2, mu)
        assert theory.gdp_delta(mu, epsilon) == pytest.approx(integrate.simpson(gain, x=t))
    assert 0 < theory.gdp_delta(1.0, 30.0) < 1e-150, "far in the tail"
    for mu, delta in ((0.1, 1e-3), (4.0, 1e-9), (30.0, 1e-9)):
        epsilon = theory.gdp_epsilon(mu, delta)
        assert theory.gdp_delta(mu, epsilon) == pytest.approx(delta, rel=1e-9)
    assert theory.gdp_epsilon(0.01, 0.5) == 0
