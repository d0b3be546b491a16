"""Notebook 03: what its figure of two worlds shows."""

from typing import Any

import numpy as np
import pytest
from frames import words

from fedlora_lab import theory
from fedlora_lab.course.lesson_03 import figures


@pytest.mark.parametrize(("sigma", "epsilon"), [(1.0, 1.0), (0.5, 3.0)])
def test_the_shaded_area_is_delta(sigma, epsilon):
    figure: Any = figures.neighbouring_outputs(sigma, epsilon)
    (x, out), (_, into) = (line.get_data() for line in figure.axes[0].lines[:2])
    area = np.trapezoid(np.maximum(0, into - np.exp(epsilon) * out), x)
    assert area == pytest.approx(theory.gdp_delta(theory.gaussian_mu(sigma), epsilon), rel=2e-3)
    assert f"δ = {area:.3f}" in words(figure)
