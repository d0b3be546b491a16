"""Lesson 08: turns inside a round, the low-pass filter, and where it pays."""

from typing import Any

import numpy as np
import pytest
import torch

import fedlora_course as course
import fedlora_lab as fl
from fedlora_course.lesson_08 import figures
from fedlora_course.lesson_08.theory import filter_response, filter_worth
from fedlora_lab.methods.filters import binomial


@pytest.mark.parametrize(("taps", "size"), [(1, 2), (3, 5), (5, 64), (9, 2), (9, 64)])
def test_the_filter_response_is_the_librarys_filter(taps, size):
    """Each cosine passes the library's own filter as itself, times the gain."""
    place = (np.arange(size) + 0.5) / size
    waves = torch.from_numpy(np.cos(np.pi * np.outer(np.arange(size), place)))
    passed = torch.from_numpy(filter_response(taps, size))[:, None] * waves
    torch.testing.assert_close(binomial(taps)(waves, "A"), passed, rtol=0, atol=1e-12)


@pytest.mark.further
def test_gradient_spectra_are_those_of_the_mean_gradient():
    """With a clip that cuts nothing the energies are those of the gradient of the mean loss."""
    task = fl.tasks.digits(clients=4, seed=3)
    plan = fl.Plan(rounds=1, local_steps=2, batch=8, lr=0.1)
    *_, record = fl.run(task, "la-lora", None, plan, seed=0)
    frame: Any = figures.gradient_spectra(record, clip_norm=1e9)
    direct = course.lesson(3).example_gradients(record).mean(0)
    assert frame["energy"].sum() == pytest.approx(float((direct**2).sum()), rel=1e-4)
    cut: Any = figures.gradient_spectra(record, clip_norm=0.01)
    assert cut.groupby("factor")["energy"].sum().max() <= 0.01**2


def test_the_worth_is_the_best_steps_gain():
    """Of a step against white noise along the library's filter, each at its best rate."""
    rng = np.random.default_rng(4)
    matrix = binomial(5)(torch.eye(40, dtype=torch.float64), "A").numpy()
    for g in (rng.standard_normal(40), np.ones(40), np.cos(np.arange(40) / 5)):
        filtered = (g @ matrix @ g) ** 2 / np.sum(matrix**2)
        plain = (g @ g) ** 2 / 40
        energy = figures.spectrum(g[None], "A")
        assert filter_worth(energy, 5) == pytest.approx(filtered / plain)
