"""Canary clients that send a direction of their own, far beyond the clip norm, in place of what they trained.

The strongest canary that a client can be: its update is clipped to exactly C, and is orthogonal to everything else but
for chance. Source: arXiv:2302.03098, section 3.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab.audit.canaries import LOUD, Planted
from fedlora_lab.audit.estimate import epsilon_estimate
from fedlora_lab.audit.scores import of_updates
from fedlora_lab.audit.watch import Watched
from fedlora_lab.method import Slot
from fedlora_lab.streams import Streams

SENT = ("A", "B", "R", "head")


def drawn(run: Watched, count: int, streams: Streams) -> dict[Slot, Float[Tensor, "m ..."]]:
    """A standard normal tensor for each canary and each slot that clients may send."""
    return {
        slot: streams.normal((count, *value.shape), "audit directions", number).to(value)
        for number, (slot, value) in enumerate(run.state.server.tensors.items())
        if slot.side in SENT
    }


def impose(run: Watched, planted: Planted) -> None:
    """Put each canary's direction, or no change at all, in the place of what it trained; other clients keep theirs."""
    group = run.group
    if group is None or planted.directions is None:
        return
    owners = planted.owner.tolist()
    pairs = [(i, owners.index(k)) for i, k in enumerate(group.ids) if k in owners]
    if not pairs:
        return
    place, canary = (torch.tensor(part) for part in zip(*pairs, strict=True))
    loud = LOUD * planted.included[canary].double()
    for slot, value in planted.directions.items():
        if group.bank[slot] is not group.start[slot]:
            begin = group.start[slot].expand(len(group.ids), *value.shape[1:])
            own = value[canary] * loud.to(value).view(-1, *[1] * (value.dim() - 1))
            group.bank[slot] = group.bank[slot].expand_as(begin).index_copy(0, place, begin[place] + own)


@dataclass
class Aligned:
    """Cosine of each canary's direction with all that was released, gathered round by round, where noise is white."""

    count: int
    dot: Tensor = field(init=False)
    size: Tensor = field(init=False)
    total: Tensor = field(init=False)
    numbers: int = 0

    def __post_init__(self) -> None:
        self.dot, self.size, self.total = (torch.zeros(self.count, dtype=torch.float64) for _ in range(3))

    def add(self, run: Watched, planted: Planted) -> None:
        """Take in the last round."""
        found = of_updates(run, planted)
        if found is None:
            return
        who, template, seen, _ = found
        for slot, rows in template.items():
            one, other = rows.flatten(1).double(), seen[slot].flatten(1).double()
            self.dot[who] += (one * other).sum(1)
            self.size[who] += one.square().sum(1)
            self.total[who] += other.square().sum(1)
            self.numbers += one.shape[1]

    def estimate(self, included: np.ndarray, delta: float) -> float:
        """`epsilon_estimate` of those that took part; NaN where they are few, or the numbers too few or too large."""
        cosine = (self.dot / (self.size * self.total).sqrt().clamp(min=1e-300)).numpy()[included]
        if len(cosine) < 2 or self.numbers < 1000 or not cosine.any() or not np.isfinite(cosine).all():
            return float("nan")
        return epsilon_estimate(cosine, self.numbers, delta)
