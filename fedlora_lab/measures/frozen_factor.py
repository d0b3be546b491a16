"""How well noise hides that is shaped by the factor that rests while the other moves."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check_number, check_whole
from fedlora_lab.methods.filters import Preconditioner
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy import mechanism


def worst_change(
    precondition: Callable[[Tensor], Preconditioner], peer: Float[Tensor, "r d_in"], d_out: int = 8
) -> Float[Tensor, "d_out r"]:
    """The change of B within a clip of 1 that a rule hides worst: the peer's largest direction.

    Args:
        precondition: a rule such as `filters.product_space`.
        peer: A (r, d_in).
        d_out: rows of B; the change is in the first.
    """
    rule = precondition(peer @ peer.mT)
    direction = torch.linalg.eigh(peer @ peer.mT).eigenvectors[:, -1]
    change = torch.zeros(d_out, len(peer), dtype=peer.dtype)
    change[0] = direction / torch.linalg.vector_norm(rule.before @ direction)
    return change


def separation(
    precondition: Callable[[Tensor], Preconditioner],
    peer: Float[Tensor, "r d_in"],
    change: Float[Tensor, "d_out r"] | None = None,
    noise_multiplier: float = 1.0,
    *,
    draws: int = 200,
    seed: int = 0,
) -> float:
    """Measures by how many standard deviations of the noise a change of B stands out (mu).

    The change is clipped to 1 and released with the library's own mechanism; the noise is drawn
    ``draws`` times and looked at along the direction that tells best whether the change is there.

    Args:
        precondition: a rule such as `filters.product_space`.
        peer: A (r, d_in), of full row rank.
        change: (d_out, r); ``None``: `worst_change`.
        noise_multiplier: sigma > 0, for clip norm 1.
        draws, seed: of the noise, >= 2 draws.

    Guarantees: follows `theory.regulated_mahalanobis` (test_separation_follows_the_closed_form).
    """
    check_number("noise_multiplier", noise_multiplier, 0, open_low=True)
    check_whole("draws", draws, 2)
    change = worst_change(precondition, peer) if change is None else change
    key = ParamKey("B", "layer")
    maps = {key: Preconditioner(*(matrix[None] for matrix in precondition(peer @ peer.mT)))}
    one = torch.zeros(1, dtype=torch.int64)
    rows = mechanism.precondition_rows({key: change[None]}, maps, one)
    signal, _ = mechanism.clip_sum(rows, 1.0, one, 1)
    stds, where = [noise_multiplier] * draws, [(i,) for i in range(draws)]
    drawn = mechanism.gaussian_noise({key: change.shape}, stds, Streams(seed), where)
    shown, alone = mechanism.release({key: signal[key].expand(draws, -1, -1)}, drawn, maps)
    moved = (shown[key] - alone[key])[0]
    # The best direction for Gaussian noise xi N is the signal times the inverse covariance (N
    # N^T)^-1.
    shape = maps[key].noise[0]
    best = moved @ torch.linalg.pinv(shape @ shape.mT, hermitian=True)
    spread = (alone[key] * best).sum((1, 2)).std()
    return float((moved * best).sum() / spread)
