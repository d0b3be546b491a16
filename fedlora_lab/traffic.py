"""What crosses the network in a round, counted from the state of the run."""

from collections.abc import Mapping, Sequence
from math import prod

import torch

from fedlora_lab.aggregate import Rule
from fedlora_lab.checkpoint import State
from fedlora_lab.method import Method, Slot
from fedlora_lab.plan import Lora
from fedlora_lab.ranks import held_shape, shared_rank
from fedlora_lab.wire import Traffic, bytes_of, full

FACTORS = ("A", "B", "R")
SENT_DOWN = (*FACTORS, "head", "W", "mode")


def traffic(
    method: Method,
    lora: Lora,
    state: State,
    clients: Sequence[int],
    arrived: Sequence[int],
    slots: Sequence[Slot],
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
    total = Traffic()
    for k in arrived:
        own = _held(shapes, rank_of(method, lora, k))
        up = rule.up(own, slots) if slots else []
        total += Traffic(sum(up), bytes_of(up))
    for k in clients:
        own = _held(shapes, rank_of(method, lora, k))
        sizes = _down(method, own, state, k)
        factors = [size for slot, size in sizes.items() if slot.side in FACTORS]
        rest = [size for slot, size in sizes.items() if slot.side not in FACTORS] + rule.extra_down(own)
        total += Traffic(0, 0, sum(factors + rest), bytes_of(factors, method.broadcast) + bytes_of(rest))
    return total


def rank_of(method: Method, lora: Lora, k: int) -> int:
    """How many ranks client k sends of what is shared."""
    held = lora.rank if lora.ranks is None else lora.ranks[k]
    return min(held, shared_rank(lora.rank, method.own_ranks))


def _held(shapes: Mapping[Slot, torch.Size], rank: int) -> dict[Slot, tuple[int, ...]]:
    return {slot: held_shape(slot, shape, rank) for slot, shape in shapes.items()}


def _down(method: Method, shapes: Mapping[Slot, tuple[int, ...]], state: State, k: int) -> dict[Slot, int]:
    """Numbers of each slot that client k has to receive."""
    missed = state.changed[max(state.seen[k], 0) :]
    altered = state.seen[k] < 0 and method.broadcast != full
    sizes = {}
    for slot, shape in shapes.items():
        ranks = [change[str(slot)] for change in missed if str(slot) in change]
        if slot.side in SENT_DOWN and (ranks or (altered and slot.side in FACTORS)):
            whole = prod(shape)
            sizes[slot] = min(whole, sum(ranks) * sum(shape)) if slot.side == "W" else whole
    return sizes
