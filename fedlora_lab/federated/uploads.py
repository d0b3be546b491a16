"""What crosses between server and clients in a round, and how many bytes it is.

In the example unit an upload is private already: each step was clipped and noised. In the client
unit clip and noise are here, on the change of all sent tensors together, at the place that the
trust model names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check
from fedlora_lab.federated.checkpoint import RunState
from fedlora_lab.federated.local_training import (
    ClientBatch,
    ClientParams,
    moving_keys,
    preconditioners,
    ranks_of,
)
from fedlora_lab.federated.spec import Prepared, RunSpec
from fedlora_lab.lora import adapters
from fedlora_lab.lora.adapters import matmuls
from fedlora_lab.methods.aggregation import MeanUpdate, Rule
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.quantization import Traffic, bytes_of, full, rule_for
from fedlora_lab.methods.state import (
    Keys,
    ParamKey,
    ServerState,
    cut_to_rank,
    merge_own_ranks,
    shape_at_rank,
    shared_rank,
)
from fedlora_lab.privacy.ledger import per_client
from fedlora_lab.privacy.privatizer import ClipCounts, State
from fedlora_lab.tasks.task import Task

SERVER = -1
"""In the place of a client's number: the stream of the server's own noise."""


@dataclass(frozen=True)
class Received:
    """What the server has in hand after a round: key -> (rows, ...), empty when nothing arrived.

    A row for each client that arrived, or one, their noised mean, where it may see a sum only.

    Args:
        uploads: key -> (rows, ...).
        weights: (rows,), fixed before the round.
        noise: key -> (...), the noise in the weighted mean.
        sent: what these clients received: (rows, ...) where they have unequal ranks.
        per_client: each client's upload is seen by itself.
        clipped: what the clip of the uploads did.
        privatizer: the state of the release of their sum; ``None``: nothing was released so.
    """

    uploads: Mapping[ParamKey, Tensor]
    weights: Float[Tensor, " rows"]
    noise: Mapping[ParamKey, Tensor]
    sent: ServerState
    per_client: bool = True
    clipped: ClipCounts = field(default_factory=ClipCounts)
    privatizer: State | None = None

    @classmethod
    def empty(cls, sent: ServerState) -> "Received":
        """What is left of a round in which no upload is used."""
        return cls({}, torch.zeros(0, dtype=torch.float64), {}, sent)


class RoundKeys(NamedTuple):
    """The tensors of a round: those that train, those sent up, those that stay in part or whole."""

    moved: Keys
    uploaded: Keys
    kept: Keys


def round_keys(spec: RunSpec, values: Mapping[ParamKey, Tensor], t: int) -> RoundKeys:
    """Reads the keys of a round from the schedule and the modes that the clients received.

    Args:
        spec, t: of the run, and the round.
        values: the server's tensors.
    """
    method = spec.method
    moved = moving_keys(values, method.sides_in_round(t, spec.plan.local_steps))
    uploaded = tuple(key for key in moved if method.is_shared(key))
    kept = tuple(key for key in moved if key not in uploaded or _is_split(method, key))
    return RoundKeys(moved, uploaded, kept)


def _is_split(method: Method, key: ParamKey) -> bool:
    """Whether the last ranks of a tensor that is sent stay with their client."""
    return bool(method.own_ranks and key.kind.rank_axes)


# ---- down


def broadcast(method: Method, server: ServerState) -> ServerState:
    """Encodes the server's tensors as clients receive them, each by its rule (`rule_for`)."""
    # Of released values: an encoding of them costs no privacy.
    rule = method.broadcast
    return server.replace_tensors({k: rule_for(k, rule)(x) for k, x in server.tensors.items()})


def tensors_received(spec: RunSpec, ids: tuple[int, ...], sent: ServerState) -> ClientParams:
    """Cuts what was sent to these clients' ranks: key -> (1, ...), (clients, ...) if they differ.

    Args:
        spec, ids: of the run, and the clients.
        sent: what the server sent.
    """
    # One row for all where nothing tells them apart: memory does not grow with the clients.
    common = {key: tensor[None] for key, tensor in sent.tensors.items()}
    return cut_to_rank(common, ranks_of(spec, ids))


