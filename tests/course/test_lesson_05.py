"""Notebook 05: how much of a signal the rows of a random A hold."""

import numpy as np
import pytest

from fedlora_course.lesson_05.theory import row_space_share
from fedlora_lab.theory import mean_band


def test_row_space_share():
    """Against projections of several directions on random ones."""
    rng = np.random.default_rng(33)
    d_in = 24
    r = 5
    spectrum = np.array([3.0, 2.0, 1.0, 0.5])
    spaces = np.linalg.qr(rng.normal(size=(2000, d_in, r)))[0]
    # Four directions along the first axes.
    shares = np.average(np.square(spaces[:, :4]).sum(2), 1, spectrum**2)
    band = row_space_share(r, d_in, spectrum)
    assert band.mean == r / d_in and r / d_in in mean_band(shares)
    assert np.mean([x in band for x in shares]) == pytest.approx(0.95, abs=0.025)
