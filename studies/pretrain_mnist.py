"""Rebuild the weights of the `mnist` task: a small vision transformer taught printed digits only.

The digits are drawn as for the `digits` task (pretrain_digits.py: the same faces, turns and
shears, the same number of examples and epochs) and stored the way MNIST stores its scans. No
handwritten digit is used to train or to choose anything; the handwritten accuracy in the card is
measured once, at the end, and decides nothing.

    PYTHONPATH=scripts python -m studies.pretrain_mnist --out studies
"""

import argparse
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pretrain_digits import PACKAGES, accuracy, faces, number, typeset, write
from safetensors.torch import save

from fedlora_lab.tasks.digits import TinyViT
from studies.mnist import scans

SIZES = {"image": 28, "patch": 14, "width": 128, "blocks": 3}
SIDE, BOX = SIZES["image"], 20
THREADS = 1  # with another number sums are rounded in another order: other last bits


def scan(ink: np.ndarray) -> np.ndarray:
    """Fit the ink into 20 x 20 pixels, keep its proportions, make its edges grey and put its centre
    of mass in the middle -> (28, 28) in [0, 1].
    """
    high, wide = (max(1, round(size * BOX / max(ink.shape))) for size in ink.shape)
    page = Image.fromarray(ink.astype(np.uint8) * 255)
    grey = np.asarray(page.resize((wide, high), Image.Resampling.BILINEAR)) / 255

    def first(mass: np.ndarray) -> int:
        centre = mass @ np.arange(len(mass)) / mass.sum()
        return min(max(round((SIDE - 1) / 2 - centre), 0), SIDE - len(mass))

    top, left = first(grey.sum(1)), first(grey.sum(0))
    image = np.zeros((SIDE, SIDE))
    image[top : top + high, left : left + wide] = grey
    return image


def printed(count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Printed digits and their labels -> (count, 28, 28) float32 in [0, 1] and (count,) int64."""
    fonts, labels = faces(), rng.integers(0, 10, count)
    images = np.stack([scan(typeset(digit, fonts, rng)) for digit in labels])
    return torch.tensor(images, dtype=torch.float32), torch.tensor(labels)


def held_out(seed: int, count: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    """Printed digits never trained on, from a stream of their own."""
    return printed(count, np.random.default_rng(number(seed, "mnist pretraining held out")))


def train(
    x: torch.Tensor, y: torch.Tensor, epochs: int, batch: int, peak: float, seed: int
) -> TinyViT:
    """Train on printed digits: AdamW, one learning-rate cycle, label smoothing and a little pixel
    noise. The weights are rounded to float16, as they are stored.
    """
    with torch.random.fork_rng():
        torch.manual_seed(number(seed, "mnist pretraining start"))
        model = TinyViT(**SIZES)
    order = torch.Generator().manual_seed(number(seed, "mnist pretraining order"))
    noise = torch.Generator().manual_seed(number(seed, "mnist pretraining pixels"))
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
    return model.half().float().eval()


def pretrain(out: Path, examples: int, epochs: int, batch: int, peak: float, seed: int) -> dict:
    """Make the data, train, write ``mnist_vit.safetensors`` and its card; return the card."""
    settings = {"epochs": epochs, "batch": batch, "peak": peak, "seed": seed}
    x, y = printed(examples, np.random.default_rng(number(seed, "mnist pretraining examples")))
    model = train(x, y, **settings)
    weights = save({name: value.half() for name, value in model.state_dict().items()})
    sums = [Path(__file__), Path(__file__).with_name("pretrain_digits.py")]
    card = {
        "model": "fedlora_lab.tasks.digits.TinyViT",
        "sizes": SIZES,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_on": f"digits printed with {len(faces())} faces bundled with Matplotlib; "
        "no handwritten digit",
        "settings": {"examples": examples, **settings},
        "accuracy_printed_held_out": accuracy(model, *held_out(seed)),
        "accuracy_handwritten_before_tuning": accuracy(
            model, *scans(Path(os.environ["FEDLORA_STUDIES"]))
        ),
        "script": "studies/pretrain_mnist.py",
        "script_sha256": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sums},
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "faces": [Path(face).name for face in faces()],
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        "threads": torch.get_num_threads(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write(out / "mnist_vit.safetensors", weights)
    write(out / "mnist_vit.json", (json.dumps(card, indent=2) + "\n").encode())
    return card


def main() -> None:
    """The command line; the defaults are what the package ships."""
    parser = argparse.ArgumentParser(description="Pretrain the transformer on printed digits.")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and card")
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