def begin_clients(
    prepared: Prepared,
    ids: tuple[int, ...],
    sent: ServerState,
    personal: Mapping[ParamKey, Tensor],
) -> ClientBatch:
    """Makes a batch of clients at the start of a round.

    Args:
        prepared, ids: of the run, and the clients.
        sent: what they received.
        personal: key -> (clients, ...), what they kept.
    """
    method = prepared.spec.method
    start = tensors_received(prepared.spec, ids, sent)
    params = dict(start)
    rank = shared_rank(prepared.spec.lora.rank, method.own_ranks)
    for key, values in personal.items():
        split = _is_split(method, key) and method.is_shared(key)
        params[key] = merge_own_ranks(key, start[key], values, rank) if split else values
    device = prepared.adapted.device
    here = _to_device(params, device)
    shapes = {key: x.shape[1:] for key, x in here.items()}
    state = prepared.step_privatizer.init(shapes, len(ids))
    return ClientBatch(ids, here, _to_device(start, device), privatizer=state)


def _to_device(values: ClientParams, device: torch.device) -> ClientParams:
    """The tensors on a device; modes stay on the processor, where the schedule reads them."""
    moved = {}
    for key, x in values.items():
        moved[key] = x if key.side == "mode" else x.to(device, non_blocking=True)
    return moved


# ---- up


def stack_clients(
    prepared: Prepared, batches: Sequence[ClientBatch], keys: Keys, sent: ServerState
) -> ClientBatch:
    """Stacks the batches of a round into one, on the processor.

    Args:
        prepared, batches: of the run, and clients that trained together.
        keys: the tensors to stack.
        sent: what the server sent.
    """
    # In the order in which the clients were drawn, whatever chunk they trained in.
    ids = tuple(k for batch in batches for k in batch.ids)
    params: ClientParams = {}
    noise: ClientParams = {}
    for key in keys:
        like = sent.tensors[key]
        params[key] = _stacked([(batch.ids, batch.params.get(key)) for batch in batches], like)
        noise[key] = _stacked([(batch.ids, batch.noise.get(key)) for batch in batches], like)
    clipped = sum((batch.clipped for batch in batches), ClipCounts()).read()
    start = tensors_received(prepared.spec, ids, sent)
    return ClientBatch(ids, params, start, noise, clipped=clipped)


def _stacked(parts: Sequence[tuple[tuple[int, ...], Tensor | None]], like: Tensor) -> Tensor:
    """Stacks each batch's tensor, zeros where it has none: (clients, ...)."""
    rows = [like[None][:0]]
    for ids, x in parts:
        shape = (len(ids), *like.shape)
        rows.append(like.new_zeros(shape) if x is None else x.expand(shape).cpu())
    return torch.cat(rows)


def release_round(
    prepared: Prepared,
    clients: ClientBatch,
    arrived: Int[Tensor, " n"],
    keys: Keys,
    sent: ServerState,
    single_client: bool = False,
    state: State | None = None,
) -> Received:
    """Releases the uploads of a round as the trust model asks.

    Args:
        prepared: of the run.
        clients: all that trained, stacked.
        arrived: positions in ``clients.ids`` of those whose upload is not lost.
        keys: what is sent.
        sent: what the server sent, before a lower rank cut it; its ``round`` is the round.
        single_client: one client sends for itself, and does not know how many others do.
        state: of the releases of the sums of updates so far; ``None``: none yet.
    """
    spec = prepared.spec
    # Fewer shares of noise than sigma was divided into protect less than the ledger says.
    if not single_client and too_few_uploads(spec, len(arrived)):
        return Received.empty(sent)
    # A sum of nothing is released with its noise: silence would tell that nobody took part.
    summed = spec.privacy is not None and not spec.by_step and spec.privacy.trust != "local"
    if not keys or not (len(arrived) or summed):
        return Received.empty(sent)
    ids = tuple(clients.ids[i] for i in arrived.tolist())
    start = {key: x if len(x) == 1 else x[arrived] for key, x in clients.start.items()}
    rows = {key: clients.params[key][arrived] for key in keys}
    shared = None
    if spec.method.own_ranks:  # the last ranks are the client's own: they go up as they came down
        rank = shared_rank(spec.lora.rank, spec.method.own_ranks)
        shared = torch.tensor([rank])
        for key in keys:
            if key.kind.rank_axes:
                rows[key] = merge_own_ranks(key, rows[key], start[key], rank)
    if not spec.by_step:
        return _release_updates(prepared, ClientBatch(ids, rows, start), sent, shared, state)
    noise = cut_to_rank({key: clients.noise[key][arrived] for key in keys}, shared)
    weights = _weights(spec, ids)
    return Received(rows, weights, _mean(noise, weights), _row_by_row(sent, start))


