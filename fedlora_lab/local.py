"""A client's half of a round: where it begins, what moves in it, and what of that leaves the client."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from fedlora_lab import engine, upload
from fedlora_lab.method import Global, Slot
from fedlora_lab.ranks import AXES, joined, shared_rank


class Moves(NamedTuple):
    """The slots of a round: what moves, what is sent of it, and what stays with its client, in part or as a whole."""

    moved: tuple[Slot, ...]
    sent: tuple[Slot, ...]
    kept: tuple[Slot, ...]


def moves(setting: engine.Setting, values: Mapping[Slot, Tensor], t: int) -> Moves:
    """What moves in round t, read from the schedule and from the modes in what the clients received."""
    method, steps = setting.method, setting.plan.local_steps
    moved = engine.moving_slots(values, method.moved(t, steps))
    sent = engine.sent_slots(values, method, t, steps)
    kept = tuple(slot for slot in moved if slot not in sent or (method.own_ranks and slot.side in AXES))
    return Moves(moved, sent, kept)


def begin(
    setting: engine.Setting, ids: tuple[int, ...], sent: Global, personal: Mapping[Slot, Tensor]
) -> engine.Clients:
    """Clients at the start of a round: what they received, and what they kept, slot -> (clients, ...)."""
    method, start = setting.method, upload.received(setting, ids, sent)
    bank = dict(start)
    for slot, own in personal.items():
        split = method.own_ranks and slot.side in AXES and slot.side in (method.share or "ABR")
        bank[slot] = joined(slot, start[slot], own, shared_rank(setting.rank, method.own_ranks)) if split else own
    return engine.Clients(ids, bank, start)
