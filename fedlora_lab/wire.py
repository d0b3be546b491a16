"""What crosses the network: quantised broadcasts, and counts of numbers and bytes up and down."""

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from fedlora_lab.checks import check, check_whole

if TYPE_CHECKING:
    from torch import Tensor


class Traffic(NamedTuple):
    """Numbers and bytes in one round, summed over the clients that took part; NaN where they would tell how many."""

    numbers_up: float = 0
    bytes_up: float = 0
    numbers_down: float = 0
    bytes_down: float = 0

    def __add__(self, other: "Traffic") -> "Traffic":  # type: ignore[override]
        return Traffic(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Full:
    """Send the factors as they are, 32 bits a number."""

    def __call__(self, tensor: "Tensor") -> "Tensor":
        return tensor

    def bits(self, numbers: int) -> int:
        """Bits that this many numbers take."""
        return 32 * numbers


full = Full()


@cache
def normal_levels(width: int) -> tuple[float, ...]:
    """The 2^width levels of a normal-float code in [-1, 1], quantiles of the normal law; width 1 has three: -1, 0, 1.

    Args: width: bits, 1 to 8.
    Source: arXiv:2305.14314 (NF4 is width 4), for any width as in arXiv:2406.10976; formula of the authors' later code.
    Guarantees: width 4 is NF4, zero is a level, levels rise (test_normal_levels).
    """
    from scipy.stats import norm

    check_whole("width", width, 1, 8)
    if width == 1:
        return (-1.0, 0.0, 1.0)
    half, offset = 2 ** (width - 1), 0.9677083

    def quantiles(count: int) -> list[float]:
        return [float(norm.ppf(offset + (0.5 - offset) * i / count)) for i in range(count)]

    positive, negative = quantiles(half), quantiles(half - 1)
    return tuple(value / positive[0] for value in sorted([-v for v in negative] + [0.0] + positive))


@dataclass(frozen=True)
class NormalFloat:
    """Blockwise normal-float quantisation: each block is scaled by its largest magnitude, then rounded to the levels.

    Deterministic; a block of zeros stays zero. The last block may be short.

    Source: arXiv:2406.10976 (FedLPP), reconstructed from a later release of its authors; QLoRA, arXiv:2305.14314.
    Guarantees: a second pass changes nothing (test_quantising_twice_is_quantising_once).
    """

    width: int
    block: int

    def __call__(self, tensor: "Tensor") -> "Tensor":
        return self.values(*self.codes(tensor), tensor)

    def levels(self, like: "Tensor") -> "Tensor":
        """The levels, of this tensor's type and on its device."""
        import torch

        return torch.tensor(normal_levels(self.width), dtype=like.dtype, device=like.device)

    def codes(self, tensor: "Tensor") -> "tuple[Tensor, Tensor]":
        """Number of the nearest level, (blocks, block), and scale of each block, (blocks, 1)."""
        import torch

        levels, flat = self.levels(tensor), tensor.flatten()
        blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % self.block)).view(-1, self.block)
        scale = blocks.abs().amax(1, keepdim=True)
        unit = blocks / torch.where(scale > 0, scale, torch.ones_like(scale))
        return torch.bucketize(unit, (levels[1:] + levels[:-1]) / 2), scale

    def values(self, codes: "Tensor", scale: "Tensor", like: "Tensor") -> "Tensor":
        """The numbers that codes and scales stand for, shaped like this tensor."""
        return (self.levels(like)[codes] * scale).flatten()[: like.numel()].view_as(like)

    def bits(self, numbers: int) -> int:
        """Bits that this many numbers take: a code each (two for the three levels of width 1), a float32 a block."""
        code = math.ceil(math.log2(len(normal_levels(self.width))))
        return code * numbers + 32 * math.ceil(numbers / self.block)


def normal_float(width: int = 4, block: int = 64) -> NormalFloat:
    """The normal-float broadcast with ``width`` bits (1 to 8) a number and ``block`` numbers to a scale (>= 1)."""
    check_whole("width", width, 1, 8)
    check_whole("block", block, 1)
    return NormalFloat(width, block)


def bytes_of(numbers: list[int], rule: "Full | NormalFloat" = full) -> int:
    """Bytes of tensors with these sizes under a broadcast rule, each tensor rounded up to whole bytes."""
    check(all(n >= 0 for n in numbers), "numbers", numbers, "sizes >= 0")
    return sum(math.ceil(rule.bits(n) / 8) for n in numbers)
