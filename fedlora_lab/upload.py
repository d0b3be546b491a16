"""From the clients' tensors at the end of a round to what the server has in hand.

In the example unit every upload is already private: each step was clipped and noised. In the client unit the clip and
the noise are here, on the change of all sent tensors together, at the place that the chosen trust model names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab.engine import Clients, Setting, whitenings
from fedlora_lab.mechanism import Clipped, before_clip, clip_sum, noise, release
from fedlora_lab.method import Global, Slot
from fedlora_lab.privacy import Privacy
from fedlora_lab.rules import identity

SERVER = -1


@dataclass(frozen=True)
class Received:
    """What the server has in hand after a round.

    Args:
        uploads: slot -> (rows, ...): one row for each client that arrived, or a single row, their noised mean, where
            the server may see a sum only. Empty when nothing arrived.
        weights: (rows,), fixed before the round.
        noise: slot -> (...), the noise in the weighted mean.
        alone: each client's upload is seen by itself.
    """

    uploads: Mapping[Slot, Tensor]
    weights: Float[Tensor, " rows"]
    noise: Mapping[Slot, Tensor]
    alone: bool = True
    clipped: Clipped = field(default_factory=Clipped)


def step_privacy(privacy: Privacy | None, clients: int) -> tuple[float, tuple[float, ...]]:
    """Clip norm and each client's noise multiplier of a local step; (inf, zeros) where the steps are not released."""
    if privacy is None or privacy.unit == "client":
        return float("inf"), (0.0,) * clients
    sigma = privacy.noise_multiplier
    return privacy.clip_norm, sigma if isinstance(sigma, tuple) else (float(sigma or 0),) * clients


def join(groups: list[Clients], slots: tuple[Slot, ...], sent: Global) -> Clients:
    """The groups of a round as one: the given slots stacked over all clients."""
    ids = tuple(k for group in groups for k in group.ids)
    bank = {slot: [g.bank[slot].expand(len(g.ids), *g.bank[slot].shape[1:]) for g in groups] for slot in slots}
    drawn = {slot: [_rows(g.noise.get(slot), g.bank[slot], len(g.ids)) for g in groups] for slot in slots}
    whole = Clients(
        ids,
        {slot: torch.cat(parts) if parts else sent.tensors[slot][None][:0] for slot, parts in bank.items()},
        {slot: tensor[None] for slot, tensor in sent.tensors.items()},
        {slot: torch.cat(parts) if parts else sent.tensors[slot][None][:0] for slot, parts in drawn.items()},
    )
    whole.clipped = sum((group.clipped for group in groups), Clipped())
    return whole


def _rows(noise: Tensor | None, like: Tensor, count: int) -> Tensor:
    return like.new_zeros(count, *like.shape[1:]) if noise is None else noise.expand(count, *noise.shape[1:])


def send(
    setting: Setting, privacy: Privacy | None, clients: Clients, arrived: Tensor, slots: tuple[Slot, ...], t: int
) -> Received:
    """The round's uploads under the trust model.

    Args:
        clients: all that trained, joined.
        arrived: positions in ``clients.ids`` of those whose upload is not lost.
        slots: what is sent.
    """
    ids = [clients.ids[i] for i in arrived.tolist()]
    rows = {slot: clients.bank[slot][arrived] for slot in slots}
    weights = _weights(setting, ids)
    if privacy is None or privacy.unit == "example":
        drawn = {slot: clients.noise[slot][arrived] for slot in slots}
        return _visible(rows, weights, drawn) if ids else _nothing(weights)
    return _client_level(setting, privacy, clients.start, rows, ids, weights, t)


def _weights(setting: Setting, ids: list[int]) -> Float[Tensor, " rows"]:
    """w_k = p_k / participation with a fixed denominator: absent clients leave their weight to the old state."""
    sizes, plan = setting.task.sizes, setting.plan
    share = [1 / len(sizes) if plan.weights == "uniform" else sizes[k] / sum(sizes) for k in ids]
    return torch.tensor(share, dtype=torch.float64) / plan.participation


def _nothing(weights: Tensor) -> Received:
    return Received({}, weights[:0], {})


def _visible(rows: Mapping[Slot, Tensor], weights: Tensor, drawn: Mapping[Slot, Tensor]) -> Received:
    mean_noise = {slot: (weights.to(x.dtype) @ x.flatten(1)).view(x.shape[1:]) for slot, x in drawn.items()}
    return Received(rows, weights, mean_noise)


def _client_level(
    setting: Setting,
    privacy: Privacy,
    start: Mapping[Slot, Tensor],
    rows: Mapping[Slot, Tensor],
    ids: list[int],
    weights: Tensor,
    t: int,
) -> Received:
    """Clip each client's change, add the noise where the trust model puts it, and go on from the noised value only."""
    level = privacy.noise(len(setting.task.sizes), setting.plan)
    each = level.each if isinstance(level.each, float) else 0.0  # one number in this unit
    alone = privacy.trust == "local"
    if not rows or (alone and not ids) or (privacy.trust == "secagg" and len(ids) < level.shares):
        return _nothing(weights)
    maps = whitenings(setting.method, tuple(rows), start)
    owner = torch.arange(len(ids)) if alone else torch.zeros(len(ids), dtype=torch.int64)
    change = before_clip({slot: tensor - start[slot] for slot, tensor in rows.items()}, maps, owner * 0)
    sums, clipped = clip_sum(change, privacy.clip_norm, owner, len(ids) if alone else 1)
    shapes = {slot: tensor.shape[1:] for slot, tensor in rows.items()}
    own = noise(shapes, [each] * len(ids), setting.streams, [(t, k, 0) for k in ids])
    if not alone:
        common = noise(shapes, [level.server], setting.streams, [(t, SERVER, 0)])
        own = {slot: own[slot].sum(0, keepdim=True) + common[slot] for slot in shapes}
    released, drawn = release(sums, own, maps)
    if not alone:
        expected = len(setting.task.sizes) * setting.plan.participation
        released, drawn = ({slot: x / expected for slot, x in part.items()} for part in (released, drawn))
        weights = torch.ones(1, dtype=torch.float64)
    released, drawn = (_smooth(setting, part) for part in (released, drawn))
    uploads = {slot: start[slot] + released[slot] for slot in released}
    visible = _visible(uploads, weights, drawn)
    return Received(uploads, weights, visible.noise, alone, clipped)


def _smooth(setting: Setting, tensors: Mapping[Slot, Tensor]) -> dict[Slot, Tensor]:
    rule = setting.method.smooth
    keep = rule is identity
    return {slot: x if keep or slot.side == "head" else rule(x, slot.side) for slot, x in tensors.items()}
