"""What crosses the network: the quantiser against its published levels, and counts made by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tasks import LORA, play, private, regression, tokens

import fedlora_lab as fl
from fedlora_lab.audit.instruments import Recorder
from fedlora_lab.federated.records import Round
from fedlora_lab.federated.run import Run
from fedlora_lab.methods import quantization
from fedlora_lab.methods.quantization import bytes_text, normal_float, normal_levels
from fedlora_lab.methods.state import ParamKey

REACHES = (quantization.REACH, fl.theory.best_reach(3, 64))
NF4 = [
    *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_normal_levels():
    """Width 4 is NF4, widths 2 and 3 as published; zero is a level, levels rise from -1 to 1."""
    assert normal_levels(4) == pytest.approx(NF4, abs=2e-6)
    assert normal_levels(1) == normal_levels(1.5) == (-1, 0, 1)
    eight = [-1, -0.4786, -0.2171, 0, 0.1609, 0.3379, 0.5626, 1]
    assert normal_levels(3) == pytest.approx(eight, abs=6e-5)
    for width in range(2, 9):
        levels = normal_levels(width)
        assert len(levels) == 2**width and 0.0 in levels and sorted(levels) == list(levels)


@pytest.mark.parametrize(("width", "block"), [(1, 5), (4, 1), (4, 5), (8, 1000)])
def test_every_number_goes_to_the_nearest_level(width, block):
    x, expected = normal(13, 10, seed=width), []
    for part in x.flatten().split(block):
        scale = float(part.abs().max())
        for unit in (part / scale).tolist():
            expected.append(min((abs(unit - v), v) for v in normal_levels(width))[1] * scale)
    found = normal_float(width, block)(x)
    torch.testing.assert_close(found, torch.tensor(expected).view_as(x).double())


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30),
    width=st.integers(1, 8),
    block=st.integers(1, 9),
)
def test_quantising_twice_is_quantising_once(numbers, width, block):
    rule, x = normal_float(width, block), torch.tensor(numbers)
    once = rule(x)
    assert once.isfinite().all() and torch.equal(rule(once), once)
    assert float((once - x).abs().max()) <= float(x.abs().max())


def test_the_release_s_reach_is_not_the_best_one():
    """3 bits in blocks of 64 lose .202 with the release's levels and .197 with better ones."""
    x = normal(4000, 64)
    errors = [float((normal_float(3, 64, reach)(x) - x).norm() / x.norm()) for reach in REACHES]
    assert errors == pytest.approx([0.2016, 0.1973], abs=0.001)
    assert repr(normal_float(3)) == "NormalFloat(width=3, block=64)", "the key of committed runs"
    assert repr(normal_float(3, reach=0.9)) != repr(normal_float(3)) != repr(normal_float(3.0 / 2))


def test_bits_and_bytes_count_the_scales():
    assert normal_float(4, 64).bits(129) == 129 * 4 + 3 * 32
    assert normal_float(1, 8).bits(8) == 16 + 32
    assert quantization.bytes_of([3, 5]) == 32
    assert quantization.bytes_of([3], normal_float(3, 64)) == math.ceil((9 + 32) / 8)


@pytest.mark.parametrize("width", [1, 1.5, 3, 8])
@pytest.mark.parametrize("shape", [(7, 5), (0, 3), (64, 4)])
def test_codes_are_as_long_as_counted_and_give_back_every_bit(width, shape):
    rule = normal_float(width, 16)
    x = normal(*shape, seed=int(width), dtype=torch.float32)
    for tensor in (x, torch.zeros_like(x)):
        found = quantization.pack(tensor, rule)
        codes, scales = (found[name] for name in quantization.array_names(rule))
        assert codes.dtype == torch.uint8 and scales.dtype == x.dtype
        assert len(codes) + 4 * len(scales) == quantization.bytes_of([x.numel()], rule)
        back = quantization.unpack(found, rule, torch.full_like(x, 7.0))
        assert torch.equal(back, rule(tensor))


def test_a_code_beyond_the_levels_is_refused():
    rule = normal_float(1, 4)
    found = quantization.pack(torch.ones(3), rule)
    assert found[quantization.CODES].tolist() == [2 + 2 * 3 + 2 * 9]
    found[quantization.CODES][0] = 3**5
    with pytest.raises(ValueError, match=r"^codes=243: expected at most 242$"):
        quantization.unpack(found, rule, torch.ones(3))


