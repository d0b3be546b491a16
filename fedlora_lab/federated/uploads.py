"""What crosses between server and clients in a round, and how many bytes it is.

In the example unit an upload is private already: each step was clipped and noised. In the client
unit clip and noise are here, on the change of all sent tensors together, at the place that the
trust model names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab._utils.validation import check
from fedlora_lab.federated import local_training
from fedlora_lab.federated.checkpoint import RunState
from fedlora_lab.federated.local_training import ClientBatch, ClientParams, RunContext, ranks_of
from fedlora_lab.lora import peft
from fedlora_lab.lora.peft import matmuls
from fedlora_lab.methods.aggregation import Rule
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.quantization import Traffic, bytes_of, full, rule_for
from fedlora_lab.methods.state import (
    ParamKey,
    ServerState,
    cut_to_rank,
    merge_own_ranks,
    shape_at_rank,
    shared_rank,
)
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.privacy.privatizer import ClipCounts
from fedlora_lab.tasks.task import Task

SERVER = -1
"""In the place of a client's number: the stream of the server's own noise."""


@dataclass(frozen=True)
class Received:
    """What the server has in hand after a round: key -> (rows, ...), empty when nothing arrived.

    A row for each client that arrived, or one, their noised mean, where it may see a sum only.
    """

    uploads: Mapping[ParamKey, Tensor]
    weights: Float[Tensor, " rows"]  # fixed before the round
    noise: Mapping[ParamKey, Tensor]  # key -> (...), in the weighted mean
    sent: ServerState  # at the start: (rows, ...) where clients have unequal ranks
    per_client: bool = True  # each client's upload is seen by itself
    clipped: ClipCounts = field(default_factory=ClipCounts)  # by the clip of the uploads

    @classmethod
    def empty(cls, sent: ServerState) -> "Received":
        """What is left of a round in which no upload is used."""
        return cls({}, torch.zeros(0, dtype=torch.float64), {}, sent)


class RoundKeys(NamedTuple):
    """The tensors of a round: those that train, those sent up, those that stay in part or whole."""

    moved: tuple[ParamKey, ...]
    sent: tuple[ParamKey, ...]
    kept: tuple[ParamKey, ...]


def tensors_received(context: RunContext, ids: tuple[int, ...], sent: ServerState) -> ClientParams:
    """Cuts what was sent to these clients' ranks: key -> (1, ...), (clients, ...) if they differ.

    Args:
        context, ids: of the run, and the clients.
        sent: what the server sent.
    """
    whole = {key: tensor[None] for key, tensor in sent.tensors.items()}
    return cut_to_rank(whole, ranks_of(context, ids))


def broadcast(context: RunContext, server: ServerState) -> ServerState:
    """Encodes the server's tensors as clients receive them, each by its rule (`rule_for`)."""
    rule = context.method.broadcast
    return server.replace_tensors({k: rule_for(k, rule)(x) for k, x in server.tensors.items()})


def round_keys(context: RunContext, values: Mapping[ParamKey, Tensor], t: int) -> RoundKeys:
    """Reads the keys of a round from the schedule and the modes that the clients received.

    Args:
        context, t: of the run, and the round.
        values: the server's tensors.
    """
    method, steps = context.method, context.plan.local_steps
    moved = local_training.moving_keys(values, method.sides_in_round(t, steps))
    sent = tuple(key for key in moved if method.is_shared(key))
    split = [key for key in sent if method.own_ranks and key.kind.rank_axes]
    return RoundKeys(moved, sent, tuple(key for key in moved if key not in sent or key in split))


def begin_clients(
    context: RunContext,
    ids: tuple[int, ...],
    sent: ServerState,
    personal: Mapping[ParamKey, Tensor],
) -> ClientBatch:
    """Makes a batch of clients at the start of a round.

    Args:
        context, ids: of the run, and the clients.
        sent: what they received.
        personal: key -> (clients, ...), what they kept.
    """
    method, start = context.method, tensors_received(context, ids, sent)
    params, rank = dict(start), shared_rank(context.rank, method.own_ranks)
    for key, own in personal.items():
        split = method.own_ranks and key.kind.rank_axes and method.is_shared(key)
        params[key] = merge_own_ranks(key, start[key], own, rank) if split else own

    def placed(values: ClientParams) -> ClientParams:
        there = context.adapted.device  # the schedule reads modes: they stay here
        keep = {key: x for key, x in values.items() if key.side == "mode"}
        return {key: x.to(there, non_blocking=True) for key, x in values.items()} | keep

    return ClientBatch(ids, placed(params), placed(start))


