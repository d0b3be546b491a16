"""Lesson 02: the deviation as points and over the work, its noise, and figures that count."""

import numpy as np
import pytest

from fedlora_course.lesson_02.theory import deviation_matrix, noisy_deviation
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
            found.append(np.sum(deviation_matrix(one, other, weights) ** 2))
        return np.array(found)

    form = noisy_deviation(B, A, u, v, weights)
    assert form.total in theory.mean_band(squares(B, A))
    assert form.quadratic in theory.mean_band(squares(0 * B, 0 * A))
    assert form.data == pytest.approx(np.sum(deviation_matrix(B, A, weights) ** 2))
