"""What a promise (epsilon, delta) forbids an attacker, and what a clip costs the learner."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fedlora_lab.checks import check, check_number


def membership_bound(fpr: Float[np.ndarray, " n"], epsilon: float, delta: float) -> Float[np.ndarray, " n"]:
    """The largest share of members that any attacker finds while accusing a share ``fpr`` of the others.

    The smaller of e^epsilon fpr + delta and 1 - e^-epsilon (1 - delta - fpr), and never above 1.

    Args:
        fpr: false positive rates in [0, 1], (n,).
        epsilon: >= 0.
        delta: in [0, 1).

    Guarantees: test_membership_bound.
    Source: arXiv:1311.0776, theorem 2.1.
    """
    check_number("epsilon", epsilon, 0)
    check_number("delta", delta, 0, 1)
    check(bool(np.all((fpr >= 0) & (fpr <= 1))), "fpr", fpr, "numbers in [0, 1]")
    steep = delta + fpr * math.exp(min(epsilon, 700.0))
    return np.minimum(1.0, np.minimum(steep, 1 - math.exp(-epsilon) * (1 - delta - fpr)))


class ClipTerms(NamedTuple):
    """Expected squared distance of a released mean from the mean of all unclipped gradients, in three parts.

    Args:
        bias: the clipped mean is another vector than the mean.
        sampling: the batch is drawn.
        noise: Gaussian noise on every number released.
    """

    bias: float
    sampling: float
    noise: float

    @property
    def total(self) -> float:
        """Expected squared distance; the parts are uncorrelated."""
        return self.bias + self.sampling + self.noise


def clip_terms(rows: Float[np.ndarray, "n p"], clip_norm: float, noise_multiplier: float, batch: float) -> ClipTerms:
    """What clip, Poisson batch and noise each add to the error of one released mean gradient.

    Each row is clipped to norm C and drawn with probability q = batch / n; noise of std sigma C is added to every one
    of the p sums, which are then divided by ``batch``. bias = |mean of clipped rows - mean of rows|^2,
    sampling = q (1 - q) sum |clipped row|^2 / batch^2, noise = (sigma C / batch)^2 p.

    Args:
        rows: one example's gradient each, (n, p).
        clip_norm: C >= 0, finite.
        noise_multiplier: sigma >= 0.
        batch: expected number of rows drawn, in (0, n].

    Guarantees: test_clip_terms.
    Source: derived; the mechanism is arXiv:1607.00133, algorithm 1.
    """
    n, p = rows.shape
    for name, value in (("clip_norm", clip_norm), ("noise_multiplier", noise_multiplier)):
        check_number(name, value, 0)
    check_number("batch", batch, 0, n, open_low=True)
    norms = np.linalg.norm(rows, axis=1)
    scale = np.minimum(1.0, clip_norm / np.maximum(norms, 1e-300))
    bias = (scale - 1.0) @ rows / n
    q = batch / n
    return ClipTerms(
        bias=float(bias @ bias),
        sampling=q * (1 - q) * float(np.sum((scale * norms) ** 2)) / batch**2,
        noise=(noise_multiplier * clip_norm / batch) ** 2 * p,
    )
