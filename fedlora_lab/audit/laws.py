"""Chances of what was seen under the law that is claimed: small ones speak against it. NumPy and SciPy only.

What is not a number has no chance under any law: 0.
"""

from typing import Any

import numpy as np
from scipy import stats


def normal(values: np.ndarray, rng: np.random.Generator) -> float:
    """Kolmogorov-Smirnov test of a sample against N(0, 1), at most 20,000 values of it."""
    values = values.ravel()
    values = values if len(values) <= 20_000 else rng.choice(values, 20_000, replace=False)
    return float(stats.kstest(values, "norm").pvalue) if np.isfinite(values).all() else 0.0


def spread(values: np.ndarray) -> float:
    """Two-sided test that independent normal numbers have variance 1: their squares add up to a chi-square."""
    total = float(np.square(values).sum())
    return _two_sided(stats.chi2.cdf(total, values.size), stats.chi2.sf(total, values.size))


def unrelated(one: np.ndarray, other: np.ndarray) -> float:
    """Test that two samples are not correlated."""
    one, other = one.ravel(), other.ravel()
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return 0.0
    if len(one) < 3 or one.std() == 0 or other.std() == 0:
        return 1.0 if len(one) < 3 or not (np.array_equal(one, other) and one.any()) else 0.0
    r = float(np.corrcoef(one, other)[0, 1])
    return float(2 * stats.norm.sf(abs(r) * np.sqrt(len(one))))


def counts(found: np.ndarray, trials: int, rate: float, rng: np.random.Generator) -> float:
    """Kolmogorov-Smirnov test of counts against Binomial(trials, rate), made exact by randomising within each atom."""
    low, atom = stats.binom.cdf(found - 1, trials, rate), stats.binom.pmf(found, trials, rate)
    return float(stats.kstest(low + rng.random(len(found)) * atom, "uniform").pvalue)


def total(found: int, trials: int, rate: float) -> float:
    """Two-sided test of one count against Binomial(trials, rate)."""
    return _two_sided(stats.binom.cdf(found, trials, rate), stats.binom.sf(found - 1, trials, rate))


def even(found: np.ndarray, trials: int, rate: float) -> float:
    """Test that each of several counts is Binomial(trials, rate): their squared deviations add up to a chi-square."""
    value = float((np.square(found - trials * rate) / (trials * rate * (1 - rate))).sum())
    return _two_sided(stats.chi2.cdf(value, len(found)), stats.chi2.sf(value, len(found)))


def _two_sided(below: Any, above: Any) -> float:
    chance = 2 * float(min(below, above))
    return 0.0 if np.isnan(chance) else min(1.0, chance)
