"""A preset as a task: with the real weights, with a toy of the same architecture, or with shapes alone."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_lab import methods
from fedlora_lab.checks import check
from fedlora_lab.cost import Cost, cost
from fedlora_lab.plan import Plan
from fedlora_lab.presets.rows import PRESETS, Preset
from fedlora_lab.privacy import Privacy
from fedlora_lab.tasks import Task, hub, tiny
from fedlora_lab.tasks.architectures import AUTO, default_head
from fedlora_lab.tasks.causal import CAUSAL, next_token_loss
from fedlora_lab.tasks.hub import OWN_HEAD
from fedlora_lab.tasks.task import CLASSIFICATION, cross_entropy
from fedlora_lab.tasks.validate import matched


def get(name: "str | Preset") -> Preset:
    """The preset of this name. Raises ``ValueError`` with the names there are."""
    if isinstance(name, Preset):
        return name
    check(isinstance(name, str) and name in PRESETS, "preset", name, "one of " + ", ".join(PRESETS))
    return PRESETS[name]


def task(name: "str | Preset", model: Any = None, dataset: Any = None, **options: Any) -> Task:
    """The preset's task.

    Args:
        model: a folder, a name or a module in the place of the paper's weights.
        dataset: in the place of the paper's data, with its columns; needed where the paper's come as a folder.
        options: of `tasks.hub`, over the preset's. The test part of the paper's own data is public; that of yours is
            not unless ``public_test=True`` says so.
    Raises: ``ValueError`` where the data are a folder and none is given; ``ImportError`` where `datasets` is missing.
    Guarantees: tests/test_presets.py::test_every_preset_trains_end_to_end_at_a_toy_size.
    """
    row, own = get(name), dataset is None
    if dataset is None:
        check(
            bool(row.dataset), "dataset", None, "a folder with a folder of images for each class: it is not on the hub"
        )
        try:
            from datasets import load_dataset  # type: ignore[import-not-found]  # an extra
        except ImportError as error:
            raise ImportError(f"{row.name} needs datasets: run `pip install 'fedlora-lab[hub]'`") from error
        dataset = load_dataset(*row.dataset)
    columns = {"image": row.image} if row.image else {"text": row.text, "max_length": row.length}
    base = row.model if model is None else model
    given = {"clients": row.clients, "alpha": row.alpha, "test": row.test, "name": row.name, "label": row.label}
    given |= {**columns, "head": OWN_HEAD if row.head else None, "public_test": own, **options}
    if "targets" not in given:
        given["targets"] = _targets(row, _on_meta(row))
    return hub(base, dataset, **given)


def privacy(name: "str | Preset", task: Task, work: Plan | None = None) -> Privacy | None:
    """The preset's budget spent over its plan, or another one, of this task; ``None`` where the paper has none."""
    row = get(name)
    if row.epsilon is None:
        return None
    budget = Privacy(clip_norm=row.clip, delta=row.delta, accountant="rdp")
    return budget.calibrate(epsilon=row.epsilon, task=task, plan=work or row.plan)


def toy(name: "str | Preset", folder: "str | Path", examples: int = 96) -> Task:
    """The preset with its architecture at a random toy size and random data under its columns, over all its clients.

    Args:
        folder: new; the toy model goes there.
        examples: in all, at least two for each client.
    """
    row = get(name)
    draw, count = np.random.default_rng(0), max(examples, 3 * row.clients)
    data: dict[str, Any] = {} if row.label is None else {row.label: [i % row.classes for i in range(count)]}
    words = [f"w{i}" for i in range(20)]
    for column in row.text:
        data[column] = [" ".join(draw.choice(words, draw.integers(3, 8))) for _ in range(count)]
    if row.image:
        data[row.image] = list(draw.integers(0, 256, (count, 9, 9, 3)).astype(np.uint8))
    import pandas as pd

    model = tiny(row.architecture, folder, words if row.text else ())
    length = {"max_length": 24} if row.text else {}
    return task(row, model, pd.DataFrame(data), test=0.1, public_test=True, **length)


def _on_meta(row: Preset) -> nn.Module:
    """The real architecture at its real size, without values."""
    import transformers

    kind = "image" if row.image else "text" if row.label else "causal"
    extra = {"num_labels": row.classes} if row.label else {}
    config = transformers.AutoConfig.for_model(row.architecture, **{**row.config, **extra})
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0
    with torch.device("meta"):
        model = getattr(transformers, AUTO[kind]).from_config(config)
    return model.eval().requires_grad_(False)


def _targets(row: Preset, model: nn.Module) -> tuple[str, ...]:
    return tuple(target for target in row.targets if matched(model, [target]))


def shapes(name: "str | Preset") -> Task:
    """The preset's task with shapes alone: no weights, and examples that take no memory."""
    row = get(name)
    model = _on_meta(row)
    size = row.config.get("image_size", 0)
    each = row.examples // row.clients

    def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros((), dtype=dtype).expand(each, *shape)

    x = zeros(3, size, size, dtype=torch.float32) if row.image else {"input_ids": zeros(row.length, dtype=torch.int64)}
    y = zeros(dtype=torch.int64) if row.label else zeros(row.length, dtype=torch.int64)
    return Task(
        name=row.name,
        model=model,
        targets=_targets(row, model),
        clients=((x, y),) * row.clients,
        test=(x, y),
        head=default_head(model) if row.head else None,
        loss=cross_entropy if row.label else next_token_loss,
        metrics=dict(CLASSIFICATION if row.label else CAUSAL),
        info={"task": row.name},
    )


def dry_run(name: "str | Preset") -> Cost:
    """What the preset costs, counted on shapes alone; nothing is downloaded.

    Guarantees: tests/test_presets.py::test_every_preset_fits_its_shapes.
    """
    row = get(name)
    return cost(shapes(row), methods.get(row.method), row.lora, row.plan)
