"""Closed forms of lesson 13: who adds how much noise, and what remains of it."""

import math
from typing import NamedTuple

from fedlora_lab._utils.trust import TRUST
from fedlora_lab._utils.validation import check_one_of, check_symbols


class TrustLevel(NamedTuple):
    """Standard deviations for m uploads of sensitivity C."""

    each: float  # that every client adds to its upload
    server: float  # that the server adds to the sum
    mean: float  # of the noise on the mean of the uploads


def trust_level(
    trust: str,
    noise_multiplier: float,
    clip_norm: float,
    participants: int,
) -> TrustLevel:
    """The noise levels under which the sum is protected with multiplier sigma, by whom one trusts.

    Args:
        trust: "local" (every upload is seen), "secagg" (only the sum is seen), "central" (a trusted
            server).
        noise_multiplier: sigma >= 0.
        clip_norm: C >= 0; neighbours differ by one contribution replaced by nothing (by another
            one: 2 C).
        participants: m >= 1.

    Guarantees: the noise drawn at each level (test_trust_level).
    Source: derived; distributed noise as in arXiv:2102.06387.
    """
    check_one_of("trust", trust, tuple(TRUST))
    check_symbols(clip_norm=clip_norm, participants=participants)
    check_symbols(noise_multiplier=noise_multiplier)
    std = noise_multiplier * clip_norm
    if TRUST[trust].server_adds_noise:
        return TrustLevel(each=0.0, server=std, mean=std / participants)
    shares = 1 if TRUST[trust].uploads_are_seen else participants
    each = std / math.sqrt(shares)
    return TrustLevel(each, server=0.0, mean=each / math.sqrt(participants))


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
