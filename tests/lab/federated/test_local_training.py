"""The local step: who is drawn, empty batches, bad examples, the noise that optimisers move."""

import copy
import math
from dataclasses import replace
from functools import partial
from itertools import product

import contract_clauses
import pytest
import torch
from toy_tasks import PLAN, gap, is_binomial, play, private, regression, tokens, with_clients

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.federated import local_training
from fedlora_lab.methods.published import FedLoRA
from fedlora_lab.privacy import privatizer


class NothingOfTheFirst(Streams):
    """Random streams by which client 0 draws no example, and every other one all of its own."""

    def uniform(self, shape, purpose, *indices):
        assert purpose == "sampling"
        return torch.full(shape, 1.0 if indices[1] == 0 else 0.0)


def nothing_of_the_first(config):
    """The same config with these streams."""
    other = copy.copy(config)
    vars(other)["streams"] = NothingOfTheFirst(0)
    return other


def test_a_batch_is_poisson():
    """Every example on its own with probability batch / n_k; all where n_k is not larger."""
    ready, clients = contract_clauses.prepared(tokens(sizes=(5, 200, 3)), FedLoRA, 1.0, batch=10)
    drawn = [local_training.poisson_batch(ready, 0, s, clients.ids) for s in range(400)]
    assert {(len(one[0]), len(one[2])) for one in drawn} == {(5, 3)}
    is_binomial([len(one[1]) for one in drawn], 200, 10 / 200)
    is_binomial(torch.cat([one[1] for one in drawn]).bincount().tolist(), 400, 10 / 200)


def test_draws_belong_to_round_client_and_step():
    ready, _ = contract_clauses.prepared(tokens(sizes=(50,) * 3), FedLoRA, 1.0, batch=10)
    draw = partial(local_training.poisson_batch, ready)
    first = draw(0, 0, (0, 1, 2))
    others = [first[1], draw(1, 0, (0,))[0], draw(0, 1, (0,))[0]]
    assert not any(torch.equal(first[0], other) for other in others)
    # Whoever else takes part.
    assert torch.equal(draw(0, 0, (2,))[0], first[2])


def test_an_empty_batch_adds_noise_of_its_own():
    """The release of a client who draws nothing is noise alone, over the expected batch: that of
    its round, step and number. That no two are alike: test_noise_is_sigma_c_on_what_moves.
    """
    ready, group = contract_clauses.prepared(tokens(sizes=(40, 40)), FedLoRA, 2.0, batch=1)
    ready = replace(ready, config=nothing_of_the_first(ready.config))
    std = 2.0 * contract_clauses.CLIP
    for t, s in product(range(2), range(3)):
        released = contract_clauses.released(ready, group, t, s)
        where = [(t, 0, s)]
        xi = privatizer.gaussian_noise(ready.adapted.shapes, [std], ready.config.streams, where)
        for key, noise in xi.items():
            torch.testing.assert_close(released[key][0], noise[0].double(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("bad", "unit"), [(math.nan, None), (math.inf, "example"), (-math.inf, "client")]
)
def test_a_bad_example_counts_as_zero_and_is_counted(bad, unit):
    """The run is that of a client one of whose examples has the gradient 0."""
    plan = fl.Plan(rounds=1, local_steps=3, batch=None, lr=0.3)
    lasts = []
    for number in (bad, 0.0):
        x, y = (part.clone() for part in regression().clients[0])
        x[0] = y[0] = number
        task = with_clients(regression(), [(x, y), *regression().clients[1:]])
        lasts.append(play(task, FedLoRA, unit and private(unit), plan)[-1])
    assert [last.nonfinite for last in lasts] == [3, 0]
    assert gap(*lasts) < 1e-12


# ---- the noise that an optimiser moves


@pytest.mark.parametrize("client", [fl.SGD(0.5), fl.AdamW()])
@pytest.mark.parametrize("unit", ["example", "client"])
def test_noise_is_known_or_it_is_no_number(client, unit):
    """Unknown only where a step that is no linear map meets noise."""
    unknown = unit == "example" and client == fl.AdamW()
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
