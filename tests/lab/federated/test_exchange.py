"""Between clients and server: whose noise, how much, who sees what, what an absent client does."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from toy_tasks import (
    LORA,
    PLAN,
    Witness,
    anywhere,
    book,
    gap,
    opened,
    people,
    play,
    play_round,
    private,
    tokens,
)

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.store import RunState
from fedlora_lab.privacy.ledger import LedgerEntry

SIGMA = 1.3
CLIP = 0.7


def ends(sigma, rounds, ids=tuple(range(6)), **fields):
    """The server's tensors after each of some rounds that begin alike, flat; and how many uploads
    it saw in one.
    """
    task = tokens("head", sizes=(4,) * 6)
    start = anywhere(task, methods.FedLoRA)
    plan = fl.Plan(local_steps=1, batch=None, lr=0.1)
    privacy = private("client", sigma, CLIP, **fields)
    run = opened(task, methods.FedLoRA, privacy, plan, rounds - 1, start, kind=Witness)
    run.participants = lambda t: ids
    flat = []
    for t in range(rounds):
        run.state = RunState(replace(start, round=t), {}, {})
        play_round(run)
        flat.append(torch.cat([x.flatten() for x in run.state.server.tensors.values()]))
    return torch.stack(flat), len(run.result.received.weights)


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
    silent, seen = ends(0.0, 1, trust=trust, **options)
    assert seen == (6 if trust == "local" else 1)
    noised, _ = ends(SIGMA, 40, trust=trust, **options)
    xi = noised - silent
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
    run = Witness.open(make_config(task, methods.FedLoRA, privacy, plan, LORA, 0))
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
