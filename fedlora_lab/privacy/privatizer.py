"""Clip and noise: the only functions between private values and released ones.

A release stands in the ledger before `ClipAndNoise.update` computes it.

Another mechanism is a class like `ClipAndNoise`, chosen in federated/prepared.py, counted in
privacy/accounting.py, forecast in federated/noise_forecast.py and audited in audit/traces.py.
While its ``uncertified`` gives a reason no epsilon is stated.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, in_one_line, refuse
from fedlora_lab.methods.preconditioners import Preconditioner
from fedlora_lab.methods.state import ParamKey, TensorDict, Tensors, add_all

FLOAT32_MIN_NORM = 1e-15
"""Smaller norms are computed again in float64: float32 may lose small squares."""
FLOAT32_MAX_NUMBERS = 2**14
"""Norms of longer rows are computed in float64: a float32 sum of many squares is too coarse. The
norm of 2^14 numbers may come out 6e-5 too small, and the row is then clipped that much too little;
that of 2^20 would be 3.6e-3 too small. Of 100,000 rows of normal numbers none was off by 6e-7."""
MANY_ROWS = 2**12
"""Beyond so many rows of one client a release is summed in float64: in a float32 sum one row less
also changes how the others are rounded, and so moves the sum by more than C."""
MANY_DRAWS = 2**18
"""More numbers of noise than these are drawn by several threads."""

ClipGroups = Callable[[ParamKey], Hashable] | None
"""Tensor -> its group, whose tensors share one norm; ``None``: all share one."""
Metric = Mapping[ParamKey, Preconditioner]
"""The coordinates in which a tensor is clipped and noised; a tensor without an entry keeps its own.
Maps common to all owners are (1, r, r), others (owners, r, r)."""
OwnedRows = Iterable[tuple[Tensors, Int[Tensor, " n"]]]
"""Rows to clip in chunks, key -> (n, ...), with the position of each row's owner."""


class ClipCounts(NamedTuple):
    """Counts of a clip; on a GPU they stay there until `read` is called.

    Args:
        rows: that were clipped: examples, persons or updates.
        scaled: of these, rows that were longer than the clip norm and scaled down.
        nonfinite: of these, rows that were set to zero because they are not finite.
    """

    rows: int = 0
    scaled: "int | Tensor" = 0
    nonfinite: "int | Tensor" = 0

    def read(self) -> "ClipCounts":
        """The counts as numbers."""
        return ClipCounts(self.rows, int(self.scaled), int(self.nonfinite))

    def __add__(self, other: "ClipCounts") -> "ClipCounts":  # type: ignore[override]
        return ClipCounts(
            self.rows + other.rows,
            self.scaled + other.scaled,
            self.nonfinite + other.nonfinite,
        )


ClipSum = Callable[..., tuple[TensorDict, ClipCounts]]
"""A function with the arguments of `clip_sum`."""


class Release(NamedTuple):
    """One release of every owner: key -> (owners, ...).

    Args:
        value: the clipped sum with its noise.
        noise: the noise in ``value`` alone, for measures in a laboratory.
        counts: of the clip.
    """

    value: TensorDict
    noise: TensorDict
    counts: ClipCounts


