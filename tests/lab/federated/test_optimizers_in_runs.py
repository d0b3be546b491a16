"""Optimisers of clients in whole runs: the noise that they move is known."""

import math
from dataclasses import replace

import contract_clauses
import pytest
import torch
from toy_tasks import PLAN, play, private, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.federated import local_training

SGD = fl.SGD(momentum=0.5)


@pytest.mark.parametrize("client", [SGD, fl.AdamW()])
@pytest.mark.parametrize("unit", ["example", "client"])
def test_noise_is_known_or_it_is_no_number(client, unit):
    """Unknown only where a step that is no linear map meets noise."""
    unknown = unit == "example" and client != SGD
    record = play(tokens("head"), "fedlora", private(unit), PLAN.replace(optimizer=client))[-1]
    values = [value for _, name, value in record.rows if name.startswith("noise_")]
    assert values and all(math.isnan(value) == unknown for value in values)


@pytest.mark.parametrize("row", ["fedlora", "la-lora", "deer"])
@pytest.mark.parametrize("rule", [fl.SGD(), fl.SGD(momentum=0.8)], ids=str)
def test_the_noise_that_a_client_holds_is_known(row, rule):
    """A walk with noise less one without, where C -> 0 takes the signal."""
    walks = []
    for sigma in (1e12, 0.0):
        ready, clients = contract_clauses.prepared(
            tokens("head"), methods.get(row), sigma, clip=1e-12
        )
        plan = fl.Plan(batch=2, lr=0.1, local_steps=4, optimizer=rule)
        ready = replace(ready, config=replace(ready.config, plan=plan))
        for s in range(4):
            local_training.local_step(ready, clients, 0, s)
        walks.append(clients)
    for key, noise in walks[0].noise.items():
        change = walks[0].params[key] - walks[1].params[key]
        torch.testing.assert_close(change, noise.expand_as(change), rtol=1e-6, atol=1e-9)
