"""dp_review has an accountant of its own: it states what the library's ledger states."""

import pytest

from dp_review.accounting import gaussian_epsilon
from fedlora_lab.privacy import accounting

RELEASES = [
    (1.1, 0.02, 100, 1e-5),
    (0.4505, 0.0025, 24_000, 1e-5),
    (0.05, 0.3, 10, 1e-5),
    (10.0, 0.01, 50, 1e-5),
    (20.0, 0.3, 100_000, 1e-6),
    (40.0, 1.0, 100_000, 1e-7),
]


@pytest.mark.parametrize(("sigma", "q", "steps", "delta"), RELEASES)
def test_epsilon_is_that_of_the_ledger(sigma, q, steps, delta):
    """Fault: a review that calls an epsilon wrong which the library states, or the other way."""
    expected = accounting.epsilon(((sigma, q, steps),), delta)
    assert gaussian_epsilon(sigma, q, steps, delta) == pytest.approx(expected, rel=1e-3)


def test_of_rare_examples_both_bounds_are_within_some_per_cent():
    """At a rate of 1e-4 either rounds a loss of a thousandth to its own grid."""
    expected = accounting.epsilon(((1.0, 1e-4, 10_000),), 1e-5)
    assert gaussian_epsilon(1.0, 1e-4, 10_000, 1e-5) == pytest.approx(expected, rel=0.03)
