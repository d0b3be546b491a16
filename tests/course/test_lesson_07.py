"""Lesson 07: what shaped noise costs, and the published rule beside the plain one."""

import numpy as np
import pytest

from fedlora_course.lesson_07.exercises import price, release
from fedlora_course.lesson_07.theory import regulated_multiplier


def test_at_one_energy_shaped_noise_costs_no_less_than_plain_noise():
    """In a long run, for one curvature of the product: by the stretches of A, and 1 or more."""
    rng = np.random.default_rng(0)
    for stretches in (np.ones(3), *rng.uniform(0.2, 3, (20, 3))):
        even = np.mean(stretches**2) ** 0.5  # the noise has the energy of plain noise of one
        shaped = sum(price(even / w, 1e-4, w**2) for w in stretches)
        plain = sum(price(1.0, 1e-4, w**2) for w in stretches)
        more = np.mean(stretches**2) * np.mean(1 / stretches**2)
        assert more >= 1 and shaped == pytest.approx(plain * more, rel=1e-3)


def test_on_rows_of_one_length_the_sound_release_is_the_plain_one():
    """With orthogonal rows of length 1/√3, at C/√3: the same clip, and noise of the same law."""
    rng = np.random.default_rng(0)
    even = np.linalg.qr(rng.standard_normal((64, 4)))[0].T / 3**0.5
    changes = rng.standard_normal((5, 64, 4)) * np.array([0.01, 0.02, 0.1, 0.5, 1])[:, None, None]
    lengths = np.linalg.norm(changes, axis=(1, 2), keepdims=True)
    plain = (changes * np.minimum(1, 0.3 / lengths)).mean(0)
    sound = release(changes, even, 0.3 / 3**0.5, 0.0, np.zeros((64, 64)))
    np.testing.assert_allclose(sound, plain, atol=1e-12)
    back = np.linalg.pinv(even) / 3**0.5  # what the release does to noise of size C/√3, over C
    np.testing.assert_allclose(back.T @ back, np.eye(4), atol=1e-12)


def test_regulated_multiplier():
    """The worst shift of norm C stands along the peer's largest direction; none stands out more.

    Deviations are those of the covariance of xi_W A^+, written out.
    """
    rng = np.random.default_rng(0)
    A = 3 * rng.uniform(-1, 1, (4, 16)) / 4
    clip = 0.5
    sigma = 1.1
    shifts = [np.outer([1.0, 0.0], np.linalg.svd(A)[0][:, 0]), *rng.normal(size=(50, 2, 4))]
    inverse = A @ A.T / (sigma * clip) ** 2
    units = [clip * x / np.linalg.norm(x) for x in shifts]
    sizes = [np.sqrt(sum(row @ inverse @ row for row in x)) for x in units]
    assert 1 / regulated_multiplier(A, sigma) == pytest.approx(max(sizes), rel=1e-12)
