"""Server rules: ``(state, sent, uploads, weights) -> state``, pure, one for all layers.

state: what the server held; sent: what the clients received of it, a tensor as the server's where all received the same
and (clients, ...) where not; uploads: `Slot` -> (clients, ...), noised already; weights: (clients,), fixed before the
round. Their sum is 1 when every client uploads and less when some are absent: their part stays with the old state.

A rule is any function of these four. One that keeps more than factors, writes factors that nobody sent, or sends other
numbers than the factors, derives from `Rule` and says so.
"""

from fedlora_lab.aggregate.choice import ByLayer, by_layer
from fedlora_lab.aggregate.mean import MeanUpdate, NormWeighted, mean, norm_weighted, straight_through
from fedlora_lab.aggregate.products import (
    mean_with_residual,
    merge,
    repair,
    sketch,
    truncated_svd,
)
from fedlora_lab.aggregate.rule import Rule

__all__ = [
    "ByLayer",
    "MeanUpdate",
    "NormWeighted",
    "Rule",
    "by_layer",
    "mean",
    "mean_with_residual",
    "merge",
    "norm_weighted",
    "repair",
    "sketch",
    "straight_through",
    "truncated_svd",
]
