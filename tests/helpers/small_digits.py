"""Digits of three clients, for dry runs and rehearsals."""

from dataclasses import replace

import torch

import fedlora_lab as fl

PLAN = fl.Plan(rounds=3, local_steps=2, batch=8)
PRIVACY = fl.Privacy(delta=1e-5, noise_multiplier=1.0)


def digits(**options):
    return fl.tasks.digits(clients=3, dirichlet=None, **options)


def with_other_clients(task):
    """Private rows that are no numbers, under labels that are all the same."""
    clients = [(torch.full_like(x, float("nan")), torch.zeros_like(y)) for x, y in task.clients]
    return replace(task, clients=tuple(clients))
