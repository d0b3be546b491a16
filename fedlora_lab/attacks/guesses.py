"""All that could stand at one position of an input: every patch of pixels, every word piece."""

import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedlora_lab.checks import check_whole

LEVELS, SIDE, PATCH = 17, 8, 2


def patches(levels: int = LEVELS) -> Float[Tensor, "n 8 8"]:
    """Images of the digits task with the same 2 x 2 patch everywhere, one for each patch there can be: levels^4.

    The scans have 17 grey levels, 0 to 16 sixteenths.
    """
    check_whole("levels", levels, 2, 17)
    grid = torch.tensor(list(itertools.product(range(levels), repeat=PATCH * PATCH))) / (levels - 1)
    return grid.view(-1, PATCH, PATCH).repeat(1, SIDE // PATCH, SIDE // PATCH)


def assembled(images: Float[Tensor, "n 8 8"], best: Int[Tensor, " 16"]) -> Float[Tensor, "8 8"]:
    """The image that has at each position the patch of the image named there."""
    parts = images[:, :PATCH, :PATCH][best]
    across = SIDE // PATCH
    return parts.view(across, across, PATCH, PATCH).permute(0, 2, 1, 3).reshape(SIDE, SIDE)


def words(pieces: "int | Tensor", length: int) -> dict[str, Int[Tensor, "n length"]]:
    """Sentences that repeat one word piece: one for each number below ``pieces``, or one for each number in it."""
    check_whole("length", length, 1, 512)
    if isinstance(pieces, int):
        check_whole("pieces", pieces, 1)
        pieces = torch.arange(pieces)
    ids = pieces.view(-1, 1).expand(-1, length).contiguous()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
