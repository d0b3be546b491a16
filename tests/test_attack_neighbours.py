"""Neighbours as the accountant assumes them: one unit's contribution replaced by nothing, all sizes as they were.

Two data sets, the same seed, so the same draws and the same noise; one release. What is released may differ by
1 / sigma standard deviations of the noise in it, denominators included. A denominator that knows who is there would
break that.
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
from fedlora_lab import methods, upload
from fedlora_lab.audit.marks import GIVEN, OUT, marked
from fedlora_lab.audit.watch import Watched
from fedlora_lab.checkpoint import State
from fedlora_lab.method import Method, Slot
from fedlora_lab.record import Round
from fedlora_lab.rules import identity

pytestmark = pytest.mark.attack

SIGMA, CLIP, LOUD = 2.0, 0.7, 10_000
SIZES = (5, 8, 3, 6)
ROWS = ("fedlora", "ffa-lora", "la-lora", "deer", "fedsa-lora", "dp-fedlora", "dp-lora", "fedlpp")
Release = Mapping[Slot, Tensor]


def row_of(slug: str) -> Method:
    """The row without its filter: what is done to noised values cannot tell more, and makes the noise unequal."""
    return methods.get(slug).replace(smooth=identity)


def private(unit: str, trust: str, sigma: float = SIGMA, **fields: Any) -> fl.Privacy:
    return fl.Privacy(unit=unit, trust=trust, clip_norm=CLIP, noise_multiplier=sigma, delta=1e-3, **fields)


def marks(out: Mapping[int, list[int]], loud: Mapping[int, list[int]]) -> list[Tensor]:
    """Marks for every client's examples: these left out, these loud enough to be clipped."""
    found = [torch.full((n,), GIVEN) for n in SIZES]
    for where, mark in ((loud, LOUD), (out, OUT)):
        for k, index in where.items():
            found[k][index] = mark
    return found


def released(
    row: Method, privacy: fl.Privacy, plan: fl.Plan, seed: int, t: int, chosen: list[Tensor]
) -> tuple[Watched, Release]:
    """One round from random values on the data so marked; what the server has in hand, as a change of what was sent."""
    task = marked(tokens(sizes=SIZES), chosen)
    run = Watched.opened(task, row, privacy, plan.replace(rounds=t + 1), lora=LORA, seed=seed)
    values = anywhere(tokens(sizes=SIZES), row)
    run.state, run.resumed = State(t, values, {}, [-1] * len(SIZES), [{} for _ in range(t)]), True
    assert any(isinstance(event, Round) for event in run.events())
    assert run.outcome is not None
    start = {slot: row.clips(x[None]) for slot, x in run.outcome.sent.tensors.items()}
    return run, {slot: x - start[slot] for slot, x in run.outcome.received.uploads.items()}


def distance(row: Method, run: Watched, one: Release, other: Release) -> Tensor:
    """How far apart two releases are where their noise is white, a number for each row that the server sees."""
    assert run.outcome is not None
    sent = {slot: x[None] for slot, x in run.outcome.sent.tensors.items()}
    change = in_units_of_noise(row, {slot: one[slot] - other[slot] for slot in one}, sent)
    return torch.stack([x.flatten(1).norm(dim=1) for x in change.values()]).norm(dim=0)


def deviation_of_steps(plan: fl.Plan) -> Tensor:
    """Standard deviation of the noise in each client's upload after a single step, (clients,)."""
    expected = torch.tensor([n if plan.batch is None else min(plan.batch, n) for n in SIZES], dtype=torch.float64)
    return plan.rate("B") * SIGMA * CLIP / expected


def deviation_of_rounds(run: Watched, uploads: int) -> float:
    """Standard deviation of the noise in what the server has in hand, a row alone or the mean of all."""
    privacy, plan = run.asked.privacy, run.asked.plan
    assert privacy is not None
    if privacy.trust == "local":
        return SIGMA * CLIP
    honest = run.asked.privacy.noise(len(SIZES), plan).shares  # type: ignore[union-attr]
    whole = math.sqrt(uploads / honest) if privacy.trust == "secagg" else 1.0
    return SIGMA * CLIP * whole / (len(SIZES) * plan.participation)


@pytest.mark.parametrize("slug", ROWS)
@pytest.mark.parametrize("batch", [None, 8, 4])  # all of them; at least n_k for every client; below and above n_k
def test_one_example_less_moves_a_step_by_at_most_what_is_assumed(slug: str, batch: int | None) -> None:
    row, client = row_of(slug), 1
    plan = fl.Plan(rounds=1, local_steps=1, batch=batch, lr=0.2)
    std, moved = deviation_of_steps(plan), []
    for t, example in ((0, 0), (1, 3), (0, 5), (1, 6), (0, 7)):
        whole, less = (
            released(row, private("example", "local"), plan, 3, t, marks(out, {client: [example]}))
            for out in ({}, {client: [example]})
        )
        apart = distance(row, whole[0], whole[1], less[1]) / std
        assert float(apart.max()) <= (1 + 1e-6) / SIGMA
        assert not apart[[k for k in range(len(SIZES)) if k != client]].any()
        moved.append(float(apart[client]))
    plain = row.whiten is None and row.share is None and row.parts is methods.FedLoRA.parts
    assert max(moved) > (0.99 if plain else 0.3) / SIGMA  # the bound is reached: a loud example is cut to C


