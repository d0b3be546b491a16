"""The keywords of a run, with their defaults, checked once."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fedlora_lab._utils.validation import check, check_number, check_one_of, check_whole
from fedlora_lab.federated.config import MATMUL_PRECISIONS
from fedlora_lab.methods.plan import Lora


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The keywords of `run`, which describes them."""

    lora: "Lora | None" = None
    seed: int | None = None
    checkpoint: "str | Path | None" = None
    resume: "str | Path | None" = None
    max_epsilon: float | None = None
    evaluate_every: int = 1
    chunk_clients: int | None = None
    chunk_examples: int | None = None
    device: "str | torch.device | None" = None
    matmul_precision: str = "float32"

    def __post_init__(self) -> None:
        if self.max_epsilon is not None:
            check_number("max_epsilon", self.max_epsilon, 0, open_low=True)
        check_whole("evaluate_every", self.evaluate_every, 1)
        for name in ("chunk_clients", "chunk_examples"):
            if (most := getattr(self, name)) is not None:
                check_whole(name, most, 1)
        check_one_of("matmul_precision", self.matmul_precision, MATMUL_PRECISIONS)
        try:
            # On "meta" a tensor holds no values. ``None`` is the model's device, wherever this
            # process makes new tensors.
            usable = self.device is None or not torch.empty(0, device=self.device).is_meta
        except (RuntimeError, AssertionError, ValueError, TypeError):
            usable = False
        expected = "a device that torch finds here, such as 'cpu' or 'cuda'"
        check(usable, "device", str(self.device), expected)

    def changed(self) -> dict[str, Any]:
        """The keywords whose values differ from their defaults."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: x for name, x in values.items() if x != getattr(RunOptions, name)}
