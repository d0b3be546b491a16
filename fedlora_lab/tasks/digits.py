"""Handwritten digits for a model that knows printed ones: real data that needs no download."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.tasks import partition
from fedlora_lab.tasks.task import Task, classification

DATA_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
"""Of scikit-learn's pixels and labels as bytes."""
TEST, VALIDATION = 360, 180
WIDTH, HEADS = 64, 4  # of the vision transformer


def digits(
    clients: int = 10,
    alpha: float | None = 0.5,
    seed: int = 0,
    *,
    min_size: int = 8,
    targets: Sequence[str] = ("query", "value"),
    head: str | None = None,
) -> Task:
    """Build the digits task: a vision transformer for printed digits learns handwritten ones.

    Of 1,797 scans of 8 x 8 pixels in [0, 1] 360 test, 180 validate, 1,257 are the clients'.

    Args:
        clients: number of clients, in [1, 1257 / min_size].
        alpha: Dirichlet concentration of the split by label, > 0; ``None`` or infinity: at random.
        seed: of the split into test, validation and clients; a whole number >= 0.
        min_size: smallest number of examples of a client.
        targets: which of query, key, value, out, up, down, patch get adapters.
        head: ``"head"`` trains the classifier in full; ``None`` leaves it frozen.
    Raises: ValueError for a bad argument, or when data or weights have another sha256.
    Guarantees: test_tasks.py::test_digits_use_every_scan_once, ::test_digits_streams_differ,
        test_digits_weights.py::test_card_numbers_hold.

    >>> digits(clients=3, alpha=None).sizes
    (419, 419, 419)
    """
    check_whole("seed", seed)
    alpha = None if alpha is not None and alpha == math.inf else alpha
    x, y = _scans()
    order = torch.from_numpy(Streams(seed).numpy("digits split").permutation(len(y)))
    test, validation, private = order.split([TEST, VALIDATION, len(y) - TEST - VALIDATION])
    split = partition.dirichlet(y[private], clients, alpha, seed, min_size)
    model, card = pretrained()
    task = classification(
        model,
        [(x[private[part]], y[private[part]]) for part in map(torch.from_numpy, split)],
        test=(x[test], y[test]),
        validation=(x[validation], y[validation]),
        targets=targets,
        head=head,
        labels=[str(digit) for digit in range(10)],
        name="digits",
    )
    arguments = {"clients": clients, "alpha": alpha, "seed": seed, "min_size": min_size}
    arguments |= {"targets": list(targets), "head": head}
    sums = {"data_sha256": DATA_SHA256, "weights_sha256": card["weights_sha256"]}
    return replace(task, info={"task": "digits", "arguments": arguments, **sums})


@cache
def _scans() -> tuple[Tensor, Tensor]:
    """scikit-learn's handwritten digits: (1797, 8, 8) float32 in [0, 1] and (1797,) int64."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    pixels, labels = data.images.astype(np.uint8), data.target.astype(np.uint8)
    found = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    expected = f"{DATA_SHA256}; reinstall scikit-learn"
    check(found == DATA_SHA256, "sha256 of scikit-learn's digits", found, expected)
    return torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels).long()


def pretrained(folder: Path | None = None) -> tuple["TinyViT", dict]:
    """Load the model trained on printed digits, and its card, from the package or a folder.

    Raises: ValueError when the weights are not those of the card.
    Guarantees: test_digits_weights.py::test_changed_weights_are_refused.
    """
    from safetensors.torch import load

    home = resources.files("fedlora_lab.tasks") / "data" if folder is None else Path(folder)
    weights = (home / "digits_vit.safetensors").read_bytes()
    card = json.loads((home / "digits_vit.json").read_text(encoding="utf-8"))
    found, expected = hashlib.sha256(weights).hexdigest(), card["weights_sha256"]
    advice = f"{expected}; reinstall fedlora-lab"
    check(found == expected, "sha256 of digits_vit.safetensors", found, advice)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced below
        model = TinyViT()
    model.load_state_dict(load(weights))
    return model.eval().requires_grad_(False), card


class TinyViT(nn.Module):
    """A vision transformer for 8 x 8 grey images, read as 16 patches of 2 x 2 pixels.

    Guarantees: test_tasks.py::test_vision_transformer_keeps_examples_apart.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(4, WIDTH)
        self.position = nn.Parameter(torch.randn(1, 16, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Float[Tensor, "n 8 8"]) -> Float[Tensor, "n 10"]:
        n = x.shape[0]
        patches = x.reshape(n, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(n, 16, 4)
        tokens = self.patch(patches) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens).mean(1))


class Block(nn.Module):
    """A pre-norm transformer block; its six linear maps have the names of adapter targets."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n tokens width"]:
        n, tokens, width = x.shape
        z, size = self.norm1(x), width // HEADS

        def by_head(linear: nn.Module) -> Tensor:
            # Explicit sizes instead of -1: a federation's batch may be empty.
            split = linear(z).view(n, tokens, HEADS, size).transpose(1, 2)
            return split.reshape(n * HEADS, tokens, size)

        query, key, value = (by_head(linear) for linear in (self.query, self.key, self.value))
        # Written out: with so few tokens this is quicker than torch's fused kernel.
        scores = torch.baddbmm(query.new_empty(1, 1, 1), query, key.mT, beta=0, alpha=size**-0.5)
        mixed = torch.bmm(scores.softmax(-1), value).view(n, HEADS, tokens, size)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))
