"""P-values: how likely is what was seen, or worse, where the claim holds."""

import numpy as np
from scipy import stats

NOISE_SLACK = 0.01
"""A noise that is wrong by less than this share is not called wrong: epsilon hardly moves."""
MOST_TESTED = 20_000


def two_sided(below: float, above: float) -> float:
    """Joins the chances of less and of more than was seen; 0 where they are no numbers."""
    chance = 2 * min(below, above)
    return 0.0 if np.isnan(chance) else min(1.0, float(chance))


def normality_p_value(values: np.ndarray, rng: np.random.Generator) -> float:
    """Tests a sample against N(0, 1) (Kolmogorov-Smirnov).

    Args: values: of any shape. rng: chooses among very many.
    """
    values = values.ravel()
    # More numbers find deviations that do not matter to epsilon, and take longer.
    if len(values) > MOST_TESTED:
        values = rng.choice(values, MOST_TESTED, replace=False)
    return float(stats.kstest(values, "norm").pvalue) if np.isfinite(values).all() else 0.0


def variance_p_value(values: np.ndarray, slack: float = 0.0) -> float:
    """Tests that independent normal numbers have variance 1 (chi-square, two-sided).

    Args: values: of any shape. slack: share by which the standard deviation may be off.
    """
    total = float(np.square(values).sum())
    lower_tail = stats.chi2.cdf(total / (1 - slack) ** 2, values.size)
    upper_tail = stats.chi2.sf(total / (1 + slack) ** 2, values.size)
    return two_sided(float(lower_tail), float(upper_tail))


def ratio_p_values(ratio: float, above: int, below: int) -> tuple[float, float]:
    """Tests that two variances are equal, up to `NOISE_SLACK`: the chances of less, and of more.

    Args: ratio: of the mean squares of so many independent normal numbers; above, below: counts.
    """
    lower_tail = stats.f.cdf(ratio / (1 - NOISE_SLACK) ** 2, above, below)
    upper_tail = stats.f.sf(ratio / (1 + NOISE_SLACK) ** 2, above, below)
    return float(lower_tail), float(upper_tail)


def cosine_p_value(r: float, samples: int) -> float:
    """Tests for no correlation. A floor keeps rounding from making it certain."""
    # Student's law of a correlation of independent normal numbers.
    free = max(1, samples - 2)
    return 2 * float(stats.t.sf(abs(r) * np.sqrt(free / max(1 - r * r, 1e-6)), free))


def binomial_p_value(
    counts: np.ndarray, trials: int, rate: float, rng: np.random.Generator
) -> float:
    """Tests against Binomial(trials, rate) (Kolmogorov-Smirnov), randomised to be exact.

    Args: counts: (n,), each of so many trials at this rate; rng: for the places in the atoms.
    """
    # A number drawn uniformly within its atom makes a discrete law continuous, hence exact.
    low = stats.binom.cdf(counts - 1, trials, rate)
    atom = stats.binom.pmf(counts, trials, rate)
    return float(stats.kstest(low + rng.random(len(counts)) * atom, "uniform").pvalue)


def total_p_value(count: int, trials: int, rate: float) -> float:
    """Tests one count, two-sided. Args: count, trials, rate: of a binomial law, rate in (0, 1)."""
    lower_tail = stats.binom.cdf(count, trials, rate)
    upper_tail = stats.binom.sf(count - 1, trials, rate)
    return two_sided(float(lower_tail), float(upper_tail))