@dataclass(frozen=True)
class ClipAndNoise:
    """Clips every row, sums the rows of each owner and adds Gaussian noise to the sum.

    Args:
        clip_norm: C >= 0, of a row over all its tensors; infinity only without noise.
        clip_groups: key -> group, see `clip_sum`.
        clip: what clips; with another function than `clip_sum` no epsilon is certified.
    """

    clip_norm: float
    clip_groups: ClipGroups = None
    clip: "ClipSum | None" = None

    @property
    def uncertified(self) -> str | None:
        """Why no epsilon covers these releases: another clip, or a subclass that says nothing."""
        # A subclass may release anything: it is covered when it says so itself, not by default.
        if type(self) is not ClipAndNoise:
            return f"{type(self).__name__} does not say what its releases spend"
        if self.clip is None or self.clip is clip_sum:
            return None
        name = getattr(self.clip, "__name__", type(self.clip).__name__)
        return f"an injected bug: {name.strip('_').replace('_', ' ')}"

    def update(
        self,
        rows: OwnedRows,
        zeros: Tensors,
        std: Sequence[float],
        streams: Streams,
        where: Sequence[tuple[int, ...]],
        metric: Metric,
    ) -> Release:
        """Makes one release of every owner.

        Args:
            rows: in chunks, key -> (n, ...) with each row's owner (n,); there may be none.
            zeros: key -> (owners, ...), to which the clipped rows are added.
            std: of the noise, sigma C: one for each owner, or several for a single owner, whose
                noise is then the sum of independent shares.
            streams, where: of the run, and the indices of the stream of each noise in ``std``.
            metric: the coordinates in which rows are clipped and noised.

        Guarantees: one row less moves a release by at most C, in units of its noise and but for
            rounding
            (test_contract.py::test_leaving_out_one_example_moves_the_sum_by_at_most_c), of however
            many rows (test_attack_clip.py::test_one_row_of_many_moves_their_sum_by_at_most_c).
        """
        clip = clip_sum if self.clip is None else self.clip
        owners = len(next(iter(zeros.values())))
        # From an empty list nothing would be drawn, and the bare sum would be released.
        if len(std) != owners and (owners > 1 or not std):
            refuse("std", list(std), f"{owners} numbers, one for each owner")
        sums = dict(zeros)
        counts = ClipCounts()
        for chunk, owner in _precise_where_many(rows):
            mapped = precondition_rows(chunk, metric, owner)
            # Clip before the sum: afterwards no row moves it by more than C.
            added, seen = clip(mapped, self.clip_norm, owner, owners, self.clip_groups)
            sums = add_all(sums, added)
            counts = counts + seen
        # Every owner draws noise, also one without rows: an empty batch must look like any other.
        shapes = {key: total.shape[1:] for key, total in zeros.items()}
        drawn = gaussian_noise(shapes, list(std), streams, where, like=next(iter(sums.values())))
        if owners == 1 and len(std) != 1:
            drawn = {key: shares.sum(0, keepdim=True) for key, shares in drawn.items()}
        value, noise = add_noise(sums, drawn, metric)
        # A long sum is rounded behind its noise: before it, rounding would add to the sensitivity.
        value = {key: x.to(zeros[key].dtype) for key, x in value.items()}
        noise = {key: x.to(zeros[key].dtype) for key, x in noise.items()}
        return Release(value, noise, counts)


def _precise_where_many(rows: OwnedRows) -> OwnedRows:
    """Yields rows as they are, and in float64, some at a time, once an owner may have many."""
    most = 0
    for chunk, owner in rows:
        # No fewer than any owner has so far; to ask a GPU would cost a wait.
        most += int(owner.bincount().max()) if owner.is_cpu and len(owner) else len(owner)
        if most <= MANY_ROWS:
            yield chunk, owner
            continue
        # A few at a time: in float64 all would take twice their memory again.
        for begin in range(0, len(owner), MANY_ROWS):
            some = slice(begin, begin + MANY_ROWS)
            yield {key: x[some].double() for key, x in chunk.items()}, owner[some]


# ---- clip


def row_norms(rows: Tensors) -> Float[Tensor, " n"]:
    """Euclidean norm of each row over all tensors together, (N,), float64.

    Not finite where the row is not.

    Guarantees: a row's norm depends on that row alone
        (test_attack_clip.py::test_no_row_moves_the_norms_of_others).
    """

    def norms(longest: int) -> Tensor:
        each = []
        for x in rows.values():
            dtype = torch.float64 if x.numel() > longest * len(x) else None
            axes = tuple(range(1, x.dim()))
            each.append(torch.linalg.vector_norm(x, dim=axes, dtype=dtype).double())
        # Joined in float64: there the square of a tensor's norm neither overflows nor vanishes.
        return torch.linalg.vector_norm(torch.stack(each), dim=0)

    # The squares of a finite float32 row may overflow or vanish, and a sum of many loses the small
    # ones: only there is the slower float64 needed. On a GPU a look would wait for the device.
    if not next(iter(rows.values())).is_cpu:
        return norms(0)
    quick = norms(FLOAT32_MAX_NUMBERS)
    sure = (quick > FLOAT32_MIN_NORM) & torch.isfinite(quick)
    # Row by row: were all rows measured again because of one odd row, that row would move their
    # rounding, and with it the sum of the others.
    return quick if bool(sure.all()) else torch.where(sure, quick, norms(0))