def stack_clients(
    context: RunContext, groups: list[ClientBatch], keys: tuple[ParamKey, ...], sent: ServerState
) -> ClientBatch:
    """Stacks the groups of a round into one, on the processor.

    Args:
        context, groups: of the run, and clients that trained together.
        keys: the tensors to stack.
        sent: what the server sent.
    """

    def stacked(key: ParamKey, name: str) -> Tensor:
        parts = []
        for group in groups:
            like, own = group.params[key], getattr(group, name).get(key)
            shape = (len(group.ids), *like.shape[1:])
            parts.append(like.new_zeros(shape) if own is None else own.expand(shape))
        return torch.cat(parts).cpu() if parts else sent.tensors[key][None][:0]

    ids = tuple(k for group in groups for k in group.ids)
    params, noise = ({key: stacked(key, name) for key in keys} for name in ("params", "noise"))
    clipped = sum((group.clipped for group in groups), ClipCounts()).read()
    return ClientBatch(
        ids,
        params,
        tensors_received(context, ids, sent),
        noise,
        clipped=clipped,
    )


def release_round(
    context: RunContext,
    clients: ClientBatch,
    arrived: Tensor,
    keys: tuple[ParamKey, ...],
    sent: ServerState,
    t: int,
    single_client: bool = False,
) -> Received:
    """Releases the uploads of round t as the trust model asks.

    Args:
        context, t: of the run, and the round.
        clients: all that trained, stacked.
        arrived: positions in ``clients.ids`` of those whose upload is not lost.
        keys: what is sent.
        sent: what the server sent, before a lower rank cut it.
        single_client: one client sends for itself, and does not know how many others do.
    """
    # Fewer shares of noise than sigma was divided into protect less than the ledger says.
    if not single_client and too_few_uploads(context, len(arrived)):
        return Received.empty(sent)
    method, privacy = context.method, context.privacy
    ids = tuple(clients.ids[i] for i in arrived.tolist())
    start = {key: x if len(x) == 1 else x[arrived] for key, x in clients.start.items()}
    rows, rank = {key: clients.params[key][arrived] for key in keys}, None
    if method.own_ranks:  # the last ranks are the client's own: they go up as they came down
        rank = shared_rank(context.rank, method.own_ranks)
        ranked = [key for key in rows if key.kind.rank_axes]
        rows |= {key: merge_own_ranks(key, rows[key], start[key], rank) for key in ranked}
    # A sum of nothing is released with its noise: silence would tell that nobody took part.
    summed = not context.by_step and privacy is not None and privacy.trust != "local"
    if not rows or not (ids or summed):
        return Received.empty(sent)
    if not context.by_step:
        batch = ClientBatch(ids, rows, start)
        return _release_updates(context, batch, sent, rank, t)
    drawn = {key: clients.noise[key][arrived] for key in keys}
    drawn = cut_to_rank(drawn, None if rank is None else torch.tensor([rank]))
    weights = _weights(context, ids)
    return Received(rows, weights, _mean(drawn, weights), _row_by_row(sent, start))


def privatize(
    context: RunContext, client: ClientBatch, keys: tuple[ParamKey, ...], sent: ServerState, t: int
) -> dict[ParamKey, Tensor]:
    """Makes what one client sends, key -> (...): clipped and noised if the run is private.

    Under secure aggregation with its share of the noise: only the sum of all is protected in full.

    Args:
        context, t: of the run, and the round.
        client: a batch of this client alone, which has trained.
        keys: what is sent.
        sent: what the server sent.
    Raises: ``ValueError`` where a trusted server would clip and noise.
    Guarantees: as `release_round` (test_flower.py::test_messages_give_the_run_of_the_loop).
    """
    trust = None if context.privacy is None else context.privacy.trust
    expected = "'local' or 'secagg': a client that sends for itself noises for itself"
    check(trust != "central", "trust", trust, expected)
    found = release_round(context, client, torch.arange(1), keys, sent, t, single_client=True)
    return {key: rows[0] for key, rows in found.uploads.items()}