@matmuls("float32")  # as a local step
def _release_updates(
    prepared: Prepared,
    clients: ClientBatch,
    sent: ServerState,
    shared: Tensor | None,
    state: State | None,
) -> Received:
    """Client unit: clips each client's change, adds the noise, goes on from the noised value.

    Args:
        prepared, sent, state: as of `release_round`.
        clients: those whose upload arrived, with what they send.
        shared: (1,), the ranks that are sent where clients keep some.
    """
    spec = prepared.spec
    method = spec.method
    assert spec.privacy is not None
    # Each upload has noise of its own; otherwise the sum has, and is all that the server sees.
    alone = spec.privacy.trust == "local"
    common = {key: x[None] for key, x in sent.tensors.items()}
    # From what all received: a client's own factors are not noised yet.
    maps = preconditioners(method, tuple(clients.params), common, spec.uncertified is None)
    count = len(clients.ids)
    owner = torch.arange(count) if alone else torch.zeros(count, dtype=torch.int64)
    start = clients.start
    # By default the change alone: what all know already needs no hiding, and would use up the norm.
    change = {key: x - method.clip_reference(start[key]) for key, x in clients.params.items()}
    owners = count if alone else 1
    std, where = _update_noise(spec, clients.ids, sent.round)
    zeros = {key: x.new_zeros(owners, *x.shape[1:]) for key, x in change.items()}
    # Of a sum there is one owner in all rounds; single uploads are of whoever takes part.
    if state is None or alone:
        state = prepared.update_privatizer.init({k: x.shape[1:] for k, x in zeros.items()}, owners)
    # Each client's whole change is clipped before it meets any other's, and before the noise.
    release = prepared.update_privatizer.update(
        rows=[(change, owner)],
        zeros=zeros,
        std=std,
        state=state,
        streams=spec.streams,
        where=where,
        metric=maps,
    )
    limit = _ranks_released(spec, clients.ids, shared, alone)
    released = _finish_updates(spec, release.value, limit, alone)
    noise = _finish_updates(spec, release.noise, limit, alone)
    reference = start if alone else common
    # The received value plus the noised change: a client's own tensors, un-noised, do not leave it.
    uploads = {key: method.clip_reference(reference[key]) + x for key, x in released.items()}
    weights = _weights(spec, clients.ids) if alone else torch.ones(1, dtype=torch.float64)
    return Received(
        uploads=uploads,
        weights=weights,
        noise=_mean(noise, weights),
        sent=_row_by_row(sent, reference),
        per_client=alone,
        clipped=release.counts,
        privatizer=None if alone else release.state,
    )


def _update_noise(
    spec: RunSpec, ids: tuple[int, ...], t: int
) -> tuple[list[float], list[tuple[int, ...]]]:
    """Standard deviations and streams of the noise of round t: the server's, or every client's."""
    assert spec.privacy is not None
    level = spec.update_noise
    if spec.privacy.trust == "central":
        return [level.server], [(t, SERVER, 0)]
    # Each client's noise is from its own stream, so that it is the same whoever else takes part.
    return [per_client(level.each)[0]] * len(ids), [(t, k, 0) for k in ids]


def _ranks_released(
    spec: RunSpec, ids: tuple[int, ...], shared: Tensor | None, alone: bool
) -> Tensor | None:
    """Ranks beyond which an upload holds nothing, noise included: (clients,) or (1,)."""
    ranks = ranks_of(spec, ids) if alone else None
    if shared is None or ranks is None:
        return shared if ranks is None else ranks
    return ranks.clamp(max=int(shared))


def _finish_updates(
    spec: RunSpec, sums: ClientParams, limit: Tensor | None, alone: bool
) -> ClientParams:
    """Turns released sums of changes into means, filtered and cut to the ranks that are sent."""
    # The expected number of clients: the true one is not released.
    expected = 1.0 if alone else len(spec.task.sizes) * spec.plan.participation
    finished = {}
    for key, x in sums.items():
        mean = x if alone else x / expected
        # After the noise a filter is post-processing; before it would change the sensitivity.
        finished[key] = spec.method.filter(mean, key.side) if key.side in "AB" else mean
    return cut_to_rank(finished, limit)


