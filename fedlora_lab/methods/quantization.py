"""Quantised broadcasts, their packing into bytes, and counts of what crosses the network."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedlora_lab._utils.validation import check, check_whole

# ---- broadcast rules


@dataclass(frozen=True)
class Full:
    """Sends the factors as they are, 32 bits a number."""

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor

    def bits(self, numbers: int) -> int:
        """Returns the bits that this many numbers take."""
        return 32 * numbers


@cache
def normal_levels(width: int) -> tuple[float, ...]:
    """Returns the 2^width levels of a normal-float code in [-1, 1]; width 1 has three: -1, 0, 1.

    Args: width: bits, 1 to 8.
    Source: arXiv:2305.14314 (NF4 is width 4), for any width as in arXiv:2406.10976.
    Guarantees: width 4 is NF4, zero is a level, levels rise (test_normal_levels).
    """
    from scipy.stats import norm

    check_whole("width", width, 1, 8)
    if width == 1:
        return (-1.0, 0.0, 1.0)
    half, offset = 2 ** (width - 1), 0.9677083  # QLoRA's: the outermost quantile must be finite
    positive, negative = (
        [float(norm.ppf(offset + (0.5 - offset) * i / count)) for i in range(count)]
        for count in (half, half - 1)
    )
    return tuple(value / positive[0] for value in sorted([-v for v in negative] + [0.0] + positive))


@dataclass(frozen=True)
class NormalFloat:
    """Scales each block by its largest magnitude, then rounds to the levels of a normal-float code.

    Deterministic; a block of zeros stays zero. The last block may be short.

    Args:
        width: bits a number, 1 to 8.
        block: numbers a scale, >= 1.

    Source: arXiv:2406.10976 (FedLPP), reconstructed from a later release of its authors; QLoRA,
        arXiv:2305.14314.
    Guarantees: a second pass changes nothing (test_quantising_twice_is_quantising_once).
    """

    width: int = 4
    block: int = 64

    def __post_init__(self) -> None:
        check_whole("width", self.width, 1, 8)
        check_whole("block", self.block, 1)

    def __call__(self, tensor: Tensor) -> Tensor:
        return self.values(*self.codes(tensor), tensor)

    def levels(self, like: Tensor) -> Tensor:
        """Returns the levels, of this tensor's type and on its device."""
        return torch.tensor(normal_levels(self.width), dtype=like.dtype, device=like.device)

    def codes(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """Finds each number's nearest level, (blocks, block), and block scales, (blocks, 1)."""
        levels, flat = self.levels(tensor), tensor.flatten()
        blocks = F.pad(flat, (0, -flat.numel() % self.block)).view(-1, self.block)
        scale = blocks.abs().amax(1, keepdim=True)
        # A block of zeros is divided by 1: by its scale it would be NaN.
        unit = blocks / torch.where(scale > 0, scale, torch.ones_like(scale))
        return torch.bucketize(unit, (levels[1:] + levels[:-1]) / 2), scale

    def values(self, codes: Tensor, scale: Tensor, like: Tensor) -> Tensor:
        """Returns the numbers that codes and scales stand for.

        Args: codes: (blocks, block). scale: (blocks, 1). like: gives shape, type and device.
        """
        return (self.levels(like)[codes] * scale).flatten()[: like.numel()].view_as(like)

    def bits(self, numbers: int) -> int:
        """Returns the bits that this many numbers take: a code each, and a float32 a block."""
        code = math.ceil(math.log2(len(normal_levels(self.width))))
        return code * numbers + 32 * math.ceil(numbers / self.block)


full, normal_float = Full(), NormalFloat

# ---- packing into bytes

CODES, SCALES = " codes", " scales"


def array_names(rule: Any) -> tuple[str, ...]:
    """Names the arrays that a tensor is sent as: one without a name, or codes and scales."""
    return (CODES, SCALES) if hasattr(rule, "codes") else ("",)


def pack(tensor: Tensor, rule: Any) -> dict[str, Tensor]:
    """Makes the arrays that a tensor is sent as; a rule without ``codes`` sends the numbers.

    Guarantees: codes and scales take as many bytes as ``rule.bits`` says, and `unpack` gives what
        the rule gives, bit for bit (tests/methods/test_quantization.py).
    """
    if not hasattr(rule, "codes"):
        return {"": tensor}
    codes, scale = rule.codes(tensor)
    flat = codes.flatten()[: tensor.numel()].to(torch.uint8).numpy(force=True)
    bits = np.unpackbits(flat[:, None], axis=1, bitorder="little")[:, : _code_bits(tensor, rule)]
    return {CODES: torch.from_numpy(np.packbits(bits, bitorder="little")), SCALES: scale.flatten()}


def unpack(arrays: Mapping[str, Tensor], rule: Any, like: Tensor) -> Tensor:
    """Restores the tensor that was packed.

    Args:
        arrays: as `pack` made them, by the names of `array_names`.
        rule: the broadcast rule that both sides know.
        like: gives shape, type and device.

    Raises: ``ValueError`` for a code beyond the levels.
    """
    if not hasattr(rule, "codes"):
        return arrays[""]
    width, count, most = _code_bits(like, rule), like.numel(), len(rule.levels(like)) - 1
    packed = arrays[CODES].numpy(force=True)
    bits = np.unpackbits(packed, bitorder="little", count=width * count).reshape(count, width)
    codes = torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").flatten().astype("int64"))
    worst = int(codes.max()) if len(codes) else 0  # the bytes come from a network
    check(worst <= most, "codes", worst, f"at most {most}")
    blocks = F.pad(codes, (0, -count % rule.block)).view(-1, rule.block)
    return rule.values(blocks.to(like.device), arrays[SCALES].view(-1, 1), like)


def _code_bits(like: Tensor, rule: Any) -> int:
    return (len(rule.levels(like)) - 1).bit_length()


# ---- counts


class Traffic(NamedTuple):
    """Numbers and bytes in a round, summed over its clients; NaN where they would tell how many."""

    numbers_up: float = 0
    bytes_up: float = 0
    numbers_down: float = 0
    bytes_down: float = 0

    def __add__(self, other: "Traffic") -> "Traffic":  # type: ignore[override]
        return Traffic(*(a + b for a, b in zip(self, other, strict=True)))


def bytes_of(numbers: list[int], rule: "Full | NormalFloat" = full) -> int:
    """Counts the bytes of tensors of these sizes under a rule, each rounded up to whole bytes."""
    check(all(n >= 0 for n in numbers), "numbers", numbers, "sizes >= 0")
    return sum(math.ceil(rule.bits(n) / 8) for n in numbers)


def bytes_text(count: float) -> str:
    """Writes a number of bytes for people: 1 kB is 1000 bytes."""
    if math.isnan(count):
        return "–"
    power = next(i for i in range(4) if count < 1000 ** (i + 1) or i == 3)
    return f"{count / 1000**power:.{min(power, 1)}f} {('B', 'kB', 'MB', 'GB')[power]}"
