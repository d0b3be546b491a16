"""Privacy of Gaussian releases in closed form: Renyi, Gaussian DP, and the approximation not to report."""

import math

import numpy as np
from jaxtyping import Float, Int
from scipy.special import gammaln, log_ndtr, logsumexp, ndtr

from fedlora_lab.checks import check, check_number, check_whole


def _check(sigma: float, q: float = 1.0, steps: int = 1) -> None:
    check_number("noise_multiplier", sigma, 0, open_low=True)
    check_number("sample_rate", q, 0, 1)
    check_whole("steps", steps, 0)


def _check_delta(delta: float) -> None:
    check_number("delta", delta, 0, 1, open_low=True)
    check(delta < 1, "delta", delta, "a number in (0, 1)")


def gaussian_rdp(orders: Float[np.ndarray, " n"], noise_multiplier: float, steps: int = 1) -> Float[np.ndarray, " n"]:
    """Renyi divergence of Gaussian releases without sampling: steps order / (2 sigma^2); adds up over releases.

    Args:
        orders: alpha > 1, (n,).
        noise_multiplier: sigma > 0.
        steps: >= 0.

    Guarantees: test_gaussian_rdp.
    Source: arXiv:1702.07476, corollary 3.
    """
    _check(noise_multiplier, steps=steps)
    return steps * orders / (2 * noise_multiplier**2)


def sampled_gaussian_rdp(
    orders: Int[np.ndarray, " n"], sample_rate: float, noise_multiplier: float, steps: int = 1
) -> Float[np.ndarray, " n"]:
    """Renyi divergence of Poisson-sampled Gaussian releases at whole orders.

    log(A) / (order - 1) with A = sum_j binom(order, j) (1 - q)^(order - j) q^j exp((j^2 - j) / (2 sigma^2)).

    Args:
        orders: whole alpha >= 2, (n,).
        sample_rate: q in [0, 1].
        noise_multiplier: sigma > 0.
        steps: >= 0.

    Guarantees: test_sampled_gaussian_rdp.
    Source: arXiv:1908.10530, section 3.3.
    """
    _check(noise_multiplier, sample_rate, steps)
    check(bool(np.all(orders >= 2)), "orders", orders, "whole numbers >= 2")
    if sample_rate == 1:
        return gaussian_rdp(orders.astype(float), noise_multiplier, steps)
    if sample_rate == 0:
        return np.zeros(len(orders))

    def one(order: int) -> float:
        j = np.arange(order + 1)
        binomial = gammaln(order + 1) - gammaln(j + 1) - gammaln(order - j + 1)
        sampled = (order - j) * math.log1p(-sample_rate) + j * math.log(sample_rate)
        terms = binomial + sampled + (j * j - j) / (2 * noise_multiplier**2)
        return float(np.asarray(logsumexp(terms))) / (order - 1)

    return steps * np.array([one(int(order)) for order in orders])


def rdp_to_epsilon(
    orders: Float[np.ndarray, " n"] | Int[np.ndarray, " n"], rdp: Float[np.ndarray, " n"], delta: float
) -> tuple[float, float]:
    """Epsilon from Renyi divergences, and the order at which it was found.

    min over orders of rdp + log((a - 1) / a) - (log delta + log a) / (a - 1).

    Args:
        orders: a > 1, (n,).
        rdp: at these orders, (n,).
        delta: in (0, 1).

    Guarantees: test_rdp_to_epsilon.
    Source: arXiv:1905.09982, theorem 21; arXiv:2004.00010, proposition 12.
    """
    _check_delta(delta)
    bounds = rdp + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    best = int(np.argmin(bounds))
    return max(0.0, float(bounds[best])), float(orders[best])


def rdp_to_epsilon_classical(
    orders: Float[np.ndarray, " n"] | Int[np.ndarray, " n"], rdp: Float[np.ndarray, " n"], delta: float
) -> tuple[float, float]:
    """The older, looser conversion: min over orders of rdp + log(1 / delta) / (a - 1). Arguments as `rdp_to_epsilon`.

    Guarantees: test_rdp_to_epsilon_classical.
    Source: arXiv:1702.07476, proposition 3.
    """
    _check_delta(delta)
    bounds = rdp - math.log(delta) / (orders - 1)
    best = int(np.argmin(bounds))
    return float(bounds[best]), float(orders[best])


