"""What crosses the network in a round, counted from the state of the run."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fedlora_lab.checkpoint import State
from fedlora_lab.method import Slot
from fedlora_lab.wire import Traffic, bytes_of, full


def traffic(
    shapes: Mapping[Slot, torch.Size],
    broadcast: Any,
    state: State,
    clients: Sequence[int],
    arrived: int,
    slots: Sequence[Slot],
) -> Traffic:
    """Numbers and bytes of the round that starts in ``state``, summed over its clients.

    Down: what the server changed since a client last received it. The start is known to all and costs nothing, unless
    the broadcast alters it: then a client's first copy is sent. Up: ``slots``, of the ``arrived`` uploads.

    Guarantees: tests/test_wire.py::test_traffic_by_hand.
    """
    up = [shapes[slot].numel() for slot in slots]
    total = Traffic(arrived * sum(up), arrived * bytes_of(up))
    for k in clients:
        sides = {side for change in state.changed[max(state.seen[k], 0) :] for side in change}
        altered = state.seen[k] < 0 and broadcast != full
        factors = [n.numel() for slot, n in shapes.items() if slot.side != "head" and (slot.side in sides or altered)]
        head = [n.numel() for slot, n in shapes.items() if slot.side == "head" and "head" in sides]
        total += Traffic(0, 0, sum(factors + head), bytes_of(factors, broadcast) + bytes_of(head))
    return total
