"""A site's own examples: here two halves of the handwritten digits, in a file each.

    python -m flower_app.data FOLDER

writes FOLDER/site-0.safetensors and FOLDER/site-1.safetensors, which stand in for private files.
"""

import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

import fedlora_lab as fl
from flower_app.terms import SIZES


def simulated(site: int) -> tuple[Tensor, Tensor]:
    """The examples (x, y) of one of the two sites in a simulation."""
    return fl.tasks.digits(clients=len(SIZES), dirichlet=0.5).clients[site]


def read(path: str) -> tuple[Tensor, Tensor]:
    """The examples (x, y) in a site's file."""
    tensors = load_file(path)
    return tensors["x"], tensors["y"]


def main() -> None:
    """Writes the file of each site."""
    folder = Path(sys.argv[1])
    for site in range(len(SIZES)):
        x, y = simulated(site)
        save_file({"x": x.contiguous(), "y": y.contiguous()}, folder / f"site-{site}.safetensors")


if __name__ == "__main__":
    main()
