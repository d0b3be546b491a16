"""Filters: linear maps of what was noised, and which tensors pass them. All are pure."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.methods.state import KINDS, TensorDict, Tensors

FILTERED = tuple(name for name, kind in KINDS.items() if kind.filtered)
"""The names of the tensors that pass a filter: the factors."""


def filter_factors(rule: Callable[[Tensor, str], Tensor], values: Tensors) -> TensorDict:
    """Filters the factors among some tensors; cores, gains and heads stay as they are."""
    return {key: rule(x, key.name) if key.name in FILTERED else x for key, x in values.items()}


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