@pytest.mark.parametrize("slug", ROWS)
@pytest.mark.parametrize("trust", ["local", "secagg", "central"])
def test_one_client_less_moves_a_round_by_at_most_what_is_assumed(slug: str, trust: str) -> None:
    """Its contribution is nothing: it does not move or, where weights themselves are clipped, its weights are void."""
    row, client = row_of(slug), 2
    for participation, t in ((1.0, 0), (1.0, 1), (0.6, 0)):
        honest = {"honest": 2} if trust == "secagg" else {}
        plan = fl.Plan(rounds=1, local_steps=2, batch=4, lr=20.0, participation=participation)
        privacy = private("client", trust, **honest)
        seed, there = some_take_part(row, privacy, plan, t, client)
        whole, less = (
            released(row, privacy, plan, seed, t, marks(out, {})) for out in ({}, {client: list(range(SIZES[client]))})
        )
        run = whole[0]
        other = less[1] if row.clips is methods.FedLoRA.clips else void(run, row, client, t)
        apart = distance(row, run, whole[1], other) / deviation_of_rounds(run, len(there))
        assert float(apart.max()) <= (1 + 1e-6) / SIGMA
        if trust == "local":
            assert not apart[[i for i, k in enumerate(there) if k != client]].any()
        assert float(apart.max()) > 0.05 / SIGMA


@pytest.mark.parametrize("trust", ["central", "secagg", "local"])
def test_pooled_data_have_no_clients(trust: str) -> None:
    """One client less turns the one update of pooled data into another, and the sum moved by 2 C."""
    task, plan = tokens(), fl.Plan(rounds=1, local_steps=1, batch=4)
    own = fl.Privacy(unit="client", trust=trust, delta=1e-3).calibrate(epsilon=4, task=task, plan=plan)
    with pytest.raises(ValueError, match=r"^unit='client': expected 'example' for 'central': pooled data have no cl"):
        fl.compare(task, ["central"], own, plan, seeds=[0], progress=False)


def some_take_part(row: Method, privacy: fl.Privacy, plan: fl.Plan, t: int, client: int) -> tuple[int, tuple[int, ...]]:
    """A seed under which this client takes part, with another at least, and where not all need to, not all; and who."""
    for seed in range(100):
        run, _ = released(row, privacy, plan, seed, t, marks({}, {}))
        assert run.everyone is not None
        there = run.everyone.ids
        if client in there and len(there) > 1 and (plan.participation == 1 or len(there) < len(SIZES)):
            return seed, there
    raise AssertionError("no such seed")


def void(run: Watched, row: Method, client: int, t: int) -> Release:
    """The same round, the client's tensors not a number: the clip makes nothing of them."""
    assert run.everyone is not None
    assert run.outcome is not None
    everyone, sent = run.everyone, run.outcome.sent
    at = everyone.ids.index(client)
    bank = {slot: x.clone() for slot, x in everyone.bank.items()}
    for x in bank.values():
        if len(x) == len(everyone.ids):
            x[at] = math.nan
    slots, arrived = tuple(run.outcome.received.uploads), torch.arange(len(everyone.ids))
    got = upload.send(run.setting, run.asked.privacy, replace(everyone, bank=bank), arrived, slots, sent, t)
    return {slot: x - row.clips(sent.tensors[slot][None]) for slot, x in got.uploads.items()}


def test_the_noise_is_as_wide_as_is_assumed() -> None:
    """Nobody has anything to say: what is left is the noise, and its measured deviation is what distances are in."""
    nothing, row = marks({k: list(range(n)) for k, n in enumerate(SIZES)}, {}), row_of("fedlora")
    for unit, trust, batch in (
        ("example", "local", None),
        ("example", "local", 4),
        ("client", "local", 4),
        ("client", "secagg", 4),
        ("client", "central", 4),
    ):
        plan = fl.Plan(rounds=1, local_steps=1, batch=batch, lr=0.2)
        seen: dict[int, list[Tensor]] = {}
        for seed in range(12):
            run, noise = released(row, private(unit, trust), plan, seed, 0, nothing)
            std = deviation_of_steps(plan) if unit == "example" else deviation_of_rounds(run, len(SIZES))
            rows = torch.cat([x.flatten(1) for x in noise.values()], 1)
            for k, values in enumerate(rows / (std[:, None] if isinstance(std, Tensor) else std)):
                seen.setdefault(k, []).append(values)
        for parts in seen.values():
            values = torch.cat(parts)
            assert float(values.std()) == pytest.approx(1, abs=4 / math.sqrt(2 * len(values)))


def test_a_denominator_that_knows_who_is_there_is_found_out() -> None:
    """The same release divided by the number of examples, or clients, that have something to say: both go too far."""
    row = row_of("fedlora")
    plan, client = fl.Plan(rounds=1, local_steps=1, batch=None, lr=0.2), 0
    pair = []
    for out in ({}, {client: [0]}):
        run, change = released(row, private("example", "local"), plan, 3, 0, marks(out, {client: [0]}))
        assert run.everyone is not None
        present = SIZES[client] - run.everyone.clipped.nonfinite
        pair.append({slot: x * SIZES[client] / present for slot, x in change.items()})
    apart = distance(row, run, *pair) / deviation_of_steps(plan)
    assert float(apart[client]) > 1.5 / SIGMA
    pair = []
    for out in ({}, {client: list(range(SIZES[client]))}):
        run, change = released(row, private("client", "central"), plan, 3, 0, marks(out, {}))
        present = len(SIZES) - bool(out)
        pair.append({slot: x * len(SIZES) / present for slot, x in change.items()})
    assert float(distance(row, run, *pair) / deviation_of_rounds(run, len(SIZES))) > 1.5 / SIGMA
