"""Initial factors of a row, from a layer's frozen weight alone. All are pure."""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.methods.state import with_signs


def spectral(weight: Tensor, rank: int) -> dict[str, Tensor]:
    """Starts B and A at the leading singular directions of the frozen weight, with a zero core.

    Args: weight: (d_out, d_in), public.
    Returns: A (r, d_in) and B (d_out, r) orthonormal, R (r, r) zero.
    Raises: ``ValueError`` for a rank above the smaller side of the weight.
    Source: arXiv:2502.15436 takes the directions of an estimated update, which reads private data;
        those of the weight itself are public.
    """
    most = min(weight.shape)
    check(rank <= most, "rank", rank, f"at most {most}, the smaller side of the weight")
    left, _, right = torch.linalg.svd(weight.double(), full_matrices=False)
    # Clients and server, perhaps on different machines, must start at the same point.
    b, a = with_signs(left[:, :rank], right[:rank])
    values = {"A": a, "B": b, "R": weight.new_zeros(rank, rank)}
    return {name: value.to(weight).contiguous() for name, value in values.items()}


def principal(weight: Tensor, rank: int) -> dict[str, Tensor]:
    """Starts B A at the leading part of the frozen weight, split evenly, and takes it out by W.

    Args: weight: (d_out, d_in), public.
    Returns: A (r, d_in), B (d_out, r) and W = -B A: the product is not zero, the model unchanged.
    Raises: ``ValueError`` for a rank above the smaller side of the weight.
    Source: arXiv:2606.00944 (PRISM), start from the singular vectors of the weight; there s B A is
        the leading part, here B A, s times as large.
    """
    values = spectral(weight, rank)
    a, b = values["A"].double(), values["B"].double()
    root = (b * (weight.double() @ a.T)).sum(0).clamp(min=0).sqrt()
    a, b = root.unsqueeze(1) * a, b * root
    return {name: x.to(weight) for name, x in (("A", a), ("B", b), ("W", -b @ a))}


@dataclass(frozen=True)
class Heads:
    """Starts B and A at random orthonormal matrices, with h zero blocks as the core's diagonal.

    The blocks are h square ones, or the largest number below that divides the rank. The draw
    follows from the frozen weight, so that clients and server make the same one.

    Args:
        heads: h >= 1; each block has a trained gain of its own, 1 at the start.

    Source: arXiv:2506.05568 (RAVAN), sum of s_i B_i H_i A_i; the draw by Gram-Schmidt.
    """

    heads: int = 2

    def __post_init__(self) -> None:
        check_whole("heads", self.heads, 1)

    def __call__(self, weight: Tensor, rank: int) -> dict[str, Tensor]:
        most = min(weight.shape)
        check(rank <= most, "rank", rank, f"at most {most}, the smaller side of the weight")
        count = max(h for h in range(1, self.heads + 1) if rank % h == 0)
        # Public: the draw starts from the frozen weight and from no data.
        seed = zlib.crc32(weight.detach().cpu().double().contiguous().numpy().tobytes())
        random = torch.Generator().manual_seed(seed)
        tall, wide = (
            torch.linalg.qr(torch.randn(size, rank, generator=random, dtype=torch.float64))[0]
            for size in weight.shape
        )
        values = {"A": wide.T.to(weight).contiguous(), "B": tall.to(weight)}
        values["R"] = weight.new_zeros(rank, rank // count)
        return values | {"gain": weight.new_ones(count)}


heads = Heads
