"""Products of maps that do not move: torch's own linear map beside oneDNN's, turn by turn, on one
core.
"""

import time

import torch
from torch import nn

from fedlora_lab.lora.peft import freeze

# The first is the smallest that oneDNN is asked for.
SHAPES = {
    "64 to 64, 256 rows": (64, 64, 256),
    "64 to 64, 2,560 rows": (64, 64, 2560),
    "384 to 384, 1,024 rows": (384, 384, 1024),
    "384 to 1,536, 1,024 rows": (384, 1536, 1024),
}


def rate(layer: nn.Linear, x: torch.Tensor, repeats: int) -> float:
    """GFLOP/s of forward and of backward to the input, together."""
    begun = time.process_time()
    for _ in range(repeats):
        layer(x).sum().backward()
    return 4 * repeats * x.shape[0] * layer.weight.numel() / (time.process_time() - begun) / 1e9


def products(turns: int) -> dict[str, dict[str, list[float]]]:
    """Shape -> library -> GFLOP/s of every turn; the two libraries take turns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    for name, (inputs, outputs, rows) in SHAPES.items():
        layers = {
            key: nn.Linear(inputs, outputs).requires_grad_(False) for key in ("torch", "onednn")
        }
        freeze(layers["onednn"])
        x = torch.randn(rows, inputs, requires_grad=True)
        repeats = max(1, int(5e9 / (4 * rows * inputs * outputs)))
        found[name] = {key: [] for key in layers}
        for turn in range(-1, turns):
            for key, layer in layers.items():
                value = rate(layer, x, repeats)
                if turn >= 0:
                    found[name][key].append(value)
    torch.set_num_threads(threads)
    return found
