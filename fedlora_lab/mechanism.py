"""Clip and noise: the only functions between private values and released ones."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedlora_lab.checks import check
from fedlora_lab.method import Slot
from fedlora_lab.rules import Whitening, together
from fedlora_lab.streams import Streams

Tensors = Mapping[Slot, Tensor]
SMALL, LONG = 1e-15, 2**14
"""A norm below which float32 may lose squares, and numbers of a tensor beyond which it adds them up too coarsely: the
norm of 2^14 numbers may come out 5e-5 too small, that of 2^20 3.6e-3."""


class Clipped(NamedTuple):
    """What a clip did: rows that came, rows that were scaled down, rows that were not finite and count as zero.

    On a GPU the counts stay there, as tensors, until somebody asks for `read`.
    """

    rows: int = 0
    scaled: "int | Tensor" = 0
    nonfinite: "int | Tensor" = 0

    def read(self) -> "Clipped":
        """The counts as numbers."""
        return Clipped(self.rows, int(self.scaled), int(self.nonfinite))

    def __add__(self, other: "Clipped") -> "Clipped":  # type: ignore[override]
        return Clipped(self.rows + other.rows, self.scaled + other.scaled, self.nonfinite + other.nonfinite)


def rank_map(slot: Slot, matrix: Tensor, tensor: Tensor) -> Tensor:
    """Apply (..., r, r) on the rank axis: from the right for B (..., d_out, r), from the left for A (..., r, d_in)."""
    return tensor @ matrix if slot.side == "B" else matrix @ tensor


def row_norms(rows: Tensors) -> Float[Tensor, " n"]:
    """Euclidean norm of each row over all tensors together, (N,), float64; not finite where the row is not.

    Guarantees: a row's norm depends on that row alone (test_attack_clip.py::test_no_row_moves_the_norms_of_others).
    """

    def norms(longest: int) -> Tensor:
        each = []
        for x in rows.values():
            dtype = torch.float64 if x.numel() > longest * len(x) else None
            each.append(torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), dtype=dtype).double())
        return torch.linalg.vector_norm(torch.stack(each), dim=0)

    # The squares of a finite float32 row may overflow or vanish, and of many the small ones are lost: only then is the
    # slower float64 needed. To look would be to wait for a GPU, on which it is taken in any case.
    if not _here(next(iter(rows.values()))):
        return norms(0)
    quick = norms(LONG)
    sure = (quick > SMALL) & torch.isfinite(quick)
    # Row by row: were all rows measured anew for one odd row, it would move every other row's rounding, and their sum.
    return quick if bool(sure.all()) else torch.where(sure, quick, norms(0))


def _here(tensor: Tensor) -> bool:
    """Whether its values can be looked at without waiting for a device."""
    return tensor.device.type == "cpu"


def clip_sum(
    rows: Tensors, clip_norm: float, owner: Int[Tensor, " n"], owners: int, parts: Callable[[Slot], Any] = together
) -> tuple[dict[Slot, Tensor], Clipped]:
    """Scale each row to norm at most ``clip_norm`` over all tensors, and add up the rows of each owner.

    Args:
        rows: slot -> (N, ...).
        clip_norm: C >= 0; infinity leaves finite rows as they are.
        owner: (N,), in [0, owners).
        parts: slot -> key; tensors of one key have one norm, and each of p parts is clipped to C / sqrt(p).

    Returns: slot -> (owners, ...), and what the clip did, a row scaled in any part counting once.

    Guarantees: a part of a row that is not finite adds zero; one row more or less moves an owner's sum by at most C
        (test_contract.py::test_leaving_out_one_example_moves_the_sum_by_at_most_c).
    """
    keys = {slot: parts(slot) for slot in rows}
    names = dict.fromkeys(keys.values())
    less = bad = torch.zeros(len(owner), dtype=torch.bool, device=owner.device)
    sums: dict[Slot, Tensor] = {}
    for name in names:
        part = {slot: tensor for slot, tensor in rows.items() if keys[slot] == name}
        added, scaled, nonfinite = _clip_part(part, clip_norm / len(names) ** 0.5, owner, owners)
        sums, less, bad = sums | added, less | scaled, bad | nonfinite
    counts = Clipped(len(owner), (less & ~bad).sum(), bad.sum())
    return {slot: sums[slot] for slot in rows}, counts.read() if _here(owner) else counts


def _clip_part(
    rows: Tensors, clip_norm: float, owner: Int[Tensor, " n"], owners: int
) -> tuple[dict[Slot, Tensor], Tensor, Tensor]:
    """Sums of rows clipped over these tensors; (N,) which rows were scaled down, and which are not finite."""
    norms = row_norms(rows)
    finite = torch.isfinite(norms)
    scale = torch.where(finite, (clip_norm / norms.clamp(min=1e-300)).clamp(max=1.0), torch.zeros_like(norms))
    # A factor too small for the dtype would be rounded, perhaps up: zero instead, which is within the clip.
    tiny = max(torch.finfo(tensor.dtype).tiny for tensor in rows.values())
    scale = torch.where(scale < tiny, torch.zeros_like(scale), scale)
    less, sums = finite & (scale < 1), {}
    look = _here(norms)
    some, strange = not look or bool(less.any()), not look or not bool(finite.all())
    for slot, tensor in rows.items():
        weight = scale.to(tensor.dtype).view(-1, *[1] * (tensor.dim() - 1))
        if strange:
            tensor = torch.where(finite.view(weight.shape), tensor, torch.zeros_like(tensor))
        scaled = tensor * weight if some else tensor
        sums[slot] = _sums(scaled, owner, owners)
    return sums, less, ~finite


def _sums(rows: Tensor, owner: Int[Tensor, " n"], owners: int) -> Tensor:
    """The sum of each owner's rows, (owners, ...); rows that lie in memory as their transposes are added up as such."""
    if rows.dim() == 3 and not rows.is_contiguous() and rows.mT.is_contiguous():
        return _sums(rows.mT, owner, owners).mT
    return rows.new_zeros(owners, *rows.shape[1:]).index_add_(0, owner, rows)