def clip_sum(
    rows: Tensors,
    clip_norm: float,
    owner: Int[Tensor, " n"],
    owners: int,
    clip_groups: ClipGroups = None,
) -> tuple[TensorDict, ClipCounts]:
    """Clips each row (one example's gradient) to norm ``clip_norm`` and sums the rows per owner.

    Args:
        rows: key -> (N, ...).
        clip_norm: C >= 0; infinity leaves finite rows as they are.
        owner, owners: (N,), in [0, owners); the number of owners (clients).
        clip_groups: each of g groups is clipped to C / sqrt(g), or to C by a rule that does not
            share it (`EachTensorToC`); ``None``: one group.

    Returns: key -> (owners, ...), and the counts; a row scaled in any group counts once.
    Guarantees: what is not finite adds zero; one row more or less moves a sum by at most C, but for
        rounding (`FLOAT32_MAX_NUMBERS`), unless the groups do not share C
        (test_contract.py::test_leaving_out_one_example_moves_the_sum_by_at_most_c).
    """
    groups: dict[Hashable, TensorDict] = {}
    for key, tensor in rows.items():
        name = None if clip_groups is None else clip_groups(key)
        groups.setdefault(name, {})[key] = tensor
    # g groups of norm C / sqrt(g) have norm C together.
    limit = clip_norm / len(groups) ** 0.5 if shares_bound(clip_groups) else clip_norm
    # The rows of one owner after those of another, and where each owner's begin.
    order = owner.argsort(stable=True)
    begins = torch.searchsorted(owner[order], torch.arange(owners, device=owner.device))
    scaled = torch.zeros(len(owner), dtype=torch.bool, device=owner.device)
    nonfinite = torch.zeros_like(scaled)
    sums: TensorDict = {}
    for group in groups.values():
        added, shorter, bad = _clip_group(group, limit, order, begins)
        sums |= added
        scaled = scaled | shorter
        nonfinite = nonfinite | bad
    counts = ClipCounts(len(owner), (scaled & ~nonfinite).sum(), nonfinite.sum())
    return {key: sums[key] for key in rows}, counts.read() if owner.is_cpu else counts


def shares_bound(clip_groups: ClipGroups) -> bool:
    """Whether the groups together are clipped to C, and not each of them."""
    return getattr(clip_groups, "shares_bound", True)


def _clip_group(
    rows: Tensors, clip_norm: float, order: Int[Tensor, " n"], begins: Int[Tensor, " owners"]
) -> tuple[TensorDict, Tensor, Tensor]:
    """Sums rows clipped over these tensors; (N,) which were scaled, and which are not finite."""
    norms = row_norms(rows)
    finite = torch.isfinite(norms)
    zero = torch.zeros_like(norms)
    scale = (clip_norm / norms.clamp(min=1e-300)).clamp(max=1.0)
    # A gradient that is not finite counts as zero: sensitivity stays C, and the sum stays a number.
    scale = torch.where(finite, scale, zero)
    # A scale below the dtype's smallest normal number may be rounded up, which would exceed C.
    tiny = max(torch.finfo(tensor.dtype).tiny for tensor in rows.values())
    scale = torch.where(scale < tiny, zero, scale)
    # On a CPU it is known at once whether a row is strange; to ask a GPU would cost a wait.
    any_strange = not norms.is_cpu or not finite.all()
    weights = scale[order]
    sums = {}
    for key, tensor in rows.items():
        if any_strange:  # replaced before scaling: zero times infinity is not a number
            tensor = torch.where(finite.view(-1, *[1] * (tensor.dim() - 1)), tensor, 0)
        # Rounding to float32 may make a row longer than C by a factor of 1 + 2^-24.
        sums[key] = _weighted_sums(tensor, weights, order, begins)
    return sums, finite & (scale < 1), ~finite


