"""Who adds how much noise, and what rounding by every client does to the privacy of a sum."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

from fedlora_lab._utils.validation import check, check_number, check_one_of, check_whole
from fedlora_lab.theory import _symbols


class TrustLevel(NamedTuple):
    """Standard deviations for m uploads of sensitivity C."""

    each: float  # that every client adds to its upload
    server: float  # that the server adds to the sum
    mean: float  # of the noise on the mean of the uploads
    alone: float  # noise multiplier that protects one upload from somebody who sees it by itself


def trust_level(
    trust: str,
    noise_multiplier: float,
    clip_norm: float,
    participants: int,
    honest: int | None = None,
) -> TrustLevel:
    """The noise levels under which the sum is protected with multiplier sigma, by whom one trusts.

    Args:
        trust: "local" (every upload is seen), "secagg" (only the sum is seen), "central" (a trusted
            server).
        noise_multiplier: sigma >= 0.
        clip_norm: C >= 0; neighbours differ by one contribution replaced by nothing (by another
            one: 2 C).
        participants: m >= 1.
        honest: secure aggregation: noise shares relied on, in [1, m]; ``None`` is m. Clients that
            upload and tell their noise are not among them.

    Guarantees: test_trust_level.
    Source: derived; distributed noise as in arXiv:2102.06387.
    """
    check_one_of("trust", trust, ("local", "secagg", "central"))
    _symbols.check(clip_norm=clip_norm, participants=participants)
    _symbols.check(noise_multiplier=noise_multiplier)
    check_whole("honest", participants if honest is None else honest, 1, participants)
    std = noise_multiplier * clip_norm
    if trust == "central":
        return TrustLevel(each=0.0, server=std, mean=std / participants, alone=0.0)
    shares = 1 if trust == "local" else honest or participants
    each, alone = std / math.sqrt(shares), noise_multiplier / math.sqrt(shares)
    return TrustLevel(each, server=0.0, mean=each / math.sqrt(participants), alone=alone)


def surviving_multiplier(noise_multiplier: float, relied: int, honest: int) -> float:
    """The noise multiplier of a sum when only some clients' shares of the noise stay unknown.

    Each client adds sigma C / sqrt(relied); ``honest`` of them did so and tell nobody: sigma
    sqrt(honest / relied).

    Args: noise_multiplier: sigma >= 0; relied: shares that make up sigma, >= 1; honest: >= 1.
    Guarantees: test_the_surviving_multiplier_is_that_of_drawn_noises.
    Source: derived; variances of independent noises add up.
    """
    _symbols.check(noise_multiplier=noise_multiplier, relied=relied, honest=honest)
    return noise_multiplier * math.sqrt(honest / relied)


def weighted_sensitivity(clip_norm: float, weights: Float[np.ndarray, " clients"]) -> float:
    """Sensitivity to one client of a weighted mean of clipped updates: C max(w).

    C / n only for equal weights. They are fixed in advance: weights that depend on who takes part
    leak and change the sensitivity.

    Guarantees: test_weighted_sensitivity.
    Source: derived.
    """
    _symbols.check(clip_norm=clip_norm)
    check(weights.ndim == 1 and bool(np.all(weights >= 0)), "weights", weights, "numbers >= 0")
    return float(clip_norm * weights.max())


def rounded_distribution(
    places: Float[np.ndarray, " n"], mean: float, std: float
) -> Float[np.ndarray, " n"]:
    """Chance of each whole number when mean + N(0, std^2) is rounded at random to a neighbour.

    The rounding is right on average: the second difference of G(t) = t Phi(t / std) + std phi(t /
    std).

    Args: places: whole numbers; mean: any; std: > 0, in steps.
    Guarantees: test_the_rounded_distribution_is_flowers.
    Source: derived.
    """
    check_number("std", std, 0, open_low=True)

    def g(t: np.ndarray) -> np.ndarray:
        return t * ndtr(t / std) + std * np.exp(-((t / std) ** 2) / 2) / math.sqrt(2 * math.pi)

    return np.maximum(0.0, g(places - mean + 1) - 2 * g(places - mean) + g(places - mean - 1))


def rounded_epsilon(noise_multiplier: float, step: float, clients: int, delta: float) -> float:
    """Epsilon of a sum of noised numbers, each rounded by its client before the sum; numerical.

    Every client adds noise of sigma C / sqrt(clients) and rounds at random to a grid of ``step`` C.
    Neighbours differ in one client's number: C or 0. The others' numbers are alike, at several
    places between two levels, of which the worst counts. One coordinate, one release: no bound for
    a vector. Infinite where some outcome gives the client away.

    Args: noise_multiplier: sigma > 0 of the sum; step: > 0, in units of C; clients: >= 1; delta.
    Guarantees: test_rounded_epsilon (a fine grid gives the Gaussian epsilon, a coarse one none).
    Source: derived; that rounding must be part of the analysis is arXiv:2102.06387.
    """
    _symbols.check_noise(noise_multiplier)
    check_number("step", step, 1e-4, 1e4)
    _symbols.check(clients=clients, delta=delta)
    std, shift = noise_multiplier / math.sqrt(clients) / step, 1 / step
    reach = math.ceil(14 * (std + 0.5) * math.sqrt(clients) + shift + clients)
    size = 2 ** math.ceil(math.log2(2 * reach + 2))
    places = np.arange(size) - size // 2

    def spectrum(mean: float) -> np.ndarray:
        law = rounded_distribution(places.astype(float), mean, std)
        return np.fft.rfft(np.fft.ifftshift(law))

    def epsilon(offset: float) -> float:
        others = spectrum(offset) ** (clients - 1)
        sums = (np.fft.irfft(others * spectrum(mean), size) for mean in (offset + shift, offset))
        p, q = (np.where(law > 1e-13, law, 0.0) for law in sums)

        def excess(epsilon: float) -> float:
            factor = math.exp(epsilon)
            return max(np.maximum(p - factor * q, 0).sum(), np.maximum(q - factor * p, 0).sum())

        low, high = 0.0, 60.0
        if excess(high) > delta:
            return math.inf
        while high - low > 1e-6:
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) > delta else (low, middle)
        return high

    return max(epsilon(offset) for offset in (0.0, 0.25, 0.5))
