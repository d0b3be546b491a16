"""What crosses the network: the quantiser against its published levels, and counts made by hand."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from toy_tasks import LORA, play, private, regression

import fedlora_lab as fl
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.run import Run
from fedlora_lab.methods.quantization import normal_float, normal_levels

NF4 = [
    *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
]


def test_normal_levels():
    """Width 4 is NF4, width 3 as published."""
    assert normal_levels(4) == pytest.approx(NF4, abs=2e-6)
    assert normal_levels(1) == (-1, 0, 1)
    eight = [-1, -0.4786, -0.2171, 0, 0.1609, 0.3379, 0.5626, 1]
    assert normal_levels(3) == pytest.approx(eight, abs=6e-5)


NUMBERS = st.lists(st.floats(-1e6, 1e6, width=32), max_size=30)


@settings(max_examples=60)
@given(numbers=NUMBERS, width=st.integers(1, 8), block=st.integers(1, 9))
def test_every_number_goes_to_the_nearest_level(numbers, width, block):
    """A second pass changes nothing."""
    rule = normal_float(width, block)
    x = torch.tensor(numbers)
    once = rule(x)
    assert torch.equal(rule(once), once)
    for part, sent in zip(x.split(block), once.split(block)) if numbers else ():
        levels = part.abs().max() * torch.tensor(normal_levels(width))
        nearest = (part[:, None] - levels).abs().amin(1)
        torch.testing.assert_close(
            (part - sent).abs(), nearest, rtol=1e-5, atol=1e-7 * float(levels[-1])
        )


# One layer, rank 2, 6 inputs, 5 outputs: A has 12 numbers, B has 10. Blocks of 64: one scale of 32
# bits a factor.
A = 12
B = 10
K = 3
Q = math.ceil((A * 4 + 32) / 8) + math.ceil((B * 4 + 32) / 8)


def test_traffic_by_hand():
    """The start is known to all, unless the broadcast alters it."""
    plan = fl.Plan(rounds=2, local_steps=2, batch=None)
    first, *records = play(regression(), "fedlpp", None, plan)
    assert first.traffic == (0, 0, 0, 0)
    for record in records:
        assert record.traffic == (K * (A + B), 4 * K * (A + B), K * (A + B), K * Q)


def test_a_merged_product_goes_down_at_its_rank():
    """Of one product where the clients share A, and whole where theirs are together no smaller."""
    _, weight = next(iter(regression().model.named_parameters()))
    for slug, residual in (
        ("fed-rac-lora", LORA.rank * sum(weight.shape)),
        ("flora", weight.numel()),
    ):
        last = play(regression(), slug, None, fl.Plan(rounds=2, local_steps=1, batch=None))[-1]
        assert last.traffic.numbers_down == K * (A + B + residual)


def test_a_rule_counts_what_it_asks_for_in_place_of_the_factors():
    """Two sketches up and a basis down beside both factors; and blocks that hold their gains."""
    plan = fl.Plan(rounds=2, local_steps=1, batch=None)
    last = play(regression(), "fedask", None, plan)[-1]
    assert last.traffic[::2] == (K * (B + A), K * (A + B + B))
    last = play(regression(), "ravan", None, plan)[-1]
    assert last.traffic[::2] == (K * LORA.rank, K * LORA.rank)


def test_a_client_that_comes_by_chance_gets_all_that_changed():
    """RoLoRA: B alone has changed before the second round, and both factors before every later."""
    plan = fl.Plan(rounds=8, local_steps=1, batch=None, participation=0.5)
    run = Run.open(make_config(regression(), "rolora", private("client"), plan, LORA, 0))
    for record in list(run.records())[1:]:
        t = record.index - 1
        count = len(run.participants(t))
        assert record.participants == count
        assert record.traffic.numbers_up == count * (B, A)[t % 2]
        assert record.traffic.numbers_down == count * (0, B, A + B)[min(t, 2)]
