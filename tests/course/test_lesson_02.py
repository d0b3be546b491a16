"""Notebook 02: the deviation as points and over the work, its noise, and figures that count."""

from typing import Any

import numpy as np
import pytest

import fedlora_lab as fl
from fedlora_lab import theory


@pytest.mark.slow
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
            found.append(np.sum(theory.deviation_matrix(one, other, weights) ** 2))
        return np.array(found)

    form = theory.noisy_deviation(B, A, u, v, weights)
    assert form.total in theory.mean_band(squares(B, A))
    assert form.quadratic in theory.mean_band(squares(0 * B, 0 * A))
    assert form.data == pytest.approx(np.sum(theory.deviation_matrix(B, A, weights) ** 2))
    assert theory.noisy_deviation(B, A, 0.0, 0.0, weights).total == pytest.approx(form.data)


@pytest.mark.parametrize("weights", [None, np.array([0.4, 0.1, 0.1, 0.4])])
@pytest.mark.parametrize(
    ("b", "a", "words"),
    [
        ([2.0, 1, 0, 0.5], [1.0, 2, 0.5, 0], "go together"),
        ([2.0, 1, 0, 0.5], [-1.0, 0, 2, 1.5], "go apart"),
        ([2.0, 1, 0, 0.5], [1.5] * 4, "One factor is common"),
    ],
)
def test_the_bars_of_a_cloud_add_up_to_the_deviation(b, a, words, weights):
    """One bar a client and one for their sum, which the titles state."""
    figure = fl.course.lesson(2).client_cloud(np.array(b), np.array(a), weights)
    ax, right = figure.axes
    *parts, total = [bar.get_height() for bar in right.patches]
    p = np.full(4, 0.25) if weights is None else weights
    D = (p @ b) * (p @ a) - p @ np.multiply(b, a)
    assert [total, sum(parts)] == pytest.approx([D, D], abs=1e-12)
    dots: Any = max((line.get_xydata() for line in ax.lines if line.get_marker() == "o"), key=len)
    assert dots == pytest.approx(np.stack([b, a], 1)) and len(parts) == 4
    assert words in ax.get_title(loc="left")


def test_the_square_of_clients_is_named():
    figure = fl.course.lesson(2).client_cloud(np.array([2, 2, 0, 0]), np.array([2, 0, 2, 0]))
    assert "both factors differ" in figure.axes[0].get_title(loc="left").lower()
    assert figure.axes[1].get_title(loc="left").endswith("= 0")
