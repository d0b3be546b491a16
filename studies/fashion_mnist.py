"""Fashion-MNIST for a model that knows five of its ten classes, from files of the reader."""

import gzip
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.torch_state import with_default_modes
from fedlora_lab._utils.validation import check, check_number, check_whole, refuse
from fedlora_lab.tasks import partition
from fedlora_lab.tasks.digits import load_pretrained
from fedlora_lab.tasks.task import Examples, Origin, Task, classification

FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""
PUBLIC, VALIDATION = 8_000, 2_000
"""Images of the 60,000 that pretrained the model, and that validate; the others are private."""
SMALLEST_CLIENT = 64
"""Images that every client has at least."""
LABELS = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
)


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
    folder: str | Path = FOLDER,
    targets: Sequence[str] = ("query", "value"),
    head: str | None = None,
) -> Task:
    """Builds the task of Fashion-MNIST: a vision transformer that knows five classes learns ten.

    Of the 60,000 images 8,000 are public and pretrained the model, 2,000 validate, and 50,000 are
    the clients'; the 10,000 test images test. The pretraining read the labels of five classes
    only: T-shirt, pullover, coat, shirt and bag. Its answers to the other five are those of an
    untrained row of the classifier, so before training it has 36 % of the test images right. The
    images are not part of this library: they are read from a folder of the reader.

    Args:
        clients: number of clients, in [1, 781].
        dirichlet: concentration of the split by label, > 0; ``None`` or infinity: at random.
        seed: of the split over the clients; a whole number >= 0.
        folder: with the four files of Fashion-MNIST, such as train-images-idx3-ubyte.gz, packed or
            not.
        targets: which of query, key, value, out, up, down, patch get adapters.
        head: ``"head"`` trains the classifier in full; ``None`` leaves it frozen.
    Raises: ValueError for a bad argument, files that are missing or of another form, or when the
        weights have another sha256.
    Guarantees: test_fashion_mnist.py::test_every_image_is_used_once,
        ::test_files_that_are_missing_or_broken_are_told_in_one_line.
    Source: Xiao, Rasul and Vollgraf, arXiv:1708.07747 (MIT licence).
    """
    # JSON, in which arguments are stored, has neither infinity nor tuples.
    dirichlet = None if dirichlet == math.inf else dirichlet
    targets = targets if isinstance(targets, str) else list(targets)
    arguments = dict(locals()) | {"folder": str(folder)}
    check_whole("seed", seed)
    if dirichlet is not None:
        check_number("dirichlet", dirichlet, 0, open_low=True)
    images = load_images(Path(folder))
    x, y = images.private
    split = partition.dirichlet(y, clients, dirichlet, seed, SMALLEST_CLIENT)
    model, _ = load_pretrained(Path(__file__).parent, "fashion_vit")
    task = classification(
        model,
        [(x[part], y[part]) for part in map(torch.from_numpy, split)],
        test=images.test,
        validation=images.validation,
        targets=targets,
        head=head,
        name="fashion_mnist",
    )
    return replace(task, origin=Origin(arguments))


@cache
def load_images(folder: Path) -> Images:
    """Reads the four files, and splits the 60,000 images of the first two.

    Which are public never depends on a seed: the weights have read them.

    Args: folder: of the files.
    Raises: ``ValueError`` for missing files, and for files of another form.
    """
    pairs = []
    for name in ("train", "t10k"):
        x = read_idx(folder, f"{name}-images-idx3-ubyte")
        y = read_idx(folder, f"{name}-labels-idx1-ubyte")
        fits = x.shape == (len(y), 28, 28) and len(y) > (name == "train") * (PUBLIC + VALIDATION)
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        check(fits, f"{name} files", shapes, "images (n, 28, 28) and labels (n,), n as published")
        pairs.append((x.float() / 255, y.long()))
    (x, y), test = pairs
    order = torch.from_numpy(Streams(0).numpy("fashion_mnist split").permutation(len(y)))
    parts = order.split([PUBLIC, VALIDATION, len(y) - PUBLIC - VALIDATION])
    public, validation, private = ((x[part], y[part]) for part in parts)
    return Images(public, validation, private, test)


def read_idx(folder: Path, name: str) -> Tensor:
    """Reads a file of bytes in the format IDX, packed by gzip or not.

    It has two zeros, the number 8 for bytes, the number of axes, their sizes as four bytes each,
    the first byte the highest, and then the values.

    Args: folder, name: of the file, without ".gz".
    Raises: ``ValueError`` where it is missing or has another form.
    """
    paths = [folder / f"{name}.gz", folder / name]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        expected = f"a folder with {name}.gz: apt install dataset-fashion-mnist, or folder="
        refuse("folder", str(folder), expected)
    content = path.read_bytes()
    values, sizes = np.empty(0, np.uint8), []
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        axes = content[3]
        sizes = np.frombuffer(content, ">i4", count=axes, offset=4).tolist()
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
        sound = content[:3] == b"\0\0\x08" and len(values) == math.prod(sizes)
    except (OSError, EOFError, IndexError, ValueError):
        sound = False
    check(sound, str(path), f"{len(content)} bytes", "a file of bytes in the format IDX")
    return torch.from_numpy(values.copy()).view(sizes)
