"""What crosses the network, read as it was on the wire: noised, and no more than is shared."""

import math

import pytest
from flower_runs import ROUNDS, InProcessGrid, party, protected, tensors_of
from toy_tasks import other_data, tokens

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


SHARED = [
    ("fedlora", "example"),
    ("rolora", "client"),
    ("deer", "client"),
    ("fedsa-lora", "client"),
    ("fed-sb", "example"),
    ("local", "example"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("slug", "unit"), SHARED)
def test_replies_hold_what_is_shared_and_noised_and_nothing_else(slug, unit):
    """Without a clip norm two data sets give the same replies, so that nothing else in them, such
    as what the clips did, tells of the data; with one they do not. Up go the tensors that the
    method shares: the numbers that are counted. Down goes nothing that clients keep, but as it was
    before it moved.
    """
    row = methods.get(slug)
    both = (tokens("head"), other_data(tokens("head")))
    runs = [wire(task, row, protected(unit), EVERYONE) for task in both]
    quiet = [wire(task, row, protected(unit, clip=0.0), EVERYONE)[2] for task in both]
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
        shared = set(row.factors_in_round(t, EVERYONE.local_steps))
        if row.uploaded_factors is not None:
            shared &= set(row.uploaded_factors)
        names = {key.name for key, _ in arrays}
        assert names == ({*shared, "head"} if shared else set())
    start = {}
    for key, x in arrays_of(asked):
        if row.uploaded_factors is not None and key.name not in {*row.uploaded_factors, "head"}:
            assert x.equal(start.setdefault(key, x)), key
    assert bool(start) == (slug in ("fedsa-lora", "local"))
