"""Set-ups of published papers (presets.toml) as tasks: full size, or shapes alone.

>>> from fedlora_lab.experiments import presets
>>> presets.find_preset("deer-kvasir").clients
12
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedlora_lab import methods
from fedlora_lab._utils.environment import install_command
from fedlora_lab._utils.validation import check
from fedlora_lab.federated.cost import Cost, cost, cost_of_layers
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.privacy.config import Privacy
from fedlora_lab.tasks.architectures import AUTO, default_head
from fedlora_lab.tasks.hub import OWN_HEAD, hub
from fedlora_lab.tasks.metrics import cross_entropy, next_token_loss, select_metrics
from fedlora_lab.tasks.task import Task, matching_modules


@dataclass(frozen=True)
class Preset:
    """A published set-up as data."""

    name: str
    source: str  # arXiv id of the paper
    assumed: str  # what the paper's text, as far as it could be read, does not settle
    model: str  # name of the weights
    architecture: str  # Transformers' name, and its numbers
    config: Mapping[str, Any]
    dataset: tuple[str, ...]  # for `datasets.load_dataset`; (): a folder of images for each class
    examples: int  # private ones
    classes: int  # 0: language
    clients: int
    method: str
    text: tuple[str, ...] = ()  # columns
    image: str | None = None
    label: str | None = "label"
    length: int = 0  # tokens of a text; 0: images
    alpha: float | None = None  # Dirichlet concentration; None: at random, or in shares
    # Number of classes, as text -> each client's share of each class.
    shares: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    test: str | float = "validation"  # the split to test on, or a share
    # Ends of names in any version of Transformers; those that the model has are used.
    targets: tuple[str, ...] = ("query", "value")
    head: bool = False  # the classifier is trained in full
    lora: Lora = field(default=Lora(8, 8.0))
    plan: Plan = field(default=Plan())
    epsilon: float | None = None  # None: no privacy
    delta: float = 1e-5
    clip: float = 2.0
    unit: str = "example"
    trust: str | None = None  # None: the unit's own


def _presets() -> Iterator[Preset]:
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    rows: dict[str, dict[str, Any]] = {}
    for name, row in table["presets"].items():
        if row.pop("glue", False):
            shared = {"architecture": "roberta", "length": 128, **row}
            for part, own in table["glue"].items():
                rows[f"{name}-{part}"] = {**shared, "dataset": ["nyu-mll/glue", part], **own}
        else:
            rows[name] = rows.get(row.pop("like", ""), {}) | row
    kinds: dict[str, Any] = {"lora": lambda x: Lora(**x), "plan": lambda x: Plan(**x)}
    kinds |= {"label": lambda x: x or None, "dataset": tuple, "text": tuple, "targets": tuple}
    for name, row in rows.items():
        fields = {key: kinds[key](value) if key in kinds else value for key, value in row.items()}
        yield Preset(name=name, **{**table["architectures"][row["architecture"]], **fields})


PRESETS: dict[str, Preset] = {row.name: row for row in _presets()}


def find_preset(name: "str | Preset") -> Preset:
    """Returns the preset of this name; ``ValueError`` lists the names there are."""
    if isinstance(name, Preset):
        return name
    check(isinstance(name, str) and name in PRESETS, "preset", name, "one of " + ", ".join(PRESETS))
    return PRESETS[name]


def task(name: "str | Preset", model: Any = None, dataset: Any = None, **options: Any) -> Task:
    """Builds the preset's task.

    Args:
        name: a preset or its name.
        model, dataset: in the place of the paper's: a folder, a name or a module; data with the
            columns of the paper's. A data set is needed where the paper's comes as a folder.
        options: of `tasks.hub`, over the preset's. The test part of the paper's own data is public;
            that of yours is not unless ``public_test=True`` says so.

    Raises: ``ValueError`` where the data are a folder and none is given; ``ImportError`` where
        `datasets` is missing.
    Guarantees: test_presets.py::test_every_preset_trains_end_to_end_at_a_toy_size.
    """
    row, own = find_preset(name), dataset is None
    if own:
        words = "a folder with a folder of images for each class: it is not on the hub"
        check(bool(row.dataset), "dataset", None, words)
        try:
            from datasets import load_dataset  # type: ignore[import-not-found]  # an extra
        except ImportError as error:
            words = f"{row.name} needs datasets: run `{install_command('hub')}`"
            raise ImportError(words) from error
        dataset = load_dataset(*row.dataset)
    given = {key: getattr(row, key) for key in ("clients", "alpha", "test", "name", "label")}
    given["shares"] = row.shares.get(str(row.classes))
    given |= {"image": row.image} if row.image else {"text": row.text, "max_length": row.length}
    given |= {"head": OWN_HEAD if row.head else None, "public_test": own, **options}
    if "targets" not in given:
        given["targets"] = _targets(row, _on_meta(row))
    return hub(row.model if model is None else model, dataset, **given)


def privacy(name: "str | Preset", task: Task, plan: Plan | None = None) -> Privacy | None:
    """Calibrates the preset's budget; ``None`` where the paper has none.

    A published delta that is not below 1 / examples is halved beyond that: it would promise too
    little, and `Privacy` refuses it.

    Args: name: a preset or its name. task: of the run. plan: of the run, if not the preset's.
    Guarantees: test_presets.py::test_budgets_can_be_met_at_full_size.
    """
    row = find_preset(name)
    if row.epsilon is None:
        return None
    # Without sampling the tight accountant is exact and fast; with it, slow for 10,000 steps.
    by_example = row.unit == "example"
    delta = min(row.delta, 0.5 / sum(task.sizes)) if by_example else row.delta
    terms: dict[str, Any] = {"unit": row.unit, "trust": row.trust, "clip_norm": row.clip}
    budget = Privacy(**terms, delta=delta, accountant="rdp" if by_example else "prv")
    return budget.calibrate(epsilon=row.epsilon, task=task, plan=plan or row.plan)


def _on_meta(row: Preset) -> nn.Module:
    """Builds the real architecture at its real size, without values."""
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
    return tuple(target for target in row.targets if matching_modules(model, [target]))


def shapes(name: "str | Preset") -> Task:
    """Builds the preset's task with shapes alone: no weights, examples that take no memory."""
    row = find_preset(name)
    model, size = _on_meta(row), row.config.get("image_size", 0)
    number, whole = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    each, text = row.examples // row.clients, whole.expand(row.examples // row.clients, row.length)
    x = number.expand(each, 3, size, size) if row.image else {"input_ids": text}
    y = whole.expand(each) if row.label else text
    return Task(
        name=row.name,
        model=model,
        targets=_targets(row, model),
        clients=((x, y),) * row.clients,
        test=(x, y),
        head=default_head(model) if row.head else None,
        loss=cross_entropy if row.label else next_token_loss,
        metrics=select_metrics(kind="classification" if row.label else "causal"),
        info={"task": row.name},
    )


def dry_run(name: "str | Preset") -> Cost:
    """Counts what the preset costs, on shapes alone; nothing is downloaded.

    Guarantees: test_presets.py::test_every_architecture_fits_its_shapes.
    """
    row = find_preset(name)

    def of(layers: int | None) -> Cost:
        fewer = {} if layers is None else {"num_hidden_layers": layers}
        some = replace(row, config={**row.config, **fewer})
        return cost(shapes(some), methods.get(row.method), row.lora, row.plan)

    layers = row.config.get("num_hidden_layers")  # none where they differ in shape
    return of(None) if layers is None else cost_of_layers(of, layers)
