"""How far a Monte Carlo mean may lie from its closed form."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fedlora_lab.checks import check, check_number


class Band(NamedTuple):
    """A mean with its interval; ``value in band`` says whether the interval covers a value."""

    mean: float
    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return self.low <= float(value) <= self.high  # type: ignore[arg-type]


def mean_band(samples: Float[np.ndarray, " n"], errors: float = 4.0) -> Band:
    """The mean of independent samples, plus and minus ``errors`` standard errors (4: wrong once in 16,000 looks).

    Args:
        samples: (n,), n >= 2.
        errors: half width in standard errors, >= 0; 1.96 is the usual 95 % band.

    Guarantees: test_mean_band.
    """
    check(samples.ndim == 1 and len(samples) >= 2, "samples", samples.shape, "one dimension, at least 2 samples")
    check_number("errors", errors, 0)
    mean, half = float(np.mean(samples)), errors * float(np.std(samples, ddof=1)) / math.sqrt(len(samples))
    return Band(mean, mean - half, mean + half)
