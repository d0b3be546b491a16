"""What crosses between server and clients in a round, and how many bytes it is.

In the example and person units an upload is private already: each step was clipped and noised. In
the client unit clip and noise are here, on the change of all sent tensors together, at the place
that the trust model names.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab.federated.config import ClientIds, Config
from fedlora_lab.federated.local_training import (
    ClientBatch,
    directions,
    preconditioners,
    released_means,
)
from fedlora_lab.federated.prepared import Prepared
from fedlora_lab.federated.store import RunState
from fedlora_lab.lora.adapters import full_precision
from fedlora_lab.methods.aggregation import MeanUpdate, ServerRule, mean
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.quantization import bytes_of, full, rule_for
from fedlora_lab.methods.state import (
    Keys,
    ParamKey,
    ServerState,
    TensorDict,
    Tensors,
)
from fedlora_lab.privacy.privatizer import ClipCounts


@dataclass(frozen=True)
class Received:
    """What the server has in hand after a round: key -> (rows, ...), empty when nothing arrived.

    A row for each client that arrived, or one, their noised mean, where a sum is released.

    Args:
        uploads: key -> (rows, ...).
        weights: (rows,), fixed before the round.
        noise: key -> (...), the noise in the weighted mean.
        broadcast: what these clients received.
        clip_counts: what the clip of the uploads did.
    """

    uploads: Tensors
    weights: Float[Tensor, " rows"]
    noise: Tensors
    broadcast: ServerState
    clip_counts: ClipCounts = field(default_factory=ClipCounts)

    @classmethod
    def empty(cls, sent: ServerState) -> "Received":
        """What is left of a round in which no upload is used."""
        return cls({}, torch.zeros(0, dtype=torch.float64), {}, sent)


# ---- down


def broadcast(method: Method, server: ServerState) -> ServerState:
    """Encodes the server's tensors as clients receive them, each by its rule (`rule_for`)."""
    # Of released values: an encoding of them costs no privacy.
    rule = method.broadcast
    if rule == full:
        return server
    # Copies: a rule of the user's may write into what it is given.
    tensors = {k: rule_for(k, rule)(x.clone()) for k, x in server.tensors.items()}
    return server.replace_tensors(tensors)


def _one_row(sent: ServerState) -> TensorDict:
    """What was sent, key -> (1, ...): a row that all clients share."""
    return {key: tensor[None] for key, tensor in sent.tensors.items()}


def begin_clients(
    prepared: Prepared,
    ids: ClientIds,
    sent: ServerState,
    personal: Tensors,
) -> ClientBatch:
    """Makes a batch of clients at the start of a round.

    Args:
        prepared, ids: of the run, and the clients.
        sent: what they received.
        personal: key -> (clients, ...), what they kept.
    """
    start = prepared.adapted.on_device(_one_row(sent))
    params = start | prepared.adapted.on_device(personal)
    return ClientBatch(ids, params, start)


# ---- up


def stack_clients(batches: Sequence[ClientBatch], keys: Keys, sent: ServerState) -> ClientBatch:
    """Stacks the batches of a round into one, on the CPU.

    Args:
        batches: clients that trained together.
        keys: the tensors to stack.
        sent: what the server sent.
    """
    # In the order in which the clients were drawn, whatever chunk they trained in.
    ids = tuple(k for batch in batches for k in batch.ids)
    everyone = ClientBatch(ids, {}, _one_row(sent))
    for key in keys:
        like = sent.tensors[key]
        # A batch may have no noise in a tensor, or the same in all clients.
        nothing = like.new_zeros(1, *like.shape)
        for name in ("params", "noise"):
            rows = [nothing[:0]]
            for batch in batches:
                x = getattr(batch, name).get(key, nothing)
                rows.append(x.expand(len(batch.ids), *like.shape).cpu())
            getattr(everyone, name)[key] = torch.cat(rows)
    everyone.clip_counts = sum((batch.clip_counts for batch in batches), ClipCounts()).read()
    return everyone


