"""What crosses between server and clients in a round, and how many bytes it is.

In the example and person units an upload is private already: each step was clipped and noised. In
the client unit clip and noise are here, on the change of all sent tensors together, at the place
that the trust model names.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab._utils.torch_state import full_precision
from fedlora_lab.federated.config import ClientIds, Config
from fedlora_lab.federated.local_training import (
    ClientBatch,
    directions,
    preconditioners,
    released_means,
)
from fedlora_lab.federated.prepared import Prepared
from fedlora_lab.federated.store import RunState
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
        clip_counts: what the clip of the uploads did.
    """

    uploads: Tensors
    weights: Float[Tensor, " rows"]
    noise: Tensors
    clip_counts: ClipCounts = field(default_factory=ClipCounts)

    @classmethod
    def empty(cls) -> "Received":
        """What is left of a round in which no upload is used."""
        return cls({}, torch.zeros(0, dtype=torch.float64), {})


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
        return Received.empty()
    rows = {key: clients.params[key] for key in keys}
    if not config.releases_steps:
        return _release_updates(prepared, ClientBatch(ids, rows, clients.start), sent)
    # Noised step by step: what is sent is released already.
    noise = {key: clients.noise[key] for key in keys}
    weights = config.weights[list(ids)]
    return Received(rows, weights, _mean(noise, weights))


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


def receive_uploads(config: Config, ids: ClientIds, rows: Tensors) -> Received:
    """Takes uploads that `privatize` made, whose noise is not known here.

    Args:
        config, ids: of the run, and the clients whose uploads arrived.
        rows: key -> (clients, ...).
    """
    if not rows or not ids:
        return Received.empty()
    return Received(rows, config.weights[list(ids)], {})


def _mean(noise: Tensors, weights: Tensor) -> TensorDict:
    """Weights the noise as the mean of the uploads does."""
    return {k: (weights.to(x.dtype) @ x.flatten(1)).view(x.shape[1:]) for k, x in noise.items()}


# ---- bytes


FLOAT_BYTES = 4
"""Bytes of a number that is sent as it is, in float32."""


class Traffic(NamedTuple):
    """What a round sends, summed over its clients; NaN where it would tell how many they are.

    Args:
        numbers_up, bytes_up: from the clients to the server.
        numbers_down, bytes_down: from the server to the clients.
    """

    numbers_up: float = 0
    bytes_up: float = 0
    numbers_down: float = 0
    bytes_down: float = 0


def changed_at_start(method: Method, tensors: Tensors) -> dict[ParamKey, int]:
    """What a client needs before the first round: what the broadcast alters of the common start."""
    coded = [key for key in tensors if rule_for(key, method.broadcast) != full]
    return dict.fromkeys(coded, 0)


def count_traffic(
    config: Config, state: RunState, receivers: int, senders: int, keys: Keys
) -> Traffic:
    """Counts the round that starts in a state.

    Up: what the server's rule asks for in place of the keys that are sent. Down: ``state.changed``;
    a residual goes down as factors of the rank by which it changed, or whole where that is less. Of
    a row that measures differences: the numbers along its directions, both ways, where there are
    fewer of them.

    Args:
        config, state: of the run.
        receivers, senders: how many take part, and how many uploads are not lost.
        keys: what is sent up.

    Guarantees: tests/lab/methods/test_quantization.py::test_traffic_by_hand.
    """
    method = config.method
    # A function that is no `ServerRule` is sent what a mean is sent.
    rule = method.aggregate if isinstance(method.aggregate, ServerRule) else MeanUpdate()
    shapes = {key: tuple(x.shape) for key, x in state.server.tensors.items()}
    up = sum(rule.upload_sizes(shapes, keys))
    down = sum(rule.extra_download_sizes(shapes))
    size = FLOAT_BYTES * down
    for key, rank in state.changed.items():
        if key.kind.sent_down:
            numbers = prod(shapes[key])
            if key.name == "W":
                numbers = min(numbers, rank * sum(shapes[key]))
            down += numbers
            size += bytes_of(numbers, rule_for(key, method.broadcast))
    if method.differences is not None:
        # The directions are known: what was moved along them follows from the numbers.
        along = method.differences.directions * config.plan.local_steps
        up = min(up, along)
        # A mean of steps that are linear in these numbers follows from the mean of the numbers.
        linear = method.aggregate == mean and not config.plan.optimizer.nonlinear
        if linear and method.broadcast == full:
            rounds = 1 if config.plan.participation == 1 else state.server.round
            down = min(down, rounds * along)
            size = FLOAT_BYTES * down
    return Traffic(senders * up, FLOAT_BYTES * senders * up, receivers * down, receivers * size)
