"""Clients of unequal rank, and ranks that stay at home: both are zeros on the rank axis of full-sized factors.

Where the last ranks of A and of B are zero, so are their gradients: nothing but the noise has to be cut.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from fedlora_lab.method import Slot

AXES = {"A": (-2,), "B": (-1,), "R": (-2, -1)}
"""The rank axes of each kind of factor."""


def cut(values: Mapping[Slot, Tensor], ranks: Int[Tensor, " clients"] | None) -> dict[Slot, Tensor]:
    """Zero beyond each client's rank: slot -> (clients, ...) from (1 or clients, ...); all as it is without ranks."""
    if ranks is None:
        return dict(values)
    return {slot: tensor * _held(slot, tensor, ranks) for slot, tensor in values.items()}


def _held(slot: Slot, tensor: Tensor, ranks: Tensor) -> Tensor:
    """1 where a client holds a number of this tensor, else 0; broadcasts against (clients, ...)."""
    mask = tensor.new_ones(())
    for axis in AXES.get(slot.side, ()):
        held = (torch.arange(tensor.shape[axis]) < ranks.view(-1, 1)).to(tensor)
        mask = mask * (held.unsqueeze(-2) if axis == -1 else held.unsqueeze(-1))
    return mask


def padded(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (r, d_in) and B (d_out, r) of the same product, with zeros up to the rank."""
    return torch.nn.functional.pad(a, (0, 0, 0, rank - len(a))), torch.nn.functional.pad(b, (0, rank - len(a)))


def shared_rank(rank: int, own: float) -> int:
    """How many of the ranks are sent where the share ``own`` of them, the last ones, stay with their client."""
    return math.ceil((1 - own) * rank)


def held_shape(slot: Slot, shape: Sequence[int], rank: int) -> tuple[int, ...]:
    """The shape of what a client of this rank holds of a factor."""
    axes = {axis % len(shape) for axis in AXES.get(slot.side, ())} if len(shape) else set()
    return tuple(min(size, rank) if i in axes else size for i, size in enumerate(shape))


def joined(slot: Slot, sent: Tensor, own: Tensor, rank: int) -> Tensor:
    """The first ranks as sent, the others the client's own, (clients, ...)."""
    mask = _held(slot, sent, torch.tensor([rank]))[0].bool()
    return torch.where(mask, sent, own)
