"""Right and wrong answers to the exercises of notebook 15."""

import numpy as np

from fedlora_course.exercises import FunctionAnswer, Spoken


def _plans(rng):
    """Six or eight plans: of the first three or five half are too much work, one is just not too
    much; the next is by one gradient too much, the next just not too much for all sites together,
    and the last is a site's examples, once. So no other number is mistaken for `work`."""
    count = int(rng.choice([3, 5]))
    base = rng.uniform(0.3, 1)
    slope = rng.uniform(0.5, 2)
    plans = [(int(rng.integers(4, 65)), int(rng.integers(12, 400))) for _ in range(count)]
    n, K, d = (int(rng.integers(*ends)) for ends in ((100, 900), (2, 40), (50, 9000)))
    work = float(np.median([b * N for b, N in plans]))
    plans += [(1, int(work) + 1), (1, int(work / K)), (1, n)]
    return plans, _multiplier(base, slope), n, K, d, work


def _multiplier(base, slope):
    """A function of q and N that says of itself what it computes."""

    def sigma(q, N):
        return base + slope * q * np.sqrt(N)

    words = f"the function {base:.4g} + {slope:.4g} q √N" if slope else f"always {base:g}"
    return Spoken(sigma, words)


# Of few numbers, which a difference is shown at.
# The second plan is too much work by one gradient; the third is far too much.
THREE_PLANS = [(2, 4), (3, 7), (1, 61)], _multiplier(1.0, 0.0), 40, 4, 16, 20
CALLS = {
    "15.1": FunctionAnswer("plans, sigma, n, K, d and work", THREE_PLANS, draw=_plans),
}


# ---- 15.1: plans compared


def compare_plans(plans, sigma, n, K, d, work):
    """The ratio of noise to signal of several plans.

    Args:
        plans: pairs of a site's expected batch and the number of releases.
        sigma: takes the sample rate and the number of releases; returns the noise multiplier.
        n: examples of a site.
        K: number of sites.
        d: numbers in a release.
        work: the most gradients that a site can compute.
    Returns: one number for every plan, infinite where the plan takes more work.
    """
    ratios = []
    for b, N in plans:
        ratio = sigma(b / n, N) * np.sqrt(d) / (b * np.sqrt(K * N))
        ratios.append(ratio if b * N <= work else np.inf)
    return ratios
