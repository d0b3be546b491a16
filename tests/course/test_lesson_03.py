"""Notebook 03: single gradients, before any clip."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

import fedlora_course as course
import fedlora_lab as fl
from fedlora_course.lesson_03.theory import clip_terms, membership_bound
from fedlora_lab.tasks.task import HeldOut, concatenate
from fedlora_lab.theory import gdp_delta, mean_band


@pytest.mark.further
def test_single_gradients_average_to_that_of_the_mean_loss():
    """By autograd, for one layer."""
    task = fl.tasks.digits(clients=3, seed=5)
    plan = fl.Plan(rounds=2, local_steps=2, batch=8)
    last: Any = [*fl.run(task, "fedlora", None, plan, seed=0)][-1]
    tensors = last.source[2].tensors
    ends = np.cumsum([x.numel() for x in tensors.values()])
    mean = course.lesson(3).example_gradients(last).mean(0)
    scored = replace(task, held_out=HeldOut(concatenate(task.clients)))
    expected = fl.measures.gradients(scored, last, "blocks.0.query")
    for key, part in zip(tensors, np.split(mean, ends[:-1]), strict=True):
        if key.layer == "blocks.0.query":
            np.testing.assert_allclose(part, getattr(expected, key.name).flatten(), atol=1e-6)


def test_the_best_attacks_are_those_of_the_ledgers():
    ledgers = {
        sigma: fl.Privacy(noise_multiplier=sigma, sample_rate=0.05, delta=1e-4).ledger(releases=50)
        for sigma in (1.0, 2.0, 4.0)
    }
    figure = course.lesson(3).best_attacks(ledgers, fpr=0.01)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    (at, first), (_, second), _, (_, loose) = (line.get_data() for line in lines)
    assert np.array_equal(first, ledgers[1.0].tradeoff(np.asarray(at)))
    assert (second <= first).all() and (first <= loose).all() and (first < 0.8 * loose).any()


def test_clip_terms():
    """Simulated releases of heavy-tailed rows."""
    rng = np.random.default_rng(21)
    n = 8000
    rows = rng.standard_t(3, size=(30, 5))
    clip = 2.5
    sigma = 0.7
    batch = 10.0
    terms = clip_terms(rows, clip, sigma, batch)
    clipped = rows * np.minimum(1.0, clip / np.linalg.norm(rows, axis=1, keepdims=True))
    drawn = rng.random((n, 30)) < batch / 30
    xi = rng.normal(0, sigma * clip, (n, 5))
    errors = (drawn @ clipped + xi) / batch - rows.mean(0)
    assert terms.total in mean_band(np.square(errors).sum(1))
    assert terms.bias == pytest.approx(np.sum((clipped.mean(0) - rows.mean(0)) ** 2), rel=1e-12)


def test_membership_bound():
    """No test between two Gaussians beats the bound at any of its (epsilon, delta), and the best
    one touches it.
    """
    fpr = np.linspace(0, 1, 201)
    for mu in (0.3, 3.0):
        best = stats.norm.cdf(stats.norm.ppf(fpr) + mu)
        for epsilon in (0.0, 2.0):
            bound = membership_bound(fpr, epsilon, gdp_delta(mu, epsilon))
            assert (best <= bound + 1e-12).all() and (best > bound - 1e-3).any()
