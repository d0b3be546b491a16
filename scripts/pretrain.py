"""Rebuild the weights of the task `digits`: a small vision transformer taught printed digits only.

    python scripts/pretrain.py --out fedlora_lab/tasks/data

The digits are drawn with the fonts that Matplotlib bundles, turned, sheared and stretched, and
stored the way scikit-learn stores its scans. No handwritten digit is used to train or to choose
anything; the handwritten accuracy in the card is measured once, at the end.
"""

import argparse
import hashlib
import importlib.metadata
import json
import math
import platform
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save

from fedlora_lab._utils.files import write_atomically
from fedlora_lab.tasks.digits import TinyViT, handwritten_digits

FAMILIES = ("DejaVu", "STIXGeneral", "cmb10", "cmr10", "cmss10", "cmtt10")
CANVAS = 64
PACKAGES = ("torch", "numpy", "matplotlib", "pillow", "safetensors")
EXAMPLES = 20_000
SETTINGS = {"epochs": 8, "batch": 128, "peak": 2e-3, "seed": 0}
"""Epochs, batch, highest learning rate of the one cycle, and seed."""
THREADS = 2
"""With another number sums are rounded in another order: other last bits."""
Pair = tuple[torch.Tensor, torch.Tensor]


def seed_of(purpose: str) -> int:
    """The seed of one purpose, apart from the package's streams, which may change."""
    text = f"{SETTINGS['seed']}/digits pretraining {purpose}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def faces() -> list[str]:
    """The text faces among Matplotlib's bundled fonts, sorted by file name."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = sorted(folder.glob("*.ttf"))
    return [str(p) for p in fonts if p.name.startswith(FAMILIES) and "Display" not in p.name]


@cache
def typeface(path: str, size: int) -> ImageFont.FreeTypeFont:
    """A font file at one size, opened once."""
    return ImageFont.truetype(path, size)


def typeset(digit: int, fonts: list[str], rng: np.random.Generator) -> np.ndarray:
    """A digit in a random face, turned, sheared and stretched, cropped to its ink: (h, w) bool."""
    page = Image.new("L", (CANVAS, CANVAS), 0)
    font = typeface(fonts[int(rng.integers(len(fonts)))], int(rng.integers(26, 38)))
    middle = CANVAS / 2, CANVAS / 2
    ImageDraw.Draw(page).text(middle, str(digit), font=font, fill=255, anchor="mm")
    turn = math.radians(rng.normal(0, 8))
    shear = rng.normal(0, 0.15)
    wide = rng.uniform(0.8, 1.25)
    high = rng.uniform(0.85, 1.15)
    linear = np.array(
        [[wide * math.cos(turn), shear - math.sin(turn)], [math.sin(turn), high * math.cos(turn)]]
    )
    # Pillow maps output to input coordinates; the shift keeps the centre of the page in place.
    shift = CANVAS / 2 - linear @ np.full(2, CANVAS / 2) + rng.normal(0, 0.5, 2)
    rows = (*linear[0], shift[0], *linear[1], shift[1])
    bent = page.transform(page.size, Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
    ink = np.asarray(bent) > 110
    ys, xs = np.nonzero(ink)
    return ink[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]


def scan(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fills the height of a 32 x 32 bitmap and counts blocks of 4 x 4: (8, 8) in [0, 1].

    Proportions are kept, times a little squeeze.
    """
    squeeze = rng.uniform(0.85, 1.1)
    width = min(32, max(6, int(ink.shape[1] * 32 / ink.shape[0] * squeeze)))
    left = (32 - width) // 2
    page = Image.fromarray(ink.astype(np.uint8) * 255)
    bitmap = np.zeros((32, 32))
    bitmap[:, left : left + width] = (
        np.asarray(page.resize((width, 32), Image.Resampling.BILINEAR)) > 127
    )
    return bitmap.reshape(8, 4, 8, 4).sum((1, 3)) / 16


def printed(count: int, purpose: str) -> Pair:
    """Printed digits and their labels: (count, 8, 8) float32 in [0, 1] and (count,) int64."""
    rng = np.random.default_rng(seed_of(purpose))
    fonts = faces()
    labels = rng.integers(0, 10, count)
    images = [scan(typeset(digit, fonts, rng), rng) for digit in labels]
    return torch.tensor(np.stack(images), dtype=torch.float32), torch.tensor(labels)


def train(x: torch.Tensor, y: torch.Tensor) -> TinyViT:
    """AdamW, one cycle of the learning rate, label smoothing and a little noise on the pixels."""
    epochs = int(SETTINGS["epochs"])
    batch = int(SETTINGS["batch"])
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("start"))
        model = TinyViT()
    order = torch.Generator().manual_seed(seed_of("order"))
    noise = torch.Generator().manual_seed(seed_of("pixels"))
    peak = SETTINGS["peak"]
    optimizer = torch.optim.AdamW(model.parameters(), peak / 2, weight_decay=0.01)
    steps = epochs * math.ceil(len(x) / batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=order).split(batch):
            images = x[chosen] + 0.05 * torch.randn(x[chosen].shape, generator=noise)
            optimizer.zero_grad()
            F.cross_entropy(model(images), y[chosen], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of right answers."""
    return (model(x).argmax(1) == y).double().mean().item()


def pretrain(out: Path) -> dict[str, Any]:
    """Trains, and writes digits_vit.safetensors and its card digits_vit.json; returns the card."""
    torch.set_num_threads(THREADS)
    model = train(*printed(EXAMPLES, "examples"))
    weights = save({name: value.contiguous() for name, value in model.state_dict().items()})
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    card = {
        "model": "fedlora_lab.tasks.digits.TinyViT",
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_on": f"digits printed with {len(faces())} faces bundled with Matplotlib; "
        "no handwritten digit",
        "settings": {"examples": EXAMPLES, **SETTINGS},
        "accuracy_printed_held_out": accuracy(model, *printed(2000, "held out")),
        "accuracy_handwritten_before_tuning": accuracy(model, *handwritten_digits()),
        "script": "scripts/pretrain.py",
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "faces": [Path(face).name for face in faces()],
        "versions": {"python": platform.python_version(), **versions},
        "threads": THREADS,
    }
    write_atomically(out / "digits_vit.safetensors", weights, shared=True)
    text = json.dumps(card, indent=2) + "\n"
    write_atomically(out / "digits_vit.json", text, shared=True)
    return card


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pretrain on printed digits.")
    parser.add_argument("--out", type=Path, required=True, help="folder of weights and card")
    print(json.dumps(pretrain(parser.parse_args().out), indent=2))