def release_round(
    prepared: Prepared,
    clients: ClientBatch,
    keys: Keys,
    sent: ServerState,
) -> Received:
    """Releases the uploads of a round as the trust model asks.

    Args:
        prepared: of the run.
        clients: all that trained, stacked.
        keys: what is sent.
        sent: what the server sent; its ``round`` is the round.
    """
    config = prepared.config
    # Fewer shares of noise than sigma was divided into protect less than the ledger says.
    ids = clients.ids
    enough = len(ids) >= config.least_uploads
    # A sum of nothing is released with its noise: silence would tell that nobody took part.
    if not (keys and enough and (ids or config.releases_sum)):
        return Received.empty(sent)
    rows = {key: clients.params[key] for key in keys}
    if not config.releases_steps:
        return _release_updates(prepared, ClientBatch(ids, rows, clients.start), sent)
    # Noised step by step: what is sent is released already.
    noise = {key: clients.noise[key] for key in keys}
    weights = config.weights[list(ids)]
    return Received(rows, weights, _mean(noise, weights), sent)


@full_precision()  # as a local step
def _release_updates(prepared: Prepared, clients: ClientBatch, sent: ServerState) -> Received:
    """Client unit: clips each client's change, adds the noise, goes on from the noised value.

    Args: see `release_round`; clients: with what they send.
    """
    config = prepared.config
    ids = clients.ids
    common = _one_row(sent)
    where, std = config.release_noise(ids, sent.round)
    # Made of what all received: a client's own factors are not noised yet.
    keys = tuple(clients.params)
    certified = prepared.is_certified
    maps = preconditioners(config.method, keys, common, certified, of_change=True)
    if config.releases_sum:
        owner = torch.zeros(len(ids), dtype=torch.int64)
        # The expected number of clients: the true one is not released.
        expected = len(config.task.sizes) * config.plan.participation
        divisor = torch.tensor([expected], dtype=torch.float64)
        weights = torch.ones(1, dtype=torch.float64)
    else:
        owner = torch.arange(len(ids))
        divisor = torch.ones(1)
        weights = config.weights[list(ids)]
    # The change alone: what all know already needs no hiding, and would use up the norm.
    change = {key: x - clients.start[key] for key, x in clients.params.items()}
    zeros = {key: x.new_zeros(len(weights), *x.shape[1:]) for key, x in change.items()}
    basis = directions(config, common, sent.round, keys=tuple(change))
    if basis is not None:
        # Public, as the directions are: an update lies in their span, and has the same norm there,
        # since `make_config` refuses steps that leave it.
        change = basis.along(change)
        zeros = basis.zeros(len(weights))
    # Each client's whole change is clipped before it meets any other's, and before the noise.
    release = prepared.privatizer.update(
        rows=[(change, owner)],
        zeros=zeros,
        std=std,
        streams=config.streams,
        where=where,
        metric=maps,
    )
    value = released_means(release.value, divisor, config.method.filter, basis)
    noise = released_means(release.noise, divisor, config.method.filter, basis)
    # The received value plus the noised change: a client's own tensors, un-noised, do not leave it.
    return Received(
        uploads={key: common[key] + x for key, x in value.items()},
        weights=weights,
        noise=_mean(noise, weights),
        broadcast=sent,
        clip_counts=release.counts,
    )


def privatize(prepared: Prepared, client: ClientBatch, keys: Keys, sent: ServerState) -> TensorDict:
    """Makes what one client sends, key -> (...): clipped and noised if the run is private.

    The trust is "local", as `fedlora_lab.flower.Participant.of` makes sure.

    Args:
        prepared: of the run.
        client: a batch of this client alone, which has trained.
        keys: what is sent.
        sent: what the server sent.
    Guarantees: as `release_round` (test_flower.py::test_messages_give_the_run_of_the_loop).
    """
    received = release_round(prepared, client, keys, sent)
    return {key: rows[0] for key, rows in received.uploads.items()}


def combine(config: Config, ids: ClientIds, rows: Tensors, sent: ServerState) -> Received:
    """Combines uploads made by `privatize`, whose noise is not known here.

    Args:
        config, ids: of the run, and the clients whose uploads arrived.
        rows: key -> (clients, ...).
        sent: what the server sent.
    """
    if not rows or not ids:
        return Received.empty(sent)
    return Received(rows, config.weights[list(ids)], {}, sent)


def _mean(noise: Tensors, weights: Tensor) -> TensorDict:
    """Weights the noise as the mean of the uploads does."""
    return {k: (weights.to(x.dtype) @ x.flatten(1)).view(x.shape[1:]) for k, x in noise.items()}