def privatize(
    prepared: Prepared, client: ClientBatch, keys: Keys, sent: ServerState
) -> dict[ParamKey, Tensor]:
    """Makes what one client sends, key -> (...): clipped and noised if the run is private.

    Under secure aggregation with its share of the noise: only the sum of all is protected in full.

    Args:
        prepared: of the run.
        client: a batch of this client alone, which has trained.
        keys: what is sent.
        sent: what the server sent.
    Raises: ``ValueError`` where a trusted server would clip and noise.
    Guarantees: as `release_round` (test_flower.py::test_messages_give_the_run_of_the_loop).
    """
    privacy = prepared.spec.privacy
    trust = None if privacy is None else privacy.trust
    expected = "'local' or 'secagg': a client that sends for itself noises for itself"
    check(trust != "central", "trust", trust, expected)
    received = release_round(prepared, client, torch.arange(1), keys, sent, single_client=True)
    return {key: rows[0] for key, rows in received.uploads.items()}


def combine(
    spec: RunSpec, ids: tuple[int, ...], rows: Mapping[ParamKey, Tensor], sent: ServerState
) -> Received:
    """Combines uploads made by `privatize`, whose noise is not known here.

    Under secure aggregation nothing but their sum is used.

    Args:
        spec, ids: of the run, and the clients whose uploads arrived.
        rows: key -> (clients, ...).
        sent: what the server sent.
    """
    if not rows or not ids or too_few_uploads(spec, len(ids)):
        return Received.empty(sent)
    if spec.server_sees_only_sum:
        # An upload is the reference plus a noised share: the sum has the reference once only.
        base = {key: spec.method.clip_reference(sent.tensors[key][None]) for key in rows}
        total = {key: base[key] + (x - base[key]).sum(0, keepdim=True) for key, x in rows.items()}
        return Received(total, torch.ones(1, dtype=torch.float64), {}, sent, per_client=False)
    start = tensors_received(spec, ids, sent)
    return Received(rows, _weights(spec, ids), {}, _row_by_row(sent, start))


def too_few_uploads(spec: RunSpec, uploads: int) -> bool:
    """Whether a sum of so many uploads holds less noise than the ledger says."""
    if spec.privacy is None or not spec.server_sees_only_sum:
        return False
    # Those who collude upload as well, and know their own noise: their shares hide nothing.
    return uploads < spec.update_noise.shares + spec.privacy.colluding


def _row_by_row(sent: ServerState, start: Mapping[ParamKey, Tensor]) -> ServerState:
    """The state that was sent, with a row for each client where they received different ranks."""
    return sent if all(len(x) == 1 for x in start.values()) else sent.replace_tensors(start)


def _weights(spec: RunSpec, ids: tuple[int, ...]) -> Float[Tensor, " rows"]:
    """w_k = p_k / participation: absent clients leave their weight to the old state."""
    # The denominator is fixed: one that counted who came would change the sensitivity.
    sizes = spec.units
    uniform = spec.plan.weights == "uniform"
    shares = [1 / len(sizes) if uniform else sizes[k] / sum(sizes) for k in ids]
    return torch.tensor(shares, dtype=torch.float64) / spec.plan.participation


def _mean(noise: Mapping[ParamKey, Tensor], weights: Tensor) -> ClientParams:
    """Weights the noise as the mean of the uploads does."""
    means = {}
    for key, x in noise.items():
        means[key] = (weights.to(x.dtype) @ x.flatten(1)).view(x.shape[1:])
    return means


# ---- bytes


MOST_TURNS = 12
"""Rounds over which bytes are averaged before a run: whole periods of schedules of up to four."""


