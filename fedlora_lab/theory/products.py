"""Closed forms of the noise on a product of factors: its terms, its amplification, its output."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fedlora_lab._utils.validation import check, check_number, check_symbols, check_whole

FactorB = Float[np.ndarray, "d_out r"]
FactorA = Float[np.ndarray, "r d_in"]


class NoiseTerms(NamedTuple):
    """Expected squared norms of what the noise xi_B, xi_A on the factors adds to scaling B A.

    Args:
        linear_B: of scaling xi_B A.
        linear_A: of scaling B xi_A.
        quadratic: of scaling xi_B xi_A, whose entries are sums of r products and not Gaussian.
    """

    linear_B: float
    linear_A: float
    quadratic: float

    total = property(sum, doc="Of the whole: the parts are uncorrelated.")


def noise_terms(B: FactorB, A: FactorA, std_B: float, std_A: float) -> NoiseTerms:
    """Energy that independent Gaussian noise on both factors puts into B A.

    Args:
        B, A: the factors.
        std_B, std_A: of the noise on each entry, >= 0; 0 for a factor without noise.

    Guarantees: each term is the mean over draws (test_noise_terms).
    Source: derived; the expansion stands in arXiv:2403.12313, section 3, the quadratic term in
        arXiv:2507.09990.

    >>> noise_terms(np.zeros((2, 1)), np.ones((1, 3)), std_B=1.0, std_A=1.0)
    NoiseTerms(linear_B=6.0, linear_A=0.0, quadratic=6.0)
    """
    fits = B.ndim == A.ndim == 2 and B.shape[1] == A.shape[0]
    check(fits, "B, A", (B.shape, A.shape), "shapes (d_out, r) and (r, d_in)")
    check_symbols(std_B=std_B, std_A=std_A)
    d_out, r = B.shape
    d_in = A.shape[1]
    return NoiseTerms(
        linear_B=std_B**2 * d_out * float(np.sum(A * A)),
        linear_A=std_A**2 * d_in * float(np.sum(B * B)),
        quadratic=(std_B * std_A) ** 2 * d_out * d_in * r,
    )


def _accumulated_std(std: float, releases: int) -> float:
    """Standard deviation after N releases of fresh noise: variances of independent noise add."""
    check_symbols(std=std)
    check_whole("releases", releases, 0)
    return std * math.sqrt(releases)


def accumulated_noise_terms(
    d_out: int,
    rank: int,
    d_in: int,
    std_B: float,
    std_A: float,
    releases_B: int,
    releases_A: int,
    scaling: float = 1.0,
    start_scale: float = 1.0,
    norm_B: float = 0.0,
) -> NoiseTerms:
    """Computes the energy that the noise of all releases of a run leaves in scaling B A.
    A starts uniform in +-start_scale / sqrt(d_in), B at 0 or anywhere else.

    B is by then B^, its start and what it learned, and the sum of its noise, which multiplies A and
    the noise that is in A by then: linear_B = s^2 d_out |A_0|^2 N_B std_B^2, quadratic = s^2 d_out
    d_in r N_A std_A^2 N_B std_B^2, with |A_0|^2 = c^2 r / 3. B^ meets the noise in A: linear_A =
    s^2 d_in |B^|^2 N_A std_A^2. Not counted: how A grows, and what training makes of the noise.

    Args:
        d_out, rank, d_in: shape of the layer, >= 1.
        std_B, std_A: of one release's noise on each entry of the averaged factor, >= 0.
        releases_B, releases_A: N_B and N_A >= 0; N / 2 each where the factors take turns.
        scaling: s, >= 0.
        start_scale: c >= 0, see `Lora`; 0 where A starts at 0.
        norm_B: |B^|, >= 0. At the norm of B's public start, mostly 0, the energy is that of noise
            and start alone, known before the run. What B learned is measured: it is private, since
            only B with its noise is released.

    Guarantees: at the start's norm the mean over runs of the engine
        (test_amplification.py::test_amplification_is_what_a_run_measures), at any other that over
        draws (test_noise_terms).
    Source: derived; `noise_terms` is one release of each.
    """
    check_symbols(d_out=d_out, rank=rank, d_in=d_in, scaling=scaling, norm_B=norm_B)
    check_number("start_scale", start_scale, 0)
    std_B = _accumulated_std(std_B, releases_B)
    std_A = _accumulated_std(std_A, releases_A)
    s2 = float(scaling) ** 2
    return NoiseTerms(
        linear_B=s2 * std_B**2 * d_out * start_scale**2 * rank / 3,
        linear_A=s2 * std_A**2 * d_in * norm_B**2,
        quadratic=s2 * (std_B * std_A) ** 2 * d_out * d_in * rank,
    )


def noise_amplification(std: float, releases: int, d_in: int, start_scale: float = 1.0) -> float:
    """The amplification number rho: the energy of the noise added to A over A's own.

    rho = E|noise in A|^2 / |A_0|^2 = 3 d_in N std^2 / c^2, and so quadratic over linear energy of
    `accumulated_noise_terms`: at rho = 1 half of the noise in the product is noise times noise.

    Args:
        std: of one release's noise on each entry of the averaged A, >= 0.
        releases: N of A, >= 0.
        d_in: inputs of the layer, >= 1.
        start_scale: c > 0: A starts c times as large as PEFT draws it.

    Guarantees: the mean over runs of the engine
        (test_amplification.py::test_amplification_is_what_a_run_measures).
    Source: derived.

    >>> round(noise_amplification(0.0221, 40, d_in=64), 2)
    3.75
    """
    check_symbols(d_in=d_in)
    check_number("start_scale", start_scale, 0, open_low=True)
    return 3 * d_in * _accumulated_std(std, releases) ** 2 / start_scale**2


class OutputVariance(NamedTuple):
    """Variance v that the noise of a run puts on one output of an adapted layer, in two parts.

    The inputs have mean square one, as a LayerNorm gives them. By the end of the run the noise
    adds s Xi_B (A_0 + Xi_A) x to the output of an input x. Entry i of it is s times the sum over
    the r ranks of Xi_B[i, k] (A_0 x + Xi_A x)[k]. The entries of Xi_B have the variance N_B std_B^2
    and are independent of the rest. An entry of A_0 x has the mean square c^2 / 3, since an entry
    of A_0 has the variance c^2 / (3 d_in) and |x|^2 = d_in; an entry of Xi_A x has d_in N_A
    std_A^2. So

        v = s^2 r N_B std_B^2 (c^2 / 3 + d_in N_A std_A^2) = (s c)^2 r / 3 N_B std_B^2 (1 + rho),

    with the amplification number rho = 3 d_in N_A std_A^2 / c^2, which is 0 where A is frozen.

    Two settings whose products B A agree at every step have one v, whatever their alpha, start,
    learning rate and clip norm are. The noise that B takes up, 3 d_in N_B std_B^2, differs between
    them: it is measured in the units of A's start and leaves the scale s out.

    Args:
        linear: of the noise in B times A as it starts.
        quadratic: of the noise in B times the noise in A.
    """

    linear: float
    quadratic: float

    total = property(sum, doc="v, of the whole: the parts are uncorrelated.")


def noise_factor(variance: OutputVariance, target: float) -> float:
    """Computes by which factor all noise may grow until the variance on an output is a target.

    Noise x times as large in both factors makes linear x^2 + quadratic x^4 of it.

    Args: variance: with linear > 0. target: > 0.
    Guarantees: at this factor the variance is the target (test_noise_factor).
    Source: derived; the root of a quadratic equation in x^2.

    >>> noise_factor(OutputVariance(linear=1.0, quadratic=2.0), target=3.0)
    1.0
    """
    linear, quadratic = variance
    check_number("variance.linear", linear, 0, open_low=True)
    check_number("variance.quadratic", quadratic, 0)
    check_number("target", target, 0, open_low=True)
    # Written without a difference of large numbers, so that it also holds at quadratic = 0.
    root = math.sqrt(linear**2 + 4 * quadratic * target)
    return math.sqrt(2 * target / (linear + root))


def balanced_scale(amplification: float, target: float) -> float:
    """How much larger A has to start so that its amplification is at most the target.

    c = max(1, sqrt(rho / target)): rho falls with c^2.

    Args:
        amplification: rho >= 0 of A as PEFT draws it.
        target: > 0.

    Guarantees: at this scale the amplification is the target (test_balanced_scale).
    Source: derived from `noise_amplification`.
    """
    check_number("amplification", amplification, 0)
    check_number("target", target, 0, open_low=True)
    return max(1.0, math.sqrt(amplification / target))


# ---- what was measured beside a closed form


class Band(NamedTuple):
    """A mean with its interval; ``value in band`` says whether the interval covers a value.

    Args:
        mean: of the samples, in their unit.
        low, high: ends of the interval, which belong to it.
    """

    mean: float
    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return self.low <= float(value) <= self.high  # type: ignore[arg-type]


def mean_band(samples: Float[np.ndarray, " n"], errors: float = 4.0) -> Band:
    """The mean of n >= 2 independent samples, plus and minus ``errors`` standard errors.

    4 is wrong once in 16,000 looks, 1.96 is the usual 95 % band.

    Guarantees: covers the mean as often as a normal interval should (test_mean_band).
    """
    several = samples.ndim == 1 and len(samples) >= 2
    check(several, "samples", samples.shape, "one dimension, at least 2 samples")
    check_symbols(errors=errors)
    mean = float(np.mean(samples))
    half = errors * float(np.std(samples, ddof=1)) / math.sqrt(len(samples))
    return Band(mean, mean - half, mean + half)
