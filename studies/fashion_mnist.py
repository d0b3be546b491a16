"""Fashion-MNIST for a model that knows five of its ten classes, from files of the reader."""

import gzip
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.torch_state import with_default_modes
from fedlora_lab.tasks import partition
from fedlora_lab.tasks.digits import load_pretrained
from fedlora_lab.tasks.task import Examples, Task, classification

FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""
PUBLIC, VALIDATION = 8_000, 2_000
"""Images of the 60,000 that pretrained the model, and that validate; the others are private."""
SMALLEST_CLIENT = 64
"""Images that every client has at least."""


class Images(NamedTuple):
    """Images in [0, 1], (n, 28, 28) float32, and their labels, (n,) int64, by what they are for."""

    public: Examples
    validation: Examples
    private: Examples
    test: Examples


@with_default_modes
def fashion_mnist(
    clients: int = 100,
    dirichlet: float | None = 0.5,
    seed: int = 0,
    *,
    folder: Path = FOLDER,
    head: str | None = None,
) -> Task:
    """Builds the task of Fashion-MNIST: a vision transformer that knows five classes learns ten.

    Of the 60,000 images 8,000 are public and pretrained the model, 2,000 validate, and 50,000 are
    the clients'; the 10,000 test images test. The pretraining read the labels of five classes
    only: T-shirt, pullover, coat, shirt and bag. Its answers to the other five are those of an
    untrained row of the classifier, so before training it has 36 % of the test images right. The
    images are not part of this library: they are read from a folder of the reader.

    Args:
        clients: number of clients.
        dirichlet: concentration of the split by label, > 0; ``None``: at random.
        seed: of the split over the clients.
        folder: with the four files of Fashion-MNIST, such as train-images-idx3-ubyte.gz.
        head: ``"head"`` trains the classifier in full; ``None`` leaves it frozen.
    Guarantees: test_fashion_mnist.py::test_every_image_is_used_once.
    Source: Xiao, Rasul and Vollgraf, arXiv:1708.07747 (MIT licence).
    """
    images = load_images(folder)
    x, y = images.private
    split = partition.dirichlet(y, clients, dirichlet, seed, SMALLEST_CLIENT)
    model, _ = load_pretrained(Path(__file__).parent, "fashion_vit")
    return classification(
        model,
        [(x[part], y[part]) for part in map(torch.from_numpy, split)],
        test=images.test,
        validation=images.validation,
        targets=["query", "value"],
        head=head,
        name="fashion_mnist",
    )


@cache
def load_images(folder: Path) -> Images:
    """Reads the four files, and splits the 60,000 images of the first two.

    Which are public never depends on a seed: the weights have read them.

    Args: folder: of the files.
    """
    pairs = []
    for name in ("train", "t10k"):
        x = read_idx(folder, f"{name}-images-idx3-ubyte")
        y = read_idx(folder, f"{name}-labels-idx1-ubyte")
        pairs.append((x.float() / 255, y.long()))
    (x, y), test = pairs
    order = torch.from_numpy(Streams(0).numpy("fashion_mnist split").permutation(len(y)))
    parts = order.split([PUBLIC, VALIDATION, len(y) - PUBLIC - VALIDATION])
    public, validation, private = ((x[part], y[part]) for part in parts)
    return Images(public, validation, private, test)


def read_idx(folder: Path, name: str) -> Tensor:
    """Reads a file of bytes in the format IDX, packed by gzip.

    It has two zeros, the number 8 for bytes, the number of axes, their sizes as four bytes each,
    the first byte the highest, and then the values.

    Args: folder, name: of the file, without ".gz".
    """
    content = gzip.decompress((folder / f"{name}.gz").read_bytes())
    axes = content[3]
    sizes = np.frombuffer(content, ">i4", count=axes, offset=4).tolist()
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    return torch.from_numpy(values.copy()).view(sizes)