def count_traffic(
    spec: RunSpec,
    state: RunState,
    clients: Sequence[int],
    arrived: Sequence[int],
    keys: Sequence[ParamKey],
) -> Traffic:
    """Counts the numbers and bytes of the round that starts in ``state``, over all its clients.

    Down: what the server changed since a client last received it. The start is known to all and
    costs nothing, unless the broadcast alters it: then a client's first copy is sent. A residual
    goes down as factors of the rank by which it changed, or whole where that is less. Up: what the
    server's rule asks for in place of ``keys``.

    Args:
        spec, state: of the run.
        clients, arrived: who takes part, and whose upload is not lost.
        keys: what is sent up.

    Guarantees: tests/methods/test_quantization.py::test_traffic_by_hand.
    """
    method = spec.method
    # A function that is no `Rule` is sent what a mean is sent.
    rule = method.aggregate if isinstance(method.aggregate, Rule) else MeanUpdate()

    def shapes(rank: int) -> dict[ParamKey, tuple[int, ...]]:
        return {key: shape_at_rank(key, x.shape, rank) for key, x in state.server.tensors.items()}

    @cache  # one for all clients of a rank
    def up(rank: int) -> Traffic:
        sizes = rule.upload_sizes(shapes(rank), keys) if keys else []
        return Traffic(sum(sizes), bytes_of(sizes))

    @cache  # one for all of them who last received in the same round
    def down(rank: int, seen: int) -> Traffic:
        # Changes of the rounds in which it did not take part come down with the next broadcast.
        missed = state.changed[max(seen, 0) :]
        coded: list[int] = []
        plain: list[int] = []
        for key, shape in shapes(rank).items():
            ranks = [change[str(key)] for change in missed if str(key) in change]
            uncoded = rule_for(key, method.broadcast) == full
            altered = seen < 0 and not uncoded
            if key.kind.sent_down and (ranks or altered):
                size = prod(shape)
                if key.side == "W":
                    size = min(size, sum(ranks) * sum(shape))
                (plain if uncoded else coded).append(size)
        plain += rule.extra_download_sizes(shapes(rank))
        size = bytes_of(coded, method.broadcast) + bytes_of(plain)
        return Traffic(0, 0, sum(coded + plain), size)

    # Counted is what arrived: a lost upload reached nobody.
    loads = [up(rank_sent(spec, k)) for k in arrived]
    loads += [down(_rank_held(spec, k), state.seen[k]) for k in clients]
    return sum(loads, Traffic())


def _rank_held(spec: RunSpec, k: int) -> int:
    """Counts the shared ranks that client k holds."""
    shared = shared_rank(spec.lora.rank, spec.method.own_ranks)
    return shared if spec.lora.ranks is None else min(spec.lora.ranks[k], shared)


def rank_sent(spec: RunSpec, k: int) -> int:
    """Counts the shared ranks that client k sends: its own, or all under secure aggregation.

    Under secure aggregation each client adds its share of the noise in every rank of the sum. Were
    a share cut to the ranks that its client holds, those that few clients hold would carry a part
    of the noise, and one client's whole change.

    Args:
        spec: of the run.
        k: the client's number.
    Guarantees: test_attack_secagg.py::test_clients_of_low_rank_add_their_noise_to_every_rank.
    """
    if spec.server_sees_only_sum:
        return shared_rank(spec.lora.rank, spec.method.own_ranks)
    return _rank_held(spec, k)


def bytes_of_round(task: Task, method: Method, lora: Lora, plan: Plan) -> tuple[int, int]:
    """Bytes of one client in a round, up and down, the mean over the first rounds of the plan.

    What moves and is shared goes up, and comes down as the method broadcasts it. Layers whose mode
    the server chooses count as they begin.

    Args: task, method, lora, plan: as of `run`.
    Guarantees: test_uploads.py::test_bytes_before_a_run_are_those_of_its_rounds.
    """
    adapted = adapters.adapt(task.model, task.targets, task.head, lora)
    start = adapters.initial_values(adapted, Streams(0), method.start, lora.start_scale)
    server = ServerState(start, streams=Streams(0))
    rule = method.aggregate
    shapes = (rule.initial_state(server) if isinstance(rule, Rule) else server).tensors
    up, down = 0, 0
    rounds = min(plan.rounds, MOST_TURNS)
    for t in range(rounds):
        keys = moving_keys(shapes, method.sides_in_round(t, plan.local_steps))
        sent = [key for key in keys if method.is_shared(key)]
        factors = [shapes[key].numel() for key in sent if key.kind.scheduled]
        head = [shapes[key].numel() for key in sent if not key.kind.scheduled]
        up += bytes_of(factors + head)
        down += bytes_of(factors, method.broadcast) + bytes_of(head)
    return up // max(rounds, 1), down // max(rounds, 1)
