"""Right and wrong answers to the exercises of notebook 15."""

import numpy as np

from fedlora_course.exercises import FunctionAnswer, Spoken


def _plans(rng):
    """Three or five plans of sites of n examples."""
    count = int(rng.choice([3, 5]))
    base = rng.uniform(0.3, 1)
    slope = rng.uniform(0.5, 2)
    plans = [(int(rng.integers(4, 65)), int(rng.integers(12, 400))) for _ in range(count)]
    n, K, d = (int(rng.integers(*ends)) for ends in ((100, 900), (2, 40), (50, 9000)))
    return plans, _multiplier(base, slope), n, K, d


def _multiplier(base, slope):
    """A function of q and N that says of itself what it computes."""

    def sigma(q, N):
        return base + slope * q * np.sqrt(N)

    words = f"the function {base:.4g} + {slope:.4g} q √N" if slope else f"always {base:g}"
    return Spoken(sigma, words)


# Of few numbers, which a difference is shown at.
TWO_PLANS = [(2, 4), (3, 7)], _multiplier(1.0, 0.0), 40, 4, 16
CALLS = {
    "15.1": FunctionAnswer("plans, sigma, n, K and d", TWO_PLANS, draw=_plans),
}


# ---- 15.1: plans compared


def compare_plans(plans, sigma, n, K, d):
    """The ratio of noise to signal of several plans.

    Args:
        plans: pairs of a site's expected batch and the number of steps.
        sigma: takes the sample rate and the number of steps; returns the noise multiplier.
        n: examples of a site.
        K: number of sites.
        d: numbers that a step releases.
    Returns: one number for every plan.
    """
    ratios = []
    for b, N in plans:
        ratio = sigma(b / n, N) * np.sqrt(d) / (b * np.sqrt(K * N))
        ratios.append(ratio)
    return ratios
