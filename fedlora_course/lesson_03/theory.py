"""Closed form of lesson 03: the parts of clip, batch and noise in one released mean."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fedlora_lab._utils.validation import check_number, check_symbols


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
