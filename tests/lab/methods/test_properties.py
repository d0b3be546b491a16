"""Plans and schedules of any kind: valid ones keep their promises, others are refused in one
line before anything runs.
"""

from typing import Any

import torch
from calls import Options
from hypothesis import given, settings, strategies as st
from toy_tasks import private, regression, tensors

import fedlora_lab as fl

NAN = float("nan")
INF = float("inf")
SHARES = st.floats(0, 1) | st.sampled_from([-0.1, 1.1, NAN, INF, 0, 1, True, "1", None])
COUNTS = st.integers(-1, 4) | st.sampled_from([1.0, 2.5, True, None, "2", 10**30])
RATES = st.floats(0, 2) | st.sampled_from(
    [-1.0, NAN, 1e9, 1e10, {"A": 0.1}, {"A": 0.1, "B": 0.2}, {"C": 1}, "x"]
)
CLIENTS = ["sgd", "rmsprop", "adamw", {"name": "adamw", "eps": 0}, fl.SGD(0.5), None, 3, {}]
PLANS: Options = {
    "rounds": st.integers(0, 2) | st.sampled_from([-1, 1.0, "2", None, True]),
    "local_steps": st.integers(1, 2) | st.sampled_from([0, -1, 1.5, None]),
    "batch": COUNTS,
    "lr": RATES,
    "optimizer": st.sampled_from(CLIENTS),
    "participation": SHARES,
    "client_weights": st.sampled_from(["uniform", "size", "none", None, 3]),
}


def begun(call) -> Any:
    """What a call gives; ``None`` when it refused, which must name a value in one line."""
    try:
        return call()
    except ValueError as error:
        text = str(error)
    assert "=" in text and ": expected " in text and "\n" not in text, text
    return None


@given(
    given=st.fixed_dictionaries({}, optional=PLANS),
    unit=st.sampled_from([None, "example", "client"]),
    rank=st.integers(-1, 7) | st.sampled_from([2.0, None]),
    slug=st.sampled_from(["fedlora", "hetlora", "rolora", "flexlora"]),
)
@settings(max_examples=150)
def test_any_plan_runs_or_is_refused_before_training(given, unit, rank, slug):
    """What is begun ends: so many records, finite ledger; NaN only where numbers grew too large. A
    rank may be above the layer's.
    """
    plan = begun(lambda: fl.Plan(**Options(rounds=1, local_steps=1, batch=2) | given))
    lora = begun(lambda: fl.Lora(rank=rank))
    privacy = unit and private(unit)
    run = (
        lora
        and plan
        and begun(lambda: fl.run(regression(), slug, privacy, plan, lora=lora, seed=0))
    )
    if run:
        records = list(run)
        assert [record.index for record in records] == list(range(plan.rounds + 1))
        assert not (unit and plan.rounds) or 0 <= records[-1].epsilon < INF
        if isinstance(plan.lr, int | float) and plan.lr == 0 and unit is None:
            last = tensors(records[-1])
            assert all(torch.equal(x, last[name]) for name, x in tensors(records[0]).items())


@given(st.lists(st.text("AB *RX", max_size=4) | st.none(), max_size=3).map(tuple))
@settings(max_examples=60)
def test_any_words_are_a_schedule_or_refused(words):
    cycle = begun(lambda: fl.Cycle(words))
    for t, line in enumerate(words if cycle else ()):
        steps = line.split()
        assert set(steps) <= {"A", "B", "AB", "BA", "R", "*"}
        assert [cycle(t + len(words), s) for s in range(2 * len(steps))] == steps * 2
