"""Notebook 02: the deviation as points, its noise in closed form, and figures that count."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from frames import words

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.plots.style import WRONG


@pytest.mark.parametrize("weights", [None, np.array([0.1, 0.2, 0.3, 0.4])])
def test_noisy_deviation_is_the_mean_over_draws(weights):
    """Monte Carlo with a std for every client; the three parts each where it stands alone."""
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((4, 6, 2)), rng.standard_normal((4, 2, 5))
    u, v = np.array([0.1, 0.5, 0.3, 0.2]), np.array([0.4, 0.1, 0.2, 0.6])

    def squares(b, a):
        found = []
        for _ in range(4000):
            one = b + u[:, None, None] * rng.standard_normal(b.shape)
            other = a + v[:, None, None] * rng.standard_normal(a.shape)
            found.append(np.sum(theory.deviation(one, other, weights) ** 2))
        return np.array(found)

    form = theory.noisy_deviation(B, A, u, v, weights)
    assert form.total in theory.mean_band(squares(B, A))
    assert form.quadratic in theory.mean_band(squares(0 * B, 0 * A))
    assert form.data == pytest.approx(np.sum(theory.deviation(B, A, weights) ** 2))
    assert theory.noisy_deviation(B, A, 0.0, 0.0, weights).total == pytest.approx(form.data)


@pytest.mark.parametrize("pattern", ["cloud", "four sign pairs"])
@pytest.mark.parametrize(
    ("spreads", "correlation"), [((0.7, 0.4), -1.0), ((1.0, 1.0), 0.3), ((0.0, 0.5), 0.3)]
)
def test_a_cloud_has_the_spread_and_correlation_asked_for(spreads, correlation, pattern):
    """And the red bar is its deviation; a square of clients has none, though both factors vary."""
    ax, right = fl.course.lesson(2).client_cloud(*spreads, correlation, pattern)[0].axes
    dots: Any = max((line.get_xydata() for line in ax.lines if line.get_marker() == "o"), key=len)
    assert np.std(dots, axis=0) == pytest.approx(spreads, abs=1e-12)
    assert dots.mean(0) == pytest.approx((1, 1))
    deviation = dots[:, 0].mean() * dots[:, 1].mean() - dots.prod(1).mean()
    expected = -correlation * spreads[0] * spreads[1] if pattern == "cloud" else 0
    assert deviation == pytest.approx(expected, abs=1e-12)
    assert right.lines[2].get_ydata()[1] == pytest.approx(deviation, abs=1e-12)


@pytest.mark.parametrize("missing", [0, 3])
def test_the_figure_counts_what_lies_inside(missing):
    """Ten measurements of y = x, of which some miss the closed form: those are red."""
    x = np.arange(1, 11.0)
    mean = np.where(np.arange(10) < missing, 2 * x, x)
    columns = {"x": x, "mean": mean, "low": 0.9 * mean, "high": 1.1 * mean}
    table = pd.DataFrame({**columns, "closed": x, "half": x / 2})
    figure: Any = fl.plots.theory_check(table, x="x", y="y", title="t", parts={"half": "one half"})
    assert fl.plots.share_inside(table) == 1 - missing / 10
    assert f"inside: {10 - missing}0% of 10" in words(figure)
    lines = figure.axes[0].lines
    assert sum(len(line.get_xdata()) for line in lines if line.get_color() == WRONG) == missing
    drawn = [list(line.get_ydata()) for line in lines]
    assert list(x) in drawn and list(x / 2) in drawn
    assert {"one half", "closed form"} <= {text.get_text() for text in figure.axes[0].texts}
    with pytest.raises(ValueError, match=r"^table\.columns=.*expected also closed"):
        fl.plots.share_inside(table.drop(columns="closed"))
