"""Notebook 13: whose noise counts, what masks hide, and what rounding does."""

import math

import numpy as np
import pytest

from fedlora_lab import theory
from fedlora_lab.audit.bounds import DELTA
from fedlora_lab.course.secagg_demo import Grid


@pytest.mark.parametrize("std", [0.05, 0.4, 3.0])
def test_the_rounded_distribution_is_that_of_the_grid(std):
    """The law sums to one, has the right mean, and is that of the demonstration's quantiser."""
    places = np.arange(-60, 61).astype(float)
    law = theory.rounded_distribution(places, 0.3, std)
    assert law.sum() == pytest.approx(1, abs=1e-12)
    assert law @ places == pytest.approx(0.3, abs=1e-9)
    grid = Grid(clipping_range=60.0, levels=120)
    rng = np.random.default_rng(1)
    noised = 0.3 + std * rng.standard_normal(100_000)
    drawn = grid.dequantize(grid.quantize(noised, rng), 1)
    counts = np.array([(np.abs(drawn - place) < 1e-6).mean() for place in places])
    assert counts.sum() == pytest.approx(1)
    assert np.abs(counts - law).max() < 5 * (0.25 / 100_000) ** 0.5
    far = grid.quantize(np.array([-99.0, 99.0]), rng)
    assert far.tolist() == [0, 120], "what lies beyond the range is cut off"


def test_rounded_epsilon():
    """A fine grid gives the Gaussian's epsilon; one client's law is checked by summing it."""
    for sigma in (1.0, 2.0):
        stated = theory.gdp_epsilon(1 / sigma, DELTA)
        assert theory.rounded_epsilon(sigma, 0.003, 10, DELTA) == pytest.approx(stated, rel=1e-3)
    epsilon = theory.rounded_epsilon(0.5, 0.8, 1, 1e-3)
    places, excess = np.arange(-80, 81).astype(float), []
    for offset in (0.0, 0.25, 0.5):
        at = offset + 1 / 0.8, offset
        p, q = (theory.rounded_distribution(places, one, 0.5 / 0.8) for one in at)
        excess += [np.maximum(a - math.exp(epsilon) * b, 0).sum() for a, b in ((p, q), (q, p))]
    assert max(excess) == pytest.approx(1e-3, rel=1e-3)
    assert theory.rounded_epsilon(1e-3, 1.0, 2, 1e-5) == math.inf, "no noise: nothing is hidden"


# ---- masks


def test_a_sum_never_wraps():
    """Fault: one level more than fits, which would come out with the other sign."""
    top = np.full(5, 4 * 31)
    fits = Grid(clipping_range=1.0, levels=31, modulus=128)
    assert np.allclose(fits.dequantize(top, 4), 4.0)
    tight = Grid(clipping_range=1.0, levels=32, modulus=128)
    with pytest.raises(ValueError, match=r"^modulus=128: expected above 4 clients x 32 levels"):
        tight.dequantize(top, 4)
