"""What crosses the network in a round, counted from the state of the run."""

from collections.abc import Mapping, Sequence
from functools import cache
from math import prod
from typing import TYPE_CHECKING

import torch

from fedlora_lab.aggregate import Rule
from fedlora_lab.checkpoint import State
from fedlora_lab.method import Method, Slot
from fedlora_lab.plan import Lora
from fedlora_lab.ranks import held_shape, shared_rank
from fedlora_lab.wire import Traffic, bytes_of, full

if TYPE_CHECKING:
    from fedlora_lab.privacy import Privacy

FACTORS = ("A", "B", "R")
SENT_DOWN = (*FACTORS, "head", "W", "mode")


def traffic(
    method: Method,
    lora: Lora,
    state: State,
    clients: Sequence[int],
    arrived: Sequence[int],
    slots: Sequence[Slot],
    privacy: "Privacy | None" = None,
) -> Traffic:
    """Numbers and bytes of the round that starts in ``state``, summed over its clients.

    Down: what the server changed since a client last received it. The start is known to all and costs nothing, unless
    the broadcast alters it: then a client's first copy is sent. A residual goes down as factors of the rank by which
    it changed, or whole where that is less. Up: what the server's rule asks for in place of ``slots``.

    Args:
        clients, arrived: numbers of the clients that take part, and of those whose upload is not lost.

    Guarantees: tests/test_wire.py::test_traffic_by_hand.
    """
    rule = method.aggregate if isinstance(method.aggregate, Rule) else Rule()
    shapes = {slot: tensor.shape for slot, tensor in state.server.tensors.items()}

    @cache  # one for all clients of a rank
    def up(rank: int) -> Traffic:
        sizes = rule.up(_held(shapes, rank), slots) if slots else []
        return Traffic(sum(sizes), bytes_of(sizes))

    @cache  # one for all of them who last received in the same round
    def down(rank: int, seen: int) -> Traffic:
        own = _held(shapes, rank)
        sizes = _down(method, own, state, seen)
        factors = [size for slot, size in sizes.items() if slot.side in FACTORS]
        rest = [size for slot, size in sizes.items() if slot.side not in FACTORS] + rule.extra_down(own)
        return Traffic(0, 0, sum(factors + rest), bytes_of(factors, method.broadcast) + bytes_of(rest))

    loads = [up(rank_sent(method, lora, k, privacy)) for k in arrived]
    loads += [down(rank_of(method, lora, k), state.seen[k]) for k in clients]
    return sum(loads, Traffic())


def rank_of(method: Method, lora: Lora, k: int) -> int:
    """How many ranks client k holds of what is shared."""
    held = lora.rank if lora.ranks is None else lora.ranks[k]
    return min(held, shared_rank(lora.rank, method.own_ranks))


def rank_sent(method: Method, lora: Lora, k: int, privacy: "Privacy | None") -> int:
    """How many ranks client k sends of what is shared: what it holds, under secure aggregation all.

    There each client adds its share of the noise in every rank of the sum. Were a share cut to the ranks that its
    client holds, those that few clients hold would carry a part of the noise, and one client's whole change.

    Guarantees: test_attack_secagg.py::test_clients_of_low_rank_add_their_noise_to_every_rank.
    """
    summed = privacy is not None and privacy.trust == "secagg"
    return shared_rank(lora.rank, method.own_ranks) if summed else rank_of(method, lora, k)


def _held(shapes: Mapping[Slot, torch.Size], rank: int) -> dict[Slot, tuple[int, ...]]:
    return {slot: held_shape(slot, shape, rank) for slot, shape in shapes.items()}


def _down(method: Method, shapes: Mapping[Slot, tuple[int, ...]], state: State, seen: int) -> dict[Slot, int]:
    """Numbers of each slot that a client has to receive who last did in round ``seen``, -1 for never."""
    missed = state.changed[max(seen, 0) :]
    altered = seen < 0 and method.broadcast != full
    sizes = {}
    for slot, shape in shapes.items():
        ranks = [change[str(slot)] for change in missed if str(slot) in change]
        if slot.side in SENT_DOWN and (ranks or (altered and slot.side in FACTORS)):
            whole = prod(shape)
            sizes[slot] = min(whole, sum(ranks) * sum(shape)) if slot.side == "W" else whole
    return sizes
