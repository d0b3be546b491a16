"""Clip groups: which tensors of a row are clipped together. All are pure."""

from dataclasses import dataclass
from typing import ClassVar

from fedlora_lab.methods.state import ParamKey


def by_factor(key: ParamKey) -> str:
    """Clips all A together, all B, and the head. Source: arXiv:2312.17493."""
    return key.name


def by_tensor(key: ParamKey) -> ParamKey:
    """Clips every tensor by itself. Source: arXiv:2509.09097."""
    return key


@dataclass(frozen=True)
class EachTensorToC:
    """Clips every tensor by itself and to all of C: p tensors move by up to sqrt(p) C together.

    Other rules' groups share the bound. The noise is for C, so the ledger certifies no epsilon.

    Source: arXiv:2410.12926, released code (server_funct.py): every tensor of an update.
    """

    shares_bound: ClassVar[bool] = False

    def __call__(self, key: ParamKey) -> ParamKey:
        return key


each_tensor_to_c = EachTensorToC()
"""The rule without settings, as rows of the table name it."""
