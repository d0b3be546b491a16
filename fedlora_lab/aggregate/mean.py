"""Means of the factors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedlora_lab.aggregate.rule import Rule, held
from fedlora_lab.checks import check_number
from fedlora_lab.method import Global, Slot

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MeanUpdate:
    """Add the weighted mean of the clients' changes: state + server_lr * sum_k w_k (upload_k - sent).

    With weights that sum to 1, server_lr 1 and nothing lost on the way down this is the mean of the uploads. Written
    as changes, a missing client leaves the state where it was (fixed denominator), a client of lower rank leaves the
    ranks it does not hold, and the same rule is FedLPP's straight-through update when the clients received a quantised
    state.

    Source: arXiv:2305.05644 (mean of factors); arXiv:2406.10976, server rule 1 of the reconstruction in docs/methods.
    """

    server_lr: float = 1.0

    def __call__(self, state: Global, sent: Global, uploads: "Mapping[Slot, Tensor]", weights: "Tensor") -> Global:
        change = {
            slot: (weights.to(upload.dtype) @ (upload - sent.tensors[slot]).flatten(1)).view_as(state.tensors[slot])
            for slot, upload in uploads.items()
        }
        return state.with_({slot: state.tensors[slot] + self.server_lr * delta for slot, delta in change.items()})


mean = MeanUpdate()


def straight_through(server_lr: float = 1.0) -> MeanUpdate:
    """The mean of changes with a server learning rate: psi + eta (mean_k psi_k - Q(psi)) under a quantised broadcast.

    Source: arXiv:2406.10976; which of four variants the paper uses is not published, this is the only one that keeps a
    full-precision state and estimates its gradient.
    """
    check_number("server_lr", server_lr, 0, 1e6)
    return MeanUpdate(server_lr)


@dataclass(frozen=True)
class NormWeighted(Rule):
    """Each factor is the mean of the clients' factors, client k weighing w_k ||B_k A_k||_F, layer by layer.

    Factors of lower rank count with zeros in the ranks they lack. Where every product is zero the weights are w_k. The
    norms are those of the noised uploads: they cost no privacy. A head is averaged plainly.

    Source: arXiv:2401.06432 (HetLoRA), sparsity-weighted aggregation.
    """

    def __call__(self, state: Global, sent: Global, uploads: "Mapping[Slot, Tensor]", weights: "Tensor") -> Global:
        after = mean(state, sent, {slot: x for slot, x in uploads.items() if slot.side == "head"}, weights)
        changed = {}
        for layer in state.layers:
            a, b = (held(state, sent, uploads, Slot(side, layer)).double() for side in "AB")
            sizes = ((b.mT @ b) * (a @ a.mT)).sum((1, 2)).clamp(min=0).sqrt() * weights
            share = sizes / sizes.sum() * weights.sum() if sizes.sum() > 0 else weights
            for slot in (Slot("A", layer), Slot("B", layer)):
                if slot in uploads:
                    old, rows = state.tensors[slot], uploads[slot]
                    kept = (1 - share.sum()).to(old) * old
                    changed[slot] = kept + (share.to(rows) @ rows.flatten(1)).view_as(old)
        return after.with_(changed)


norm_weighted = NormWeighted()
