"""What crosses the network, read as it was on the wire: noised, and no more than is shared."""

import math

import numpy as np
import pytest
import torch
from flower_runs import ROUNDS, InProcessGrid, party, protected, tensors_of
from toy_tasks import LORA, PLAN, UNITS, other_data, tokens

import fedlora_lab as fl
from fedlora_lab import flower, methods

EVERYONE = ROUNDS.replace(participation=1.0)


class Watched(InProcessGrid):
    """Keeps every message, read as it was on the wire."""

    def __init__(self, app, clients):
        super().__init__(app, clients)
        self.sent = []

    def over_the_wire(self, message, key):
        read = super().over_the_wire(message, key)
        self.sent.append(read)
        return read


def wire(*terms, **options):
    """The records of a run, the server's messages of training, and all replies."""
    everybody = party(*terms, **options)
    grid = Watched(everybody.app(), len(everybody.task.sizes))
    records = list(flower.run(grid, everybody.terms))
    replies = [message for message in grid.sent if message.metadata.reply_to_message_id]
    trained = [message for message in grid.sent if message.metadata.message_type == "train"]
    return records, [message for message in trained if message not in replies], replies


def arrays_of(messages, t=None):
    """Key and tensor of everything that messages of training carry, of one round or of all."""
    return [
        pair
        for message in messages
        if "tensors" in message.content and t in (None, message.content["about"]["round"])
        for pair in tensors_of(message).items()
    ]


def same_replies(sent):
    """Whether the replies about two data sets are the same bit for bit."""
    return [one.content == other.content for one, other in zip(*sent, strict=True)]


SHARED = (
    "fedlora",
    "rolora",
    "deer",
    "fedsa-lora",
    "fed-sb",
    "local",
)


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("slug", SHARED)
def test_replies_hold_what_is_shared_and_noised_and_nothing_else(slug, unit):
    """Without a clip norm two data sets give the same replies, so that nothing else in them, such
    as what the clips did, tells of the data; with one they do not. Up go the tensors that the
    method shares, in the client's ranks: the numbers that are counted. Down goes nothing that
    clients keep, but as it was before it moved.
    """
    row = methods.get(slug)
    unequal = fl.Lora(rank=3, alpha=3.0, ranks=(1, 3, 2))
    lora = unequal if slug == "fedlora" else LORA
    both = (tokens("head"), other_data(tokens("head")))
    runs = [wire(task, row, protected(unit), EVERYONE, lora) for task in both]
    quiet = [wire(task, row, protected(unit, clip=0.0), EVERYONE, lora)[2] for task in both]
    assert all(same_replies(quiet))
    trained = [replies[3:] for _, _, replies in runs]  # the first three say who is there
    assert not any(same_replies(trained)) or slug == "local"
    records, asked, replies = runs[0]
    for reply in replies:
        assert {*reply.content} <= {"about", "tensors"}
        assert {*reply.content["about"]} <= {"client", "terms", "round"}
    for t, record in enumerate(records[1:]):
        arrays = arrays_of(replies, t)
        assert sum(math.prod(array.shape) for _, array in arrays) == record.traffic.numbers_up
        shared = row.factors_uploaded(t, EVERYONE.local_steps) if row.uploaded_factors != "" else ""
        names = {key.name for key, _ in arrays}
        assert names == ({*shared, "head"} if shared else set())
    start = {}
    for key, x in arrays_of(asked):
        if row.uploaded_factors is not None and key.name not in {*row.uploaded_factors, "head"}:
            assert x.equal(start.setdefault(key, x)), key
    assert bool(start) == (slug in ("fedsa-lora", "local"))


@pytest.mark.parametrize(
    ("privacy", "scale"),
    [
        # One step of SGD on the mean over the expected batch of 3; in the client unit the change
        # itself is noised.
        (protected("example"), PLAN.rate("A") / 3),
        (protected("client"), 1.0),
    ],
)
def test_the_noise_on_the_wire_has_its_law(privacy, scale):
    """A reply less what was sent, under noise that hides everything else: of the declared size, in
    every number, new in every client.
    """
    hidden = privacy.replace(clip_norm=1e-9, noise_multiplier=1e9)
    plan = PLAN.replace(rounds=1, local_steps=1)
    _, asked, replies = wire(tokens("head"), "fedlora", hidden, plan)
    start = dict(arrays_of(asked))
    moves = [(x - start[key]).flatten() for key, x in arrays_of(replies)]
    noise = np.concatenate(moves).reshape(3, -1) / scale
    assert (noise != 0).all()
    # Three clients' numbers, and three pairs of clients.
    assert abs(noise.std() - 1) < 4 / math.sqrt(2 * noise.size)
    assert (abs(np.corrcoef(noise) - np.eye(3)) < 4 / math.sqrt(noise.shape[1])).all()


@pytest.mark.parametrize("width", [1, 3, 4])
def test_a_quantised_broadcast_travels_as_codes(width):
    """Down go codes and scales, as many bytes as the record counts: too few for a factor."""
    row = methods.FedLPP.replace(broadcast=fl.methods.normal_float(width, 16))
    records, asked, _ = wire(tokens(), row, None, EVERYONE)
    assert len(asked) == 3 * (len(records) - 1)
    for t, record in enumerate(records[1:]):
        arrays = [array for _, array in arrays_of(asked, t)]
        # A number is counted as 32 bits; the model of this test has float64.
        counted = sum(math.prod(a.shape) * (1 if a.dtype == torch.uint8 else 4) for a in arrays)
        assert counted == record.traffic.bytes_down
