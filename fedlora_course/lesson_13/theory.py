"""Closed form of lesson 13: noise whose shares are partly known."""

import math

from fedlora_lab._utils.validation import check_symbols


def surviving_multiplier(
    noise_multiplier: float, assumed_honest: int, honest_clients: int
) -> float:
    """The noise multiplier of a sum when only some clients' shares of the noise stay unknown.

    Each client adds sigma C / sqrt(a), and h of them did so and tell nobody: sigma sqrt(h / a).

    Args:
        noise_multiplier: sigma >= 0.
        assumed_honest: a >= 1, shares that make up sigma.
        honest_clients: h >= 1.

    Guarantees: test_dials.py::test_the_epsilon_by_observer.
    Source: derived; variances of independent noises add up.
    """
    check_symbols(
        noise_multiplier=noise_multiplier,
        assumed_honest=assumed_honest,
        honest_clients=honest_clients,
    )
    return noise_multiplier * math.sqrt(honest_clients / assumed_honest)