def _weighted_sums(
    rows: Tensor, weights: Float[Tensor, " n"], order: Int[Tensor, " n"], begins: Tensor
) -> Float[Tensor, "owners ..."]:
    """Sums each owner's rows times their weights, which are in the given order as well."""
    # Rows stored transposed are summed as such: a copy would cost more than the sum.
    if rows.dim() == 3 and not rows.is_contiguous() and rows.mT.is_contiguous():
        sums = _weighted_sums(rows.mT, weights, order, begins).mT
        # On a GPU tensors share a kernel, as noise is added to them, only where they lie alike.
        return sums if sums.is_cpu else sums.contiguous()
    # Rows as entries of an embedding: they are read once, and no scaled copy of them is written.
    flat = F.embedding_bag(
        order, rows.flatten(1), begins, mode="sum", per_sample_weights=weights.to(rows.dtype)
    )
    return flat.view(len(begins), *rows.shape[1:])


# ---- noise


def gaussian_noise(
    shapes: Mapping[ParamKey, torch.Size],
    std: list[float],
    streams: Streams,
    where: Sequence[tuple[int, ...]],
    like: Tensor | None = None,
) -> TensorDict:
    """Draws Gaussian noise for several owners: key -> (owners, ...).

    Args:
        shapes, std: of one owner's tensors; the standard deviation of each owner, >= 0.
        streams, where: of the run, and the indices of each owner's stream.
        like: a tensor of the wanted type, on the wanted device; ``None``: as drawn, on the CPU.
    """
    sizes = [shape.numel() for shape in shapes.values()]
    length = sum(sizes)

    # A stream for each owner: nobody's noise depends on who else takes part. One for all tensors of
    # an owner: no two of them share a number.
    drawn = torch.zeros(len(std), length)
    if any(std):
        check(len(std) == len(where), "std", std, f"{len(where)} numbers, one for each stream")
        with ExitStack() as threads:
            # A GPU would wait for its noise. Few numbers cost less than a thread does.
            many = length * len(std) > MANY_DRAWS
            each = threads.enter_context(ThreadPoolExecutor()).map if many else map
            rows = each(lambda place: streams.normal((length,), "noise", *place), where)
            drawn = torch.stack(list(rows))
        drawn *= drawn.new_tensor(std)[:, None]
    if like is not None:
        # In the sum's own precision: noise on a coarser grid would leave its last digits in sight.
        drawn = drawn.to(like)
    pairs = zip(shapes.items(), drawn.split(sizes, dim=1), strict=True)
    return {key: numbers.reshape(-1, *shape) for (key, shape), numbers in pairs}


def add_noise(sums: Tensors, drawn: Tensors, metric: Metric) -> tuple[TensorDict, TensorDict]:
    """Adds noise to clipped sums and maps both back to the coordinates of the factors.

    Args:
        sums, drawn: key -> (owners, ...), clipped and summed; the noise.
        metric: as for `precondition_rows`.

    Returns: the released tensors, and the noise in them alone.
    Guarantees: one example moves the release no further than a shift of the noise by C would, also
        under a metric (test_attack_clip.py::
        test_one_example_moves_a_release_as_a_shift_of_the_noise_by_at_most_c_does).
    """
    released = add_all(sums, drawn)
    alone = dict(drawn)
    for key in sums.keys() & metric.keys():
        rule = metric[key]
        alone[key] = project_out(rule.complement, map_rank_axis(key, rule.of_noise, drawn[key]))
        if rule.noise_map is None:
            # Noised first and mapped as a whole: whatever the maps are, also where they overflow,
            # this is a function of the Gaussian mechanism.
            released[key] = project_out(
                rule.complement, map_rank_axis(key, rule.after, released[key])
            )
        else:
            released[key] = map_rank_axis(key, rule.after, sums[key]) + alone[key]
    return released, alone


# ---- preconditioners


def map_rank_axis(key: ParamKey, matrix: Tensor, tensor: Tensor) -> Tensor:
    """Multiplies the rank axis by a matrix: on the right of B, on the left of A.

    Args:
        key, tensor: B (..., d_out, r) or A (..., r, d_in).
        matrix: (..., r, r).
    """
    matrix = matrix.to(tensor.dtype)  # a long sum is float64, whatever the maps are
    return tensor @ matrix if key.name == "B" else matrix @ tensor


