"""The factor that rests while the other moves: how large it is, and how far noise shaped by it hides a change."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab import mechanism
from fedlora_lab.checks import check, check_number, check_whole
from fedlora_lab.method import Slot
from fedlora_lab.rules import Whitening
from fedlora_lab.streams import Streams

if TYPE_CHECKING:
    from fedlora_lab.method import Method
    from fedlora_lab.record import Round


def peer_sizes(records: "Sequence[Round]", method: "Method | str") -> Float[np.ndarray, " rounds"]:
    """The largest spectral norm, over layers, of the factor that rests in each round.

    Args: records: all of a run, from index 0. method: that ran; one factor moves in a round.
    Raises: ``ValueError`` where both factors move in a round.
    Guarantees: test_peer_sizes_follow_the_schedule.
    """
    from fedlora_lab import methods

    row, sizes = methods.get(method), []
    for t, record in enumerate(records[:-1]):
        moves = row.moves(t, 0)
        check(moves in ("A", "B"), f"train({t}, 0)", moves, '"A" or "B": the other one rests')
        resting = 0 if moves == "B" else 1
        sizes.append(max(float(torch.linalg.matrix_norm(pair[resting], 2)) for pair in record.adapter.values()))
    return np.array(sizes)


def worst_change(
    whiten: Callable[[Tensor], Whitening], peer: Float[Tensor, "r d_in"], d_out: int = 8
) -> Float[Tensor, "d_out r"]:
    """The change of B, just within a clip of 1, that this rule hides worst: along the peer's largest direction."""
    rule = whiten(peer @ peer.mT)
    direction = torch.linalg.eigh(peer @ peer.mT).eigenvectors[:, -1]
    change = torch.zeros(d_out, len(peer), dtype=peer.dtype)
    change[0] = direction / torch.linalg.vector_norm(rule.before @ direction)
    return change


def separation(
    whiten: Callable[[Tensor], Whitening],
    peer: Float[Tensor, "r d_in"],
    change: Float[Tensor, "d_out r"] | None = None,
    noise_multiplier: float = 1.0,
    *,
    draws: int = 200,
    seed: int = 0,
) -> float:
    """mu, measured: how many standard deviations of the noise a change of B stands out, for who looks at its best.

    The change is clipped to 1 and released with the library's own mechanism; the noise is drawn ``draws`` times and
    looked at along the direction that tells best whether the change is there.

    Args:
        whiten: a rule such as `rules.product_space`.
        peer: A (r, d_in), of full row rank.
        change: (d_out, r); ``None``: the one that this rule hides worst, see `worst_change`.
        noise_multiplier: sigma > 0, for clip norm 1.
        draws: >= 2. seed: of the noise.

    Guarantees: follows `theory.regulated_mahalanobis` (test_separation_follows_the_closed_form).
    """
    check_number("noise_multiplier", noise_multiplier, 0, open_low=True)
    check_whole("draws", draws, 2)
    change = worst_change(whiten, peer) if change is None else change
    slot = Slot("B", "layer")
    maps = {slot: Whitening(*(matrix[None] for matrix in whiten(peer @ peer.mT)))}
    one = torch.zeros(1, dtype=torch.int64)
    rows = mechanism.before_clip({slot: change[None]}, maps, one)
    signal, _ = mechanism.clip_sum(rows, 1.0, one, 1)
    where = [(i,) for i in range(draws)]
    drawn = mechanism.noise({slot: change.shape}, [noise_multiplier] * draws, Streams(seed), where)
    shown, alone = mechanism.release({slot: signal[slot].expand(draws, -1, -1)}, drawn, maps)
    moved = (shown[slot] - alone[slot])[0]
    # The best direction for Gaussian noise xi N is the signal times the inverse covariance (N N^T)^-1.
    shape = maps[slot].noise[0]
    best = moved @ torch.linalg.pinv(shape @ shape.mT, hermitian=True)
    spread = (alone[slot] * best).sum((1, 2)).std()
    return float((moved * best).sum() / spread)
