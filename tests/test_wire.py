"""What crosses the network: the quantiser against its published levels, and traffic against counts made by hand."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import LORA, play, private, regression, tokens

import fedlora_lab as fl
from fedlora_lab import wire

NF4 = [
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
]  # fmt: skip


def test_normal_levels():
    """Width 4 is NF4, widths 2 and 3 as published; zero is a level, levels rise from -1 to 1."""
    assert wire.normal_levels(4) == pytest.approx(NF4, abs=2e-6)
    assert wire.normal_levels(1) == (-1, 0, 1)
    assert wire.normal_levels(2) == pytest.approx([-1, 0, 0.3379, 1], abs=5e-5)
    assert wire.normal_levels(3) == pytest.approx([-1, -0.4786, -0.2171, 0, 0.1609, 0.3379, 0.5626, 1], abs=6e-5)
    for width in range(1, 9):
        levels = wire.normal_levels(width)
        assert len(levels) == (3 if width == 1 else 2**width)
        assert 0.0 in levels
        assert (levels[0], levels[-1]) == (-1, 1)
        assert all(a < b for a, b in pairwise(levels))


def nearest(x: torch.Tensor, width: int, block: int) -> torch.Tensor:
    """Block by block, number by number: the nearest level times the largest magnitude."""
    levels, flat = wire.normal_levels(width), x.flatten().tolist()
    out = []
    for i in range(0, len(flat), block):
        part = flat[i : i + block]
        scale = max(abs(v) for v in part) or 1e-8
        units = [v / scale for v in part]
        out += [min((abs(u - level), level) for level in levels)[1] * scale for u in units]
    return torch.tensor(out, dtype=x.dtype).view_as(x)


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("block", [1, 5, 64, 1000])
def test_every_number_goes_to_the_nearest_level(width, block):
    x = torch.randn(13, 10, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    torch.testing.assert_close(wire.normal_float(width, block)(x), nearest(x, width, block), rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30),
    width=st.integers(1, 8),
    block=st.integers(1, 9),
)
def test_quantising_twice_is_quantising_once(numbers, width, block):
    rule, x = wire.normal_float(width, block), torch.tensor(numbers)
    once = rule(x)
    assert once.isfinite().all()
    assert torch.equal(rule(once), once)
    assert float((once - x).abs().max()) <= float(x.abs().max())


def test_a_block_of_zeros_stays_zero():
    assert torch.equal(wire.normal_float(4, 3)(torch.zeros(2, 4)), torch.zeros(2, 4))


def test_the_error_is_the_published_one():
    """Relative Frobenius error of Gaussian numbers in blocks of 64, and of a product of two quantised factors."""
    b, a = (torch.randn(512, 512, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    for width, one, both in ((2, 0.57, 0.80), (3, 0.20, 0.28), (4, 0.092, 0.13)):
        rule = wire.normal_float(width, 64)
        assert float((rule(a) - a).norm() / a.norm()) == pytest.approx(one, rel=0.05)
        assert float((rule(b) @ rule(a) - b @ a).norm() / (b @ a).norm()) == pytest.approx(both, rel=0.08)


def test_bits_and_bytes():
    assert wire.full.bits(7) == 224
    assert wire.normal_float(4, 64).bits(128) == 128 * 4 + 2 * 32
    assert wire.normal_float(4, 64).bits(129) == 129 * 4 + 3 * 32
    assert wire.normal_float(1, 8).bits(8) == 16 + 32
    assert wire.bytes_of([3, 5]) == 32
    assert wire.bytes_of([3], wire.normal_float(3, 64)) == math.ceil((9 + 32) / 8)
    assert wire.Traffic(1, 2, 3, 4) + wire.Traffic(10, 20, 30, 40) == (11, 22, 33, 44)


# One layer, rank 2, 6 inputs, 5 outputs: A has 12 numbers, B has 10. Blocks of 64: one scale of 32 bits a factor.
A, B, K = 12, 10, 3
Q = math.ceil((A * 4 + 32) / 8) + math.ceil((B * 4 + 32) / 8)
BY_HAND = {
    "fedlora": [(A + B, 0), (A + B, A + B), (A + B, A + B)],
    "ffa-lora": [(B, 0), (B, B), (B, B)],
    "rolora": [(B, 0), (A, B), (B, A)],
    "deer": [(B, 0), (A, B), (B, A)],
    "la-lora": [(A + B, 0), (A + B, A + B), (A + B, A + B)],
    "fedlpp": [(A + B, A + B), (A + B, A + B), (A + B, A + B)],
    "local": [(0, 0), (0, 0), (0, 0)],
}


@pytest.mark.parametrize("slug", BY_HAND)
def test_traffic_by_hand(slug):
    """Three rounds of all clients: numbers up and down. The start is known to all, unless the broadcast alters it."""
    records = play(regression(), slug, None, fl.Plan(rounds=3, local_steps=2, batch=None))
    assert records[0].uploads == (0, 0, 0, 0)
    for record, (up, down) in zip(records[1:], BY_HAND[slug], strict=True):
        down_bytes = K * Q if slug == "fedlpp" else 4 * K * down
        assert record.uploads == (K * up, 4 * K * up, K * down, down_bytes)


def test_a_client_that_was_away_gets_what_it_missed():
    """RoLoRA, client by client: down come the sides that changed since; a lost upload does not count."""
    plan = fl.Plan(rounds=12, local_steps=1, batch=None, participation=0.5, dropout=0.3)
    federation = fl.loop.Federation.open(regression(), "rolora", private("client"), plan, lora=LORA)
    seen, changed, size = [-1] * K, [], {"A": A, "B": B}
    for record in (event for event in federation.events() if isinstance(event, fl.record.Round)):
        if not record.index:
            continue
        t = record.index - 1
        ids = federation._participants(t)
        sides = [set().union(*changed[max(seen[k], 0) :]) if t else set() for k in ids]
        arrived = len(federation._arrived(t, ids))
        side = "BA"[t % 2]
        assert record.participants == len(ids)
        assert record.uploads.numbers_up == arrived * size[side]
        assert record.uploads.numbers_down == sum(size[s] for found in sides for s in found)
        changed.append({side})  # a trusted server adds its noise to the sum even when nobody came
        for k in ids:
            seen[k] = t


def test_a_trained_head_goes_both_ways():
    """The head: 4 x 3 weights and 3 biases; factors 2 (5 + 6) and 2 (6 + 4)."""
    records = play(tokens("head"), "ffa-lora", None, fl.Plan(rounds=2, local_steps=1, batch=None))
    up = 3 * (2 * 6 + 2 * 4 + 15)
    assert [record.uploads.numbers_up for record in records] == [0, up, up]
    assert [record.uploads.numbers_down for record in records] == [0, 0, up]


def test_nothing_is_sent_of_who_shares_nothing():
    """Not the head either."""
    records = play(tokens("head"), "local", None, fl.Plan(rounds=2, local_steps=1, batch=None))
    assert all(record.uploads == (0, 0, 0, 0) for record in records)
    assert all(torch.equal(x, records[0].head[name]) for name, x in records[-1].head.items())
    assert records[-1].metrics["loss"] != records[0].metrics["loss"]


def test_the_received_copy_is_measured():
    """A quantised broadcast: metrics of the server's model and of what clients hold of it."""
    records = play(tokens("head"), "fedlpp", None, fl.Plan(rounds=2, local_steps=2, batch=None))
    assert set(records[-1].metrics) == {"accuracy", "loss", "accuracy_received", "loss_received"}
    assert records[-1].metrics["loss_received"] != records[-1].metrics["loss"]