def project_out(columns: Tensor | None, tensor: Tensor) -> Tensor:
    """Takes a tensor's part in the span of some columns out, along its first axis of two.

    Args: columns: (..., d, k), orthonormal, or none. tensor: (..., d, r).
    """
    if columns is None:
        return tensor
    basis = columns.to(tensor.dtype)
    return tensor - basis @ (basis.mT @ tensor)


def precondition_rows(rows: Tensors, metric: Metric, owner: Int[Tensor, " n"]) -> TensorDict:
    """Maps the rows to the coordinates in which they are clipped.

    Args:
        rows, owner: key -> (N, ...), and each row's owner (N,).
        metric: maps common to all owners (1, r, r), or one for each.
    """
    mapped = dict(rows)
    for key in rows.keys() & metric.keys():
        before, complement = metric[key].before, metric[key].complement
        # Each row passes its own owner's map: no client's factors may change another's clip.
        if len(before) > 1:
            before = before.index_select(0, owner)
        if complement is not None and len(complement) > 1:
            complement = complement.index_select(0, owner)
        mapped[key] = project_out(complement, map_rank_axis(key, before, rows[key]))
    return mapped


def check_maps(rule: object, gram: torch.Size, key: ParamKey) -> None:
    """Refuses a rule's answer that is not a `Preconditioner` for the tensor, by shapes alone.

    Args:
        rule: what a method's rule returned.
        gram: (n, r, r), of the matrices that it was asked about: a map for each.
        key: of the tensor.

    Raises: ``ValueError`` in one line.
    """
    expected = "a rule that gives a Preconditioner"
    # A subclass might say one thing of its noise when asked, and do another at work.
    check(type(rule) is Preconditioner, "precondition", rule, expected)
    assert isinstance(rule, Preconditioner)
    # A row finds its map by its owner's number: were there fewer maps of one kind than of another,
    # a row's map would follow from its place among all rows, and so from who else was drawn.
    expected = "None: of_change and complement are attributes of the rule"
    check(rule.complement is None, f"precondition, complement of {key}", "columns", expected)
    for name in ("before", "after", "of_noise"):
        x = getattr(rule, name)
        shape = tuple(getattr(x, "shape", ()))
        check(shape == tuple(gram), f"precondition, {name} of {key}", shape, f"{tuple(gram)}")


def maps_of(
    rule: "Callable[[Tensor], Preconditioner]", gram: Tensor, key: ParamKey | None = None
) -> Preconditioner:
    """The maps that a method's rule gives for matrices.

    Args: rule: a row's ``precondition``; gram: (n, r, r); key: of the tensor, for messages.
    Raises: ``ValueError`` in one line, whatever the rule raises.
    """
    shape = tuple(gram.shape)
    with in_one_line(f"precondition: expected maps for Gram matrices {shape}, but"):
        maps = rule(gram)
    check_maps(maps, gram.shape, key or ParamKey("B", "any layer"))
    return maps


# ---- what no epsilon covers


def uncertified_reason(
    precondition: "Callable[[Tensor], Preconditioner] | None",
    clip_groups: ClipGroups = None,
    rank: int = 2,
    owners: int = 1,
) -> str | None:
    """Why no epsilon covers a release under these rules of a method; ``None`` where one does.

    Args:
        precondition, clip_groups: of the method.
        rank, owners: of the matrices (owners, r, r) that the rule will be asked about.

    Raises: ``ValueError`` for a rule that gives no `Preconditioner` for them.
    """
    reasons = []
    if precondition is not None:
        gram = torch.eye(rank).repeat(owners, 1, 1)
        rule = maps_of(precondition, gram)
        if rule.noise_map is not None:
            reasons.append(
                "the noise passes a map that the clipped value does not pass, so the clip does not "
                "bound what it hides"
            )
    if not shares_bound(clip_groups):
        reasons.append("each group is clipped to C, so all together move by more than C")
    return "; ".join(reasons) or None
