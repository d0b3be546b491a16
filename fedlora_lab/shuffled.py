"""A control: a filter along channels whose order has been shuffled first."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fedlora_lab.checks import check
from fedlora_lab.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True)
class Shuffled:
    """``rule`` along a random order of the channels: shuffled, smoothed, put back.

    A filter that profits from neighbouring channels being alike loses that under shuffling; one that only shrinks the
    step does not notice. The order depends on seed, side and number of channels alone, so all steps share it.

    Guarantees: noise keeps the same share of its variance (test_shuffling_changes_neighbours_and_nothing_else).
    """

    rule: "Callable[[Tensor, str], Tensor]"
    seed: int = 0

    def __call__(self, tensor: "Tensor", side: str) -> "Tensor":
        axis = -1 if side == "A" else -2
        size = tensor.shape[axis]
        order = torch.from_numpy(Streams(self.seed).numpy(f"channels {side}", size).permutation(size))
        mixed = tensor.index_select(axis, order.to(tensor.device))
        return self.rule(mixed, side).index_select(axis, torch.argsort(order).to(tensor.device))


def shuffled(rule: "Callable[[Tensor, str], Tensor]", seed: int = 0) -> Shuffled:
    """The same smoothing along a random order of the channels; see `Shuffled`."""
    check(callable(rule), "rule", rule, "a function of (tensor, side)")
    return Shuffled(rule, seed)
