"""Options of PEFT's LoraConfig on real architectures: each example's gradient beside plain PEFT.

Used by the tests, and by ``python scripts/lora_options.py``, which writes the table of
docs/lora_options.md.
"""

import copy
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import toy_hubs
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

import fedlora_lab as fl
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.lora import peft as adapters
from fedlora_lab.lora import per_example
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy.mechanism import row_norms
from fedlora_lab.tasks.architectures import default_targets
from fedlora_lab.tasks.task import Task, concatenate, head_names, take

LIMIT = 1e-5
ARCHITECTURES = ("bert", "roberta", "distilbert", "gpt2", "vit", "swin", "llama")
OPTIONS: dict[str, dict[str, Any]] = {
    "target_modules, a list": {"target_modules": ["QUERY"]},
    "target_modules, a regular expression": {"target_modules": r".*\.0\..*(QUERY|dense|fc1|c_fc)"},
    'target_modules="all-linear"': {"target_modules": "all-linear"},
    "exclude_modules": {"target_modules": "all-linear", "exclude_modules": ["QUERY"]},
    "layers_to_transform": {"target_modules": ["QUERY"], "layers_to_transform": [0]},
    "rank_pattern": {"target_modules": "all-linear", "rank_pattern": {"QUERY": 4}},
    "alpha_pattern": {"target_modules": "all-linear", "alpha_pattern": {"QUERY": 5}},
    "use_rslora": {"use_rslora": True},
    'init_lora_weights="gaussian"': {"init_lora_weights": "gaussian"},
    'init_lora_weights="pissa"': {"init_lora_weights": "pissa"},
    'init_lora_weights="pissa_niter_4"': {"init_lora_weights": "pissa_niter_4"},
    'init_lora_weights="olora"': {"init_lora_weights": "olora"},
    "init_lora_weights=False": {"init_lora_weights": False},
    'init_lora_weights="eva"': {"init_lora_weights": "eva"},
    "modules_to_save, the classifier": {"modules_to_save": ["HEAD"]},
    "modules_to_save, two linear maps": {"modules_to_save": ["HEAD", "LINEAR"]},
    "modules_to_save, a norm": {"modules_to_save": ["NORM"]},
    "lora_dropout": {"lora_dropout": 0.3},
    'bias="lora_only"': {"bias": "lora_only"},
    'bias="all"': {"bias": "all"},
    "use_dora": {"use_dora": True},
    "use_dora, dropout and biases": {"use_dora": True, "lora_dropout": 0.3, "bias": "all"},
    "embeddings as targets": {"target_modules": ["EMBEDDING"]},
}
"""What is tried, by the words of the table. Capitals stand for names of each architecture."""


@cache
def task_of(kind: str) -> Task:
    """Three clients; no head by default. Llama and its like are trained on their own texts."""
    if kind == "llama":
        texts, folder = toy_hubs.texts(), Path(tempfile.mkdtemp()) / "llama"
        fl.tasks.tiny("llama", folder, texts["text"], tie_word_embeddings=False)
        return fl.tasks.hub(folder, texts, text="text", clients=3, public_test=True)
    return toy_hubs.varied(kind, True)


def names_of(task: Task) -> dict[str, str]:
    """What the capitals of `OPTIONS` stand for in this model."""
    query, kinds = default_targets(task.model)[0], dict(task.model.named_modules())
    linear = [n for n, m in kinds.items() if type(m) is nn.Linear and not n.endswith(query)]
    inner = [n for n in linear if ".0." in n or n.startswith("pre_")]
    norms = [n for n, m in kinds.items() if "norm" in type(m).__name__.lower()]
    embeddings = [n for n, m in kinds.items() if type(m) in (nn.Embedding, nn.Conv2d)]
    return {
        "QUERY": query,
        "HEAD": head_names(task.head)[-1] if task.head else "lm_head",
        "LINEAR": (inner or linear)[0],
        "NORM": norms[0],
        "EMBEDDING": embeddings[0],
    }


