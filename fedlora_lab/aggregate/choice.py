"""A server rule that also decides, layer by layer, which factor moves next."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedlora_lab.aggregate.mean import mean
from fedlora_lab.aggregate.rule import Rule
from fedlora_lab.checks import check_number
from fedlora_lab.method import MODES, Global, Slot

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, repr=False)
class ByLayer(Rule):
    """The mean of what was sent; then each layer's mode for the next round, drawn by how much each factor gained.

    All layers take turns, B first, for the first ``warmup`` of the planned rounds. After that a layer moves A with
    probability sigmoid(d / T), d = (S_A - S_B) / (|S_A| + |S_B|), T = max(coldest, cooling^rounds since the warm-
    up); a factor that never moved comes first. S is the exponential mean of a score of the factor that moved. The
    draw is public.

    The score is read from released values only, so it costs no privacy: the mean inner product of two clients' changes,
    whose expectation is the squared norm of the mean change without the noise (the noise of two clients is
    independent). Where the server has a single sum it is that sum's squared norm, noise included.

    Args:
        warmup: share of the planned rounds that are plain turns, in [0, 1].
        memory: weight of the old score in the new, in [0, 1).
        cooling, coldest: of the temperature, in (0, 1].
    Source: arXiv:2605.05769 (AS-LoRA), schedule; the published score reads raw losses, this one does not.
    """

    warmup: float = 0.1
    memory: float = 0.9
    cooling: float = 0.95
    coldest: float = 0.1
    writes: ClassVar[tuple[str, ...]] = ("mode", "score A", "score B")

    def __repr__(self) -> str:
        return f"by_layer(warmup={self.warmup:g})"

    def open(self, state: Global) -> Global:
        like = next(iter(state.tensors.values()))
        values = {"mode": 0.0, "score A": float("nan"), "score B": float("nan")}
        return state.with_({Slot(s, k): like.new_tensor(v) for k in state.layers for s, v in values.items()})

    def __call__(self, state: Global, sent: Global, uploads: "Mapping[Slot, Tensor]", weights: "Tensor") -> Global:
        after = mean(state, sent, uploads, weights)
        changed = {}
        for layer in state.layers:
            side = MODES[int(state.tensors[Slot("mode", layer)])]
            slot, key = Slot(side, layer), Slot(f"score {side}", layer)
            old = state.tensors[key]
            if slot in uploads:
                new = _agreement(uploads[slot] - sent.tensors[slot]).to(old)
                changed[key] = new if old.isnan() else self.memory * old + (1 - self.memory) * new
            scores = [changed.get(k, state.tensors[k]) for k in (Slot("score A", layer), Slot("score B", layer))]
            changed[Slot("mode", layer)] = old.new_tensor(float(self._next(after, layer, *map(float, scores))))
        return after.with_(changed)

    def _next(self, after: Global, layer: str, a: float, b: float) -> int:
        """The layer's mode for the round that comes: 0 moves B, 1 moves A."""
        import torch

        coming, warm = after.round + 1, math.ceil(self.warmup * after.planned - 1e-9)
        if coming < warm:
            return coming % 2
        if a != a or b != b:  # not a number: this factor never moved
            return int(a != a and b == b)
        lead = (a - b) / (abs(a) + abs(b) + 1e-8)
        heat = max(self.coldest, self.cooling ** (coming + 1 - warm))
        chance = torch.sigmoid(torch.tensor(lead / heat, dtype=torch.float64))
        return int(after.random(layer).random() < chance)


def _agreement(changes: "Tensor") -> "Tensor":
    """Mean inner product of two different rows' changes, at least 0; of a single row its squared norm."""
    rows = changes.flatten(1).double()
    total, own = rows.sum(0).square().sum(), rows.square().sum()
    count = len(rows)
    return ((total - own) / (count * (count - 1))).clamp(min=0) if count > 1 else own


def by_layer(warmup: float = 0.1, memory: float = 0.9, cooling: float = 0.95, coldest: float = 0.1) -> ByLayer:
    """The rule that chooses each layer's factor; see `ByLayer`."""
    check_number("warmup", warmup, 0, 1)
    check_number("memory", memory, 0, 1 - 1e-9)
    for name, value in (("cooling", cooling), ("coldest", coldest)):
        check_number(name, value, 0, 1, open_low=True)
    return ByLayer(warmup, memory, cooling, coldest)
