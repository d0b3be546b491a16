"""Neighbours as the accountant assumes them: one unit's contribution replaced by nothing, all sizes
as they were.

Two data sets, the same seed, so the same draws and the same noise; one release. What is released
may differ by 1 / sigma standard deviations of the noise in it, denominators included. A denominator
that knows who is there would break that.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from contract_clauses import in_units_of_noise
from toy_tasks import APART, anywhere, opened, play_round, private, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.audit.instruments import LEFT_OUT, ORDINARY, Recorder, mark_examples
from fedlora_lab.federated import exchange
from fedlora_lab.methods.filters import identity

pytestmark = [
    pytest.mark.attack,
    pytest.mark.filterwarnings("ignore:local_steps=1:UserWarning"),  # a step is looked at alone
]

SIGMA = 2.0
CLIP = 0.7
MARKED_LOSS_WEIGHT = 10_000
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
Marks = Mapping[int, list[int]]
NOBODY: Marks = {}


def row_of(slug):
    """Without its filter, which tells no more of noised values and makes the noise unequal."""
    return methods.get(slug).replace(filter=identity)


def noised(unit, trust, **fields):
    return private(unit, SIGMA, CLIP, trust=trust, **fields)


def released(row, privacy, plan, seed=3, t=0, out=NOBODY, loud=NOBODY) -> tuple[Any, dict]:
    """One round from random values: what the server has in hand, as a change of what was sent.

    Of each client's examples those in ``out`` are left out, those in ``loud`` loud enough to clip.
    """
    marks = [torch.full((n,), ORDINARY) for n in SIZES]
    for where, mark in ((loud, MARKED_LOSS_WEIGHT), (out, LEFT_OUT)):
        for k, index in where.items():
            marks[k][index] = mark
    task = mark_examples(tokens(sizes=SIZES), marks)
    run = opened(task, row, privacy, plan, t, anywhere(tokens(sizes=SIZES), row), seed, Recorder)
    play_round(run)
    start = run.result.opened.broadcast.tensors
    return run, {key: x - start[key][None] for key, x in run.result.received.uploads.items()}


def void(run, row, client):
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


def deviation(run) -> Any:
    """Standard deviation of the noise in what is seen: each client's step, one upload or the mean
    of all.
    """
    privacy = run.config.privacy
    plan = run.config.plan
    if privacy.releases_steps:
        sizes = torch.tensor(run.config.unit_counts, dtype=torch.float64)
        return plan.rate("B") * SIGMA * CLIP / sizes.clamp(max=plan.batch or math.inf)
    if privacy.trust == "local":
        return SIGMA * CLIP
    count = len(run.everyone.ids)
    honest = privacy.noise_levels(len(SIZES), plan).shares
    whole = math.sqrt(count / honest) if privacy.trust == "secagg" else 1.0
    return SIGMA * CLIP * whole / (len(SIZES) * plan.participation)


def distance(run, one, other):
    """How many deviations of the noise two releases are apart, for each row that is seen."""
    opened = run.result.opened
    sent = {key: x[None] for key, x in opened.broadcast.tensors.items()}
    step = 0 if run.config.releases_steps else None
    apart = {key: one[key] - other[key] for key in one}
    change = in_units_of_noise(run.config, apart, sent, opened.before.round, step)
    apart = torch.stack([x.flatten(1).norm(dim=1) for x in change.values()]).norm(dim=0)
    return apart / deviation(run)


def is_plain(row):
    """Whether all that a loud unit moves arrives, as it is, and shares one clip."""
    fields = ("precondition", "uploaded_factors", "clip_groups")
    return all(getattr(row, name) == getattr(PLAIN, name) for name in fields)


# All of the examples; at least n_k for everyone; below n_k for some clients and above for others.
# A person's examples: test_persons.py.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("slug", "batch"), [("fedlora", None), ("deer", 8), *((slug, 4) for slug in ROWS)]
)
def test_one_example_less_moves_a_step_by_at_most_what_is_assumed(slug, batch):
    row = row_of(slug)
    client = 1
    moved = []
    plan = fl.Plan(rounds=1, local_steps=1, batch=batch, lr=0.2)
    others = [k for k in range(len(SIZES)) if k != client]
    for t, example in ((0, 0), (1, 3), (0, 5)):
        loud = {client: [example]}
        run, change = released(row, noised("example", "local"), plan, 3, t, NOBODY, loud)
        _, without = released(row, noised("example", "local"), plan, 3, t, loud, loud)
        apart = distance(run, change, without)
        assert float(apart.max()) <= (1 + 1e-6) / SIGMA and not apart[others].any()
        moved.append(float(apart[client]))
    # The bound is reached: a loud example is cut to C.
    assert max(moved) > (0.99 if is_plain(row) else 0.3) / SIGMA


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slug", "trust"),
    [*product(("fedlora",), ("local", "secagg")), *((row, "central") for row in ROWS)],
)
def test_one_client_less_moves_a_round_by_at_most_what_is_assumed(slug, trust):
    row = row_of(slug)
    client = 2
    for participation, t, seed in ((1.0, 0, 0), (1.0, 1, 0), (0.6, 0, PARTIAL)):
        plan = fl.Plan(rounds=1, local_steps=2, batch=4, lr=20.0, participation=participation)
        privacy = noised("client", trust)
        run, change = released(row, privacy, plan, seed, t)
        ids = run.everyone.ids
        assert client in ids and 1 < len(ids) < len(SIZES) + (participation == 1)
        apart = distance(run, change, void(run, row, client))
        # Shares of noise that are not relied on come on top.
        reached = 0.99 if is_plain(row) and trust != "secagg" else 0.05
        assert reached / SIGMA < float(apart.max()) <= (1 + 1e-6) / SIGMA
        if trust == "local":
            assert not apart[[i for i, k in enumerate(ids) if k != client]].any()