def combine(
    context: RunContext, ids: tuple[int, ...], rows: Mapping[ParamKey, Tensor], sent: ServerState
) -> Received:
    """Combines uploads made by `privatize`, whose noise is not known here.

    Under secure aggregation nothing but their sum is used.

    Args:
        context, ids: of the run, and the clients whose uploads arrived.
        rows: key -> (clients, ...).
        sent: what the server sent.
    """
    if not rows or not ids or too_few_uploads(context, len(ids)):
        return Received.empty(sent)
    if _only_sum(context.privacy):
        # An upload is the reference plus a noised share: the sum has the reference once only.
        base = {key: context.method.clip_reference(sent.tensors[key][None]) for key in rows}
        total = {key: base[key] + (x - base[key]).sum(0, keepdim=True) for key, x in rows.items()}
        return Received(total, torch.ones(1, dtype=torch.float64), {}, sent, per_client=False)
    start = tensors_received(context, ids, sent)
    return Received(rows, _weights(context, ids), {}, _row_by_row(sent, start))


def too_few_uploads(context: RunContext, uploads: int) -> bool:
    """Whether a sum of so many uploads holds less noise than the ledger says."""
    privacy = context.privacy
    if privacy is None or not _only_sum(privacy):
        return False
    # Those who collude upload as well, and know their own noise: their shares hide nothing.
    return uploads < context.noise_levels.shares + privacy.colluding


def _only_sum(privacy: Privacy | None) -> bool:
    return privacy is not None and privacy.server_sees_only_sum


def _row_by_row(sent: ServerState, start: Mapping[ParamKey, Tensor]) -> ServerState:
    """The state that was sent, with a row for each client where they received different ranks."""
    return sent if all(len(x) == 1 for x in start.values()) else sent.replace_tensors(start)


def _weights(context: RunContext, ids: tuple[int, ...]) -> Float[Tensor, " rows"]:
    """w_k = p_k / participation: absent clients leave their weight to the old state."""
    # The denominator is fixed: one that counted who came would change the sensitivity.
    sizes, plan = context.units, context.plan
    share = [1 / len(sizes) if plan.weights == "uniform" else sizes[k] / sum(sizes) for k in ids]
    return torch.tensor(share, dtype=torch.float64) / plan.participation


def _mean(drawn: Mapping[ParamKey, Tensor], weights: Tensor) -> ClientParams:
    """Weights the noise as the mean of the uploads does."""
    means = {key: weights.to(x.dtype) @ x.flatten(1) for key, x in drawn.items()}
    return {key: means[key].view(x.shape[1:]) for key, x in drawn.items()}


@matmuls("float32")  # as a local step
def _release_updates(
    context: RunContext, clients: ClientBatch, sent: ServerState, rank: int | None, t: int
) -> Received:
    """Client unit: clips each client's change, adds the noise, goes on from the noised value."""
    method, privacy, level = context.method, context.privacy, context.noise_levels
    ids, rows, start = clients.ids, clients.params, clients.start
    assert privacy is not None
    noised_alone, streams = privacy.trust == "local", context.streams
    whole = {key: x[None] for key, x in sent.tensors.items()}
    # From what all received: a client's own factors are not noised yet.
    certified = context.uncertified is None
    maps = local_training.preconditioners(method, tuple(rows), whole, certified)
    owner = torch.arange(len(ids)) if noised_alone else torch.zeros(len(ids), dtype=torch.int64)
    # By default the change alone: what all know already needs no hiding, and would use up the norm.
    change = {key: x - method.clip_reference(start[key]) for key, x in rows.items()}
    owners = len(ids) if noised_alone else 1
    zeros = {key: x.new_zeros(owners, *x.shape[1:]) for key, x in change.items()}
    # Each client's noise is from its own stream, so that it is the same whoever else takes part.
    std = [level.each] * len(ids)
    where = [(t, k, 0) for k in ids]
    rank_limit, reference, weights = None, start, _weights(context, ids)
    if noised_alone:
        rank_limit = ranks_of(context, ids)
    else:
        if privacy.trust == "central":
            std = [level.server]
            where = [(t, SERVER, 0)]
        reference, weights = whole, torch.ones(1, dtype=torch.float64)
    # Each client's whole change is clipped before it meets any other's, and before the noise.
    noised = context.update_privatizer.update(
        [(change, owner)], zeros, std, {}, streams, where, maps
    )
    if rank is not None:
        shared = torch.tensor([rank])
        rank_limit = shared if rank_limit is None else rank_limit.clamp(max=rank)
    found = []
    for part in (noised.value, noised.noise):
        if not noised_alone:
            # The expected number of clients: the true one is not released.
            expected = len(context.task.sizes) * context.plan.participation
            part = {key: x / expected for key, x in part.items()}
        # After the noise a filter is post-processing; before it would change the sensitivity.
        part |= {key: method.filter(x, key.side) for key, x in part.items() if key.side in "AB"}
        found.append(cut_to_rank(part, rank_limit))
    released, drawn = found
    # The received value plus the noised change: a client's own tensors, un-noised, do not leave it.
    uploads = {key: method.clip_reference(reference[key]) + x for key, x in released.items()}
    noise = _mean(drawn, weights)
    rest = _row_by_row(sent, reference), noised_alone, noised.counts
    return Received(uploads, weights, noise, *rest)


