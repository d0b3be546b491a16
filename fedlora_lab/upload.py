"""From the clients' tensors at the end of a round to what the server has in hand.

In the example unit every upload is already private: each step was clipped and noised. In the client unit the clip and
the noise are here, on the change of all sent tensors together, at the place that the chosen trust model names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab.checks import check
from fedlora_lab.engine import Clients, Setting, ranks_of, whitenings
from fedlora_lab.mechanism import Clipped, before_clip, noise, release
from fedlora_lab.method import Global, Slot
from fedlora_lab.privacy import Privacy
from fedlora_lab.ranks import AXES, cut, joined, shared_rank

SERVER = -1


@dataclass(frozen=True)
class Received:
    """What the server has in hand after a round.

    Args:
        uploads: slot -> (rows, ...): one row for each client that arrived, or a single row, their noised mean, where
            the server may see a sum only. Empty when nothing arrived.
        weights: (rows,), fixed before the round.
        noise: slot -> (...), the noise in the weighted mean.
        sent: what each row received at the start: (rows, ...) where clients have unequal ranks.
        alone: each client's upload is seen by itself.
    """

    uploads: Mapping[Slot, Tensor]
    weights: Float[Tensor, " rows"]
    noise: Mapping[Slot, Tensor]
    sent: Global
    alone: bool = True
    clipped: Clipped = field(default_factory=Clipped)


def step_privacy(privacy: Privacy | None, clients: int) -> tuple[float, tuple[float, ...]]:
    """Clip norm and each client's noise multiplier of a local step; (inf, zeros) where the steps are not released."""
    if privacy is None or privacy.unit == "client":
        return float("inf"), (0.0,) * clients
    sigma = privacy.noise_multiplier
    return privacy.clip_norm, sigma if isinstance(sigma, tuple) else (float(sigma or 0),) * clients


def received(setting: Setting, ids: tuple[int, ...], sent: Global) -> dict[Slot, Tensor]:
    """What these clients receive, slot -> (1, ...), or (clients, ...) where their ranks are unequal."""
    return cut({slot: tensor[None] for slot, tensor in sent.tensors.items()}, ranks_of(setting, ids))


def join(setting: Setting, groups: list[Clients], slots: tuple[Slot, ...], sent: Global) -> Clients:
    """The groups of a round as one, on the processor: the given slots stacked over all clients."""
    ids = tuple(k for group in groups for k in group.ids)
    bank = {slot: [g.bank[slot].expand(len(g.ids), *g.bank[slot].shape[1:]) for g in groups] for slot in slots}
    drawn = {slot: [_rows(g.noise.get(slot), g.bank[slot], len(g.ids)) for g in groups] for slot in slots}
    whole = Clients(
        ids,
        {slot: torch.cat(parts).cpu() if parts else sent.tensors[slot][None][:0] for slot, parts in bank.items()},
        received(setting, ids, sent),
        {slot: torch.cat(parts).cpu() if parts else sent.tensors[slot][None][:0] for slot, parts in drawn.items()},
    )
    whole.clipped = sum((group.clipped for group in groups), Clipped()).read()
    return whole


def _rows(noise: Tensor | None, like: Tensor, count: int) -> Tensor:
    return like.new_zeros(count, *like.shape[1:]) if noise is None else noise.expand(count, *noise.shape[1:])


def send(
    setting: Setting,
    privacy: Privacy | None,
    clients: Clients,
    arrived: Tensor,
    slots: tuple[Slot, ...],
    sent: Global,
    t: int,
) -> Received:
    """The round's uploads under the trust model.

    Args:
        clients: all that trained, joined.
        arrived: positions in ``clients.ids`` of those whose upload is not lost.
        slots: what is sent.
        sent: what the server sent, before a lower rank cut it.
    """
    if too_few(setting, privacy, len(arrived)):
        return Received({}, torch.zeros(0, dtype=torch.float64), {}, sent)
    return _released(setting, privacy, clients, arrived, slots, sent, t)


