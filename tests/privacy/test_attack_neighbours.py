"""Neighbours as the accountant assumes them: one unit's contribution replaced by nothing, all sizes
as they were.

Two data sets, the same seed, so the same draws and the same noise; one release. What is released
may differ by 1 / sigma standard deviations of the noise in it, denominators included. A denominator
that knows who is there would break that.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from small import LORA, anywhere, tokens
from steps import in_units_of_noise
from torch import Tensor

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.audit.instruments import LEFT_OUT, ORDINARY, Recorder, mark_examples
from fedlora_lab.federated import uploads
from fedlora_lab.federated.checkpoint import State
from fedlora_lab.federated.records import Round
from fedlora_lab.methods.filters import identity
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.state import ParamKey

pytestmark = pytest.mark.attack

SIGMA, CLIP, LOUD = 2.0, 0.7, 10_000
SIZES = (5, 8, 3, 6)
ROWS = ("fedlora", "ffa-lora", "la-lora", "deer", "fedsa-lora", "dp-fedlora", "dp-lora", "fedlpp")
Release = Mapping[ParamKey, Tensor]
PLAIN = methods.FedLoRA


def row_of(slug: str) -> Method:
    """Without its filter, which tells no more of noised values and makes the noise unequal."""
    return methods.get(slug).replace(filter=identity)


def private(unit: str, trust: str, **fields: Any) -> fl.Privacy:
    own: dict[str, Any] = {"clip_norm": CLIP, "noise_multiplier": SIGMA, "delta": 1e-3, **fields}
    return fl.Privacy(unit=unit, trust=trust, **own)


def everything(client: int) -> dict[int, list[int]]:
    return {client: list(range(SIZES[client]))}


def released(
    row: Method,
    privacy: fl.Privacy,
    plan: fl.Plan,
    seed: int = 3,
    t: int = 0,
    out: Mapping[int, list[int]] | None = None,
    loud: Mapping[int, list[int]] | None = None,
) -> tuple[Recorder, Release]:
    """One round from random values: what the server has in hand, as a change of what was sent.

    Of each client's examples those in ``out`` are left out, those in ``loud`` loud enough to clip.
    """
    marks = [torch.full((n,), ORDINARY) for n in SIZES]
    for where, mark in ((loud or {}, LOUD), (out or {}, LEFT_OUT)):
        for k, index in where.items():
            marks[k][index] = mark
    task = mark_examples(tokens(sizes=SIZES), marks)
    run = Recorder.open(task, row, privacy, plan.replace(rounds=t + 1), lora=LORA, seed=seed)
    values = anywhere(tokens(sizes=SIZES), row)
    run.state, run.resumed = State(t, values, {}, [-1] * len(SIZES), [{} for _ in range(t)]), True
    assert any(isinstance(event, Round) for event in run.events()) and run.outcome is not None
    start = {key: row.clip_reference(x[None]) for key, x in run.outcome.sent.tensors.items()}
    return run, {key: x - start[key] for key, x in run.outcome.received.uploads.items()}


def distance(row: Method, run: Recorder, one: Release, other: Release) -> Tensor:
    """How far apart two releases are where their noise is white, for each row that is seen."""
    assert run.outcome is not None
    sent = {key: x[None] for key, x in run.outcome.sent.tensors.items()}
    change = in_units_of_noise(row, {key: one[key] - other[key] for key in one}, sent)
    return torch.stack([x.flatten(1).norm(dim=1) for x in change.values()]).norm(dim=0)


def deviation_of_steps(plan: fl.Plan) -> Tensor:
    """Standard deviation of the noise in each client's upload after a single step, (clients,)."""
    sizes = torch.tensor(SIZES, dtype=torch.float64)
    return plan.rate("B") * SIGMA * CLIP / sizes.clamp(max=plan.batch or math.inf)


def deviation_of_rounds(run: Recorder, count: int) -> float:
    """Standard deviation of the noise in what is seen of uploads, one alone or the mean of all."""
    privacy, plan = run.spec.privacy, run.spec.plan
    assert privacy is not None
    if privacy.trust == "local":
        return SIGMA * CLIP
    honest = privacy.noise(len(SIZES), plan).shares
    whole = math.sqrt(count / honest) if privacy.trust == "secagg" else 1.0
    return SIGMA * CLIP * whole / (len(SIZES) * plan.participation)


@pytest.mark.parametrize("slug", ROWS)
@pytest.mark.parametrize("batch", [None, 8, 4])  # all; at least n_k for everyone; below and above
def test_one_example_less_moves_a_step_by_at_most_what_is_assumed(
    slug: str, batch: int | None
) -> None:
    row, client = row_of(slug), 1
    plan = fl.Plan(rounds=1, local_steps=1, batch=batch, lr=0.2)
    privacy, std, moved = private("example", "local"), deviation_of_steps(plan), []
    for t, example in ((0, 0), (1, 3), (0, 5), (1, 6), (0, 7)):
        one = {client: [example]}
        whole, less = (released(row, privacy, plan, 3, t, out, one) for out in ({}, one))
        apart = distance(row, whole[0], whole[1], less[1]) / std
        assert float(apart.max()) <= (1 + 1e-6) / SIGMA
        assert not apart[[k for k in range(len(SIZES)) if k != client]].any()
        moved.append(float(apart[client]))
    # the bound is reached: a loud example is cut to C
    plain = (row.precondition, row.share, row.clip_groups) == (None, None, PLAIN.clip_groups)
    assert max(moved) > (0.99 if plain else 0.3) / SIGMA