def gaussian_mu(noise_multiplier: float, steps: int = 1) -> float:
    """mu of Gaussian DP of releases without sampling: sqrt(steps) / sigma, exact.

    Guarantees: test_gaussian_mu.
    Source: arXiv:1905.02383, corollary 3.3.
    """
    _check(noise_multiplier, steps=steps)
    return math.sqrt(steps) / noise_multiplier


def clt_mu(sample_rate: float, noise_multiplier: float, steps: int) -> float:
    """mu of Poisson-sampled releases in the central limit: q sqrt(steps (exp(1 / sigma^2) - 1)).

    An approximation, not a bound: its epsilon may lie BELOW the true one. Never report it.

    Guarantees: test_clt_mu.
    Source: arXiv:1911.11607, section 3.
    """
    _check(noise_multiplier, sample_rate, steps)
    return sample_rate * math.sqrt(steps * math.expm1(noise_multiplier**-2))


def gdp_delta(mu: float, epsilon: float) -> float:
    """delta of mu-GDP at epsilon: Phi(-epsilon / mu + mu / 2) - exp(epsilon) Phi(-epsilon / mu - mu / 2).

    Args:
        mu: > 0.
        epsilon: >= 0.

    Guarantees: test_gdp_delta.
    Source: arXiv:1805.06530, theorem 8; arXiv:1905.02383, corollary 2.13.
    """
    check_number("mu", mu, 0, open_low=True)
    check_number("epsilon", epsilon, 0)
    first, second = log_ndtr(-epsilon / mu + mu / 2), epsilon + log_ndtr(-epsilon / mu - mu / 2)
    return max(0.0, float(np.exp(first) * -np.expm1(min(0.0, second - first))))


def gdp_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon at which mu-GDP has ``delta``; the inverse of `gdp_delta` in epsilon, to 1e-12 relative.

    Guarantees: test_gdp_epsilon.
    Source: as `gdp_delta`.
    """
    check_number("mu", mu, 0, open_low=True)
    _check_delta(delta)
    if gdp_delta(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gdp_delta(mu, high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if gdp_delta(mu, middle) > delta else (low, middle)
    return high


def classical_sigma(epsilon: float, delta: float) -> float:
    """The textbook sigma = sqrt(2 ln(1.25 / delta)) / epsilon for ONE release; its proof needs epsilon < 1.

    Args:
        epsilon: in (0, 1).
        delta: in (0, 1).

    Guarantees: test_classical_sigma.
    Source: Dwork & Roth, The Algorithmic Foundations of Differential Privacy (2014), theorem A.1.
    """
    check(0 < epsilon < 1, "epsilon", epsilon, "a number in (0, 1): outside it the theorem says nothing")
    _check_delta(delta)
    return math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def privacy_loss_cdf(
    t: Float[np.ndarray, " n"], sample_rate: float, noise_multiplier: float
) -> Float[np.ndarray, " n"]:
    """Distribution function of the privacy loss log P / Q under P, when one example is removed.

    P = (1 - q) N(0, sigma^2) + q N(1, sigma^2), Q = N(0, sigma^2); the loss never lies below log(1 - q).

    Args:
        t: (n,).
        sample_rate: q in (0, 1].
        noise_multiplier: sigma > 0.

    Guarantees: test_privacy_loss_cdf.
    Source: arXiv:2106.02848, proposition B.4.
    """
    _check(noise_multiplier, sample_rate)
    check(sample_rate > 0, "sample_rate", sample_rate, "a number in (0, 1]")
    inside = np.expm1(t) + sample_rate
    x = noise_multiplier**2 * np.log(np.maximum(inside, 1e-300) / sample_rate) + 0.5
    mixture = (1 - sample_rate) * ndtr(x / noise_multiplier) + sample_rate * ndtr((x - 1) / noise_multiplier)
    return np.where(inside > 0, mixture, 0.0)
