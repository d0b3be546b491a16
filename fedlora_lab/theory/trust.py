"""Who sees what decides how much noise each party must add."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fedlora_lab.checks import check, check_number, check_one_of, check_whole


class TrustLevel(NamedTuple):
    """Standard deviations for m uploads of sensitivity C.

    Args:
        each: that every client adds to its upload.
        server: that the server adds to the sum.
        mean: of the noise on the mean of the uploads.
        alone: noise multiplier that protects one upload from somebody who sees it by itself.
    """

    each: float
    server: float
    mean: float
    alone: float


def trust_level(
    trust: str, noise_multiplier: float, clip_norm: float, participants: int, honest: int | None = None
) -> TrustLevel:
    """The noise levels under which the sum is protected with multiplier sigma, by whom one trusts.

    Args:
        trust: "local" (every upload is seen), "secagg" (only the sum is seen), "central" (a trusted server).
        noise_multiplier: sigma >= 0.
        clip_norm: C >= 0; neighbours differ by one contribution replaced by nothing (by another one: 2 C).
        participants: m >= 1.
        honest: secure aggregation: noise shares relied on, in [1, m]; ``None`` is m. Clients that upload and tell their
            noise are not among them.

    Whoever sees who sends, as the server of "local" and "secagg" does, is accounted against with q = 1.

    Guarantees: test_trust_level.
    Source: derived; distributed noise as in arXiv:2102.06387.
    """
    check_one_of("trust", trust, ("local", "secagg", "central"))
    check_number("noise_multiplier", noise_multiplier, 0)
    check_number("clip_norm", clip_norm, 0)
    check_whole("participants", participants, 1)
    check_whole("honest", participants if honest is None else honest, 1, participants)
    std = noise_multiplier * clip_norm
    if trust == "central":
        return TrustLevel(each=0.0, server=std, mean=std / participants, alone=0.0)
    shares = 1 if trust == "local" else honest or participants
    each = std / math.sqrt(shares)
    return TrustLevel(each, 0.0, each / math.sqrt(participants), noise_multiplier / math.sqrt(shares))


def surviving_multiplier(noise_multiplier: float, relied: int, honest: int) -> float:
    """The noise multiplier that is left of a sum when only some clients' shares of the noise stay unknown.

    Each client adds sigma C / sqrt(relied); ``honest`` of them did so and tell nobody: sigma sqrt(honest / relied).

    Args: noise_multiplier: sigma >= 0; relied: shares that make up sigma, >= 1; honest: >= 1.
    Guarantees: test_surviving_multiplier.
    Source: derived; variances of independent noises add up.
    """
    check_number("noise_multiplier", noise_multiplier, 0)
    check_whole("relied", relied, 1)
    check_whole("honest", honest, 1)
    return noise_multiplier * math.sqrt(honest / relied)


def joint_sensitivity(clip_norms: Float[np.ndarray, " tensors"]) -> float:
    """Sensitivity of a release whose tensors were clipped one by one: sqrt(sum C_l^2), so sqrt(L) C for equal clips.

    Guarantees: test_joint_sensitivity.
    Source: derived; the norm of a concatenation.
    """
    check(clip_norms.ndim == 1 and bool(np.all(clip_norms >= 0)), "clip_norms", clip_norms, "numbers >= 0")
    return float(np.sqrt(np.sum(clip_norms**2)))


def weighted_sensitivity(clip_norm: float, weights: Float[np.ndarray, " clients"]) -> float:
    """Sensitivity to one client of a weighted mean of clipped updates: C max(w), C / n only for equal weights.

    Args:
        clip_norm: C >= 0.
        weights: w >= 0, fixed in advance: weights that depend on who takes part leak and change the sensitivity.

    Guarantees: test_weighted_sensitivity.
    Source: derived.
    """
    check_number("clip_norm", clip_norm, 0)
    check(weights.ndim == 1 and bool(np.all(weights >= 0)), "weights", weights, "numbers >= 0")
    return float(clip_norm * weights.max())
