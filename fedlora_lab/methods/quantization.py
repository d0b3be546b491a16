"""Quantised broadcasts, and counts of what crosses the network."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fedlora_lab._utils.validation import check_whole
from fedlora_lab.methods.state import ParamKey

# ---- broadcast rules


class Broadcast(Protocol):
    """How a tensor is encoded on its way from the server to the clients."""

    def __call__(self, tensor: Tensor) -> Tensor:
        """Returns what a client reads of the tensor."""
        ...

    def bits(self, numbers: int) -> int:
        """Returns the bits that so many numbers take."""
        ...


@dataclass(frozen=True)
class Full:
    """Sends the factors as they are, 32 bits per number."""

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor

    def bits(self, numbers: int) -> int:
        """Returns the bits that this many numbers take."""
        return 32 * numbers


REACH = 0.9677083
"""Normal quantile at which the outermost level of NF4 stands: the outermost must be finite."""


@cache
def normal_levels(width: int) -> tuple[float, ...]:
    """Returns the levels of a normal-float code in [-1, 1]: 2^width, but -1, 0, 1 at width 1.

    Every width has the outermost quantile of width 4, as in the release.

    Args: width: nominal bits, 1 to 8.
    Source: arXiv:2305.14314 (NF4 is width 4), for any width as in arXiv:2406.10976.
    Guarantees: width 4 is NF4, zero is a level, levels rise (test_normal_levels).
    """
    from scipy.stats import norm

    check_whole("width", width, 1, 8)
    if width == 1:
        return (-1.0, 0.0, 1.0)
    # One level fewer below zero: zero itself is a level, and 2^width is even.
    half = 2 ** (width - 1)
    positive, negative = (
        [float(norm.ppf(REACH + (0.5 - REACH) * i / count)) for i in range(count)]
        for count in (half, half - 1)
    )
    return tuple(value / positive[0] for value in sorted([-v for v in negative] + [0.0] + positive))


@dataclass(frozen=True)
class NormalFloat:
    """Scales each block by its largest magnitude, then rounds to the levels of a normal-float code.

    Deterministic; a block of zeros stays zero. The last block may be short.

    Args:
        width: nominal bits per number: 2 to 8, or 1, which has the levels -1, 0, 1 and takes two
            bits.
        block: numbers a scale, >= 1.

    Source: arXiv:2406.10976 (FedLPP), reconstructed from a later release of its authors; QLoRA,
        arXiv:2305.14314.
    Guarantees: a second pass changes nothing (test_every_number_goes_to_the_nearest_level).
    """

    width: int = 4
    block: int = 64

    def __post_init__(self) -> None:
        check_whole("width", self.width, 1, 8)
        check_whole("block", self.block, 1)

    def __call__(self, tensor: Tensor) -> Tensor:
        levels = torch.tensor(normal_levels(self.width), dtype=tensor.dtype, device=tensor.device)
        flat = tensor.flatten()
        blocks = F.pad(flat, (0, -flat.numel() % self.block)).view(-1, self.block)
        scale = blocks.abs().amax(1, keepdim=True)
        # A block of zeros is divided by 1: by its scale it would be NaN.
        unit = blocks / torch.where(scale > 0, scale, torch.ones_like(scale))
        # Between two levels the nearer one: their middle is the edge.
        codes = torch.bucketize(unit, (levels[1:] + levels[:-1]) / 2)
        return (levels[codes] * scale).flatten()[: flat.numel()].view_as(tensor)

    def bits(self, numbers: int) -> int:
        """Returns the bits that this many numbers take: a code each, and a float32 a block."""
        # Three levels take two bits.
        return max(self.width, 2) * numbers + 32 * math.ceil(numbers / self.block)


# The names in rows of the table.
full = Full()
normal_float = NormalFloat


def rule_for(key: ParamKey, rule: Broadcast) -> Broadcast:
    """Returns the rule that encodes a tensor on its way down.

    It is the method's for factors, `full` for others: the release has adapters alone.
    """
    return rule if key.kind.quantized else full


# ---- counts


def bytes_of(numbers: int, rule: Broadcast) -> int:
    """Counts the bytes of a tensor of so many numbers under a rule, rounded up to whole bytes."""
    return math.ceil(rule.bits(numbers) / 8)