@pytest.mark.parametrize("slug", ROWS)
@pytest.mark.parametrize("trust", ["local", "secagg", "central"])
def test_one_client_less_moves_a_round_by_at_most_what_is_assumed(slug: str, trust: str) -> None:
    """It does not move or, where weights themselves are clipped, its weights are void."""
    row, client = row_of(slug), 2
    for participation, t in ((1.0, 0), (1.0, 1), (0.6, 0)):
        plan = fl.Plan(rounds=1, local_steps=2, batch=4, lr=20.0, participation=participation)
        privacy = private("client", trust, honest=2 if trust == "secagg" else None)
        # a seed under which this client takes part, not alone, and where not all need to, not all
        for seed in range(100):
            run, whole = released(row, privacy, plan, seed, t)
            assert run.everyone is not None
            there = run.everyone.ids
            some = participation == 1 or len(there) < len(SIZES)
            if client in there and len(there) > 1 and some:
                break
        else:
            raise AssertionError("no such seed")
        if row.clip_reference is PLAIN.clip_reference:
            other = released(row, privacy, plan, seed, t, everything(client))[1]
        else:
            other = void(run, row, client, t)
        apart = distance(row, run, whole, other) / deviation_of_rounds(run, len(there))
        assert 0.05 / SIGMA < float(apart.max()) <= (1 + 1e-6) / SIGMA
        if trust == "local":
            assert not apart[[i for i, k in enumerate(there) if k != client]].any()


def void(run: Recorder, row: Method, client: int, t: int) -> Release:
    """The same round, the client's tensors not a number: the clip makes nothing of them."""
    assert run.everyone is not None and run.outcome is not None
    everyone, sent = run.everyone, run.outcome.sent
    params = {key: x.clone() for key, x in everyone.params.items()}
    for x in params.values():
        if len(x) == len(everyone.ids):
            x[everyone.ids.index(client)] = math.nan
    keys, arrived = tuple(run.outcome.received.uploads), torch.arange(len(everyone.ids))
    emptied = replace(everyone, params=params)
    got = uploads.release_round(run.context, emptied, arrived, keys, sent, t)
    return {key: x - row.clip_reference(sent.tensors[key][None]) for key, x in got.uploads.items()}


@pytest.mark.parametrize("trust", ["central", "secagg", "local"])
def test_pooled_data_have_no_clients(trust: str) -> None:
    """One client less turns the one update of pooled data into another: the sum moved by 2 C."""
    task, plan = tokens(), fl.Plan(rounds=1, local_steps=1, batch=4)
    own = private("client", trust, noise_multiplier=None)
    own = own.calibrate(epsilon=4, task=task, plan=plan)
    words = r"^unit='client': expected 'example' for 'central': pooled data have no cl"
    with pytest.raises(ValueError, match=words):
        fl.compare(task, ["central"], own, plan, seeds=[0], progress=False)


@pytest.mark.parametrize(
    ("unit", "trust", "batch"),
    [
        ("example", "local", None),
        ("example", "local", 4),
        ("client", "local", 4),
        ("client", "secagg", 4),
        ("client", "central", 4),
    ],
)
def test_the_noise_is_as_wide_as_is_assumed(unit: str, trust: str, batch: int | None) -> None:
    """Nobody has anything to say: what is left is noise of the deviation that distances are in."""
    nothing = {k: list(range(n)) for k, n in enumerate(SIZES)}
    plan, draws = fl.Plan(rounds=1, local_steps=1, batch=batch, lr=0.2), []
    for seed in range(12):
        run, noise = released(row_of("fedlora"), private(unit, trust), plan, seed, out=nothing)
        rows = torch.cat([x.flatten(1) for x in noise.values()], 1)
        own = deviation_of_steps(plan)[:, None] if unit == "example" else None
        draws.append(rows / (deviation_of_rounds(run, len(SIZES)) if own is None else own))
    for values in torch.cat(draws, 1):
        assert float(values.std()) == pytest.approx(1, abs=4 / math.sqrt(2 * len(values)))


def test_a_denominator_that_knows_who_is_there_is_found_out() -> None:
    """Divided by the number of examples, or clients, that say something: both go too far."""
    row, client, pair = row_of("fedlora"), 0, []
    plan, one = fl.Plan(rounds=1, local_steps=1, batch=None, lr=0.2), {client: [0]}
    for out in ({}, one):
        run, change = released(row, private("example", "local"), plan, out=out, loud=one)
        assert run.everyone is not None
        present = SIZES[client] - run.everyone.clipped.nonfinite
        pair.append({key: x * SIZES[client] / present for key, x in change.items()})
    apart = distance(row, run, *pair) / deviation_of_steps(plan)
    assert float(apart[client]) > 1.5 / SIGMA
    pair = []
    for out in ({}, everything(client)):
        run, change = released(row, private("client", "central"), plan, out=out)
        present = len(SIZES) - bool(out)
        pair.append({key: x * len(SIZES) / present for key, x in change.items()})
    assert float(distance(row, run, *pair) / deviation_of_rounds(run, len(SIZES))) > 1.5 / SIGMA
