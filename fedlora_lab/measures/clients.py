"""What clients did in a round: how far they went, how their factors point, how much of what is released is noise."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab.measures.products import product_norm
from fedlora_lab.method import Global, Method, Slot


def drift(server: tuple[Tensor, Tensor], clients: tuple[Tensor, Tensor]) -> Float[Tensor, " clients"]:
    """How far each client's product went from the server's: ||B_k A_k - B A||_F, without the scaling.

    Args:
        server: the (A, B) that the clients started from, A (r, d_in), B (d_out, r).
        clients: (A_k, B_k), (clients, r, d_in) and (clients, d_out, r); a leading 1 where all agree.

    Guarantees: equals the direct matrices; zero for a client that did not move
        (tests/test_measures_more.py::test_drift).
    """
    (a, b), (own_a, own_b) = (tuple(x.double() for x in pair) for pair in (server, clients))
    count = max(len(own_a), len(own_b))
    # B_k A_k - B A = (B_k - B) A_k + B (A_k - A): small terms, no cancellation of large ones.
    rows = [
        (torch.cat([own_b[k % len(own_b)] - b, b], 1), torch.cat([own_a[k % len(own_a)], own_a[k % len(own_a)] - a]))
        for k in range(count)
    ]
    return torch.tensor([product_norm(left, right) for left, right in rows], dtype=torch.float64)


def angles(one: Float[Tensor, "d r"], other: Float[Tensor, "d q"]) -> Float[Tensor, " n"]:
    """Principal angles between two column spaces in degrees, smallest first, min(r, q) of them; for A give A.T.

    0: the factors span the same directions. 90: a direction of one is unknown to the other.

    Guarantees: known angles are found, small ones to 1e-6 degrees (tests/test_measures_more.py::test_angles).
    Source: Bjorck & Golub, Numerical methods for computing angles between linear subspaces (1973), section 3.
    """
    left, right = (_basis(x.double()) for x in (one, other))
    if left.shape[1] < right.shape[1]:
        left, right = right, left
    cosines = torch.linalg.svdvals(left.T @ right).clamp(max=1)
    sines = torch.linalg.svdvals(right - left @ (left.T @ right)).flip(0).clamp(max=1)
    # The cosine knows nothing of small angles, the sine nothing of large ones.
    return torch.rad2deg(torch.where(cosines**2 < 0.5, torch.arccos(cosines), torch.arcsin(sines)))


def _basis(x: Tensor) -> Tensor:
    """Orthonormal columns that span those of x; directions of no length are left out."""
    left, values, _ = torch.linalg.svd(x, full_matrices=False)
    return left[:, values > 1e-12 * values.max().clamp(min=1e-300)]


def signal_to_noise(released: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Norm of what is released without its noise, over the norm of the noise, over all given tensors together.

    Args: released: pairs of a released change and the noise in it, of one shape each.
    Returns: infinite without noise, 0 without signal.
    Guarantees: tests/test_measures_more.py::test_signal_to_noise.
    """
    signal = noise = 0.0
    for value, xi in released:
        signal += float((value.double() - xi.double()).square().sum())
        noise += float(xi.double().square().sum())
    return (signal / noise) ** 0.5 if noise else (float("inf") if signal else 0.0)


class Seen(NamedTuple):
    """What the server's rule was given in a round: its state, what clients received, their uploads, their weights."""

    state: Global
    sent: Global
    uploads: Mapping[Slot, Tensor]
    weights: Tensor

    def factors(self, layer: str) -> tuple[Tensor, Tensor]:
        """The clients' (A, B) of a layer; a leading 1 for a factor that was not uploaded."""
        a, b = (self.uploads.get(slot, self.sent.tensors[slot][None]) for slot in (Slot("A", layer), Slot("B", layer)))
        return a, b

    def server(self, layer: str) -> tuple[Tensor, Tensor]:
        """The server's (A, B) of a layer before the round."""
        return self.state.tensors[Slot("A", layer)], self.state.tensors[Slot("B", layer)]


@dataclass(frozen=True, eq=False)
class _Watched:
    """A server's rule that keeps what it is given."""

    rule: object
    seen: list[Seen] = field(default_factory=list, repr=False)

    @property
    def writes(self) -> tuple[str, ...]:
        """What the rule writes besides the factors."""
        return tuple(getattr(self.rule, "writes", ()))

    def __call__(self, state: Global, sent: Global, uploads: Mapping[Slot, Tensor], weights: Tensor) -> Global:
        self.seen.append(Seen(state, sent, dict(uploads), weights))
        return self.rule(state, sent, uploads, weights)  # type: ignore[operator]


def watch(method: Method) -> tuple[Method, list[Seen]]:
    """The same method, and a list that grows by one `Seen` for every round that its server aggregates.

    Guarantees: the run has the bits it would have had (tests/test_measures_more.py::test_watching_changes_nothing).
    """
    watched = _Watched(method.aggregate)
    return method.replace(aggregate=watched), watched.seen
