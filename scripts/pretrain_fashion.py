"""Rebuild the weights of the task `fashion_mnist`: a vision transformer taught five of ten classes.

    python scripts/pretrain_fashion.py --out fedlora_lab/tasks/data [--folder FOLDER]

It reads the labels of five classes among the 8,000 public images and no other image. Only these
five compete in its loss, so the classifier's rows of the other five stay as they were drawn. Test
images are scored once, at the end.
"""

import argparse
import hashlib
import importlib.metadata
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save

from fedlora_lab._utils.files import write_atomically
from fedlora_lab.tasks.digits import TinyViT
from fedlora_lab.tasks.fashion_mnist import FOLDER, LABELS, load_images

SIZES = {"image": 28, "patch": 7, "width": 64, "blocks": 4, "heads": 4}
SETTINGS = {"epochs": 30, "batch": 128, "peak": 2e-3, "seed": 0}
KNOWN = (0, 2, 4, 6, 8)
"""Classes whose labels are read."""
PACKAGES = ("torch", "numpy", "safetensors")
THREADS = 1
"""With another number sums are rounded in another order: other last bits."""


def move_and_mirror(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Moves every image by up to two pixels, and mirrors half of them."""
    count, side = x.shape[:2]
    x = F.pad(x, (2, 2, 2, 2))
    down, right = torch.randint(0, 5, (2, count, 1), generator=generator)
    lines = torch.arange(side)
    rows = (down + lines)[:, :, None]
    columns = (right + lines)[:, None, :]
    x = x[torch.arange(count)[:, None, None], rows, columns]
    mirrored = torch.rand(count, generator=generator) < 0.5
    return torch.where(mirrored[:, None, None], x.flip(-1), x)


def train(x: torch.Tensor, y: torch.Tensor) -> TinyViT:
    """AdamW, one cycle of the learning rate and label smoothing, on images of the known classes."""
    known = torch.tensor(KNOWN)
    chosen = torch.isin(y, known)
    x, y = x[chosen], torch.searchsorted(known, y[chosen])
    generator = torch.Generator().manual_seed(SETTINGS["seed"])
    with torch.random.fork_rng():
        torch.manual_seed(SETTINGS["seed"])
        model = TinyViT(**SIZES)
    peak = SETTINGS["peak"]
    optimizer = torch.optim.AdamW(model.parameters(), peak / 2, weight_decay=0.05)
    steps = SETTINGS["epochs"] * math.ceil(len(x) / SETTINGS["batch"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
    for _ in range(SETTINGS["epochs"]):
        for batch in torch.randperm(len(x), generator=generator).split(SETTINGS["batch"]):
            outputs = model(move_and_mirror(x[batch], generator))[:, known]
            optimizer.zero_grad()
            F.cross_entropy(outputs, y[batch], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of right answers among all ten classes."""
    answers = torch.cat([model(part).argmax(1) for part in x.split(1000)])
    return (answers == y).double().mean().item()


def pretrain(out: Path, folder: Path) -> dict[str, Any]:
    """Trains, and writes fashion_vit.safetensors and its card, fashion_vit.json; returns it."""
    torch.set_num_threads(THREADS)
    images = load_images(folder)
    model = train(*images.public)
    # In half precision: the model is rounded before it is scored, so the card is about the file.
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    weights = save(state)
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    card = {
        "model": "fedlora_lab.tasks.digits.TinyViT",
        "sizes": SIZES,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_on": "public images of Fashion-MNIST with the labels "
        + ", ".join(LABELS[i] for i in KNOWN),
        "settings": SETTINGS,
        "accuracy_test_before_tuning": accuracy(model, *images.test),
        "accuracy_validation_before_tuning": accuracy(model, *images.validation),
        "script": "scripts/pretrain_fashion.py",
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "versions": {"python": platform.python_version(), **versions},
        "threads": THREADS,
    }
    write_atomically(out / "fashion_vit.safetensors", weights, shared=True)
    write_atomically(out / "fashion_vit.json", json.dumps(card, indent=2) + "\n", shared=True)
    return card


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pretrain on five classes of Fashion-MNIST.")
    parser.add_argument("--out", type=Path, required=True, help="folder of weights and card")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the files of Fashion-MNIST")
    given = parser.parse_args()
    print(json.dumps(pretrain(given.out, given.folder), indent=2))
