"""Rebuild the weights of the `digits` task: a tiny vision transformer taught printed digits only.

The public half of the task is typography. Digits are drawn with the fonts that Matplotlib bundles,
turned, sheared and stretched, and stored the way the handwritten set stores its scans: a bitmap 32
    pixels high, counted in 4 x 4 blocks.
No handwritten digit is used to train or to choose anything; the handwritten accuracy in the card is
measured once, at the end, and decides nothing.

    python scripts/pretrain_digits.py --out fedlora_lab/tasks/data
"""

import argparse
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import time
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save
from sklearn.datasets import load_digits

from fedlora_lab.tasks.digits import TinyViT

FAMILIES = ("DejaVu", "STIXGeneral", "cmb10", "cmr10", "cmss10", "cmtt10")
CANVAS, HEIGHT = 64, 32
THREADS = 2  # with another number sums are rounded in another order: other last bits
PACKAGES = ("torch", "numpy", "matplotlib", "pillow", "scikit-learn", "safetensors")


def number(seed: int, purpose: str) -> int:
    """The seed of one purpose, as it was when the shipped weights were made: the package's streams
    may change.
    """
    return (
        int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "big")
        >> 1
    )


def faces() -> list[str]:
    """The text faces among Matplotlib's bundled fonts, sorted by file name."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [
        str(p)
        for p in sorted(folder.glob("*.ttf"))
        if p.name.startswith(FAMILIES) and "Display" not in p.name
    ]


@cache
def typeface(path: str, size: int) -> ImageFont.FreeTypeFont:
    """A font file at one size, opened once."""
    return ImageFont.truetype(path, size)


def typeset(digit: int, fonts: list[str], rng: np.random.Generator) -> np.ndarray:
    """One digit in a random face, turned, sheared and stretched a little, cropped to its ink -> (h,
    w) of bool.
    """
    page = Image.new("L", (CANVAS, CANVAS), 0)
    font = typeface(fonts[int(rng.integers(len(fonts)))], int(rng.integers(26, 38)))
    ImageDraw.Draw(page).text(
        (CANVAS / 2, CANVAS / 2), str(digit), font=font, fill=255, anchor="mm"
    )
    turn, shear = math.radians(rng.normal(0, 8)), rng.normal(0, 0.15)
    wide, high = rng.uniform(0.8, 1.25), rng.uniform(0.85, 1.15)
    linear = np.array(
        [[wide * math.cos(turn), shear - math.sin(turn)], [math.sin(turn), high * math.cos(turn)]],
    )
    # Pillow maps output to input coordinates; the shift keeps the centre of the page in place.
    shift = CANVAS / 2 - linear @ np.full(2, CANVAS / 2) + rng.normal(0, 0.5, 2)
    rows = (*linear[0], shift[0], *linear[1], shift[1])
    bent = page.transform(page.size, Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
    ink = np.asarray(bent) > 110
    ys, xs = np.nonzero(ink)
    return ink[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]


def scan(ink: np.ndarray, squeeze: float) -> np.ndarray:
    """Fill the height of a 32 x 32 bitmap, keep the proportions times ``squeeze``, count blocks ->
    (8, 8) in [0, 1].
    """
    high, wide = ink.shape
    width = min(HEIGHT, max(6, int(wide * HEIGHT / high * squeeze)))
    scaled = Image.fromarray(ink.astype(np.uint8) * 255).resize(
        (width, HEIGHT), Image.Resampling.BILINEAR
    )
    bitmap, left = np.zeros((HEIGHT, HEIGHT)), (HEIGHT - width) // 2
    bitmap[:, left : left + width] = np.asarray(scaled) > 127
    return bitmap.reshape(8, 4, 8, 4).sum((1, 3)) / 16


def printed(count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Printed digits and their labels -> (count, 8, 8) float32 in [0, 1] and (count,) int64."""
    fonts, labels = faces(), rng.integers(0, 10, count)
    images = [scan(typeset(digit, fonts, rng), rng.uniform(0.85, 1.1)) for digit in labels]
    return torch.tensor(np.stack(images), dtype=torch.float32), torch.tensor(labels)


def handwritten() -> tuple[torch.Tensor, torch.Tensor]:
    """The digits of scikit-learn -> (1797, 8, 8) float32 in [0, 1] and (1797,) int64."""
    digits: Any = load_digits()
    return torch.tensor(digits.images / 16, dtype=torch.float32), torch.tensor(
        digits.target, dtype=torch.int64
    )


def train(
    x: torch.Tensor, y: torch.Tensor, epochs: int, batch: int, peak: float, seed: int
) -> TinyViT:
    """Train on printed digits: AdamW, one learning-rate cycle, label smoothing and a little pixel
    noise.
    """
    with torch.random.fork_rng():
        torch.manual_seed(number(seed, "digits pretraining start"))
        model = TinyViT()
    order = torch.Generator().manual_seed(number(seed, "digits pretraining order"))
    noise = torch.Generator().manual_seed(number(seed, "digits pretraining pixels"))
    optimiser = torch.optim.AdamW(model.parameters(), peak / 2, weight_decay=0.01)
    steps = epochs * math.ceil(len(x) / batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=order).split(batch):
            images = x[chosen]
            images = images + 0.05 * torch.randn(images.shape, generator=noise)
            optimiser.zero_grad()
            F.cross_entropy(model(images), y[chosen], label_smoothing=0.1).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of right answers."""
    return (model(x).argmax(1) == y).double().mean().item()


def held_out(seed: int, count: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    """Printed digits never trained on, from a stream of their own."""
    return printed(count, np.random.default_rng(number(seed, "digits pretraining held out")))


def write(path: Path, content: bytes) -> None:
    """Write to a temporary name beside ``path``, then rename."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def pretrain(out: Path, examples: int, epochs: int, batch: int, peak: float, seed: int) -> dict:
    """Make the data, train, write ``digits_vit.safetensors`` and its card; return the card."""
    x, y = printed(examples, np.random.default_rng(number(seed, "digits pretraining examples")))
    model = train(x, y, epochs, batch, peak, seed)
    weights = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    card = {
        "model": "fedlora_lab.tasks.digits.TinyViT",
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_on": f"digits printed with {len(faces())} faces bundled with Matplotlib; "
        "no handwritten digit",
        "settings": {
            "examples": examples,
            "epochs": epochs,
            "batch": batch,
            "peak": peak,
            "seed": seed,
        },
        "accuracy_printed_held_out": accuracy(model, *held_out(seed)),
        "accuracy_handwritten_before_tuning": accuracy(model, *handwritten()),
        "script": "scripts/pretrain_digits.py",
        "script_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "faces": [Path(face).name for face in faces()],
        "versions": {"python": platform.python_version()}
        | {p: importlib.metadata.version(p) for p in PACKAGES},
        "threads": torch.get_num_threads(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write(out / "digits_vit.safetensors", weights)
    write(out / "digits_vit.json", (json.dumps(card, indent=2) + "\n").encode())
    return card


def main() -> None:
    """The command line; the defaults are what the package ships."""
    parser = argparse.ArgumentParser(
        description="Pretrain the tiny vision transformer on printed digits."
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for digits_vit.safetensors and digits_vit.json",
    )
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--peak", type=float, default=2e-3, help="highest learning rate of the cycle"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    torch.set_num_threads(THREADS)
    begun = time.perf_counter()
    print(json.dumps(pretrain(**arguments), indent=2))
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