def test_a_head_is_quantised_where_the_rule_says_so():
    """What goes down, in every round, and its bytes; in full by default."""
    head = {ParamKey("head", f"head.{name}"): n for name, n in (("weight", 12), ("bias", 3))}
    plan, sizes = fl.Plan(rounds=2, local_steps=1, batch=None), [2 * 5, 2 * 6, 2 * 6, 2 * 4]
    for whole in (False, True):
        rule = normal_float(2, 4, head=whole)
        row = fl.methods.FedLPP.replace(broadcast=rule)
        run = Recorder.open(tokens("head"), row, None, plan, lora=LORA)
        records = [event for event in run.events() if isinstance(event, Round)]
        assert run.outcome is not None
        before, sent = run.outcome.before.tensors, run.outcome.sent.tensors
        for key in head:
            assert torch.equal(sent[key], rule(before[key]) if whole else before[key])
        rest = quantization.bytes_of([*head.values()], *([rule] if whole else []))
        assert records[-1].uploads.bytes_down == K * (quantization.bytes_of(sizes, rule) + rest)


# One layer, rank 2, 6 inputs, 5 outputs: A has 12 numbers, B has 10. Blocks of 64: one scale of 32
# bits a factor.
A, B, K = 12, 10, 3
Q = math.ceil((A * 4 + 32) / 8) + math.ceil((B * 4 + 32) / 8)
BY_HAND = {
    "ffa-lora": [(B, 0), (B, B), (B, B)],
    "rolora": [(B, 0), (A, B), (B, A)],
    "la-lora": [(A + B, 0), (A + B, A + B), (A + B, A + B)],
    "fedlpp": [(A + B, A + B), (A + B, A + B), (A + B, A + B)],
}


@pytest.mark.parametrize("slug", BY_HAND)
def test_traffic_by_hand(slug):
    """The start is known to all, unless the broadcast alters it."""
    records = play(regression(), slug, None, fl.Plan(rounds=3, local_steps=2, batch=None))
    assert records[0].uploads == (0, 0, 0, 0)
    for record, (up, down) in zip(records[1:], BY_HAND[slug], strict=True):
        down_bytes = K * Q if slug == "fedlpp" else 4 * K * down
        assert record.uploads == (K * up, 4 * K * up, K * down, down_bytes)


def test_a_client_that_was_away_gets_what_it_missed():
    """RoLoRA, client by client: what changed comes down; uploads that were lost do not count."""
    plan = fl.Plan(rounds=12, local_steps=1, batch=None, participation=0.5, dropout=0.3)
    run = Run.open(regression(), "rolora", private("client"), plan, lora=LORA)
    seen, changed, size = [-1] * K, [], {"A": A, "B": B}
    for record in [event for event in run.events() if isinstance(event, Round)][1:]:
        t = record.index - 1
        ids, side = run.participants(t), "BA"[t % 2]
        sides = [set().union(*changed[max(seen[k], 0) :]) if t else set() for k in ids]
        assert record.participants == len(ids)
        assert record.uploads.numbers_up == len(run.arrivals(t, ids)) * size[side]
        assert record.uploads.numbers_down == sum(size[s] for missed in sides for s in missed)
        changed.append({side})  # a trusted server adds its noise to the sum even when nobody came
        for k in ids:
            seen[k] = t


def test_a_trained_head_goes_both_ways_unless_nothing_is_shared():
    """The head: 4 x 3 weights and 3 biases; factors 2 (5 + 6) and 2 (6 + 4)."""
    plan = fl.Plan(rounds=2, local_steps=1, batch=None)
    records, up = play(tokens("head"), "ffa-lora", None, plan), 3 * (2 * 6 + 2 * 4 + 15)
    assert [record.uploads.numbers_up for record in records] == [0, up, up]
    assert [record.uploads.numbers_down for record in records] == [0, 0, up]
    first, *_, last = alone = play(tokens("head"), "local", None, plan)
    assert all(record.uploads == (0, 0, 0, 0) for record in alone)
    assert all(torch.equal(x, first.head[name]) for name, x in last.head.items())
    assert last.metrics["loss"] != first.metrics["loss"]


def test_byte_counts_as_text():
    sizes = "0 B", "999 B", "1.0 kB", "3000.0 GB"
    assert tuple(map(bytes_text, (0, 999, 1000, 3e12))) == sizes
