"""A vision transformer small enough to ship with the package and to train in a widget."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Block(nn.Module):
    """One pre-norm transformer block; its six linear maps have the names that adapters are asked for by."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def _attend(self, z: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n tokens width"]:
        n, tokens, width = z.shape
        # Explicit sizes instead of -1: a federation's batch may be empty.
        size = width // self.heads
        parts = (f(z).view(n, tokens, self.heads, size).transpose(1, 2) for f in (self.query, self.key, self.value))
        query, key, value = (part.reshape(n * self.heads, tokens, size) for part in parts)
        # Written out: with so few tokens this is quicker than torch's fused kernel.
        scores = torch.baddbmm(query.new_empty(1, 1, 1), query, key.mT, beta=0, alpha=size**-0.5)
        mixed = torch.bmm(scores.softmax(-1), value).view(n, self.heads, tokens, size)
        return self.out(mixed.transpose(1, 2).reshape(n, tokens, width))

    def forward(self, x: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n tokens width"]:
        x = x + self._attend(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class TinyViT(nn.Module):
    """8 x 8 grey images as 16 patches of 2 x 2 pixels; 136,010 parameters with the default sizes.

    Args:
        width: size of a token, a multiple of ``heads``.
        depth: number of blocks.
        heads: attention heads in a block.
        classes: number of outputs.

    Guarantees: test_tasks.py::test_vision_transformer_keeps_examples_apart.
    """

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.patch = nn.Linear(4, width)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Float[Tensor, "n 8 8"]) -> Float[Tensor, "n classes"]:
        n = x.shape[0]
        patches = x.reshape(n, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(n, 16, 4)
        tokens = self.patch(patches) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens).mean(1))
