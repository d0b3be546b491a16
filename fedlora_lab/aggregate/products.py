"""Server rules that look at the mean of the clients' products, always as a pair of tall and wide factors.

The mean is T = (1 - sum w) B A + sum_k w_k B_k A_k. It is written ``left @ right`` with left (d_out, q), right
(q, d_in) and q at most rank times (clients + 1): singular values come from two QR factorisations and one (q, q)
problem.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedlora_lab.aggregate.mean import mean
from fedlora_lab.aggregate.rule import Rule, held
from fedlora_lab.checks import check_number, check_whole
from fedlora_lab.method import Global, Slot

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple["Tensor", "Tensor"]


def mean_product(
    state: Global, sent: Global, uploads: "Mapping[Slot, Tensor]", weights: "Tensor", layer: str
) -> "tuple[Tensor, Tensor]":
    """(left, right) with left @ right the mean of the clients' products, float64; what is absent stays as it was."""
    import torch

    slots = Slot("A", layer), Slot("B", layer)
    a, b = (held(state, sent, uploads, slot).double() for slot in slots)
    old_a, old_b = (state.tensors[slot].double() for slot in slots)
    w = weights.double()
    if len(a) == 1:  # one A for all: the mean falls on B
        left = [((w if len(b) > 1 else w.sum()[None]) @ b.flatten(1)).view_as(old_b)]
        right = [a[0]]
    elif len(b) == 1:
        left, right = [b[0]], [(w @ a.flatten(1)).view_as(old_a)]
    else:
        left, right = list(w.view(-1, 1, 1) * b), list(a)
    return torch.cat([(1 - w.sum()) * old_b, *left], 1), torch.cat([old_a, *right])


def singular(left: "Tensor", right: "Tensor", rank: int) -> "tuple[Tensor, Tensor, Tensor]":
    """Leading singular values and vectors of left @ right: U (d_out, k), S (k,), V^T (k, d_in).

    k is the rank, or the smallest side of left and right if that is less.
    """
    import torch

    tall, r = torch.linalg.qr(left)
    wide, c = torch.linalg.qr(right.T)
    u, s, v = torch.linalg.svd(r @ c.T, full_matrices=False)
    return tall @ u[:, :rank], s[:rank], v[:rank] @ wide.T


def _ranked(a: "Tensor", b: "Tensor", rank: int) -> "dict[str, Tensor]":
    """Both factors with all their ranks: a product has no more directions than its smaller side."""
    from fedlora_lab.ranks import padded

    return dict(zip("AB", padded(a, b, rank), strict=True))


class ProductRule(Rule, ABC):
    """A rule that turns each layer's mean product into new tensors; a head is averaged."""

    @abstractmethod
    def layer(self, after: Global, left: "Tensor", right: "Tensor", layer: str) -> "Mapping[str, Tensor]":
        """Side -> new tensor. ``after`` holds the mean of what was sent; left @ right is the mean of the products."""

    def __call__(self, state: Global, sent: Global, uploads: "Mapping[Slot, Tensor]", weights: "Tensor") -> Global:
        after = mean(state, sent, uploads, weights)
        changed = {}
        for layer in state.layers:
            left, right = mean_product(state, sent, uploads, weights, layer)
            for side, value in self.layer(after, left, right, layer).items():
                changed[Slot(side, layer)] = value.to(state.tensors[Slot(side, layer)])
        return after.with_(changed)


class _Residual(ProductRule):
    """Keeps a matrix W beside the product of each layer, zero before the first round."""

    writes: ClassVar[tuple[str, ...]] = ("W",)

    def open(self, state: Global) -> Global:
        a, b = state.side("A"), state.side("B")
        return state.with_({Slot("W", k): b[k].new_zeros(b[k].shape[0], a[k].shape[1]) for k in state.layers})


@dataclass(frozen=True)
class MeanWithResidual(_Residual):
    """The mean of each factor; what the mean of the products has more goes into the layer's residual W.

    Exact. The residual has rank at most rank x (clients + 1); noise that it takes up stays in it for good.

    Source: arXiv:2410.09432 (FedEx-LoRA), residual added to the frozen weight.
    """

    def layer(self, after: Global, left: "Tensor", right: "Tensor", layer: str) -> "Mapping[str, Tensor]":
        a, b = (after.tensors[Slot(side, layer)].double() for side in "AB")
        return {"W": after.tensors[Slot("W", layer)].double() + left @ right - b @ a}


@dataclass(frozen=True)
class Merge(_Residual):
    """The mean of the products goes into W whole; B starts again at zero and A at a fresh public draw.

    Exact, for unequal ranks too: it is the stack of all clients' factors. What the factors had learnt of directions is
    lost with every round.

    Source: arXiv:2409.05976 (FLoRA), stacking and re-initialisation.
    """

    writes: ClassVar[tuple[str, ...]] = ("W", "A", "B")

    def layer(self, after: Global, left: "Tensor", right: "Tensor", layer: str) -> "Mapping[str, Tensor]":
        import torch

        a, b = (after.tensors[Slot(side, layer)] for side in "AB")
        fresh = torch.from_numpy(after.random(layer).random(a.shape)) * 2 - 1
        w = after.tensors[Slot("W", layer)].double() + left @ right
        return {"W": w, "A": fresh / a.shape[1] ** 0.5, "B": torch.zeros_like(b)}


