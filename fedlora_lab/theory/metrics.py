"""A row as (metric, schedule, aggregation): closed forms of what a public metric costs.

A private step is a Gaussian mechanism in an inner product on the blocks of what is trained, for
instance A and B. With block weights w > 0 the step clips the norm of (w_1 g_1, w_2 g_2, ...) to C
and adds noise of standard deviation sigma C / w_l to block l. Epsilon is the same for all weights.
Plain clipping has w = 1. A balanced start has w_A = 1 / c and a step of A that is c^2 times
shorter, and FFA-LoRA is its limit of a large c.

The forms are of second order: they hold where every example is clipped, and while noise is small
enough for noise times noise to be left out (see `accumulated_noise_terms` for that part).

>>> weights = best_block_weights([1.0, 4.0], [4.0, 1.0])
>>> round(weighted_cost([1.0, 4.0], [4.0, 1.0], weights) / weighted_cost([1.0, 4.0], [4.0, 1.0]), 2)
0.64
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from fedlora_lab._utils.validation import check

BlockArray = Float[np.ndarray, " blocks"]
Blocks = Sequence[float] | BlockArray


def _positive(name: str, values: Blocks, like: Blocks) -> BlockArray:
    """Returns an array, after a check that every block has a finite positive number."""
    array = np.asarray(values, float)
    good = array.ndim == 1 and len(array) == len(like) and bool(np.all(array > 0))
    check(good and bool(np.isfinite(array).all()), name, values, "a number > 0 for every block")
    return array


def weighted_cost(energies: Blocks, costs: Blocks, weights: Blocks | None = None) -> float:
    """Energy of the noise in the product, over the signal's scale and sigma, squared.

    Clipping scales an example's gradient to C / sqrt(sum w^2 s), and block l gets noise of variance
    (sigma C / w_l)^2. The ratio of noise to signal is therefore (sum w^2 s)(sum J / w^2) sigma^2.

    Args:
        energies: (blocks,), s: squared norm of an example's gradient in each block.
        costs: (blocks,), J: energy in the product of noise of variance 1, of A and B the linear
            parts of `noise_terms`.
        weights: (blocks,), w; ``None`` is 1 for each. A common factor changes nothing.
    Guarantees: that of a simulated step
        (test_the_cost_of_a_metric_is_that_of_a_clipped_and_noised_step).
    Source: derived.
    """
    s = _positive("energies", energies, energies)
    J = _positive("costs", costs, energies)
    w = np.ones(len(s)) if weights is None else _positive("weights", weights, energies)
    return float(np.sum(w**2 * s) * np.sum(J / w**2))


def best_block_weights(energies: Blocks, costs: Blocks) -> BlockArray:
    """The block weights of least `weighted_cost`: w^2 proportional to sqrt(J / s).

    By Cauchy and Schwarz the cost is at least (sum sqrt(s J))^2, and these weights attain it. For
    isotropic gradients s / J is the same for A and B, and the plain joint clip is the best.

    Args: energies, costs: see `weighted_cost`.
    Returns: (blocks,), with product 1.
    Guarantees: no search does better (test_no_weights_cost_less_than_the_best).
    Source: derived.
    """
    s = _positive("energies", energies, energies)
    J = _positive("costs", costs, energies)
    logs = np.log(J / s) / 4
    return np.exp(logs - logs.mean())
