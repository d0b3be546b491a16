"""Notebook 00: what a client reaches that trains alone."""

import dataclasses

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
