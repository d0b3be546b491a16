"""Plans, schedules, ranks and partitions of any kind: valid ones run and keep their promises, others never begin."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import LORA, private, regression, tensors, tokens

import fedlora_lab as fl
from fedlora_lab import partition

SIDES = ("A", "B")
SHARES = st.floats(0, 1) | st.sampled_from([-0.1, 1.1, float("nan"), float("inf"), 0, 1, True, "1", None])
COUNTS = st.integers(-1, 4) | st.sampled_from([1.0, 2.5, True, None, "2", 10**30])
RATES = st.floats(0, 2) | st.sampled_from(
    [-1.0, float("nan"), 1e9, 1e10, {"A": 0.1}, {"A": 0.1, "B": 0.2}, {"C": 1}, "x"]
)
PLANS: dict[str, Any] = {
    "rounds": st.integers(0, 2) | st.sampled_from([-1, 1.0, "2", None, True]),
    "local_steps": st.integers(1, 2) | st.sampled_from([0, -1, 1.5, None]),
    "batch": COUNTS,
    "lr": RATES,
    "momentum": SHARES,
    "participation": SHARES,
    "dropout": SHARES,
    "weights": st.sampled_from(["uniform", "size", "none", None, 3]),
    "lr_decay": SHARES,
}


def one_line(error: ValueError) -> bool:
    """Whether an error names a value and what was expected, in one line."""
    return "=" in str(error) and ": expected " in str(error) and "\n" not in str(error)


def begun(call: Any) -> Any:
    """What a call gives; ``None`` when it refused, which must be in one line."""
    refusal = None
    try:
        return call()
    except ValueError as error:
        refusal = error
    assert one_line(refusal), refusal
    return None


@given(given=st.fixed_dictionaries({}, optional=PLANS), unit=st.sampled_from([None, "example", "client"]))
@settings(max_examples=60)
def test_any_plan_runs_or_is_refused_before_training(given, unit):
    """What is begun ends: so many records, finite ledger; NaN only where numbers grew too large."""
    given = {"rounds": 1, "local_steps": 1, "batch": 2, **given}
    plan = begun(lambda: fl.Plan(**given))
    run = plan and begun(lambda: fl.run(regression(), "fedlora", unit and private(unit), plan, lora=LORA))
    if run:
        records = list(run)
        assert [record.index for record in records] == list(range(plan.rounds + 1))
        if unit and plan.rounds:
            assert 0 <= records[-1].epsilon < float("inf")
        small = plan.lr == 0 if isinstance(plan.lr, int | float) else False
        if small:
            first, last = tensors(records[0]), tensors(records[-1])
            if unit is None:
                assert all(torch.equal(x, last[name]) for name, x in first.items())


def test_both_kinds_of_plans_are_drawn():
    """The strategies above reach plans that run and plans that do not."""
    seen = set()

    @given(given=st.fixed_dictionaries({}, optional=PLANS))
    @settings(max_examples=60)
    def draw(given):
        seen.add(begun(lambda: fl.Plan(**given)) is not None)

    draw()
    assert seen == {True, False}


ROUND = st.lists(st.sampled_from(["A", "B", "AB"]), min_size=1, max_size=3).map(" ".join)


@given(
    words=st.lists(ROUND, min_size=1, max_size=3).map(tuple),
    steps=st.integers(1, 3),
    unit=st.sampled_from([None, "client"]),
)
@settings(max_examples=25)
def test_any_schedule_moves_what_it_names_and_nothing_else(words, steps, unit):
    """Round by round: a factor that no step of the round names keeps every bit, at the server."""
    row = fl.methods.FedLoRA.replace(name="drawn", train=fl.Cycle(words))
    plan = fl.Plan(rounds=3, local_steps=steps, batch=2, lr=0.1)
    run = begun(lambda: fl.run(tokens(), row, unit and private(unit), plan, lora=LORA))
    if run is None:
        return
    records = list(run)
    for t in range(3):
        named = "".join(fl.Cycle(words)(t, s) for s in range(steps))
        before, after = tensors(records[t]), tensors(records[t + 1])
        for name in before:
            side = name.rsplit(".", 1)[1]
            if side in SIDES and side not in named:
                assert torch.equal(before[name], after[name]), (t, name)
            if side in SIDES and side in named and unit:
                assert not torch.equal(before[name], after[name]), (t, name)


@given(
    st.lists(st.text("AB *RX|", max_size=5) | st.none() | st.integers(), max_size=3).map(tuple)
    | st.text(max_size=3)
    | st.lists(ROUND, min_size=1, max_size=3).map(tuple)
)
def test_any_words_are_a_schedule_or_refused(words):
    cycle = begun(lambda: fl.Cycle(words))
    if cycle:
        period = len(words)
        assert all(cycle(t, s) in ("A", "B", "AB", "BA", "R", "*") for t in range(4) for s in range(4))
        assert all(cycle(t, s) == cycle(t + period, s) for t in range(3) for s in range(3))
        for t, line in enumerate(words):
            steps = line.split()
            assert [cycle(t, s) for s in range(2 * len(steps))] == steps * 2


@given(
    rank=st.integers(-1, 7) | st.sampled_from([2.0, None, 10**6]),
    ranks=st.none() | st.lists(st.integers(0, 7) | st.sampled_from([1.5, None]), min_size=1, max_size=4),
    slug=st.sampled_from(["fedlora", "hetlora", "rolora", "flexlora"]),
)
@settings(max_examples=40)
def test_any_ranks_run_or_are_refused_before_training(rank, ranks, slug):
    """A rank above the layer's, another count of clients, a method that takes equal ranks only: one line or a run."""
    lora = begun(lambda: fl.Lora(rank=rank, ranks=ranks))
    plan = fl.Plan(rounds=1, local_steps=1, batch=2, lr=0.05)
    if lora is None or lora.rank > 100:
        return
    run = begun(lambda: fl.run(regression(), slug, None, plan, lora=lora))
    if run:
        *_, last = run
        for A, B in last.adapter.values():
            assert A.shape[0] == B.shape[1] == rank
            assert bool(A.isfinite().all() and B.isfinite().all())


LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60) | st.lists(
    st.sampled_from("abc"), min_size=1, max_size=60
)
ALPHAS = st.floats(1e-8, 1e8) | st.sampled_from([float("inf"), 1e-300, 0.0, -1.0, float("nan"), None])


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "by_group"])
@given(labels=LABELS, clients=st.integers(-1, 20), alpha=ALPHAS, seed=st.integers(0, 2**40), least=st.integers(-1, 5))
def test_any_partition_is_one_or_is_refused(kind, labels, clients, alpha, seed, least):
    """Every example with exactly one client, nobody below the least, the same again for the same seed."""
    calls: dict[str, Any] = {
        "iid": lambda: partition.iid(len(labels), clients, seed, least),
        "dirichlet": lambda: partition.dirichlet(labels, clients, alpha, seed, least),
        "by_group": lambda: partition.by_group(labels, clients, seed),
    }
    split = begun(calls[kind])
    if split is None:
        return
    assert sorted(np.concatenate(split).tolist()) == list(range(len(labels)))
    assert all(np.array_equal(one, again) for one, again in zip(split, calls[kind](), strict=True))
    assert partition.check_split(split, len(labels))
    if kind == "by_group":
        assert all(len({labels[i] for i in part}) == 1 for part in split)
        assert len(split) == clients * len(set(labels))
    else:
        assert len(split) == clients
        assert min(map(len, split)) >= least


@given(
    noise=st.floats(0, 50) | st.sampled_from([-1.0, float("nan"), float("inf"), None, "1"]),
    clip=st.floats(0, 100) | st.sampled_from([-1.0, float("nan"), float("inf"), None]),
    rate=st.floats(0, 1) | st.sampled_from([-0.5, 2.0, float("nan"), None]),
    delta=st.floats(1e-12, 0.5) | st.sampled_from([0, 1, -1, float("nan")]),
    count=st.integers(0, 50),
)
@settings(max_examples=60)
def test_any_privacy_states_an_epsilon_or_is_refused(noise, clip, rate, delta, count):
    """Never negative, never smaller for more releases, and infinite where nothing is added."""
    fields: dict[str, Any] = {"noise_multiplier": noise, "clip_norm": clip, "sample_rate": rate, "delta": delta}
    privacy = begun(lambda: fl.Privacy(accountant="rdp", **fields))
    ledger = privacy and begun(lambda: privacy.ledger(releases=count))
    if ledger and noise is not None:
        spent = ledger.epsilon()
        assert spent >= 0
        more = privacy.ledger(releases=count + 5).epsilon()
        assert more >= spent * (1 - 1e-9)
        if noise == 0 and rate and count:
            assert spent == float("inf")
