"""Rules inside a client: clip groups, filters, preconditioners, initial factors. All are pure."""

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.methods.state import ParamKey, with_signs

# ---- what is clipped together


def by_factor(key: ParamKey) -> str:
    """Clips all A together, all B, and the head. Source: arXiv:2312.17493."""
    return key.name


def by_tensor(key: ParamKey) -> ParamKey:
    """Clips every tensor by itself. Source: arXiv:2509.09097."""
    return key


@dataclass(frozen=True)
class EachTensorToC:
    """Clips every tensor by itself and to all of C: p tensors move by up to sqrt(p) C together.

    Other rules' groups share the bound. The noise is for C, so the ledger certifies no epsilon.

    Source: arXiv:2410.12926, released code (server_funct.py): every tensor of an update.
    """

    shares_bound: ClassVar[bool] = False

    def __call__(self, key: ParamKey) -> ParamKey:
        return key


each_tensor_to_c = EachTensorToC()
"""The rule without settings, as rows of the table name it."""


# ---- filters of what was noised


def identity(tensor: Tensor, name: str) -> Tensor:
    """Leaves the noised value as it is: no filter."""
    return tensor


@dataclass(frozen=True)
class Binomial:
    """Low-pass filter along a factor's long axis: binomial weights, edges mirrored and repeated.

    Symmetric and doubly stochastic: it keeps the mean and never grows the norm. White noise keeps
    sum(w^2) of its variance, 0.273 for five weights.

    Args:
        taps: number of weights, an odd whole number in [1, 99]; 5 has [1, 4, 6, 4, 1] / 16.

    Source: arXiv:2602.19926, low-pass filter [1, 4, 6, 4, 1] / 16.
    Guarantees: linear, keeps the mean and never grows the norm
        (test_contract.py::test_smoothing_is_linear_keeps_the_mean_and_never_grows_the_norm).
    """

    taps: int

    def __post_init__(self) -> None:
        check_whole("taps", self.taps, 1, 99)
        check(self.taps % 2 == 1, "taps", self.taps, "an odd number")

    def __call__(self, tensor: Tensor, name: str) -> Tensor:
        axis = -1 if name == "A" else -2
        size = tensor.shape[axis]
        # Mirrored edges make the map doubly stochastic: with zeros there it would lose the mean.
        padded = tensor.index_select(axis, _mirrored(size, self.taps // 2, tensor.device))
        weights = [math.comb(self.taps - 1, i) / 2 ** (self.taps - 1) for i in range(self.taps)]
        smoothed = weights[0] * padded.narrow(axis, 0, size)
        for i, weight in enumerate(weights[1:], 1):
            smoothed.add_(padded.narrow(axis, i, size), alpha=weight)
        return smoothed


@lru_cache(maxsize=64)
def _mirrored(size: int, half: int, device: torch.device) -> Tensor:
    """Indices of an axis with ``half`` mirrored ones before and after it, (size + 2 half,)."""
    index = torch.arange(-half, size + half, device=device) % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


binomial = Binomial


# ---- preconditioners


class Preconditioner(NamedTuple):
    """Maps on the rank axis, (..., r, r): release = after (clip(before signal) + xi).

    Certified whatever the maps are: clip and noise act in one space, and ``after`` post-processes
    their result. With a map ``noise_map`` of its own for the noise the release
    is after clip(before signal) + noise_map xi, and no epsilon is certified
    (`privatizer.uncertified_reason`).

    ``complement`` (..., d, r) has orthonormal columns along the long axis, in whose span signal and
    noise have no part: it is taken out before the clip, and again after the noise.
    """

    before: Tensor
    after: Tensor
    noise_map: Tensor | None = None
    complement: Tensor | None = None

    @property
    def of_noise(self) -> Tensor:
        """The map that the noise passes."""
        return self.after if self.noise_map is None else self.noise_map


def _roots(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root of a Gram matrix, and the root's pseudo-inverse."""
    values, vectors = torch.linalg.eigh(gram.double())
    # A direction that is rounding alone is zero in both maps: its inverse would multiply the noise,
    # in float32 by thousands. The matrix was rounded to its type before it came here.
    least = max(1e-10, gram.shape[-1] * torch.finfo(gram.dtype).eps)
    spanned = values > least * values[..., -1:].clamp(min=0)
    root = values.clamp(min=0).sqrt() * spanned
    # Divided by 1 where the root is 0: an infinity would make a NaN of the zero that is meant.
    inverse = spanned / torch.where(spanned, root, torch.ones_like(root))
    back = vectors.transpose(-1, -2)
    maps = [(vectors * d.unsqueeze(-2) @ back).to(gram.dtype) for d in (root, inverse)]
    return maps[0], maps[1]


def product_space(gram: Tensor) -> Preconditioner:
    """Clips and noises the change of the product instead of the change of the factor.

    For B with peer A the clip bounds ||dB A||_F, since ||dB (A A^T)^(1/2)||_F = ||dB A||_F, and the
    released change is dB + xi_W A^+ with xi_W isotropic in weight space: a function of the Gaussian
    mechanism on dB A. For A with peer B likewise. Directions that the peer does not span change no
    product: they get neither signal nor noise.

    Args: gram: (..., r, r), A A^T or B^T B of a public or already noised peer.
    Guarantees: certified by the ledger (test_the_published_form_is_certified_by_nobody); clip and
        steps are those of a plain loop
        (test_transcriptions.py::test_methods_with_one_state_for_all_equal_their_loops).
    Source: the sound form of the noise regulator of arXiv:2410.12926; the derivation is this
        project's.
    """
    root, inverse = _roots(gram)
    # No map of the noise alone: the noised sum is mapped as a whole, which is post-processing.
    return Preconditioner(root, inverse)


def factor_space(gram: Tensor) -> Preconditioner:
    """Clips the factor's change, shapes only the noise by the peer's pseudo-inverse, as published.

    A change of norm C along the peer's largest direction is hidden by a multiplier sigma / ||A||_2
    instead of sigma: the ledger certifies no epsilon for it.

    Source: arXiv:2410.12926, released code and figure of the noise regulator.
    """
    inverse = _roots(gram)[1]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    return Preconditioner(eye, eye, inverse)


@dataclass(frozen=True)
class TangentSpace:
    """Clips and noises in orthonormal coordinates of the tangent space at the product Z = B A.

    A move of both factors moves Z by dZ = U X + Y V^T, where U and V are orthonormal bases of B's
    columns and of A's rows, X = U^T dZ stands for A, and Y = (I - U U^T) dZ V for B: so that
    ||dZ||^2 = ||X||^2 + ||Y||^2. All of these follow from the product, whatever its factors are. A
    gradient is taken in the product too, where one size of step fits all directions.

    In the client unit the change of the factors takes the gradient's place; what B moved within its
    own columns, of second order in the round's steps, is left out.

    Source: arXiv:2606.00944 (PRISM), tangent projection, clip and noise of both factors.
    Guarantees: noise is white in these coordinates
        (test_contract.py::test_noise_is_sigma_c_on_what_moves), and steps are those of a plain loop
        (test_transcriptions.py::test_methods_with_one_state_for_all_equal_their_loops).
    """

    complement: ClassVar[bool] = True
    """B's own columns are taken out of what moves B: X has that part of a move."""

    def __call__(self, gram: Tensor) -> Preconditioner:
        """The maps of a gradient, by the peer's Gram matrix: dA = (B^T B)^-1 g_A."""
        inverse = _roots(gram)[1]
        return Preconditioner(inverse, inverse)

    def of_change(self, gram: Tensor) -> Preconditioner:
        """The maps of a change of the factor, which is a move of the product as it stands."""
        root, inverse = _roots(gram)
        return Preconditioner(root, inverse)


tangent_space = TangentSpace()
"""The rule without settings, as rows of the table name it."""


def orthonormal_columns(factor: Tensor) -> Tensor:
    """A basis of a factor's columns, (..., d, r); zero in the directions that it does not span."""
    return factor @ _roots(finite(factor.mT @ factor))[1]


def finite(matrices: Tensor) -> Tensor:
    """Replaces matrices that are not finite by the identity.

    In the client unit they are not noised yet: a rule that raises would tell of one client's data.

    Guarantees: test_attack_clip.py::test_one_client_s_data_cannot_stop_a_run.
    """
    sound = matrices.isfinite().flatten(1).all(1).view(-1, 1, 1)
    eye = torch.eye(*matrices.shape[-2:], dtype=matrices.dtype, device=matrices.device)
    return torch.where(sound, matrices, eye)


# ---- starts


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
