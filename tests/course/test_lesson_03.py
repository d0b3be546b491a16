"""Notebook 03: the gradients, releases, figures and widgets behind its cells."""

from typing import Any

import numpy as np
import pytest
import torch
from frames import words

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.course.lesson_03 import figures
from fedlora_lab.lora import adapters, per_example
from fedlora_lab.tasks.task import concatenate, take


@pytest.mark.slow
def test_example_gradients_average_to_the_gradient():
    """The mean row is the gradient of the mean loss, by differences along a random direction."""
    task = fl.tasks.digits(clients=4, seed=3)
    *_, record = fl.run(task, "fedlora", None, fl.Plan(rounds=1, local_steps=2, batch=8, lr=0.1))
    source: Any = record.source
    task, lora, state = source
    rows = figures.example_gradients(record)
    assert rows.shape == (sum(task.sizes), sum(tensor.numel() for tensor in state.tensors.values()))
    adapted = adapters.adapt(task.model, task.targets, task.head, lora)
    x, y = concatenate(task.clients)
    rng, step, slopes = torch.Generator().manual_seed(1), 1e-2, []
    way = {key: torch.randn(tensor.shape, generator=rng) for key, tensor in state.tensors.items()}
    flat = torch.cat([way[key].flatten() for key in adapted.places]).double().numpy()
    way = {key: tensor / float(np.linalg.norm(flat)) for key, tensor in way.items()}
    for sign in (1, -1):
        values = {key: tensor + sign * step * way[key] for key, tensor in state.tensors.items()}
        outputs = per_example.model_outputs(task, adapted, values, take(x, torch.arange(len(y))))
        slopes.append(float(task.loss(outputs, y).double().mean()))
    expected = rows.astype(float).mean(0) @ (flat / np.linalg.norm(flat))
    assert (slopes[0] - slopes[1]) / (2 * step) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(("sigma", "epsilon"), [(1.0, 1.0), (2.0, 0.5), (0.5, 3.0)])
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
