"""What crosses the network: every message is read as it was on the wire. Nothing un-noised is in it, and no more."""

import math

import pytest
import torch
from contract import keeps, with_clients
from flowers import ROUNDS, by_messages, protected
from small import LORA, PLAN, UNITS, private, regression, tokens
from test_contract import ROWS

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.flower import records

every_unit = pytest.mark.parametrize("unit", UNITS)
NAMES = {"query": {"about"}, "train": {"about", "arrays"}, "evaluate": {"about", "arrays", "scores"}}
ONE = PLAN.replace(rounds=1, local_steps=1)
TWO = ROUNDS.replace(rounds=2)


def wire(task, row, privacy, plan=ROUNDS, **options):
    """The messages of a run, and those among them that clients sent."""
    seen = []
    found = by_messages(task, row, privacy, plan, seen.append, **options)
    return found, [message for message in seen if message.metadata.reply_to_message_id]


def uploads(messages):
    """Client and round of every upload, and its arrays as bytes."""
    trained = [message for message in messages if message.metadata.message_type == "train"]
    return [
        (dict(m.content["about"]), {k: (a.dtype, tuple(a.shape), a.data) for k, a in m.content["arrays"].items()})
        for m in trained
    ]


def numbers(messages):
    """All numbers of all uploads, in order."""
    flat = []
    for message in messages:
        if message.metadata.message_type == "train":
            flat += [torch.from_numpy(array.numpy().copy()).flatten() for array in message.content["arrays"].values()]
    return torch.cat(flat)


def other_data(task):
    """Clients of the same sizes with other examples, some of them not finite."""
    others = []
    for k, (x, y) in enumerate(task.clients):
        x = x.flip(0) * 3 + k
        x[0], x[1] = math.nan, math.inf
        others.append((x, y.roll(1, 0)))
    return with_clients(task, others)


@every_unit
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.slug)
def test_without_a_clip_norm_messages_do_not_depend_on_the_data(row, unit):
    """C = 0: two data sets, bit-identical replies of every kind, round by round; and no reply says anything else."""
    task = tokens("head")
    sent = [wire(t, row, protected(unit, clip=0.0), TWO)[1] for t in (task, other_data(task))]
    assert len(sent[0]) == len(sent[1]) > 5
    for one, other in zip(*sent, strict=True):
        kind = one.metadata.message_type
        assert not one.has_error()
        assert set(one.content) <= NAMES[kind]
        assert set(one.content["about"]) <= {"client", "terms", "round"}
        assert one.content["about"] == other.content["about"]
        for name in set(one.content) - {"about"}:
            assert one.content[name] == other.content[name], (kind, name)


@every_unit
@pytest.mark.parametrize("slug", ["fedlora", "deer", "fed-sb"])
def test_it_is_the_clip_norm_that_makes_them_equal(slug, unit):
    """With C > 0 the same two data sets give other replies under the same noise."""
    task = tokens("head")
    sent = [uploads(wire(t, slug, protected(unit), ONE)[1]) for t in (task, other_data(task))]
    assert [about for about, _ in sent[0]] == [about for about, _ in sent[1]]
    assert all(one != other for (_, one), (_, other) in zip(*sent, strict=True))


@every_unit
@pytest.mark.parametrize("slug", ["fedlora", "rolora", "fedsa-lora", "sdflora", "fed-sb", "as-lora", "local"])
def test_uploads_hold_what_is_sent_and_nothing_else(slug, unit):
    """The slots that the method shares, in the ranks that the client holds and shares: the numbers that are counted."""
    lora = fl.Lora(rank=3, alpha=3.0, ranks=(1, 3, 2)) if slug in ("fedlora", "sdflora") else LORA
    plan = ROUNDS.replace(participation=1.0, dropout=0.0)
    found, replies = wire(tokens("head"), slug, protected(unit), plan, lora=lora)
    row, sent = methods.get(slug), uploads(replies)
    for t, record in enumerate(found[1:]):
        of_round = [arrays for about, arrays in sent if about["round"] == t]
        assert len(of_round) == 3
        count = sum(math.prod(shape) for arrays in of_round for _, shape, _ in arrays.values())
        assert count == record.uploads.numbers_up
        shared = row.sent(t, plan.local_steps) if row.share != "" else ""
        if shared != "*":
            sides = {records.slot_of(name).side for arrays in of_round for name in arrays}
            assert sides == ({*shared, "head"} if shared else set())
    assert (slug == "local") == (found[-1].uploads.numbers_up == 0)


