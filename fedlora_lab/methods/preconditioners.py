"""Preconditioners: the space in which a factor is clipped and noised. All are pure."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


class Preconditioner(NamedTuple):
    """Maps on the rank axis of a factor: release = after (clip(before signal) + xi).

    Certified whatever the maps are: clip and noise act in one space, and ``after`` post-processes
    their result.

    Args:
        before: (..., r, r), from a factor's gradient or change to the space of clip and noise.
        after: (..., r, r), from there to what is released.
        noise_map: (..., r, r), another map for the noise: the release is after clip(before signal)
            + noise_map xi, and no epsilon is certified (`privatizer.uncertified_reason`). ``None``:
            the noise passes ``after``.
        complement: (..., d, r), orthonormal columns along the long axis, in whose span signal and
            noise have no part: it is taken out before the clip, and again after the noise.
            ``None``: nothing is taken out.
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