# ---- bytes


FLOAT_BYTES = 4
"""Bytes of a number that is sent as it is, in float32."""


class Traffic(NamedTuple):
    """Numbers and bytes in a round, summed over its clients; NaN where they would tell how many."""

    numbers_up: float = 0
    bytes_up: float = 0
    numbers_down: float = 0
    bytes_down: float = 0


class TrafficCounter:
    """Counts the numbers and bytes of rounds, over all their clients.

    Down: what the server changed since a client last received it. The start is known to all and
    costs nothing, unless the broadcast alters it: then a client's first copy is sent. A residual
    goes down as factors of the rank by which it changed, or whole where that is less. Up: what the
    server's rule asks for in place of the keys that are sent. Of a row that measures differences:
    the numbers along its directions, both ways, where there are fewer of them.

    Args:
        config: of the run.
        tensors: the server's, whose shapes count.

    Guarantees: tests/lab/methods/test_quantization.py::test_traffic_by_hand.
    """

    def __init__(self, config: Config, tensors: Tensors) -> None:
        self.config = config
        rule = config.method.aggregate
        # A function that is no `ServerRule` is sent what a mean is sent.
        self.rule = rule if isinstance(rule, ServerRule) else MeanUpdate()
        coding = config.method.broadcast
        self.coded = {key for key in tensors if rule_for(key, coding) != full}
        # Numbers of one client along the directions of a round; 0 where a row has none.
        measured = config.method.differences
        self.along = 0 if measured is None else measured.directions * config.plan.local_steps
        # A mean of steps that are linear in these numbers follows from the mean of the numbers.
        linear = config.method.aggregate == mean and not config.plan.optimizer.nonlinear
        self.follows = bool(self.along) and linear and not self.coded
        self.shapes = {key: tuple(x.shape) for key, x in tensors.items()}
        # Bytes that each tensor takes down, and numbers that go down beside them.
        self.bytes_down = {
            key: bytes_of(prod(shape), rule_for(key, coding))
            for key, shape in self.shapes.items()
            if key.kind.sent_down
        }
        self.beside = sum(self.rule.extra_download_sizes(self.shapes))

    def numbers_up(self, keys: Keys) -> int:
        """Counts what a client sends. Args: keys: what is sent."""
        numbers = sum(self.rule.upload_sizes(self.shapes, keys))
        # The directions are known: what was moved along them follows from the numbers.
        return min(numbers, self.along) if self.along else numbers

    def numbers_and_bytes_down(
        self, missed: Mapping[ParamKey, int], first: bool, rounds: int = 1
    ) -> tuple[int, int]:
        """Counts what a client receives.

        Args:
            missed: what has changed since it last received something, each by which rank.
            first: it has nothing yet.
            rounds: in how many rounds that was.
        """
        numbers = self.beside
        size = FLOAT_BYTES * numbers
        for key, size_of_key in self.bytes_down.items():
            if key in missed or (first and key in self.coded):
                shape = self.shapes[key]
                count = prod(shape)
                if key.name == "W":
                    count = min(count, missed[key] * sum(shape))
                    size_of_key = FLOAT_BYTES * count
                numbers += count
                size += size_of_key
        if self.follows and rounds * self.along < numbers:
            numbers = rounds * self.along
            size = FLOAT_BYTES * numbers
        return numbers, size

    def count(
        self, state: RunState, clients: Sequence[int], senders: Sequence[int], keys: Keys
    ) -> Traffic:
        """Counts the round that starts in ``state``.

        Args:
            state: of the run.
            clients, senders: who takes part, and whose upload is not lost, by number.
            keys: what is sent up.
        """
        # A lost upload reached nobody and is not counted.
        up = len(senders) * self.numbers_up(keys)
        numbers_down = 0
        bytes_down = 0
        receivers = Counter(state.seen[k] for k in clients)
        for seen, count in receivers.items():
            # Changes of the rounds in which it did not take part come down with the next broadcast.
            missed: Counter[ParamKey] = Counter()
            changes = state.changed[max(seen, 0) :]
            for change in changes:
                missed.update(change)
            numbers, size = self.numbers_and_bytes_down(missed, seen < 0, len(changes))
            numbers_down += count * numbers
            bytes_down += count * size
        return Traffic(up, FLOAT_BYTES * up, numbers_down, bytes_down)
