"""Handwritten digits for a model that knows printed ones, both embedded in what is installed."""

import hashlib
import json
import math
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.torch_state import with_default_modes
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.tasks import partition
from fedlora_lab.tasks.task import Task, classification

TEST, VALIDATION = 360, 180
"""Scans that test and that validate; the others are the clients'."""
SMALLEST_CLIENT = 8
"""Scans that every client has at least."""


@with_default_modes
def digits(
    clients: int = 10,
    dirichlet: float | None = 0.5,
    seed: int = 0,
    *,
    targets: Sequence[str] = ("query", "value"),
) -> Task:
    """Builds the digits task: a vision transformer for printed digits learns handwritten ones.

    Of 1,797 scans of 8 x 8 pixels in [0, 1] 360 test, 180 validate, 1,257 are the clients'.

    Args:
        clients: number of clients, in [1, 157].
        dirichlet: concentration of the split by label, > 0; ``None`` or infinity: at random.
        seed: of the split into test, validation and clients; a whole number >= 0.
        targets: which of query, key, value, out, up, down, patch get adapters.
    Raises: ValueError for a bad argument, or when the weights have another sha256.
    Guarantees: test_tasks.py::test_digits_use_every_scan_once, ::test_digits_streams_differ.

    >>> digits(clients=3, dirichlet=None).sizes
    (419, 419, 419)
    """
    dirichlet = None if dirichlet == math.inf else dirichlet
    check_whole("seed", seed)
    if dirichlet is not None:
        check_number("dirichlet", dirichlet, 0, open_low=True)
    x, y = handwritten_digits()
    order = torch.from_numpy(Streams(seed).numpy("digits split").permutation(len(y)))
    test, validation, private = order.split([TEST, VALIDATION, len(y) - TEST - VALIDATION])
    split = partition.dirichlet(y[private], clients, dirichlet, seed, SMALLEST_CLIENT)
    model, _ = load_pretrained()
    return classification(
        model,
        [(x[private[part]], y[private[part]]) for part in map(torch.from_numpy, split)],
        test=(x[test], y[test]),
        validation=(x[validation], y[validation]),
        targets=targets,
        name="digits",
    )


@cache
def handwritten_digits() -> tuple[Tensor, Tensor]:
    """The handwritten digits: (1797, 8, 8) float32 in [0, 1] and (1797,) int64.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, its test part, as
        scikit-learn has it (CC BY 4.0; see data/digits.md).
    """
    with np.load(Path(__file__).with_name("data") / "digits.npz") as data:
        pixels, labels = map(torch.from_numpy, (data["pixels"], data["labels"]))
    return pixels.float() / 16, labels.long()


def load_pretrained(folder: Path | None = None, name: str = "digits_vit") -> tuple["TinyViT", dict]:
    """Loads a model trained on printed digits, and its card, from the package or a folder.

    Raises: ValueError when the weights are not those of the card.
    Guarantees: test_digits_weights.py::test_changed_weights_are_refused.
    """
    from safetensors.torch import load

    home = resources.files("fedlora_lab.tasks") / "data" if folder is None else Path(folder)
    weights = (home / f"{name}.safetensors").read_bytes()
    card = json.loads((home / f"{name}.json").read_text(encoding="utf-8"))
    # Other weights would make other numbers than those that the course states.
    digest = hashlib.sha256(weights).hexdigest()
    expected = card["weights_sha256"]
    advice = f"{expected}; reinstall fedlora-lab"
    check(digest == expected, f"sha256 of {name}.safetensors", digest, advice)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced below
        model = TinyViT(**card.get("sizes", {}))
    model.load_state_dict(load(weights))
    return model.eval().requires_grad_(False), card


class TinyViT(nn.Module):
    """A vision transformer for square grey images, read as square patches; ten classes.

    Args:
        image: pixels of a side.
        patch: pixels of a patch's side; divides ``image``.
        width: of a token, a multiple of ``heads``.
        blocks: how many.
        heads: of attention, in each block.
    """

    def __init__(
        self, image: int = 8, patch: int = 2, width: int = 64, blocks: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        self.side = patch
        self.patch = nn.Linear(patch * patch, width)
        self.position = nn.Parameter(torch.randn(1, (image // patch) ** 2, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Float[Tensor, "n side side"]) -> Float[Tensor, "n 10"]:
        p = self.side
        patches = x.unfold(1, p, p).unfold(2, p, p).flatten(1, 2).flatten(2)
        tokens = self.patch(patches) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens).mean(1))


class Block(nn.Module):
    """A pre-norm transformer block; its six linear maps have the names of adapter targets."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n tokens width"]:
        n, tokens, width = x.shape
        z = self.norm1(x)
        heads = self.heads
        size = width // self.heads

        def by_head(linear: nn.Module) -> Tensor:
            # Explicit sizes instead of -1: a federation's batch may be empty.
            split = linear(z).view(n, tokens, heads, size).transpose(1, 2)
            return split.reshape(n * heads, tokens, size)

        query, key, value = (by_head(linear) for linear in (self.query, self.key, self.value))
        # Written out: with so few tokens this is quicker than torch's fused kernel.
        scores = torch.baddbmm(query.new_empty(1, 1, 1), query, key.mT, beta=0, alpha=size**-0.5)
        mixed = torch.bmm(scores.softmax(-1), value).view(n, heads, tokens, size)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))
