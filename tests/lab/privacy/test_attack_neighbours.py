"""Neighbours as the accountant assumes them: one client's update replaced by nothing, all sizes as
they were.

Two data sets, the same seed, so the same draws and the same noise; one round. What is released may
differ by 1 / sigma standard deviations of the noise in it, denominators included. A denominator
that knows who is there would break that. One example less: test_contract.py; a person's examples:
test_persons.py.
"""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from contract_clauses import in_units_of_noise
from toy_tasks import APART, Witness, anywhere, opened, play_round, private, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.federated import exchange
from fedlora_lab.methods.filters import identity

pytestmark = pytest.mark.attack

SIGMA = 2.0
CLIP = 0.7
SIZES = (5, 8, 3, 6)
ROWS = (
    "fedlora",
    "ffa-lora",
    "la-lora",
    "deer",
    "fedsa-lora",
    APART,
    "fedlpp",
    "fed-zo",
    "prism",
)
PLAIN = methods.FedLoRA
PARTIAL = 0
"""A seed under which client 2 takes part in a round at 60 %, neither alone nor with everybody."""


def released(run):
    """What the server has in hand, as a change of what was sent."""
    start = run.result.opened.broadcast.tensors
    return {key: x - start[key][None] for key, x in run.result.received.uploads.items()}


def void(run, client):
    """The changes of the same round, the client's tensors not a number: the clip makes nothing of
    them."""
    everyone = run.everyone
    sent = run.result.opened.broadcast
    params = {key: x.clone() for key, x in everyone.params.items()}
    for x in params.values():
        if len(x) == len(everyone.ids):
            x[everyone.ids.index(client)] = math.nan
    keys = tuple(run.result.received.uploads)
    emptied = replace(everyone, params=params)
    got = exchange.release_round(run.prepared, emptied, keys, sent).uploads
    return {key: x - sent.tensors[key][None] for key, x in got.items()}


def deviation(run):
    """Standard deviation of the noise in what is seen: one upload, or the mean of all."""
    privacy = run.config.privacy
    plan = run.config.plan
    if privacy.trust == "local":
        return SIGMA * CLIP
    count = len(run.everyone.ids)
    honest = privacy.noise_levels(len(SIZES), plan).shares
    whole = math.sqrt(count / honest) if privacy.trust == "secagg" else 1.0
    return SIGMA * CLIP * whole / (len(SIZES) * plan.participation)


def distance(run, one, other):
    """How many deviations of the noise two releases are apart, for each row that is seen."""
    begun = run.result.opened
    sent = {key: x[None] for key, x in begun.broadcast.tensors.items()}
    apart = {key: one[key] - other[key] for key in one}
    change = in_units_of_noise(run.config, apart, sent, begun.before.round)
    apart = torch.stack([x.flatten(1).norm(dim=1) for x in change.values()]).norm(dim=0)
    return apart / deviation(run)


def is_plain(row):
    """Whether all that a client moves arrives, as it is, and shares one clip."""
    fields = ("precondition", "uploaded_factors", "clip_groups")
    return all(getattr(row, name) == getattr(PLAIN, name) for name in fields)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slug", "trust"),
    [*product(("fedlora",), ("local", "secagg")), *((row, "central") for row in ROWS)],
)
def test_one_client_less_moves_a_round_by_at_most_what_is_assumed(slug, trust):
    # Without its filter, which tells no more of noised values and makes the noise unequal.
    row = methods.get(slug).replace(filter=identity)
    client = 2
    task = tokens(sizes=SIZES)
    for participation, t, seed in ((1.0, 0, 0), (1.0, 1, 0), (0.6, 0, PARTIAL)):
        plan = fl.Plan(rounds=1, local_steps=2, batch=4, lr=20.0, participation=participation)
        privacy = private("client", SIGMA, CLIP, trust=trust)
        run = opened(task, row, privacy, plan, t, anywhere(task, row), seed, Witness)
        play_round(run)
        ids = run.everyone.ids
        assert client in ids and 1 < len(ids) < len(SIZES) + (participation == 1)
        apart = distance(run, released(run), void(run, client))
        # Shares of noise that are not relied on come on top.
        reached = 0.99 if is_plain(row) and trust != "secagg" else 0.05
        assert reached / SIGMA < float(apart.max()) <= (1 + 1e-6) / SIGMA
        if trust == "local":
            assert not apart[[i for i, k in enumerate(ids) if k != client]].any()
