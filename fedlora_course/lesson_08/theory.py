"""Closed forms of lesson 08: the low-pass filter along channels."""

import numpy as np
from jaxtyping import Float

from fedlora_lab._utils.validation import check, check_whole

Spectrum = Float[np.ndarray, " n"]
"""Energy at each frequency of the cosine transform."""


def filter_response(taps: int, size: int) -> Float[np.ndarray, " size"]:
    """Gain of the binomial filter at each frequency along channels: cos^(taps - 1)(theta / 2).

    Frequencies theta = pi j / size, j = 0 ... size - 1, are those of the cosine transform (DCT-II):
    with mirrored edges its cosines are the filter's eigenvectors, so the gain is exact.

    Guarantees: that of the library's filter (test_the_filter_response_is_the_librarys_filter).
    Source: derived; the filter is that of arXiv:2602.19926.
    """
    check_whole("taps", taps, 1, 99)
    check(taps % 2 == 1, "taps", taps, "an odd number")
    check_whole("size", size, 1)
    return np.cos(np.pi * np.arange(size) / (2 * size)) ** (taps - 1)


def filter_worth(energy: Spectrum, taps: int) -> float:
    """Computes a filtered step's gain under white noise, relative to an unfiltered one.

    (sum g E / sum E)^2 / mean(g^2), each step at its best rate: above 1 the filter helps, and a
    flat spectrum under five taps has 0.51. A shorter step without a filter has 1.

    Args: energy: of the gradient, at each DCT frequency; taps: of the filter.
    Guarantees: the best step's gain (test_the_worth_is_the_best_steps_gain).
    Source: derived; one step, the same curvature in all directions, noise much larger than the
        gradient.
    """
    energy = np.asarray(energy, float)
    positive = energy.ndim == 1 and bool(energy.sum() > 0)
    check(positive, "energy", energy.shape, "one dimension, not all zero")
    gain = filter_response(taps, len(energy))
    return float((gain @ energy / energy.sum()) ** 2 / np.mean(gain**2))
