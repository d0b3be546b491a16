"""Notebook 03: the gradients, releases, figures and widgets behind its cells."""

from typing import Any

import numpy as np
import pytest
from frames import words

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.course.lesson_03 import figures


@pytest.mark.parametrize(("sigma", "epsilon"), [(1.0, 1.0), (0.5, 3.0)])
def test_the_shaded_area_is_delta(sigma, epsilon):
    figure: Any = figures.neighbouring_outputs(sigma, epsilon)
    (x, out), (_, into) = (line.get_data() for line in figure.axes[0].lines[:2])
    area = np.trapezoid(np.maximum(0, into - np.exp(epsilon) * out), x)
    assert area == pytest.approx(theory.gdp_delta(theory.gaussian_mu(sigma), epsilon), rel=2e-3)
    assert f"δ = {area:.3f}" in words(figure)


def test_composition_ends_at_the_accountants():
    """Two of them by numbers from elsewhere; 3.7697 is dp-accounting's upper bound."""
    table = figures.composition_table(3.0, 0.1, 1e-6, [512]).set_index("way")["epsilon"]
    plan = fl.Privacy(noise_multiplier=3.0, sample_rate=0.1, delta=1e-6)
    ledger, renyi, limit = table[["the ledger's", "Rényi", "central limit: no bound"]]
    assert ledger == plan.ledger(512).epsilon()
    assert (renyi, limit) == pytest.approx((4.052, 3.668), abs=2e-3)
    assert limit < 3.769 < ledger < 3.775 < renyi < table["adding the ε's"]