def config_of(task: Task, option: str, **more: Any) -> LoraConfig:
    """The LoraConfig of a row of the table."""
    names = names_of(task)

    def named(value: Any) -> Any:
        if isinstance(value, str):
            for word, name in names.items():
                value = value.replace(word, name)
            return value
        if isinstance(value, list):
            return [named(x) for x in value]
        return {named(k): x for k, x in value.items()} if isinstance(value, dict) else value

    fields = {key: named(value) for key, value in OPTIONS[option].items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT, about settings that are not given
        return LoraConfig(r=2, lora_alpha=3, **fields, **more)


class Kept(nn.Module):
    """Multiplies by what dropout keeps, in the place of PEFT's own draw."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask[: x.numel() // x.shape[-1]].reshape(x.shape)


def plain_peft(kind: str, task: Task, config: LoraConfig, frozen: Any) -> nn.Module:
    """The model as PEFT alone adapts it, in evaluation mode but for dropout of adapters."""
    config, base = copy.deepcopy(config), copy.deepcopy(task.model)
    start = str(config.init_lora_weights)
    if start.startswith("pissa_niter") or (kind == "gpt2" and start == "olora"):
        # PEFT draws its random SVD anew each time; and it decomposes a transposed Conv1D as it is
        # stored, which fits no shape: B A is not W. So the rest of the weight is given.
        config.init_lora_weights = True
        for layer, weight in frozen.items():
            given = weight.T if kind == "gpt2" else weight
            base.get_parameter(f"{layer}.weight").data.copy_(given)
    config.target_modules = config.target_modules or list(task.targets)  # type: ignore[assignment]
    if config.modules_to_save is None and task.head:
        config.modules_to_save = list(head_names(task.head))
    if "classifier" in head_names(task.head) and config.target_modules == "all-linear":
        config.exclude_modules = [*(config.exclude_modules or ()), "pre_classifier"]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, config).eval()
    for module in model.modules():
        if isinstance(module, LoraLayer) and config.lora_dropout:
            module.training = True
            module.lora_dropout["default"] = Kept()  # type: ignore[index]
    return model


def parameter_of(model: nn.Module, key: ParamKey) -> nn.Parameter:
    """PEFT's parameter in the place of a tensor."""
    named, path = dict(model.named_parameters()), f"base_model.model.{key.layer}"
    ends = {
        "bias": [".base_layer.bias", ".modules_to_save.default.bias", ".bias"],
        "magnitude": [".lora_magnitude_vector.default.weight"],
    }
    for end in ends.get(key.side, [f".lora_{key.side}.default.weight"]):
        if path + end in named:
            return named[path + end]
    parts = path.split(".")  # of a head: the wrapper stands somewhere in its path
    for i in range(len(parts), 2, -1):
        name = ".".join([*parts[:i], "modules_to_save.default", *parts[i:]])
        if name in named:
            return named[name]
    raise KeyError(key)


def measure(kind: str, option: str) -> float | str:
    """The largest gap between an example's gradient in a batch of three clients and that of plain
    PEFT on the example alone, over its norm; or the line in which the option is refused.
    """
    task = task_of(kind)
    config = config_of(task, option)
    try:
        lora = fl.Lora.from_peft(config)
        adapted = adapters.adapt(task.model, task.targets, task.head, lora)
    except ValueError as error:
        return str(error)
    owner, streams = torch.tensor([2, 0, 0]), Streams(4)
    start = adapters.initial_values(adapted, streams)
    bank = {
        key: x + 0.2 * streams.normal((3, *x.shape), "change", i)
        for i, (key, x) in enumerate(start.items())
    }
    x, y = concatenate(task.clients)
    index = torch.arange(len(owner))
    data = take(x, index), y[index]

    def uniform(layer: int, i: int, shape: tuple[int, ...]) -> Tensor:
        return streams.uniform(shape, "masks", layer, i)

    parts = task, adapted, bank, tuple(bank)
    with adapted.dropping(uniform, len(owner)):
        found = per_example.per_example_gradients(*parts, data, owner)
    model = plain_peft(kind, task, config, adapted.weights)
    places = {key: parameter_of(model, key) for key in bank}
    for place in places.values():
        place.requires_grad_()
    layers = [key.layer for key in bank if key.side == "A"]
    gaps = []
    for i, k in enumerate(owner.tolist()):
        for key, place in places.items():
            place.data.copy_(bank[key][k])
        for number, layer in enumerate(layers if config.lora_dropout else ()):
            module: Any = model.get_submodule(f"base_model.model.{layer}")
            module.lora_dropout["default"].mask = _mask(uniform, number, i, bank, layer, config)
        one = torch.tensor([i])
        loss = task.loss(task.forward(model, take(data[0], one)), data[1][one])
        alone = torch.autograd.grad(loss.sum(), list(places.values()), allow_unused=True)
        pairs = zip(places.items(), alone, strict=True)
        alone = {key: torch.zeros_like(p)[None] if g is None else g[None] for (key, p), g in pairs}
        gap = row_norms({key: found[key][one] - alone[key] for key in alone})
        gaps.append(float(gap / row_norms(alone)))
    return float(np.max(gaps))


def _mask(uniform: Any, number: int, i: int, bank: Any, layer: str, config: LoraConfig) -> Tensor:
    """What dropout keeps of an example's inputs: rows of numbers from the example's own stream, as
    many as a text may have tokens.
    """
    d_in = bank[ParamKey("A", layer)].shape[-1]
    kept = uniform(number, i, (512, d_in)) >= config.lora_dropout
    return kept.float() / (1 - config.lora_dropout)
