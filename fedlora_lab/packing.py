"""The bytes of a broadcast: codes bit after bit and a scale for each block, or the numbers as they are."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from fedlora_lab.checks import check

CODES, SCALES = " codes", " scales"


def parts(rule: Any) -> tuple[str, ...]:
    """Under which names a tensor crosses the wire: one without a name, or its codes and their scales."""
    return (CODES, SCALES) if hasattr(rule, "codes") else ("",)


def pack(tensor: Tensor, rule: Any) -> dict[str, Tensor]:
    """What crosses the wire for a tensor.

    Args: rule: a broadcast; one without ``codes`` and ``values`` sends numbers as they are.
    Guarantees: codes and scales take as many bytes as ``rule.bits`` says, and `unpack` gives what the rule gives, bit
        for bit (tests/test_packing.py).
    """
    if parts(rule) == ("",):
        return {"": tensor}
    codes, scale = rule.codes(tensor)
    flat = codes.flatten()[: tensor.numel()].to(torch.uint8).numpy(force=True)
    bits = np.unpackbits(flat[:, None], axis=1, bitorder="little")[:, : _width(tensor, rule)]
    return {CODES: torch.from_numpy(np.packbits(bits, bitorder="little")), SCALES: scale.flatten()}


def unpack(found: Mapping[str, Tensor], rule: Any, like: Tensor) -> Tensor:
    """The tensor of these parts, shaped like another. Raises ``ValueError`` for a code beyond the levels."""
    if parts(rule) == ("",):
        return found[""]
    codes, most = _codes(found[CODES], like.numel(), _width(like, rule)), len(rule.levels(like)) - 1
    worst = int(codes.max()) if len(codes) else 0
    check(worst <= most, "codes", worst, f"at most {most}")
    blocks = torch.nn.functional.pad(codes, (0, -len(codes) % rule.block)).view(-1, rule.block)
    return rule.values(blocks.to(like.device), found[SCALES].view(-1, 1), like)


def _codes(packed: UInt8[Tensor, " bytes"], count: int, width: int) -> Tensor:
    bits = np.unpackbits(packed.numpy(force=True), bitorder="little", count=width * count).reshape(count, width)
    return torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").flatten().astype(np.int64))


def _width(like: Tensor, rule: Any) -> int:
    """Bits of one code."""
    return (len(rule.levels(like)) - 1).bit_length()