@dataclass(frozen=True)
class TruncatedSVD(ProductRule):
    """The best approximation of rank r to the mean product: B = U S, A = V^T. The other directions are lost.

    Leading directions come first, so a client of lower rank receives the best approximation of its own rank. A mean
    product of zero leaves the factors as they are.

    Source: arXiv:2402.11505 (FlexLoRA).
    """

    writes: ClassVar[tuple[str, ...]] = ("A", "B")

    def layer(self, after: Global, left: "Tensor", right: "Tensor", layer: str) -> "Mapping[str, Tensor]":
        rank = after.tensors[Slot("A", layer)].shape[0]
        u, s, v = singular(left, right, rank)
        return _ranked(v, u * s, rank) if s[0] > 0 else {}


@dataclass(frozen=True)
class Sketch(ProductRule):
    """Two passes of a random sketch instead of the clients' factors: B = Q U sqrt(S), A = sqrt(S) V^T.

    The server sums Y_k = B_k (A_k Omega) over a public random Omega (d_in, width), sends back Q, an orthonormal basis
    of the sum, and sums P_k = A_k^T (B_k^T Q). The sketch holds all of the mean product when the width reaches its
    rank: r where the clients share a factor, otherwise up to clients x r. The leading r directions are kept, so the
    server is exact where a factor is shared.

    Args:
        width: columns of the sketch, >= 1; ``None``: the rank.
    Source: arXiv:2507.09990 (FedASK), two-stage sketch aggregation.
    """

    width: int | None = None
    writes: ClassVar[tuple[str, ...]] = ("A", "B")

    def layer(self, after: Global, left: "Tensor", right: "Tensor", layer: str) -> "Mapping[str, Tensor]":
        import torch

        rank, size = after.tensors[Slot("A", layer)].shape
        omega = torch.from_numpy(after.random(layer).standard_normal((size, self.width or rank)))
        basis, _ = torch.linalg.qr(left @ (right @ omega))
        u, s, v = torch.linalg.svd((basis.T @ left) @ right, full_matrices=False)
        if not s[0] > 0:
            return {}
        root = s[:rank].sqrt()
        return _ranked(root.unsqueeze(1) * v[:rank], basis @ u[:, :rank] * root, rank)

    def _columns(self, shapes: "Mapping[Slot, Sequence[int]]", layer: str) -> tuple[int, int, int]:
        (rank, wide), (tall, _) = shapes[Slot("A", layer)], shapes[Slot("B", layer)]
        return tall, wide, self.width or rank

    def up(self, shapes: "Mapping[Slot, Sequence[int]]", slots: Sequence[Slot]) -> list[int]:
        head = super().up(shapes, [slot for slot in slots if slot.side == "head"])
        sizes = [self._columns(shapes, layer) for layer in dict.fromkeys(s.layer for s in slots if s.side in "AB")]
        return [*head, *(size * width for tall, wide, width in sizes for size in (tall, wide))]

    def extra_down(self, shapes: "Mapping[Slot, Sequence[int]]") -> list[int]:
        sizes = [self._columns(shapes, slot.layer) for slot in shapes if slot.side == "B"]
        return [tall * width for tall, _, width in sizes]


@dataclass(frozen=True)
class Repair(ProductRule):
    """The means of both factors, B then moved to where its product with the mean A is nearest to the mean product.

    B = mean B + D with D the minimum of ||T - (mean B + D) A||_F^2 + strength ||D||_F^2.

    Args:
        strength: lambda > 0, how much the repaired B is held back.
    Source: arXiv:2411.14961 (LoRA-FAIR); the paper's discrepancy is a similarity, here it is the squared error, whose
        minimum is known in closed form.
    """

    strength: float = 0.01
    writes: ClassVar[tuple[str, ...]] = ("B",)

    def layer(self, after: Global, left: "Tensor", right: "Tensor", layer: str) -> "Mapping[str, Tensor]":
        import torch

        a, b = (after.tensors[Slot(side, layer)].double() for side in "AB")
        gram = a @ a.T
        gap = left @ (right @ a.T) - b @ gram
        ridge = gram + self.strength * torch.eye(len(gram), dtype=gram.dtype)
        return {"B": b + torch.linalg.solve(ridge, gap.T).T}


mean_with_residual = MeanWithResidual()
merge = Merge()
truncated_svd = TruncatedSVD()


def sketch(width: int | None = None) -> Sketch:
    """The two-stage sketch with so many columns; ``None``: as many as the rank."""
    if width is not None:
        check_whole("width", width, 1)
    return Sketch(width)


def repair(strength: float = 0.01) -> Repair:
    """The mean of factors, repaired; ``strength`` > 0 holds the repair back."""
    check_number("strength", strength, 0, 1e9, open_low=True)
    return Repair(strength)
