"""Notebook 00: what a client reaches that trains alone."""

import dataclasses

import numpy as np
import pytest

import fedlora_lab as fl


@pytest.mark.slow
def test_alone_one_client_gains_a_few_points_and_another_loses_more():
    task = fl.tasks.digits(clients=10, dirichlet=0.5, seed=0)
    plan = fl.Plan(rounds=8, local_steps=3, batch=8, lr=0.03)
    gains = []
    for k in (4, 5):
        alone = dataclasses.replace(task, clients=(task.clients[k],), client_names=("alone",))
        start, *_, end = fl.run(alone, "fedlora", None, plan, seed=0, evaluate_every=8)
        gains.append(end.metrics["accuracy"] - start.metrics["accuracy"])
    assert gains[0] > 0.03 and gains[1] < -0.05


@pytest.mark.further
@pytest.mark.slow
def test_at_one_rate_the_noise_alone_costs_little():
    """The text: at 0.4 the clip without noise ends 3 points above the private run, by chance."""
    task = fl.tasks.digits(clients=10, dirichlet=0.5, seed=0)
    plan = fl.Plan(rounds=8, local_steps=3, batch=8, lr=0.4)
    private = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
    ends = [
        [
            [*fl.run(task, "fedlora", privacy, plan, seed=seed, evaluate_every=8)][-1].metrics[
                "accuracy"
            ]
            for seed in range(3)
        ]
        for privacy in (private.replace(noise_multiplier=0.0), private)
    ]
    mean, low, high = fl.theory.mean_band(100 * np.subtract(*ends), 4.303)
    assert 1 < mean < 5 and low < 0 < high
