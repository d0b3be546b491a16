"""What noise shaped by the peer costs over a run, when the clip stays in the space of the factor."""

import numpy as np
from jaxtyping import Float
from scipy.special import chdtri

from fedlora_lab.checks import check, check_number, check_whole
from fedlora_lab.theory.bands import Band

GRID = 5e-3
"""Distance of the privacy losses that are told apart."""


def regulated_epsilon(
    peers: Float[np.ndarray, " rounds"], noise_multiplier: float, sample_rate: float, steps: int, delta: float
) -> Float[np.ndarray, " rounds"]:
    """Epsilon after each round of a regulator that clips the factor: every step counts with sigma / |peer|_2.

    A figure of what the noise hides, computed after the fact from the peers that came out; no promise made beforehand.
    With all peers equal to 1 it is the nominal epsilon.

    Args:
        peers: largest spectral norm of a peer factor in each round, > 0, (rounds,).
        noise_multiplier: nominal sigma > 0.
        sample_rate: q in [0, 1].
        steps: releases in a round, >= 1.
        delta: in (0, 1).

    Returns: (rounds,), not decreasing; upper ends, at most 0.01 above the exact values.

    Guarantees: test_regulated_epsilon.
    Source: derived; see `regulated_multiplier`; composed by dp-accounting's privacy loss distribution.
    """
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism, identity

    check_number("noise_multiplier", noise_multiplier, 0, open_low=True)
    check_number("sample_rate", sample_rate, 0, 1)
    check_whole("steps", steps, 1)
    check(0 < delta < 1, "delta", delta, "a number in (0, 1)")
    check(bool(np.all(peers > 0)), "peers", peers, "numbers > 0")
    if not sample_rate:
        return np.zeros(len(peers))
    total, spent = identity(value_discretization_interval=GRID), []
    for peer in peers:
        one = from_gaussian_mechanism(
            noise_multiplier / float(peer), sampling_prob=sample_rate, value_discretization_interval=GRID
        )
        total = total.compose(one.self_compose(steps))
        spent.append(total.get_epsilon_for_delta(delta))
    return np.array(spent)


def measured_band(mu: float, draws: int, level: float = 0.95) -> Band:
    """The interval that holds a separation measured on ``draws`` draws of the noise, when the true one is ``mu``.

    Only the spread of the noise is estimated, so the ratio follows a chi-square with draws - 1 degrees of freedom.

    Args:
        mu: > 0.
        draws: >= 2.
        level: in (0, 1).

    Guarantees: test_measured_band.
    Source: the law of a sample variance.
    """
    check_number("mu", mu, 0, open_low=True)
    check_whole("draws", draws, 2)
    check(0 < level < 1, "level", level, "a number in (0, 1)")
    low, high = (mu * np.sqrt((draws - 1) / chdtri(draws - 1, p)) for p in ((1 - level) / 2, (1 + level) / 2))
    return Band(mu, float(low), float(high))
