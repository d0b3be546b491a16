"""Between clients and server: whose noise, how much, who sees what, what an absent client does."""

import math
from dataclasses import replace
from itertools import pairwise

import contract_clauses
import pytest
import torch
from toy_tasks import LORA, PLAN, anywhere, book, gap, people, play, private, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.audit.instruments import Recorder
from fedlora_lab.federated import exchange, local_training
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.methods.state import ServerState
from fedlora_lab.privacy.ledger import LedgerEntry

SIGMA = 1.3
CLIP = 0.7


def standing():
    """Six clients that stand at known places at the end of a round."""
    task = tokens("head", sizes=(4,) * 6)
    start, way = (anywhere(task, methods.FedLoRA, seed).tensors for seed in (0, 1))
    scale = torch.arange(1, 7, dtype=torch.float64) / 10
    params = {key: x + torch.einsum("k,...->k...", scale, way[key]) for key, x in start.items()}
    received = {key: x[None] for key, x in start.items()}
    ready = contract_clauses.prepare(task, methods.FedLoRA, fl.Plan(), None)
    return ready, local_training.ClientBatch(tuple(range(6)), params, received), tuple(start)


def sent(ready, clients, keys, ids=tuple(range(6)), sigma=SIGMA, t=0, **privacy):
    noised = private("client", sigma=sigma, clip=CLIP, **privacy)
    privacy = noised.resolve(ready.config.task, ready.config.plan)
    begun = ServerState({key: x[0] for key, x in clients.start.items()}, t)
    params = {key: x[list(ids)] for key, x in clients.params.items()}
    clients = local_training.ClientBatch(ids, params, clients.start)
    ready = replace(ready, config=replace(ready.config, privacy=privacy))
    return exchange.release_round(ready, clients, keys, begun)


def mean_change(received, clients):
    """What the server adds to its state, flat."""
    rows = [(x - clients.start[key]).flatten(1) for key, x in received.uploads.items()]
    return received.weights @ torch.cat(rows, 1)


@pytest.mark.attack
@pytest.mark.parametrize(
    ("trust", "options", "std"),
    [
        ("central", {}, SIGMA * CLIP / 6),
        ("central", {"ids": (0, 2)}, SIGMA * CLIP / 6),
        ("local", {}, SIGMA * CLIP / math.sqrt(6)),
        ("secagg", {"colluding_clients": 3}, SIGMA * CLIP / 6 * math.sqrt(2)),
        ("secagg", {}, SIGMA * CLIP / 6),
    ],
)
def test_noise_in_the_mean_has_the_stated_size(trust, options, std):
    """With the shares of three of six relied on, six upload twice the variance that is needed: what
    is left where three tell their noise.

    No two rounds share a number: the difference of their releases would be free of noise.
    """
    place = standing()
    silent = sent(*place, sigma=0.0, trust=trust, **options)
    assert len(silent.weights) == (6 if trust == "local" else 1)
    rounds = [sent(*place, t=t, trust=trust, **options) for t in range(40)]
    xi = torch.stack([mean_change(x, place[1]) - mean_change(silent, place[1]) for x in rounds])
    assert (xi[1:] != xi[:-1]).all()
    assert abs(float(xi.square().mean().sqrt()) / std - 1) < 5 / math.sqrt(2 * xi.numel())


def test_a_round_without_release_leaves_the_model_and_is_spent_all_the_same():
    privacy = private("client", trust="secagg", colluding_clients=1)
    records = play(tokens("head"), "fedlora", privacy, PLAN.replace(rounds=8, participation=0.5))
    still = [now for before, now in pairwise(records) if gap(before, now) == 0]
    assert 0 < len(still) < 8 and all(math.isnan(record.deviation) for record in still)
    assert [release.round for release in book(records[-1]).releases] == list(range(1, 9))


@pytest.mark.parametrize(
    ("unit", "trust", "weights"),
    [
        ("example", "local", "size"),
        ("person", "local", "size"),
        ("client", "local", "uniform"),
        ("client", "central", "uniform"),
    ],
)
def test_denominators_are_fixed(unit, trust, weights):
    """Absent clients, by hand: what arrives is divided by what was expected. Weights by size count
    persons, where numbers of examples are not public.
    """
    task = people() if unit == "person" else tokens("head")
    plan = PLAN.replace(rounds=4, participation=0.6, client_weights=weights)
    privacy = private(unit, sigma=0.0, clip=1e6, trust=trust)
    run = Recorder.open(make_config(task, methods.FedLoRA, privacy, plan, LORA, 0))
    counts_of = task.person_counts if unit == "person" else task.sizes
    sizes = torch.tensor(counts_of if weights == "size" else (1, 1, 1)).double()
    shares = sizes / sizes.sum() / 0.6
    counts = set()
    before = run.state.server
    for _ in run.records():
        if run.everyone is not None:
            ids = run.participants(before.round)
            counts.add(len(ids))
            for key, x in run.everyone.params.items():
                old = before.tensors[key]
                moved = torch.einsum("k,k...->...", shares[list(ids)], x - old)
                torch.testing.assert_close(run.state.server.tensors[key], old + moved)
        before = run.state.server
    assert len(counts) > 1


def test_an_entry_has_the_numbers_of_those_who_take_part():
    """Of clients with rates and noise of their own, in the order in which they are named."""
    task = tokens("head", sizes=(4, 5, 6))
    privacy = private("example", sigma=(1.0, 2.0, 3.0))
    charge = make_config(task, "fedlora", privacy, PLAN, LORA, 0).charge
    assert charge and charge.at(2, (2, 0)) == LedgerEntry(
        2, (2, 0), PLAN.local_steps, (3 / 6, 3 / 4), (3.0, 1.0)
    )
