"""What crosses the network, read as it was on the wire: noised, and no more than is shared."""

import math
from typing import Any

import pytest
import torch
from flower_runs import ROUNDS, by_messages, few_fast, protected
from test_contract import ROWS
from toy_tasks import LORA, PLAN, UNITS, other_data, private, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.flower.messages import parse_key

TRAINED = {"about", "arrays"}
NAMES = {"query": {"about"}, "train": TRAINED}
EVERYONE = ROUNDS.replace(participation=1.0, dropout=0.0)


def wire(task, row, privacy, plan=ROUNDS, **options):
    """The records of a run, the server's messages of training, and all replies."""
    seen = []
    records = by_messages(task, row, privacy, plan, seen.append, **options)
    replies = [message for message in seen if message.metadata.reply_to_message_id]
    asked = [m for m in seen if m not in replies and m.metadata.message_type == "train"]
    return records, asked, replies


def arrays_of(messages, t=None):
    """Name and array of everything that messages of training carry, of one round or of all."""
    trained = [m for m in messages if m.metadata.message_type == "train"]
    some = [m for m in trained if t is None or m.content["about"]["round"] == t]
    return [(name, array) for m in some for name, array in m.content["arrays"].items()]


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("row", few_fast(*ROWS), ids=lambda row: row.slug)
def test_without_a_clip_norm_messages_do_not_depend_on_the_data(row, unit):
    """C = 0: two data sets, bit-identical replies of every kind, round by round; and no reply says
    anything else, such as what the clips did.
    """
    terms = row, protected(unit, clip=0.0), ROUNDS.replace(rounds=2)
    sent = [wire(task, *terms)[2] for task in (tokens("head"), other_data(tokens("head")))]
    assert len(sent[0]) == len(sent[1]) > 5
    for one, other in zip(*sent, strict=True):
        kind = one.metadata.message_type
        assert not one.has_error() and set(one.content) <= NAMES[kind]
        assert set(one.content["about"]) <= {"client", "terms", "round"}
        for name in one.content:
            assert one.content[name] == other.content[name], (kind, name)


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("slug", ["fedlora", "fed-sb"])
def test_it_is_the_clip_norm_that_makes_them_equal(slug, unit):
    """With C > 0 the same two data sets give other replies under the same noise."""
    terms, task = (slug, protected(unit), PLAN.replace(rounds=1, local_steps=1)), tokens("head")
    sent = [wire(t, *terms)[2] for t in (task, other_data(task))]
    pairs = [(a.content, b.content) for a, b in zip(*sent, strict=True) if "arrays" in a.content]
    assert len(pairs) == 3
    assert all(a["about"] == b["about"] and a["arrays"] != b["arrays"] for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("slug", ["fedlora", "rolora", "fedsa-lora", "sdflora", "fed-sb", "local"])
def test_messages_hold_what_is_shared_and_nothing_else(slug, unit):
    """Up go the tensors that the method shares, in the client's ranks: the numbers that are
    counted. Down goes nothing that clients keep, but as it was before it moved.
    """
    unequal, row = fl.Lora(rank=3, alpha=3.0, ranks=(1, 3, 2)), methods.get(slug)
    lora, start = unequal if slug in ("fedlora", "sdflora") else LORA, {}
    records, asked, replies = wire(tokens("head"), slug, protected(unit), EVERYONE, lora=lora)
    for t, record in enumerate(records[1:]):
        arrays = arrays_of(replies, t)
        assert sum(math.prod(array.shape) for _, array in arrays) == record.uploads.numbers_up
        shared = row.sides_sent(t, EVERYONE.local_steps) if row.share != "" else ""
        sides = {parse_key(name).side for name, _ in arrays}
        assert sides == ({*shared, "head"} if shared else set())
    for name, array in arrays_of(asked):
        if row.share is not None and parse_key(name).side not in {*row.share, "head"}:
            assert array.data == start.setdefault(name, array.data), name
    assert bool(start) == (slug in ("fedsa-lora", "local"))
    assert (slug == "local") == (records[-1].uploads.numbers_up == 0)


def noise_on_the_wire(privacy):
    """Noisy minus noise-free uploads of one step on a layer of 64 x 64, (clients, numbers)."""
    sizes: Any = {"examples": 3, "d_in": 64, "d_out": 64, "rank": 2, "test": 2}
    task, lora = fl.tasks.regression(clients=3, **sizes, dtype="float64"), fl.Lora(rank=16)
    plan = PLAN.replace(rounds=1, local_steps=1)
    parts = []
    for sigma in (privacy.noise_multiplier, 0.0):
        terms = task, "fedlora", privacy.replace(noise_multiplier=sigma), plan
        arrays = arrays_of(wire(*terms, lora=lora)[2])
        numbers = [torch.from_numpy(array.numpy().copy()).flatten() for _, array in arrays]
        parts.append(torch.cat(numbers).view(3, -1))
    return parts[0] - parts[1]


LAW, OWN = {"sigma": 1.3, "clip": 0.7}, {"sigma": 1.3, "clip": 0.7, "trust": "secagg"}


@pytest.mark.parametrize(
    ("privacy", "scale"),
    [
        # One step of SGD on the mean over the expected batch of 3; in the client unit the change
        # itself is noised. Of a sum each upload holds its share on its part of the mean, 1 / K.
        (protected("example", **LAW), PLAN.rate("A") / 3),
        (protected("client", **LAW), 1.0),
        (private("client", **OWN), 3**-1.5),
    ],
)
def test_the_noise_on_the_wire_has_its_law(privacy, scale):
    """A reply minus the noise-free reply: normal, of the declared size, in every number, new in
    every client.
    """
    noise = noise_on_the_wire(privacy) / (1.3 * 0.7 * scale)
    assert noise.shape == (3, 2 * 16 * 64) and (noise != 0).all()
    for k, own in enumerate(noise):
        assert abs(float(own.std()) - 1) < 5 / math.sqrt(2 * own.numel())
        assert abs(float(own.mean())) < 5 / math.sqrt(own.numel())
        assert abs(float(own.pow(4).mean()) - 3) < 5 * math.sqrt(96 / own.numel())
        for other in noise[:k]:
            assert abs(float((own * other).mean())) < 5 / math.sqrt(own.numel())


@pytest.mark.parametrize("width", [1, 3, 4])
def test_a_quantised_broadcast_travels_as_codes(width):
    """Down go codes and scales, as many bytes as the record counts; no array holds a factor's
    numbers.
    """
    row = methods.FedLPP.replace(broadcast=fl.methods.normal_float(width, 16))
    records, asked, _ = wire(tokens(), row, None, EVERYONE)
    assert len(asked) == 3 * (len(records) - 1)
    for t, record in enumerate(records[1:]):
        arrays = [array for _, array in arrays_of(asked, t)]
        assert all(len(array.shape) == 1 for array in arrays)
        assert any(array.dtype == "uint8" for array in arrays)
        # A number is counted as 32 bits; the model of this test has float64.
        counted = sum(a.shape[0] * (1 if a.dtype == "uint8" else 4) for a in arrays)
        assert counted == record.uploads.bytes_down
