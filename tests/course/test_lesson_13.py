"""Notebook 13: whose noise counts, what masks hide, and what rounding does."""

import numpy as np
import pytest

from fedlora_course.lesson_13.theory import trust_level
from fedlora_course.secagg_demo import Grid


def test_the_grid_rounds_right_on_average():
    """Fault: rounding to the nearest level, which would move every client's mean."""
    grid = Grid(clipping_range=60.0, levels=120)
    rng = np.random.default_rng(1)
    drawn = grid.dequantize(grid.quantize(np.full(100_000, 0.3), rng), 1)
    assert drawn.mean() == pytest.approx(0.3, abs=5 * (0.25 / 100_000) ** 0.5)
    far = grid.quantize(np.array([-99.0, 99.0]), rng)
    assert far.tolist() == [0, 120], "what lies beyond the range is cut off"


# ---- masks


def test_a_sum_never_wraps():
    """Fault: one level more than fits, which would come out with the other sign."""
    top = np.full(5, 4 * 31)
    assert np.allclose(Grid(clipping_range=1.0, levels=31, modulus=128).dequantize(top, 4), 4.0)
    with pytest.raises(ValueError, match=r"^modulus=128: expected above 4 clients x 32 levels"):
        Grid(clipping_range=1.0, levels=32, modulus=128).dequantize(top, 4)


def test_trust_level():
    """Variances of independent draws add up: on the mean of five."""
    std = 1.2 * 0.7
    for trust, each, server in (
        ("local", std, 0),
        ("secagg", std / 5**0.5, 0),
        ("central", 0, std),
    ):
        level = trust_level(trust, 1.2, 0.7, 5)
        assert (level.each, level.server) == pytest.approx((each, server), rel=1e-12)
        assert level.mean == pytest.approx((5 * each**2 + server**2) ** 0.5 / 5, rel=1e-12)
