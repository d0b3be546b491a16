"""Closed forms of lesson 03: what attackers find, and the parts of one released mean."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fedlora_lab._utils.validation import check, check_number, check_symbols


def membership_bound(
    fpr: Float[np.ndarray, " n"], epsilon: float, delta: float
) -> Float[np.ndarray, " n"]:
    """The largest share of members that any attacker finds at a false positive rate ``fpr``.

    The smaller of e^epsilon fpr + delta and 1 - e^-epsilon (1 - delta - fpr), and never above 1.

    Args: fpr: in [0, 1]; epsilon: >= 0; delta: in [0, 1].
    Guarantees: no test between two Gaussians beats it, the best one touches it
        (test_membership_bound).
    Source: arXiv:1311.0776, theorem 2.1.
    """
    check_symbols(epsilon=epsilon)
    check_number("delta", delta, 0, 1)
    check(bool(np.all((fpr >= 0) & (fpr <= 1))), "fpr", fpr, "numbers in [0, 1]")
    # At 700 the exponential is as good as infinite, and no float overflows.
    steep = delta + fpr * math.exp(min(epsilon, 700.0))
    return np.minimum(1.0, np.minimum(steep, 1 - math.exp(-epsilon) * (1 - delta - fpr)))


class ClipTerms(NamedTuple):
    """Parts of a released mean's expected squared distance from the true mean gradient."""

    bias: float
    sampling: float
    noise: float

    total = property(sum, doc="Of the whole: the parts are uncorrelated.")


def clip_terms(
    rows: Float[np.ndarray, "n p"], clip_norm: float, noise_multiplier: float, batch: float
) -> ClipTerms:
    """Parts of clip, Poisson batch and noise in the error of one released mean gradient.

    Each row is clipped to norm C and drawn with probability q = batch / n; noise of std sigma C is
    added to every one of the p sums, which are then divided by ``batch``. bias = |mean of clipped
    rows - mean of rows|^2, sampling = q (1 - q) sum |clipped row|^2 / batch^2, noise = (sigma C /
    batch)^2 p.

    Args:
        rows: one example's gradient each.
        clip_norm, noise_multiplier: C >= 0 and sigma >= 0, finite.
        batch: expected number of rows drawn, in (0, n].

    Guarantees: the mean over drawn releases (test_clip_terms).
    Source: derived; the mechanism is arXiv:1607.00133, algorithm 1.
    """
    n, p = rows.shape
    check_symbols(clip_norm=clip_norm, noise_multiplier=noise_multiplier)
    check_number("batch", batch, 0, n, open_low=True)
    norms = np.linalg.norm(rows, axis=1)
    scale = np.minimum(1.0, clip_norm / np.maximum(norms, 1e-300))
    bias = (scale - 1.0) @ rows / n
    # A row is in the batch or not: its part has the variance of a coin.
    q = batch / n
    sampling = q * (1 - q) * float(np.sum((scale * norms) ** 2)) / batch**2
    return ClipTerms(float(bias @ bias), sampling, (noise_multiplier * clip_norm / batch) ** 2 * p)