def one(
    setting: Setting, privacy: Privacy | None, client: Clients, slots: tuple[Slot, ...], sent: Global, t: int
) -> dict[Slot, Tensor]:
    """What one client alone sends, slot -> (...): clipped and noised wherever the round is private.

    Under secure aggregation it holds the client's share of the noise: only the sum of all is protected in full.

    Raises: ``ValueError`` where a trusted server would clip and noise.
    Guarantees: as `send` (tests/test_flower.py::test_three_engines_agree).
    """
    trust = None if privacy is None else privacy.trust
    check(trust != "central", "trust", trust, "'local' or 'secagg': a client that sends for itself noises for itself")
    found = _released(setting, privacy, client, torch.arange(1), slots, sent, t)
    return {slot: rows[0] for slot, rows in found.uploads.items()}


def collect(
    setting: Setting, privacy: Privacy | None, ids: tuple[int, ...], rows: Mapping[Slot, Tensor], sent: Global
) -> Received:
    """What the server has in hand of uploads that clients made with `one`, slot -> (clients, ...).

    The noise in them is not known here. Under secure aggregation the rows are added up, and nothing else of them is
    used.
    """
    summed = privacy is not None and privacy.trust == "secagg"
    weights = _weights(setting, ids)
    if not rows or not ids or too_few(setting, privacy, len(ids)):
        return Received({}, weights[:0], {}, sent)
    if summed:
        begun = {slot: setting.method.clips(sent.tensors[slot][None]) for slot in rows}
        rows = {slot: begun[slot] + (x - begun[slot]).sum(0, keepdim=True) for slot, x in rows.items()}
        return Received(rows, torch.ones(1, dtype=torch.float64), {}, sent, alone=False)
    return Received(rows, weights, {}, _own(sent, received(setting, ids, sent)))


def too_few(setting: Setting, privacy: Privacy | None, uploads: int) -> bool:
    """Whether so many uploads hold less noise than a sum of them must."""
    if privacy is None or privacy.trust != "secagg":
        return False
    # those who collude upload as well, and what they add hides nothing from those they tell
    return uploads < privacy.noise(len(setting.task.sizes), setting.plan).shares + privacy.colluding


def _released(
    setting: Setting,
    privacy: Privacy | None,
    clients: Clients,
    arrived: Tensor,
    slots: tuple[Slot, ...],
    sent: Global,
    t: int,
) -> Received:
    """The uploads of the clients at these positions, under the trust model."""
    ids = tuple(clients.ids[i] for i in arrived.tolist())
    start = {slot: x if len(x) == 1 else x[arrived] for slot, x in clients.start.items()}
    rank = shared_rank(setting.rank, setting.method.own_ranks)
    keeps = bool(setting.method.own_ranks)
    rows = {slot: clients.bank[slot][arrived] for slot in slots}
    if keeps:
        rows = {slot: joined(slot, x, start[slot], rank) if slot.side in AXES else x for slot, x in rows.items()}
    weights = _weights(setting, ids)
    by_step = privacy is None or privacy.unit == "example"
    if not rows or not (ids or (privacy is not None and not by_step and privacy.trust != "local")):
        return Received({}, weights[:0], {}, sent)  # but an empty sum is released with its noise
    if privacy is None or by_step:
        drawn = {slot: clients.noise[slot][arrived] for slot in slots}
        if keeps:
            drawn = cut(drawn, torch.tensor([rank]))
        return _visible(rows, weights, drawn, _own(sent, start))
    return _client_level(setting, privacy, sent, start, rows, ids, weights, t)


def _own(sent: Global, start: Mapping[Slot, Tensor]) -> Global:
    """What was sent, row by row where the rows differ."""
    return sent if all(len(x) == 1 for x in start.values()) else sent.with_(start)


