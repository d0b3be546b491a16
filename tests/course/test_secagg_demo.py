"""Secure aggregation: what opens, and what does not."""

import numpy as np
import pytest

from fedlora_lab.course.secagg_demo import Grid, aggregate

UPDATES = 0.2 * np.random.default_rng(0).standard_normal((6, 300))
GRID = Grid(clipping_range=1.0)


@pytest.mark.parametrize("dropped", [None, 0, 3, 5])
def test_the_sum_is_opened_whoever_is_lost(dropped):
    """Fault: a mask left in the sum, or one that is taken out twice."""
    found = aggregate(UPDATES, GRID, dropped=dropped)
    there = [k for k in range(6) if k != dropped]
    assert found.arrived == tuple(there)
    off = np.abs(found.total - UPDATES[there].sum(0))
    assert 0 < off.max() <= GRID.max_error(len(there)) + 1e-9


def test_the_error_keeps_to_its_bound():
    """Fault: rounding to one side, or by more than a step; entries beyond the range are cut off."""
    values = np.concatenate([np.linspace(-1, 1, 2001), [1.7, -3.0]])
    coarse = Grid(clipping_range=1.0, levels=10, modulus=16)
    rng = np.random.default_rng(1)
    drawn = np.stack([coarse.dequantize(coarse.quantize(values, rng), 1) for _ in range(2000)])
    inside = drawn[:, :-2]
    assert np.abs(inside - values[:-2]).max() <= coarse.max_error(1) + 1e-12
    assert np.abs(inside.mean(0) - values[:-2]).max() < 5 * coarse.step / 2 / 2000**0.5
    assert (drawn[:, -2:] == [1.0, -1.0]).all()


def test_a_sum_never_wraps():
    """Fault: one level more than fits, which would come out with the other sign."""
    top = np.ones((4, 5))
    fits = Grid(clipping_range=1.0, levels=31, modulus=128)
    assert np.allclose(aggregate(top, fits).total, 4.0)
    tight = Grid(clipping_range=1.0, levels=32, modulus=128)
    with pytest.raises(ValueError, match=r"^modulus=128: expected above 4 clients x 32 levels"):
        aggregate(top, tight)


def test_one_upload_says_nothing_of_its_values():
    """Fault: masked numbers that follow the update, another upload or a smaller sum."""
    loud = np.where(np.arange(4000) < 2000, -0.9, 0.9) * np.ones((5, 1))
    uploads = aggregate(loud, GRID).uploads
    partial = uploads[:4].sum(0) % GRID.modulus
    for row in uploads:
        counts = np.histogram(row / GRID.modulus, bins=8, range=(0, 1))[0]
        assert np.abs(counts - 500).max() < 6 * 500**0.5
    related = np.corrcoef([loud[0], *uploads]) - np.eye(6)
    assert np.abs(related).max() < 5 / 4000**0.5
    assert abs(np.corrcoef(loud[0], partial)[0, 1]) < 5 / 4000**0.5
    assert (aggregate(loud, GRID).uploads != uploads).mean() > 0.99