def count_traffic(
    method: Method,
    lora: Lora,
    state: RunState,
    clients: Sequence[int],
    arrived: Sequence[int],
    keys: Sequence[ParamKey],
    privacy: Privacy | None = None,
) -> Traffic:
    """Counts the numbers and bytes of the round that starts in ``state``, over all its clients.

    Down: what the server changed since a client last received it. The start is known to all and
    costs nothing, unless the broadcast alters it: then a client's first copy is sent. A residual
    goes down as factors of the rank by which it changed, or whole where that is less. Up: what the
    server's rule asks for in place of ``keys``.

    Args:
        method, lora, state, privacy: of the run.
        clients, arrived: who takes part, and whose upload is not lost.
        keys: what is sent up.

    Guarantees: tests/methods/test_quantization.py::test_traffic_by_hand.
    """
    rule: Any = method.aggregate if isinstance(method.aggregate, Rule) else Rule()

    def shapes(rank: int) -> dict[ParamKey, tuple[int, ...]]:
        return {key: shape_at_rank(key, x.shape, rank) for key, x in state.server.tensors.items()}

    @cache  # one for all clients of a rank
    def up(rank: int) -> Traffic:
        sizes = rule.upload_sizes(shapes(rank), keys) if keys else []
        return Traffic(sum(sizes), bytes_of(sizes))

    @cache  # one for all of them who last received in the same round
    def down(rank: int, seen: int) -> Traffic:
        own, missed, first = shapes(rank), state.changed[max(seen, 0) :], seen < 0
        coded, rest = [], []
        for key, shape in own.items():
            ranks = [change[str(key)] for change in missed if str(key) in change]
            altered = first and rule_for(key, method.broadcast) != full
            if key.kind.sent_down and (ranks or altered):
                size = min(prod(shape), sum(ranks) * sum(shape)) if key.side == "W" else prod(shape)
                (rest if rule_for(key, method.broadcast) == full else coded).append(size)
        rest += rule.extra_download_sizes(own)
        size = bytes_of(coded, method.broadcast) + bytes_of(rest)
        return Traffic(0, 0, sum(coded + rest), size)

    loads = [up(rank_sent(method, lora, k, privacy)) for k in arrived]
    loads += [down(rank_sent(method, lora, k, None), state.seen[k]) for k in clients]
    return sum(loads, Traffic())


def rank_sent(method: Method, lora: Lora, k: int, privacy: Privacy | None) -> int:
    """Counts the shared ranks that client k sends: its own, or all under secure aggregation.

    Under secure aggregation each client adds its share of the noise in every rank of the sum. Were
    a share cut to the ranks that its client holds, those that few clients hold would carry a part
    of the noise, and one client's whole change.

    Args:
        method, lora, privacy: of the run.
        k: the client's number.
    Guarantees: test_attack_secagg.py::test_clients_of_low_rank_add_their_noise_to_every_rank.
    """
    shared = shared_rank(lora.rank, method.own_ranks)
    return shared if _only_sum(privacy) or lora.ranks is None else min(lora.ranks[k], shared)


def bytes_of_round(task: Task, method: Method, lora: Lora, plan: Plan) -> tuple[int, int]:
    """Bytes of one client in a round, up and down, the mean over two rounds.

    What moves and is shared goes up, and comes down as the method broadcasts it.

    Args: task, method, lora, plan: as of `run`.
    """
    shapes = peft.adapt(task.model, task.targets, task.head, lora).initial
    up, down = 0, 0
    for t in range(2):  # schedules take turns
        keys = local_training.moving_keys(shapes, method.sides_in_round(t, plan.local_steps))
        sent = [key for key in keys if method.is_shared(key)]
        factors = [shapes[key].numel() for key in sent if key.kind.scheduled]
        head = [shapes[key].numel() for key in sent if not key.kind.scheduled]
        up += bytes_of(factors + head)
        down += bytes_of(factors, method.broadcast) + bytes_of(head)
    return up // 2, down // 2