def _weights(setting: Setting, ids: tuple[int, ...]) -> Float[Tensor, " rows"]:
    """w_k = p_k / participation with a fixed denominator: absent clients leave their weight to the old state."""
    sizes, plan = setting.task.sizes, setting.plan
    share = [1 / len(sizes) if plan.weights == "uniform" else sizes[k] / sum(sizes) for k in ids]
    return torch.tensor(share, dtype=torch.float64) / plan.participation


def _visible(
    rows: Mapping[Slot, Tensor], weights: Tensor, drawn: Mapping[Slot, Tensor], sent: Global, alone: bool = True
) -> Received:
    mean_noise = {slot: (weights.to(x.dtype) @ x.flatten(1)).view(x.shape[1:]) for slot, x in drawn.items()}
    return Received(rows, weights, mean_noise, sent, alone)


def _client_level(
    setting: Setting,
    privacy: Privacy,
    sent: Global,
    start: Mapping[Slot, Tensor],
    rows: Mapping[Slot, Tensor],
    ids: tuple[int, ...],
    weights: Tensor,
    t: int,
) -> Received:
    """Clip each client's change, add the noise where the trust model puts it, and go on from the noised value only."""
    level = privacy.noise(len(setting.task.sizes), setting.plan)
    each = level.each if isinstance(level.each, float) else 0.0  # one number in this unit
    alone, method = privacy.trust == "local", setting.method
    whole = {slot: sent.tensors[slot][None] for slot in sent.tensors}
    maps = whitenings(method, tuple(rows), whole, setting.uncertified is None)
    owner = torch.arange(len(ids)) if alone else torch.zeros(len(ids), dtype=torch.int64)
    change = before_clip({slot: x - method.clips(start[slot]) for slot, x in rows.items()}, maps, owner * 0)
    sums, clipped = setting.clip(change, privacy.clip_norm, owner, len(ids) if alone else 1, method.parts)
    own = _drawn(setting, {slot: x.shape[1:] for slot, x in rows.items()}, each, level.server, ids, alone, t)
    released, drawn = release(sums, own, maps)
    if not alone:
        expected = len(setting.task.sizes) * setting.plan.participation
        released, drawn = ({slot: x / expected for slot, x in part.items()} for part in (released, drawn))
        weights = torch.ones(1, dtype=torch.float64)
    held = _limits(setting, ids if alone else ())
    released, drawn = (cut(_smooth(setting, part), held) for part in (released, drawn))
    begun = start if alone else whole
    uploads = {slot: method.clips(begun[slot]) + x for slot, x in released.items()}
    return replace(_visible(uploads, weights, drawn, _own(sent, begun), alone), clipped=clipped)


def _drawn(
    setting: Setting,
    shapes: Mapping[Slot, torch.Size],
    each: float,
    server: float,
    ids: tuple[int, ...],
    alone: bool,
    t: int,
) -> dict[Slot, Tensor]:
    """The noise of every upload that is seen by itself, (clients, ...), or of their sum, (1, ...)."""
    own = noise(shapes, [each] * len(ids), setting.streams, [(t, k, 0) for k in ids])
    if alone:
        return own
    common = noise(shapes, [server], setting.streams, [(t, SERVER, 0)])
    return {slot: own[slot].sum(0, keepdim=True) + common[slot] for slot in shapes}


def _limits(setting: Setting, ids: tuple[int, ...]) -> Tensor | None:
    """The ranks that each row may show: the client's, and of a sum all that are shared; ``None``: all."""
    shared = shared_rank(setting.rank, setting.method.own_ranks)
    held = ranks_of(setting, ids) if ids else None
    if held is None:
        return torch.tensor([shared]) if setting.method.own_ranks else None
    return held.clamp(max=shared)


def _smooth(setting: Setting, tensors: Mapping[Slot, Tensor]) -> dict[Slot, Tensor]:
    rule = setting.method.smooth
    return {slot: rule(x, slot.side) if slot.side in "AB" else x for slot, x in tensors.items()}
