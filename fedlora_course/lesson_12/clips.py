"""Bugs in the place of the library's clip, and a release with one of them as a step to review.

Each has the signature of `fedlora_lab.privacy.privatizer.clip_sum`; the ledger of a run with one
certifies no epsilon.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import dp_review
from fedlora_lab.methods.state import ParamKey, Tensors
from fedlora_lab.privacy.privatizer import clip_sum, row_norms

SHAPES = {ParamKey("A", "layer"): (2, 6), ParamKey("B", "layer"): (4, 2)}
"""Of the gradients of a small layer's factors."""
BATCH = 8


def clips_at_4C(
    rows: Tensors, clip_norm: float, owner: Tensor, owners: int, *rest: Any
) -> tuple[dict, Any]:
    """Clips at four times the norm for which the noise was made.

    Args: as in `clip_sum`.
    """
    return clip_sum(rows, 4 * clip_norm, owner, owners)


def clips_each_tensor(
    rows: Tensors, clip_norm: float, owner: Tensor, owners: int, *rest: Any
) -> tuple[dict, Any]:
    """Clips every tensor to C and counts one release.

    Args: as in `clip_sum`.
    """
    releases = [clip_sum({key: x}, clip_norm, owner, owners) for key, x in rows.items()]
    sums = {key: x for tensors, _ in releases for key, x in tensors.items()}
    return sums, releases[0][1]


def clips_at_the_median(
    rows: Tensors, clip_norm: float, owner: Tensor, owners: int, *rest: Any
) -> tuple[dict, Any]:
    """Takes the threshold from the batch.

    Args: as in `clip_sum`.
    """
    norms = row_norms(rows)
    norms = norms[norms.isfinite()]
    limit = float(norms.median()) if len(norms) else clip_norm
    return clip_sum(rows, limit, owner, owners)


def review_clip(clip: "Callable[..., Any] | None", sigma: float) -> dp_review.Review:
    """Reviews a clip of gradients of A and B, and the noise on their sum.

    Args: clip: in the place of the library's; ``None``: the library's own. sigma: noise multiplier.
    """

    def step(examples: list, seed: int) -> dict[str, Tensor]:
        rows = {
            key: torch.stack([x[key] for x in examples]) if examples else torch.zeros(0, *shape)
            for key, shape in SHAPES.items()
        }
        owner = torch.zeros(len(examples), dtype=torch.int64)
        sums, _ = (clip or clip_sum)(rows, 1.0, owner, 1)
        generator = torch.Generator().manual_seed(seed)
        noise = {k: sigma * torch.randn(shape, generator=generator) for k, shape in SHAPES.items()}
        return {str(key): (sums[key][0] + noise[key]) / BATCH for key in SHAPES}

    drawn = torch.Generator().manual_seed(0)
    data = [
        {key: torch.randn(shape, generator=drawn) for key, shape in SHAPES.items()}
        for _ in range(2 * BATCH)
    ]
    claims = dp_review.Claims(clip_norm=1.0, noise_multiplier=sigma, denominator=BATCH)
    return dp_review.step(step, data, claims, draws=16)