@every_unit
def test_the_noise_on_the_wire_has_its_law(unit):
    """A reply minus the noise-free reply: normal, of the declared size, in every number, new in every client."""
    sigma, clip, rate, found = 1.3, 0.7, 0.2, []
    task = tokens("head")
    for seed in range(15):
        noisy, clean = (
            numbers(wire(task, "fedlora", protected(unit, sigma=level, clip=clip), ONE, seed=seed)[1])
            for level in (sigma, 0.0)
        )
        found.append(noisy - clean)
    xi = torch.stack(found)
    size = len(xi[0]) // 3
    for k in range(3):
        own = xi[:, k * size : (k + 1) * size]
        # One step of SGD on the mean over the expected batch of 3; in the client unit the change itself is noised.
        std = sigma * clip * (rate / 3 if unit == "example" else 1)
        assert (own != 0).all()
        error = 1 / math.sqrt(2 * own.numel())
        assert abs(float(own.std()) / std - 1) < 5 * error
        assert abs(float(own.mean())) < 5 * std / math.sqrt(own.numel())
        assert abs(float((own / std).pow(4).mean()) - 3) < 5 * math.sqrt(96 / own.numel())
        for other in range(k):
            product = (own * xi[:, other * size : (other + 1) * size]).flatten() / std**2
            assert abs(float(product.mean())) < 5 / math.sqrt(product.numel())


def test_a_share_of_the_noise_under_secure_aggregation():
    """Each upload alone holds sigma C / sqrt(K) on its part of the mean, 1 / K: the sum of K holds sigma C / K."""
    task, sigma, clip, found = tokens("head"), 1.3, 0.7, []
    for seed in range(10):
        pair = [
            numbers(wire(task, "fedlora", private("client", sigma=s, clip=clip, trust="secagg"), ONE, seed=seed)[1])
            for s in (sigma, 0.0)
        ]
        found.append((pair[0] - pair[1]).view(3, -1))
    xi = torch.stack(found)
    for part, std in ((xi, sigma * clip / 3**1.5), (xi.sum(1), sigma * clip / 3)):
        assert abs(float(part.std()) / std - 1) < 5 / math.sqrt(2 * part.numel())


def test_nothing_of_the_clip_is_told():
    """Counts of clipped and non-finite rows read private values: they stay with the client."""
    task = other_data(regression())
    _, replies = wire(task, "fedlora", private("example", clip=1e-9))
    assert all(not message.content.metric_records for message in replies)


@pytest.mark.parametrize("row", [row for row in ROWS if keeps(row)], ids=lambda row: row.slug)
def test_what_stays_never_travels(row):
    """Factors, or ranks of them, that a client keeps are in no message, up or down, after they have moved."""
    seen = []
    by_messages(tokens(), row, None, ROUNDS.replace(participation=1.0), seen.append)
    start, kept = {}, 0
    for message in seen:
        for name, array in message.content.array_records.get("arrays", {}).items():
            slot = records.slot_of(name)
            home = row.share is not None and slot.side not in row.share
            if home and not message.metadata.reply_to_message_id:
                assert array.data == start.setdefault(name, array.data), name
            elif home:
                raise AssertionError(f"{name} was sent")
            kept += home
    assert kept or row.own_ranks


@pytest.mark.parametrize("width", [1, 3, 4])
def test_a_quantised_broadcast_travels_as_codes(width):
    """Down go codes and scales, as many bytes as the record counts; no array holds a factor's numbers."""
    row = methods.FedLPP.replace(broadcast=fl.wire.normal_float(width, 16))
    seen = []
    found = by_messages(tokens(), row, None, ROUNDS.replace(participation=1.0, dropout=0.0), seen.append)
    asked = [m for m in seen if m.metadata.message_type == "train" and not m.metadata.reply_to_message_id]
    assert len(asked) == 3 * (len(found) - 1)
    for t, record in enumerate(found[1:]):
        arrays = [a for m in asked if m.content["about"]["round"] == t for a in m.content["arrays"].values()]
        codes, scales = ([a for a in arrays if (a.dtype == "uint8") == is_code] for is_code in (True, False))
        # A number is counted as 32 bits; the model of this test has float64.
        counted = sum(a.shape[0] for a in codes) + 4 * sum(a.shape[0] for a in scales)
        assert codes and counted == record.uploads.bytes_down
        assert all(len(a.shape) == 1 for a in arrays)
