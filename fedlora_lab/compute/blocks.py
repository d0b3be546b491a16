"""The repeated blocks of a model, each in a shell: computed again on the way back, or answered from what was kept."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Reached(Exception):
    """The forward pass came to the block whose output was wanted."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class Block(nn.Module):
    """A block as it is; what else is asked of it, it answers itself.

    Args:
        recompute: keep only its inputs for the way back.
    """

    def __init__(self, block: nn.Module, recompute: bool = False) -> None:
        super().__init__()
        self.block, self.recompute = block, recompute
        self.stop = False
        self.answer: Callable[[tuple, dict[str, Any]], Any] | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.answer is not None:
            return self.answer(args, kwargs)
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.block, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
        output = self.block(*args, **kwargs)
        if self.stop:
            raise Reached(output)
        return output


def wrap(model: nn.Module, recompute: bool) -> list[list[Block]]:
    """Put every block of the model's outermost lists into a shell, in place; the lists of shells.

    A model that caches its keys and values is told not to: a block computed twice would store them twice.
    """
    found: list[list[Block]] = []
    inside: set[int] = set()
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList) and id(module) not in inside and len(module):
            inside |= {id(part) for part in module.modules()}
            shells = [Block(block, recompute) for block in module]
            for i, shell in enumerate(shells):
                module[i] = shell
            found.append(shells)
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False  # type: ignore[union-attr]
    return found