def noise(
    shapes: Mapping[Slot, torch.Size], std: "list[float]", streams: Streams, where: "list[tuple[int, ...]]"
) -> dict[Slot, Tensor]:
    """Gaussian noise for several owners: slot -> (owners, ...), owner i with ``std[i]`` from stream ``where[i]``."""
    sizes = [shape.numel() for shape in shapes.values()]
    rows = [
        level * streams.normal((sum(sizes),), "noise", *indices) if level > 0 else torch.zeros(sum(sizes))
        for level, indices in zip(std, where, strict=True)
    ]
    parts = (torch.stack(rows) if rows else torch.zeros(0, sum(sizes))).split(sizes, dim=1)
    return {slot: part.reshape(-1, *shape) for (slot, shape), part in zip(shapes.items(), parts, strict=True)}


def before_clip(rows: Tensors, whitenings: Mapping[Slot, Whitening], owner: Int[Tensor, " n"]) -> dict[Slot, Tensor]:
    """The rows in the coordinates of the clip; a whitening is one for all owners (1, r, r) or one for each."""
    return {
        slot: rank_map(slot, _of(whitenings[slot].before, owner), tensor) if slot in whitenings else tensor
        for slot, tensor in rows.items()
    }


def _of(matrices: Tensor, owner: Tensor) -> Tensor:
    return matrices if len(matrices) == 1 else matrices.index_select(0, owner)


def uncertified(whiten: "Callable[[Tensor], Whitening] | None") -> str | None:
    """Why no epsilon covers a release shaped by this rule; ``None`` where one does.

    A release is after . clip(before . signal) + noise . xi. It is a function of the Gaussian mechanism, and so covered
    by its epsilon, when signal and noise pass the same map: the rule says so by returning one tensor for both.
    """
    if whiten is None:
        return None
    rule = whiten(torch.eye(2))
    check(isinstance(rule, Whitening), "whiten", whiten, "a rule that gives a Whitening")
    if rule.noise is rule.after:
        return None
    return "the noise passes a map that the clipped value does not pass, so the clip does not bound what it hides"


def injected(clip: Callable[..., Any]) -> str | None:
    """Why no epsilon covers a run that clips with this function; ``None`` for `clip_sum`."""
    if clip is clip_sum:
        return None
    return f"an injected bug: {getattr(clip, '__name__', type(clip).__name__).strip('_').replace('_', ' ')}"


def release(
    sums: Tensors, drawn: Tensors, whitenings: Mapping[Slot, Whitening]
) -> tuple[dict[Slot, Tensor], dict[Slot, Tensor]]:
    """Clipped sums plus noise, back in the coordinates of the factors; and the noise alone as it stands in them."""
    released, alone = {}, {}
    for slot, total in sums.items():
        xi = drawn[slot].to(total)
        if slot in whitenings:
            rule = whitenings[slot]
            total, xi = rank_map(slot, rule.after, total), rank_map(slot, rule.noise, xi)
        released[slot], alone[slot] = total + xi, xi
    return released, alone
