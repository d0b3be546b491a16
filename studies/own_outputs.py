"""What adapted layers receive and give before training: the scale against which v measures noise.

    python -m studies.own_outputs [TASK ...]    writes results/own-outputs.csv

v is the variance of noise on an output for inputs of mean square one. Here are the mean square that
the inputs of each adapted layer have, and the variance of the layer's own outputs, entry by entry,
over public examples and the untrained model. Tasks of texts need the files that `studies.sentiment`
names.
"""

import sys
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import fedlora_lab as fl
from fedlora_lab.lora.adapters import adapted_layers, trained_modules
from studies import RESULTS, ends

FILE = RESULTS / "own-outputs.csv"
EXAMPLES = 128
"""How many public examples are passed through the model."""
TASKS: dict[str, dict[str, Any]] = {
    name: dict(case.task[1]) for case in ends.cells().values() for name in [case.task[0]]
} | {"sentences": {}}
"""Task -> its arguments, as in the settings of `studies.ends`."""


def layer_scales(task: fl.tasks.Task, lora: fl.Lora) -> pd.DataFrame:
    """Measures what every adapted layer receives and gives.

    Args: task: whose validation examples are read, or else its test examples. lora: its targets.
    Returns: layer, inputs, input_mean_square, output_variance: of one entry, padding left out.
    """
    x, _ = task.test if task.validation is None else task.validation
    few: Any = {key: part[:EXAMPLES] for key, part in x.items()} if isinstance(x, dict) else x
    mask = few.get("attention_mask") if isinstance(few, dict) else None
    model: Any = task.model.eval()
    rows: list[dict[str, Any]] = []

    def note(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            received, given = (part.flatten(0, -2).double() for part in (inputs[0], output))
            if mask is not None:
                shown = mask.flatten().bool()
                received, given = received[shown], given[shown]
            rows.append(
                {
                    "layer": name,
                    "inputs": received.shape[1],
                    "input_mean_square": float(received.square().mean()),
                    "output_variance": float(given.var(0).mean()),
                }
            )

        return hook

    names = adapted_layers(task, trained_modules(task, lora), lora)
    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    try:
        with torch.no_grad():
            model(**few) if isinstance(few, dict) else model(few[:EXAMPLES])
    finally:
        for handle in handles:
            handle.remove()
    return pd.DataFrame(rows)


def main(*names: str) -> None:
    from studies import sentiment  # of whose tasks only `fl.tasks.build` hears

    assert sentiment.SHA256
    frames = []
    for name in names or TASKS:
        task = fl.tasks.build(name, **TASKS[name])
        frames.append(layer_scales(task, fl.Lora(rank=4, alpha=8)).assign(task=name))
    table = pd.concat(frames)[["task", "layer", "inputs", "input_mean_square", "output_variance"]]
    table.to_csv(FILE, index=False, float_format="%.4g")


if __name__ == "__main__":
    main(*sys.argv[1:])
