"""Printed digits in public, handwritten digits in private: real data that needs no download."""

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

from fedlora_lab import partition
from fedlora_lab.checks import check, check_whole
from fedlora_lab.streams import Streams
from fedlora_lab.tasks.task import Task
from fedlora_lab.tasks.tensors import classification
from fedlora_lab.tasks.vit import TinyViT

DATA_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"  # of pixels and labels as bytes
TEST, VALIDATION = 360, 180


def digits(
    clients: int = 10,
    alpha: float | None = 0.5,
    seed: int = 0,
    *,
    min_size: int = 8,
    targets: Sequence[str] = ("query", "value"),
    head: str | None = None,
) -> Task:
    """A vision transformer that knows printed digits, to be taught handwritten ones that ``clients`` people hold.

    1,797 scans of 8 x 8 pixels in [0, 1]: 360 to test, 180 to validate, 1,257 private ones split over the clients.

    Args:
        clients: number of clients, in [1, 1257 / min_size].
        alpha: Dirichlet concentration of the split by label, > 0; ``None`` or infinity: at random.
        seed: of the split into test, validation and clients; a whole number >= 0.
        min_size: examples that every client holds at least.
        targets: which of query, key, value, out, up, down get adapters (also ``patch``).
        head: ``"head"`` trains the classifier in full; ``None`` leaves it frozen.
    Raises: ValueError for a bad argument, or when data or weights are not the ones that were checked in.
    Guarantees: test_tasks.py::test_digits_sizes_and_determinism, ::test_digits_streams_differ,
        test_digits_weights.py::test_card_numbers_hold.
    """
    check_whole("seed", seed)
    alpha = None if alpha is not None and alpha == math.inf else alpha
    x, y = _scans()
    order = torch.from_numpy(Streams(seed).numpy("digits split").permutation(len(y)))
    test, validation, private = order.split([TEST, VALIDATION, len(y) - TEST - VALIDATION])
    if alpha is None:
        split = partition.iid(len(private), clients, seed, min_size)
    else:
        split = partition.dirichlet(y[private], clients, alpha, seed, min_size)
    model, card = pretrained()
    arguments = {"clients": clients, "alpha": alpha, "seed": seed, "min_size": min_size}
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
    info = {
        "task": "digits",
        "arguments": {**arguments, "targets": list(targets), "head": head},
        "data_sha256": DATA_SHA256,
        "weights_sha256": card["weights_sha256"],
    }
    return replace(task, info=info)


@cache
def _scans() -> tuple[torch.Tensor, torch.Tensor]:
    """The handwritten digits of scikit-learn -> (1797, 8, 8) float32 in [0, 1] and (1797,) int64."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    pixels, labels = data.images.astype(np.uint8), data.target.astype(np.uint8)
    found = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    check(found == DATA_SHA256, "sha256 of scikit-learn's digits", found, f"{DATA_SHA256}; reinstall scikit-learn")
    return torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels).long()


def pretrained(folder: Path | None = None) -> tuple[TinyViT, dict]:
    """The model taught printed digits, and its card.

    Args:
        folder: holds ``digits_vit.safetensors`` and ``digits_vit.json``; ``None``: the ones shipped.
    Raises: ValueError when the weights are not those of the card.
    Guarantees: test_digits_weights.py::test_changed_weights_are_refused.
    """
    from safetensors.torch import load

    home = resources.files("fedlora_lab") / "data" if folder is None else Path(folder)
    weights = (home / "digits_vit.safetensors").read_bytes()
    card = json.loads((home / "digits_vit.json").read_text(encoding="utf-8"))
    found, expected = hashlib.sha256(weights).hexdigest(), card["weights_sha256"]
    check(found == expected, "sha256 of digits_vit.safetensors", found, f"{expected}; reinstall fedlora-lab")
    with torch.random.fork_rng(devices=[]):  # building the module draws numbers that the weights then replace
        model = TinyViT()
    model.load_state_dict(load(weights))
    return model.eval().requires_grad_(False), card
